//! Phi-3, Phi-3.5 and Phi-4-mini (text): Llama with q, k and v stored in one tensor, gate and up in another, a rotary
//! embedding of a part of each head, and LongRoPE.

use moi_formats::RowBlocks;

use crate::{
    Architecture, AttentionKind, DecoderConfig, FeedForwardKind, ModelError, RopeScaling, TensorSource,
    architecture::{Names, ignored_by_llama, with_prefix},
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::of_layer,
    rope_fields::{RopeContext, rope_with},
};

/// Defaults of transformers' `Phi3Config`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    context_length: 4096,
    norm_eps: 1e-5,
    ..LLAMA
};
const ORIGINAL_CONTEXT: f64 = 4096.0;

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let heads = family::heads(fields, &DEFAULTS)?;
    let context = family::rope_context(fields, &DEFAULTS, heads)?;
    let context = RopeContext {
        theta: fields.or("rope_theta", DEFAULTS.theta)?,
        partial: fields.or("partial_rotary_factor", 1.0)?,
        partly: true,
        original: Some(fields.or("original_max_position_embeddings", ORIGINAL_CONTEXT)?),
        ..context
    };
    // The class supports one scaling, which its first checkpoints call by two other names.
    let kind = |field: &str| {
        let parameters = fields.value(field)?;
        parameters.get("rope_type").or_else(|| parameters.get("type"))?.as_str()
    };
    if let Some(other) = kind("rope_scaling").or_else(|| kind("rope_parameters"))
        && !["default", "longrope", "su", "yarn"].contains(&other)
    {
        return Err(fields.unsupported("rope_type", &other.into(), "default, longrope"));
    }
    let rope = rope_with(fields, RopeContext { yarn_is_longrope: true, ..context })?;
    let recompute_beyond = match rope.scaling {
        // As in transformers' `Phi3ForCausalLM.prepare_inputs_for_generation`.
        RopeScaling::LongRope { original_max_position_embeddings: original, .. } => Some(original as usize),
        _ => None,
    };
    let decoder = family::decoder_with_rope(fields, &DEFAULTS, rope)?;
    let mut decoder = DecoderConfig { recompute_beyond, ..decoder };
    let window = fields.get("sliding_window")?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
        attention.window = window;
    }
    let names = Names {
        source,
        respelled: |name| with_prefix("model.", name),
        ignored: ignored_by_llama,
        ..Names::LLAMA
    };
    Architecture::new(decoder, names)
}

fn source(config: &DecoderConfig, name: &str) -> TensorSource {
    part(config, name).unwrap_or_else(|| TensorSource::whole(name))
}

/// The part of a fused tensor that is this parameter.
fn part(config: &DecoderConfig, name: &str) -> Option<TensorSource> {
    let (index, module, kind) = of_layer(name)?;
    let layer = config.layers.get(index)?;
    let (Some(AttentionKind::Heads(a)), Some(FeedForwardKind::Mlp(mlp))) =
        (&layer.attention, &layer.feed_forward)
    else {
        return None;
    };
    let (q, kv, inner) = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, mlp.intermediate_size);
    let (fused, rows) = match module {
        "self_attn.q_proj" => ("self_attn.qkv_proj", RowBlocks::range(0, q, q + 2 * kv)),
        "self_attn.k_proj" => ("self_attn.qkv_proj", RowBlocks::range(q, kv, q + 2 * kv)),
        "self_attn.v_proj" => ("self_attn.qkv_proj", RowBlocks::range(q + kv, kv, q + 2 * kv)),
        "mlp.gate_proj" => ("mlp.gate_up_proj", RowBlocks::range(0, inner, 2 * inner)),
        "mlp.up_proj" => ("mlp.gate_up_proj", RowBlocks::range(inner, inner, 2 * inner)),
        _ => return None,
    };
    let name = format!("model.layers.{index}.{fused}.{kind}");
    Some(TensorSource { rows: Some(rows), ..TensorSource::whole(name) })
}
