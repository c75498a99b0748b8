//! Qwen3 with a mixture of experts, such as Qwen3-30B-A3B.

use crate::{
    Architecture, ExpertsConfig, ModelError, QkSpan, RouterConfig,
    architecture::Names,
    family::{self, Defaults},
    fields::Fields,
    pages::qwen2,
};

/// Defaults of transformers' `Qwen3MoeConfig`, which has no width of heads.
const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 6144,
    num_layers: 24,
    num_kv_heads: Some(4),
    ..qwen2::DEFAULTS
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let window = match fields.or("use_sliding_window", false)? {
        true => fields.nullable("sliding_window", Some(4096))?,
        false => None,
    };
    decoder.norm_queries_and_keys(QkSpan::Head);
    decoder.attentions_mut().for_each(|(_, attention)| attention.window = window);
    let num_experts = fields.either("num_local_experts", "num_experts", 128usize)?;
    let experts = ExpertsConfig {
        num_experts,
        num_per_token: fields.or("num_experts_per_tok", 8)?,
        router: RouterConfig::softmax(fields.or("norm_topk_prob", false)?),
        latent: None,
        shared: None,
        expert: family::gated_mlp(fields, &DEFAULTS, fields.or("moe_intermediate_size", 768)?)?,
    };
    let dense: Vec<usize> = fields.or("mlp_only_layers", Vec::new())?;
    let step: usize = fields.or("decoder_sparse_step", 1)?;
    decoder
        .give_experts(&experts, |i| num_experts > 0 && (i + 1).is_multiple_of(step) && !dense.contains(&i));
    Architecture::new(decoder, Names::LLAMA)
}
