//! Qwen3.5, 3.6 and 3.8, and Qwen3-Next: three layers with a gated delta net alternate with one that has attention
//! with an output gate; dense, or with experts of which one is shared.

use crate::{
    Architecture, AttentionKind, DecoderConfig, DeltaNetConfig, ExpertsConfig, FeedForwardKind, GateKind,
    GateSpan, ModelError, Multimodal, NormKind, OutputGate, QkSpan, RouterConfig, RowBlocks,
    SharedExpertConfig, TensorSource,
    architecture::{Names, ignored_by_llama},
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::{of_layer, renamed},
};

/// Defaults of transformers' `Qwen3_5TextConfig`.
const DENSE: Defaults = Defaults {
    vocab_size: 248_320,
    intermediate_size: 12_288,
    num_heads: 16,
    num_kv_heads: Some(4),
    head_dim: Some(256),
    context_length: 32_768,
    ..LLAMA
};

/// Defaults of transformers' `Qwen3_5MoeTextConfig`.
const EXPERTS: Defaults = Defaults { hidden_size: 2048, num_layers: 40, num_kv_heads: Some(2), ..DENSE };

/// Defaults of transformers' `Qwen3NextConfig`.
const NEXT: Defaults = Defaults { vocab_size: 151_936, intermediate_size: 5632, num_layers: 48, ..EXPERTS };

const IGNORED: &[&str] = &["model.visual.", "mtp."];
const NESTED: Multimodal = Multimodal { body: "model.language_model.", head: "lm_head.", ignored: IGNORED };
const FLAT: Multimodal = Multimodal { body: "model.", head: "lm_head.", ignored: IGNORED };
const NAMES: Names = Names { source, ..Names::LLAMA };

/// Reads the text part of a multimodal config.
pub(crate) fn dense(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let fields = outer.nested("text_config")?;
    nested(outer, decoder(&fields, &DENSE)?)
}

/// Reads the config of that text model alone.
pub(crate) fn dense_text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(decoder(fields, &DENSE)?, Names { multimodal: Some(FLAT), ..NAMES })
}

/// Reads the text part of the config of a model with experts.
pub(crate) fn experts(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let fields = outer.nested("text_config")?;
    nested(outer, with_experts(&fields, &EXPERTS, 256, 8)?)
}

/// Reads the config of that text model alone.
pub(crate) fn experts_text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let decoder = with_experts(fields, &EXPERTS, 256, 8)?;
    Architecture::new(decoder, Names { multimodal: Some(FLAT), ..NAMES })
}

/// Reads the config of Qwen3-Next.
pub(crate) fn next(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = with_experts(fields, &NEXT, 512, 10)?;
    // Only this class has these fields.
    let normalized = fields.or("norm_topk_prob", true)?;
    let dense: Vec<usize> = fields.or("mlp_only_layers", Vec::new())?;
    let step: usize = fields.or("decoder_sparse_step", 1)?;
    let width = fields.or("intermediate_size", NEXT.intermediate_size)?;
    let mlp = family::gated_mlp(fields, &NEXT, width)?;
    for (index, layer) in decoder.layers.iter_mut().enumerate() {
        if !(index + 1).is_multiple_of(step) || dense.contains(&index) {
            layer.feed_forward = Some(FeedForwardKind::Mlp(mlp.clone()));
        } else if let Some(FeedForwardKind::Experts(experts)) = &mut layer.feed_forward {
            experts.router.normalized = normalized;
        }
    }
    let ignored =
        |config: &DecoderConfig, name: &str| name.starts_with("mtp.") || ignored_by_llama(config, name);
    Architecture::new(decoder, Names { source: source_of_next, ignored, ..Names::LLAMA })
}

fn nested(outer: &Fields<'_>, mut decoder: DecoderConfig) -> Result<Architecture, ModelError> {
    let inner = decoder.tie_word_embeddings;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", inner)?;
    Architecture::new(decoder, Names { multimodal: Some(NESTED), ..NAMES })
}

