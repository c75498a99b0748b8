//! LFM2: short convolutions in most layers, attention in the others; dense, or with experts after the first layers.

use crate::{
    Architecture, AttentionKind, DecoderConfig, ExpertsConfig, FeedForwardKind, MlpConfig, ModelError,
    QkSpan, RouterConfig, ShortConvConfig, TensorSource,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
};

/// Defaults of transformers' `Lfm2Config`.
const DENSE: Defaults = Defaults {
    vocab_size: 65_536,
    hidden_size: 2560,
    intermediate_size: 12_288,
    num_kv_heads: Some(8),
    context_length: 128_000,
    norm_eps: 1e-5,
    tied: true,
    theta: 1e6,
    ..LLAMA
};

/// Defaults of transformers' `Lfm2MoeConfig`.
const EXPERTS: Defaults = Defaults { hidden_size: 2048, intermediate_size: 7168, ..DENSE };

/// Reads the config.
pub(crate) fn dense(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let renamed = common(fields);
    let fields = &Fields::new(&renamed, fields.model_type)?;
    let mut decoder = decoder(fields, &DENSE)?;
    let width = width(fields)?;
    decoder.mlps_mut().for_each(|mlp| mlp.intermediate_size = width);
    Architecture::new(decoder, names())
}

/// Reads the config of a model with experts.
pub(crate) fn experts(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let renamed = common(fields);
    let fields = &Fields::new(&renamed, fields.model_type)?;
    let mut decoder = decoder(fields, &EXPERTS)?;
    let experts = ExpertsConfig {
        num_experts: fields.or("num_experts", 32)?,
        num_per_token: fields.or("num_experts_per_tok", 4)?,
        router: RouterConfig {
            correction: fields.or("use_expert_bias", true)?,
            sum_plus: 1e-6,
            factor: fields.or("routed_scaling_factor", 1.0)?,
            ..RouterConfig::corrected_sigmoid(fields.or("norm_topk_prob", true)?)
        },
        expert: mlp(fields.or("moe_intermediate_size", 1792)?),
        latent: None,
        shared: None,
    };
    let dense: usize = fields.or("num_dense_layers", 2)?;
    decoder.give_experts(&experts, |i| i >= dense);
    Architecture::new(decoder, names())
}

/// The fields with Llama's names.
fn common(fields: &Fields<'_>) -> serde_json::Value {
    fields.renamed(&[("tie_embedding", "tie_word_embeddings"), ("norm_eps", "rms_norm_eps")])
}

fn mlp(intermediate_size: usize) -> MlpConfig {
    MlpConfig { intermediate_size, gated: true, bias: false, activation: crate::Activation::Silu }
}

fn decoder(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderConfig, ModelError> {
    let mut decoder = family::decoder(fields, defaults)?;
    decoder.norm_queries_and_keys(QkSpan::Head);
    let width = fields.or("intermediate_size", defaults.intermediate_size)?;
    for layer in &mut decoder.layers {
        layer.feed_forward = Some(FeedForwardKind::Mlp(mlp(width)));
    }
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
    }
    let conv =
        ShortConvConfig { kernel: fields.or("conv_L_cache", 3)?, bias: fields.or("conv_bias", false)? };
    let full: Option<Vec<usize>> = fields.get("full_attn_idxs")?;
    const STATES: &[&str] = &["conv", "short_conv"];
    let is_conv = |i: usize| full.as_ref().is_some_and(|full| !full.contains(&i));
    let convs = fields.layers_with_states(decoder.layers.len(), STATES, is_conv)?;
    for (layer, _) in decoder.layers.iter_mut().zip(convs).filter(|(_, is_conv)| *is_conv) {
        layer.attention = Some(AttentionKind::ShortConv(conv.clone()));
    }
    Ok(decoder)
}

/// The width of feed-forward blocks. If automatically adjusted: two thirds of the field, times a factor, rounded up
/// to a multiple.
fn width(fields: &Fields<'_>) -> Result<usize, ModelError> {
    let width: usize = match fields.get("block_ff_dim")? {
        Some(width) => width,
        None => fields.or("intermediate_size", DENSE.intermediate_size)?,
    };
    if !fields.or("block_auto_adjust_ff_dim", true)? {
        return Ok(width);
    }
    let factor: f64 = fields.or("block_ffn_dim_multiplier", 1.0)?;
    let multiple: usize = fields.or("block_multiple_of", 256)?;
    let adjusted = (factor * (2 * width.min(1 << 40) / 3) as f64) as usize;
    let width = adjusted.checked_next_multiple_of(multiple.max(1));
    width.ok_or_else(|| fields.wrong(format!("block_ffn_dim_multiplier is {factor}")))
}

fn names() -> Names {
    const OWN: &[(&str, &str)] = &[
        ("self_attn.in_proj.", "conv.in_proj."),
        ("self_attn.conv.", "conv.conv."),
        ("self_attn.out_proj.", "conv.out_proj."),
        ("self_attn.o_proj.", "self_attn.out_proj."),
        ("self_attn.q_norm.", "self_attn.q_layernorm."),
        ("self_attn.k_norm.", "self_attn.k_layernorm."),
        ("input_layernorm.", "operator_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("mlp.correction", "feed_forward.expert_bias"),
        ("mlp.", "feed_forward."),
        ("model.norm.", "model.embedding_norm."),
    ];
    let source = |_: &DecoderConfig, name: &str| {
        let name = renamed(name, OWN);
        TensorSource::whole(match name.contains(".feed_forward.") {
            false => name,
            true => name
                .replace(".gate_proj.", ".w1.")
                .replace(".down_proj.", ".w2.")
                .replace(".up_proj.", ".w3."),
        })
    };
    Names { source, ..Names::LLAMA }
}
