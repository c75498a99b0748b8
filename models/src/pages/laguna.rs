//! Laguna: a number of heads per layer, a softplus gate on the output of attention, and experts that are picked by
//! corrected sigmoids.

use serde_json::{Value, json};

use crate::{
    Architecture, DecoderConfig, ExpertsConfig, GateKind, GateSpan, ModelError, OutputGate, QkSpan,
    RopeConfig, RouterConfig, SharedExpertConfig, TensorSource,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
    rope_fields::{RopeContext, context_length, rope_of_kind},
};

/// Defaults of transformers' `LagunaConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 100_352,
    hidden_size: 2048,
    intermediate_size: 8192,
    num_layers: 40,
    num_heads: 48,
    num_kv_heads: Some(8),
    head_dim: Some(128),
    context_length: 131_072,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    fields.supports("moe_apply_router_weight_on_input", &[false.into()], "false")?;
    let with_rope = fields.with_rope(json!({
        "full_attention": { "rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0 },
    }));
    let fields = &Fields::new(&with_rope, fields.model_type)?;
    let [full, sliding] = ropes(fields)?;
    let context = context_length(fields.or("max_position_embeddings", DEFAULTS.context_length)?, &full);
    let mut decoder = family::decoder_with_rope(fields, &DEFAULTS, full)?;
    decoder.context_length = context;
    decoder.norm_queries_and_keys(QkSpan::Head);
    let layers = decoder.layers.len();
    let windows = fields.sliding_layers(layers, |_| false)?;
    decoder.slide(fields, &windows, fields.nullable("sliding_window", Some(512))?)?;
    let gate = OutputGate { kind: GateKind::Softplus, span: gate_span(fields) };
    for (_, attention) in decoder.attentions_mut() {
        attention.output_bias = attention.qkv_bias;
        attention.gate = Some(gate);
        if attention.window.is_some() {
            attention.rope = Some(sliding.clone());
        }
    }
    if let Some(heads) = fields.get::<Vec<usize>>("num_attention_heads_per_layer")? {
        fields.one_for_each_layer("num_attention_heads_per_layer", heads.len(), layers)?;
        decoder.attentions_mut().for_each(|(index, attention)| attention.num_heads = heads[index]);
    }
    give_experts(&mut decoder, fields)?;
    const OWN: &[(&str, &str)] = &[
        ("self_attn.gate_proj.", "self_attn.g_proj."),
        ("mlp.correction", "mlp.experts.e_score_correction_bias"),
    ];
    let names = Names { source: |_, name| TensorSource::whole(renamed(name, OWN)), ..Names::LLAMA };
    Architecture::new(decoder, names)
}

/// The rotary embeddings of the layers that see all positions, on half of each head, and of those with a window.
fn ropes(fields: &Fields<'_>) -> Result<[RopeConfig; 2], ModelError> {
    let context = family::rope_context(fields, &DEFAULTS, family::heads(fields, &DEFAULTS)?)?;
    let context = RopeContext { partly: true, ..context };
    Ok([
        rope_of_kind(fields, "full_attention", None, RopeContext { theta: 5e5, partial: 0.5, ..context })?,
        rope_of_kind(fields, "sliding_attention", None, RopeContext { theta: 1e4, ..context })?,
    ])
}

fn gate_span(fields: &Fields<'_>) -> GateSpan {
    match fields.value("gating") {
        None | Some(Value::Bool(true)) => GateSpan::Head,
        Some(value) if value.as_str() == Some("per-head") => GateSpan::Head,
        Some(_) => GateSpan::Value,
    }
}

fn give_experts(decoder: &mut DecoderConfig, fields: &Fields<'_>) -> Result<(), ModelError> {
    let mlp = |width| family::gated_mlp(fields, &DEFAULTS, width);
    let softcap: f64 = fields.or("moe_router_logit_softcapping", 0.0)?;
    let experts = ExpertsConfig {
        num_experts: fields.or("num_experts", 256)?,
        num_per_token: fields.or("num_experts_per_tok", 8)?,
        router: RouterConfig {
            softcap: (softcap > 0.0).then_some(softcap),
            factor: fields.or("moe_routed_scaling_factor", 1.0)?,
            ..RouterConfig::corrected_sigmoid(true)
        },
        expert: mlp(fields.or("moe_intermediate_size", 512)?)?,
        latent: None,
        shared: Some(SharedExpertConfig {
            mlp: mlp(fields.or("shared_expert_intermediate_size", 512)?)?,
            gated: false,
        }),
    };
    let sparse = fields.sparse_layers(decoder.layers.len(), |i| i > 0)?;
    decoder.give_experts(&experts, |i| sparse[i]);
    Ok(())
}
