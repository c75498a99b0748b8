//! ERNIE 4.5: Llama with a rotary embedding of interleaved pairs; with experts, these are picked by a corrected
//! softmax.

use crate::{
    Architecture, AttentionKind, DecoderConfig, ExpertsConfig, MlpConfig, ModelError, PairedRows,
    RouterConfig, TensorSource,
    architecture::{Names, ignored_by_llama},
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::{of_layer, renamed},
};

/// Defaults of transformers' `Ernie4_5Config`.
const DENSE: Defaults = Defaults {
    vocab_size: 103_424,
    hidden_size: 1024,
    intermediate_size: 3072,
    num_layers: 18,
    num_heads: 16,
    num_kv_heads: Some(2),
    head_dim: Some(128),
    context_length: 131_072,
    norm_eps: 1e-5,
    tied: true,
    theta: 5e5,
    ..LLAMA
};

/// Defaults of transformers' `Ernie4_5_MoeConfig`.
const EXPERTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 12_288,
    num_layers: 28,
    num_heads: 20,
    num_kv_heads: Some(4),
    head_dim: None,
    ..DENSE
};

const NAMES: Names = Names { source, ..Names::LLAMA };

/// Reads the config.
pub(crate) fn dense(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(decoder(fields, &DENSE)?, NAMES)
}

fn decoder(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderConfig, ModelError> {
    let mut decoder = family::decoder(fields, defaults)?;
    let bias = fields.or("use_bias", false)?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
    }
    decoder.mlps_mut().for_each(|mlp| mlp.bias = bias);
    Ok(decoder)
}

/// Reads the config of a model with experts.
pub(crate) fn experts(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = decoder(fields, &EXPERTS)?;
    let bias = fields.or("use_bias", false)?;
    decoder.head_bias = bias;
    let width = fields.or("moe_intermediate_size", 1536)?;
    let expert = MlpConfig { bias, ..family::gated_mlp(fields, &EXPERTS, width)? };
    let experts = ExpertsConfig {
        num_experts: fields.or("moe_num_experts", 64)?,
        num_per_token: fields.or("moe_k", 6)?,
        router: RouterConfig {
            correction: true,
            sum_at_least: fields.or("moe_norm_min", 1e-12)?,
            ..RouterConfig::softmax(true)
        },
        latent: None,
        shared: family::shared_experts(fields.or("moe_num_shared_experts", 2)?, &expert),
        expert,
    };
    let layers = decoder.layers.len();
    let first: usize = fields.or("moe_layer_start_index", 1)?;
    let last: i64 = fields.or("moe_layer_end_index", -1)?;
    let last = usize::try_from(last).unwrap_or(layers - 1);
    let interval: usize = fields.or("moe_layer_interval", 1)?;
    let is_sparse = |i: usize| (i + 1).is_multiple_of(interval) && (first..=last).contains(&i);
    decoder.give_experts(&experts, is_sparse);
    // Layers that predict several tokens at once are not read.
    let ignored = |config: &DecoderConfig, name: &str| {
        name.starts_with("model.mtp_") || name.starts_with("mtp") || ignored_by_llama(config, name)
    };
    Architecture::new(decoder, Names { ignored, ..NAMES })
}

fn source(config: &DecoderConfig, name: &str) -> TensorSource {
    const IN_LAYERS: &[(&str, &str)] = &[
        ("mlp.correction", "mlp.moe_statics.e_score_correction_bias"),
        ("mlp.shared_expert.", "mlp.shared_experts."),
    ];
    let turned =
        of_layer(name).filter(|(_, module, _)| ["self_attn.q_proj", "self_attn.k_proj"].contains(module));
    let pairs = turned.and_then(|(index, ..)| match &config.layers.get(index)?.attention {
        Some(AttentionKind::Heads(attention)) => Some(PairedRows { head: attention.head_dim, kept: 0 }),
        _ => None,
    });
    TensorSource { pairs, ..TensorSource::whole(renamed(name, IN_LAYERS)) }
}