fn decoder(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderConfig, ModelError> {
    fields.supports("attn_output_gate", &[true.into()], "true")?;
    // With biases, the gate would have one, too.
    fields.supports("attention_bias", &[false.into()], "false")?;
    fields.supports("output_gate_type", &["swish".into(), "silu".into()], "swish")?;
    let mut decoder = family::decoder_partly(fields, defaults, 0.25)?;
    decoder.set_norm_kind(NormKind::RmsPlusOne);
    decoder.norm_queries_and_keys(QkSpan::Head);
    let gate = OutputGate { kind: GateKind::Sigmoid, span: GateSpan::Value };
    decoder.attentions_mut().for_each(|(_, attention)| attention.gate = Some(gate));
    let net = DeltaNetConfig {
        num_key_heads: fields.or("linear_num_key_heads", 16)?,
        num_value_heads: fields.or("linear_num_value_heads", 32)?,
        key_head_dim: fields.or("linear_key_head_dim", 128)?,
        value_head_dim: fields.or("linear_value_head_dim", 128)?,
        conv_kernel: fields.or("linear_conv_kernel_dim", 4)?,
        norm_eps: decoder.norm.eps,
    };
    let interval: usize = fields.or("full_attention_interval", 4)?;
    let is_full = |i: usize| (i + 1).is_multiple_of(interval);
    const STATES: &[&str] = &["linear_attention"];
    let recurrent = fields.layers_with_states(decoder.layers.len(), STATES, |i| !is_full(i))?;
    for (layer, _) in decoder.layers.iter_mut().zip(recurrent).filter(|(_, is_recurrent)| *is_recurrent) {
        layer.attention = Some(AttentionKind::DeltaNet(net.clone()));
    }
    Ok(decoder)
}

fn with_experts(
    fields: &Fields<'_>,
    defaults: &Defaults,
    num_experts: usize,
    num_per_token: usize,
) -> Result<DecoderConfig, ModelError> {
    let mut decoder = decoder(fields, defaults)?;
    let mlp = |width| family::gated_mlp(fields, defaults, width);
    let experts = ExpertsConfig {
        num_experts: fields.either("num_local_experts", "num_experts", num_experts)?,
        num_per_token: fields.or("num_experts_per_tok", num_per_token)?,
        router: RouterConfig::softmax(true),
        expert: mlp(fields.or("moe_intermediate_size", 512)?)?,
        latent: None,
        shared: Some(SharedExpertConfig {
            mlp: mlp(fields.or("shared_expert_intermediate_size", 512)?)?,
            gated: true,
        }),
    };
    decoder.give_experts(&experts, |_| true);
    Ok(decoder)
}

/// The names in layers with a delta net.
const OF_NET: &[(&str, &str)] = &[
    ("self_attn.conv.", "linear_attn.conv1d."),
    ("self_attn.a_log", "linear_attn.A_log"),
    ("self_attn.", "linear_attn."),
];

/// The tensor of a parameter, which may be fused with others in a delta net.
fn source(config: &DecoderConfig, name: &str) -> TensorSource {
    let Some((index, net)) = net_of(config, name) else { return of_attention(config, name) };
    let (keys, values) = (net.key_width(), net.value_width());
    let all = 2 * keys + values;
    let rows = match of_layer(name) {
        Some((_, "self_attn.in_proj_q", _)) => Some(RowBlocks::range(0, keys, all)),
        Some((_, "self_attn.in_proj_k", _)) => Some(RowBlocks::range(keys, keys, all)),
        Some((_, "self_attn.in_proj_v", _)) => Some(RowBlocks::range(2 * keys, values, all)),
        _ => None,
    };
    match rows {
        Some(_) => {
            let stored = format!("model.layers.{index}.linear_attn.in_proj_qkv.weight");
            TensorSource { rows, ..TensorSource::whole(stored) }
        }
        None => TensorSource::whole(renamed(name, OF_NET)),
    }
}

/// The tensor of a parameter where fused rows are grouped by key head.
fn source_of_next(config: &DecoderConfig, name: &str) -> TensorSource {
    let Some((index, net)) = net_of(config, name) else { return of_attention(config, name) };
    let (keys, each) = (net.key_head_dim, net.num_value_heads / net.num_key_heads);
    let values = each * net.value_head_dim;
    let part = |stored: &str, block: usize, start: usize, len: usize| TensorSource {
        rows: Some(RowBlocks { blocks: net.num_key_heads, block, start, len }),
        ..TensorSource::whole(format!("model.layers.{index}.linear_attn.{stored}.weight"))
    };
    let qkvz = |start, len| part("in_proj_qkvz", 2 * (keys + values), start, len);
    match of_layer(name) {
        Some((_, "self_attn.in_proj_q", _)) => qkvz(0, keys),
        Some((_, "self_attn.in_proj_k", _)) => qkvz(keys, keys),
        Some((_, "self_attn.in_proj_v", _)) => qkvz(2 * keys, values),
        Some((_, "self_attn.in_proj_z", _)) => qkvz(2 * keys + values, values),
        Some((_, "self_attn.in_proj_b", _)) => part("in_proj_ba", 2 * each, 0, each),
        Some((_, "self_attn.in_proj_a", _)) => part("in_proj_ba", 2 * each, each, each),
        _ => TensorSource::whole(renamed(name, OF_NET)),
    }
}

/// The layer and the delta net that a parameter belongs to, if it belongs to one.
fn net_of<'a>(config: &'a DecoderConfig, name: &str) -> Option<(usize, &'a DeltaNetConfig)> {
    let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let index: usize = index.parse().ok()?;
    match &config.layers.get(index)?.attention {
        Some(AttentionKind::DeltaNet(net)) if rest.starts_with("self_attn.") => Some((index, net)),
        _ => None,
    }
}

/// The tensor of a parameter outside of delta nets. The second half of each head in `q_proj` is the gate.
fn of_attention(config: &DecoderConfig, name: &str) -> TensorSource {
    let whole = || TensorSource::whole(name);
    let Some((index, module, kind)) = of_layer(name) else { return whole() };
    let start = match module {
        "self_attn.q_proj" => 0,
        "self_attn.gate_proj" => 1,
        _ => return whole(),
    };
    match config.layers.get(index).and_then(|layer| layer.attention.as_ref()) {
        Some(AttentionKind::Heads(attention)) => {
            let (blocks, len) = (attention.num_heads, attention.head_dim);
            let rows = Some(RowBlocks { blocks, block: 2 * len, start: start * len, len });
            TensorSource {
                rows,
                ..TensorSource::whole(format!("model.layers.{index}.self_attn.q_proj.{kind}"))
            }
        }
        _ => whole(),
    }
}
