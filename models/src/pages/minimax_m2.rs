//! MiniMax M2: Mixtral's names, with norms over all of q and all of k, a rotary embedding of a part of each head, and
//! experts that are picked by corrected sigmoids.

use std::borrow::Cow;

use crate::{
    Architecture, ExpertsConfig, ModelError, QkSpan, RouterConfig, TensorSource,
    architecture::{Names, ignored_by_llama},
    family::{self, Defaults, LLAMA},
    fields::Fields,
    pages::mixtral,
};

/// Defaults of transformers' `MiniMaxM2Config`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 200_064,
    hidden_size: 3072,
    intermediate_size: 1536,
    num_layers: 62,
    num_heads: 48,
    num_kv_heads: Some(8),
    head_dim: Some(128),
    context_length: 196_608,
    theta: 5e6,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    // Published configs have these fields, but the class does not.
    fields.supports("scoring_func", &["sigmoid".into()], "sigmoid")?;
    fields.supports("use_routing_bias", &[true.into()], "true")?;
    fields.supports("use_qk_norm", &[true.into()], "true")?;
    fields.supports("qk_norm_type", &["per_layer".into()], "per_layer")?;
    fields.supports("shared_intermediate_size", &[0.into()], "0")?;
    let head_dim = family::heads(fields, &DEFAULTS)?.head_dim;
    let partial = match fields.get::<usize>("rotary_dim")? {
        Some(turned) => turned as f64 / head_dim.max(1) as f64,
        None => 1.0,
    };
    let mut decoder = family::decoder_partly(fields, &DEFAULTS, partial)?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
    }
    decoder.norm_queries_and_keys(QkSpan::Projection);
    let num_experts = fields.either("num_experts", "num_local_experts", 256usize)?;
    let experts = ExpertsConfig {
        num_experts,
        num_per_token: fields.or("num_experts_per_tok", 8)?,
        router: RouterConfig::corrected_sigmoid(true),
        expert: family::gated_mlp(
            fields,
            &DEFAULTS,
            fields.or("intermediate_size", DEFAULTS.intermediate_size)?,
        )?,
        latent: None,
        shared: None,
    };
    decoder.give_experts(&experts, |_| true);
    let names = Names {
        source: |_, name| TensorSource::whole(respelled(name)),
        respelled: |name| match mixtral::respelled(name) {
            Cow::Borrowed(name) => respelled(name),
            Cow::Owned(name) => respelled(&name).into_owned().into(),
        },
        ignored: |config, name| name.starts_with("model.mtp_modules.") || ignored_by_llama(config, name),
        ..Names::LLAMA
    };
    Architecture::new(decoder, names)
}

fn respelled(name: &str) -> Cow<'_, str> {
    let own = mixtral::own_name(name);
    match own.ends_with(".block_sparse_moe.correction") || own.ends_with(".gate.e_score_correction_bias") {
        true => own
            .replace(".block_sparse_moe.correction", ".block_sparse_moe.e_score_correction_bias")
            .replace(".gate.e_score_correction_bias", ".e_score_correction_bias")
            .into(),
        false => own,
    }
}
