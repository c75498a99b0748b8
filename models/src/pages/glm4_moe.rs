//! GLM-4.5 to 4.7: Qwen3's attention with a rotary embedding of a part of each head, and DeepSeek V3's experts.

use crate::{
    Architecture, DecoderConfig, ExpertGroups, ExpertsConfig, GroupScore, ModelError, QkSpan, RouterConfig,
    TensorSource,
    architecture::{Names, ignored_with_predictors},
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
};

/// Defaults of transformers' `Glm4MoeConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_552,
    intermediate_size: 10_944,
    num_layers: 46,
    num_heads: 96,
    num_kv_heads: Some(8),
    context_length: 131_072,
    norm_eps: 1e-5,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder_partly(fields, &DEFAULTS, 0.5)?;
    decoder.attentions_mut().for_each(|(_, attention)| attention.output_bias = false);
    if fields.or("use_qk_norm", false)? {
        decoder.norm_queries_and_keys(QkSpan::Head);
    }
    give_experts(&mut decoder, fields)?;
    const IN_LAYERS: &[(&str, &str)] = &[
        ("mlp.correction", "mlp.gate.e_score_correction_bias"),
        ("mlp.shared_expert.", "mlp.shared_experts."),
    ];
    let names = Names {
        source: |_, name| TensorSource::whole(renamed(name, IN_LAYERS)),
        ignored: ignored_with_predictors,
        ..Names::LLAMA
    };
    Architecture::new(decoder, names)
}

fn give_experts(decoder: &mut DecoderConfig, fields: &Fields<'_>) -> Result<(), ModelError> {
    let expert = family::gated_mlp(fields, &DEFAULTS, fields.or("moe_intermediate_size", 1408)?)?;
    let (groups, kept): (usize, usize) = (fields.or("n_group", 1)?, fields.or("topk_group", 1)?);
    let num_experts = fields.either("num_local_experts", "n_routed_experts", 128usize)?;
    let experts = ExpertsConfig {
        num_experts,
        num_per_token: fields.or("num_experts_per_tok", 8)?,
        router: RouterConfig {
            // A single group is no restriction.
            groups: (groups != 1).then_some(ExpertGroups { count: groups, kept, score: GroupScore::BestTwo }),
            sum_plus: 1e-20,
            factor: fields.or("routed_scaling_factor", 1.0)?,
            ..RouterConfig::corrected_sigmoid(fields.or("norm_topk_prob", true)?)
        },
        latent: None,
        shared: family::shared_experts(fields.or("n_shared_experts", 1)?, &expert),
        expert,
    };
    let dense: usize = fields.or("first_k_dense_replace", 1)?;
    decoder.give_experts(&experts, |i| i >= dense);
    Ok(())
}
