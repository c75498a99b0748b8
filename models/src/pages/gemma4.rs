//! Gemma 4: Gemma 3 with norm weights that are not 1 + w, a factor per layer, other heads in the layers that see all
//! positions, and a norm of values.
//!
//! There are three forms: dense; with experts in parallel to each feed-forward network; and E, whose layers have
//! inputs of their own and whose last layers use keys and values of earlier ones.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use crate::{
    Architecture, AttentionConfig, AttentionKind, DecoderConfig, ExpertsConfig, FeedForwardKind, MlpConfig,
    ModelError, Multimodal, NormPlace, PerLayerInputs, QkSpan, RopeConfig, RouterConfig, TensorSource,
    architecture::{Names, ignored_by_llama},
    family::{self, Defaults, Heads, LLAMA},
    fields::Fields,
    names::{of_layer, renamed},
    rope_fields::{RopeContext, rope_of_kind},
};

/// The defaults of one of the two config classes.
#[derive(Clone, Copy)]
struct Form {
    defaults: Defaults,
    window: usize,
    per_layer_width: usize,
}

/// Defaults of transformers' `Gemma4TextConfig`.
const GEMMA4: Form = Form {
    defaults: Defaults {
        vocab_size: 262_144,
        hidden_size: 2304,
        intermediate_size: 9216,
        num_layers: 30,
        num_heads: 8,
        num_kv_heads: Some(4),
        head_dim: Some(256),
        context_length: 131_072,
        tied: true,
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        ..LLAMA
    },
    window: 512,
    per_layer_width: 256,
};

/// Defaults of transformers' `Gemma4UnifiedTextConfig`.
const UNIFIED: Form = Form {
    defaults: Defaults { context_length: 262_144, ..GEMMA4.defaults },
    window: 1024,
    per_layer_width: 0,
};

const IGNORED: &[&str] = &[
    "model.vision_tower.",
    "model.audio_tower.",
    "model.embed_vision.",
    "model.embed_audio.",
    "model.vision_embedder.",
];
const NESTED: Multimodal = Multimodal { body: "model.language_model.", head: "lm_head.", ignored: IGNORED };
const FLAT: Multimodal = Multimodal { body: "model.", head: "lm_head.", ignored: IGNORED };
const NAMES: Names = Names { source, ignored, ..Names::LLAMA };

/// Reads the text part of a multimodal config.
pub(crate) fn multimodal(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    nested(outer, GEMMA4)
}

/// Reads the config of that text model alone.
pub(crate) fn text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(decoder(fields, GEMMA4)?, Names { multimodal: Some(FLAT), ..NAMES })
}

/// Reads the text part of the config of a unified model.
pub(crate) fn unified(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    nested(outer, UNIFIED)
}

/// Reads the config of that text model alone.
pub(crate) fn unified_text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(decoder(fields, UNIFIED)?, Names { multimodal: Some(FLAT), ..NAMES })
}

fn nested(outer: &Fields<'_>, form: Form) -> Result<Architecture, ModelError> {
    let fields = outer.nested("text_config")?;
    let mut decoder = decoder(&fields, form)?;
    let inner = decoder.tie_word_embeddings;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", inner)?;
    Architecture::new(decoder, Names { multimodal: Some(NESTED), ..NAMES })
}

