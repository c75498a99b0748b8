//! Mixtral: Mistral with a mixture of experts in place of each feed-forward block.

use std::borrow::Cow;

use crate::{
    Architecture, ExpertsConfig, ModelError, RouterConfig, TensorSource,
    architecture::{Names, with_prefix},
    family::{self, Defaults},
    fields::Fields,
    pages::mistral,
};

/// Defaults of transformers' `MixtralConfig`.
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, theta: 1e6, ..mistral::DEFAULTS };

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let window = fields.get("sliding_window")?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
        attention.window = window;
    }
    let num_experts = fields.either("num_experts", "num_local_experts", 8usize)?;
    let experts = ExpertsConfig {
        num_experts,
        num_per_token: fields.or("num_experts_per_tok", 2)?,
        router: RouterConfig::softmax(true),
        latent: None,
        shared: None,
        expert: family::gated_mlp(
            fields,
            &DEFAULTS,
            fields.or("intermediate_size", DEFAULTS.intermediate_size)?,
        )?,
    };
    decoder.give_experts(&experts, |_| true);
    let names = Names { source: |_, name| TensorSource::whole(own_name(name)), respelled, ..Names::LLAMA };
    Architecture::new(decoder, names)
}

/// The name that most files use, for a name without the prefix, or for the decoder's own name.
pub(super) fn respelled(name: &str) -> Cow<'_, str> {
    match with_prefix("model.", name) {
        Cow::Borrowed(name) => own_name(name),
        Cow::Owned(name) => own_name(&name).into_owned().into(),
    }
}

/// `mlp.experts.3.up_proj` is `block_sparse_moe.experts.3.w3` in most files.
pub(super) fn own_name(name: &str) -> Cow<'_, str> {
    match name.contains(".mlp.") {
        false => name.into(),
        true => name
            .replace(".mlp.", ".block_sparse_moe.")
            .replace(".gate_proj.", ".w1.")
            .replace(".down_proj.", ".w2.")
            .replace(".up_proj.", ".w3.")
            .into(),
    }
}