fn decoder(fields: &Fields<'_>, form: Form) -> Result<DecoderConfig, ModelError> {
    let with_rope = fields.with_rope(json!({
        "full_attention": { "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 1e4 },
    }));
    let fields = &Fields::new(&with_rope, fields.model_type)?;
    let local = family::heads(fields, &form.defaults)?;
    let sliding_rope = rope(fields, &form.defaults, local, "sliding_attention", 1e4)?;
    let mut decoder = family::decoder_with_rope(fields, &form.defaults, sliding_rope)?;
    let layers = decoder.layers.len();
    decoder.embedding_scale = (decoder.hidden_size as f64).sqrt();
    decoder.logit_softcap = fields.get("final_logit_softcapping")?;
    decoder.norm_queries_and_keys(QkSpan::Head);
    for layer in &mut decoder.layers {
        layer.norms = NormPlace::Around;
        layer.output_scale = true;
    }
    let mut sliding = fields.sliding_layers(layers, |i| !(i + 1).is_multiple_of(6))?;
    // The class gives the last layer no window, whatever the list says.
    sliding.iter_mut().last().into_iter().for_each(|last| *last = false);
    decoder.slide(fields, &sliding, fields.nullable("sliding_window", Some(form.window))?)?;
    let eps = decoder.norm.eps;
    for (_, attention) in decoder.attentions_mut() {
        (attention.scale, attention.value_norm) = (1.0, Some(eps));
    }
    widen_full_layers(&mut decoder, fields, &form.defaults)?;
    share_caches(&mut decoder, fields)?;
    if fields.or("enable_moe_block", false)? {
        add_experts(&mut decoder, fields)?;
    }
    decoder.per_layer_inputs = per_layer_inputs(&decoder, fields, form)?;
    Ok(decoder)
}

fn rope(
    fields: &Fields<'_>,
    defaults: &Defaults,
    heads: Heads,
    kind: &str,
    theta: f64,
) -> Result<RopeConfig, ModelError> {
    let context = family::rope_context(fields, defaults, heads)?;
    rope_of_kind(fields, kind, None, RopeContext { theta, ..context })
}

/// The options that a config sets for a single layer.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerOverrides {
    head_dim: Option<usize>,
    num_key_value_heads: Option<usize>,
}

/// Sets the heads of the layers that see all positions, and their rotary embedding.
fn widen_full_layers(
    decoder: &mut DecoderConfig,
    fields: &Fields<'_>,
    defaults: &Defaults,
) -> Result<(), ModelError> {
    let keys_are_values = fields.or("attention_k_eq_v", false)?;
    let head_dim: usize = fields.or("global_head_dim", 512)?;
    let kv_heads = fields.get::<usize>("num_global_key_value_heads")?.filter(|_| keys_are_values);
    let by_layer = fields.get::<BTreeMap<usize, LayerOverrides>>("per_layer_config")?;
    for (index, attention) in decoder.attentions_mut() {
        let is_full = attention.window.is_none();
        let own = by_layer.as_ref().and_then(|layers| layers.get(&index));
        let (own_head_dim, own_kv_heads) = match &by_layer {
            Some(_) => (own.and_then(|own| own.head_dim), own.and_then(|own| own.num_key_value_heads)),
            None if is_full => (Some(head_dim), kv_heads),
            None => (None, None),
        };
        attention.head_dim = own_head_dim.unwrap_or(attention.head_dim);
        attention.num_kv_heads = own_kv_heads.unwrap_or(attention.num_kv_heads);
        attention.keys_are_values = is_full && keys_are_values;
        let &mut AttentionConfig { num_heads, num_kv_heads, head_dim, .. } = attention;
        let heads = Heads { num_heads, num_kv_heads, head_dim };
        let (kind, theta) = if is_full { ("full_attention", 1e6) } else { ("sliding_attention", 1e4) };
        attention.rope = Some(rope(fields, defaults, heads, kind, theta)?);
    }
    Ok(())
}

/// Lets the last layers use keys and values of the last earlier layer of their kind.
fn share_caches(decoder: &mut DecoderConfig, fields: &Fields<'_>) -> Result<(), ModelError> {
    let (layers, shared) = (decoder.layers.len(), fields.or("num_kv_shared_layers", 0usize)?);
    let is_double = fields.or("use_double_wide_mlp", false)?;
    if shared == 0 {
        return Ok(());
    }
    let Some(first) = layers.checked_sub(shared).filter(|&first| first > 0) else {
        return Err(fields.wrong(format!("num_kv_shared_layers is {shared}, of {layers} layers")));
    };
    let windows: Vec<Option<usize>> =
        decoder.attentions_mut().map(|(_, attention)| attention.window).collect();
    for (index, attention) in decoder.attentions_mut().filter(|(index, _)| *index >= first) {
        let source = windows[..first].iter().rposition(|window| *window == windows[index]);
        let none = || {
            fields.wrong(format!("layer {index} has no earlier layer of its kind whose keys it could use"))
        };
        attention.shared_cache = Some(source.ok_or_else(none)?);
        attention.keys_are_values = false;
        attention.value_norm = None;
    }
    for mlp in decoder.mlps_mut().skip(first).filter(|_| is_double) {
        mlp.intermediate_size = mlp.intermediate_size.saturating_mul(2);
    }
    Ok(())
}

fn add_experts(decoder: &mut DecoderConfig, fields: &Fields<'_>) -> Result<(), ModelError> {
    let need = |name: &str| {
        fields.get::<usize>(name)?.ok_or_else(|| fields.wrong(format!("field `{name}` is missing")))
    };
    let (num_experts, num_per_token) = (need("num_experts")?, need("top_k_experts")?);
    let width = need("moe_intermediate_size")?;
    let eps = decoder.norm.eps;
    for layer in &mut decoder.layers {
        if let Some(FeedForwardKind::Mlp(mlp)) = layer.feed_forward.take() {
            let experts = ExpertsConfig {
                num_experts,
                num_per_token,
                router: RouterConfig {
                    expert_scales: true,
                    input_norm: Some(eps),
                    ..RouterConfig::softmax(true)
                },
                expert: MlpConfig { intermediate_size: width, ..mlp.clone() },
                latent: None,
                shared: None,
            };
            layer.feed_forward = Some(FeedForwardKind::MlpAndExperts(mlp, experts));
        }
    }
    Ok(())
}

fn per_layer_inputs(
    decoder: &DecoderConfig,
    fields: &Fields<'_>,
    form: Form,
) -> Result<Option<PerLayerInputs>, ModelError> {
    let width: usize =
        fields.nullable("hidden_size_per_layer_input", Some(form.per_layer_width))?.unwrap_or(0);
    if width == 0 {
        return Ok(None);
    }
    let vocab: usize = fields.or("vocab_size_per_layer_input", 262_144)?;
    if vocab != decoder.vocab_size {
        let what = format!("vocab_size_per_layer_input ({vocab}) is not vocab_size ({})", decoder.vocab_size);
        return Err(fields.wrong(what));
    }
    let (field, default) = form.defaults.activation;
    Ok(Some(PerLayerInputs { width, activation: fields.activation(field, default)? }))
}

fn source(_: &DecoderConfig, name: &str) -> TensorSource {
    const OWN: &[(&str, &str)] = &[
        ("mlp.mlp_post_norm.", "post_feedforward_layernorm_1."),
        ("mlp.experts_norm.", "pre_feedforward_layernorm_2."),
        ("mlp.experts_post_norm.", "post_feedforward_layernorm_2."),
        ("mlp.mlp.", "mlp."),
        ("mlp.experts.gate.", "router.proj."),
        ("mlp.experts.input_norm.weight", "router.scale"),
        ("mlp.experts.expert_scales", "router.per_expert_scale"),
        ("mlp.experts.experts.", "experts."),
        ("model.embed_tokens.per_layer.", "model.embed_tokens_per_layer."),
    ];
    TensorSource::whole(renamed(name, OWN))
}

/// Whether a tensor is not read: files also have keys and values that no layer uses.
fn ignored(config: &DecoderConfig, name: &str) -> bool {
    const UNUSED: &[&str] = &["self_attn.k_proj", "self_attn.v_proj", "self_attn.k_norm", "self_attn.v_norm"];
    let is_shared = |index: usize| match config.layers.get(index).and_then(|layer| layer.attention.as_ref()) {
        Some(AttentionKind::Heads(attention)) => attention.shared_cache.is_some(),
        _ => false,
    };
    of_layer(name).is_some_and(|(index, module, _)| UNUSED.contains(&module) && is_shared(index))
        || ignored_by_llama(config, name)
}
