//! Gemma 3, text: Gemma 2 without the caps, with a norm on each head of q and k, and five layers with a
//! sliding window and rotary positions of their own to each that sees everything.
//!
//! Multimodal checkpoints (`gemma3`) hold the same text model under a prefix; their images are not read.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::{
    Architecture, DecoderConfig, ModelError, NormPlace, QkNorm, RopeConfig, TensorSource,
    architecture::{Names, ignored_by_llama},
    family::{self, Defaults},
    fields::Fields,
    gemma::embed_like_gemma,
    gemma2,
    rope_fields::{RopeContext, rope_of_kind},
};

/// As `config.json` spells it.
pub const MODEL_TYPE: &str = "gemma3_text";
/// With a vision tower.
pub const MULTIMODAL_TYPE: &str = "gemma3";

/// transformers' `Gemma3TextConfig`.
const DEFAULTS: Defaults =
    Defaults { vocab_size: 262_208, context_length: 131_072, theta: 1e6, ..gemma2::DEFAULTS };
/// Base of the rotary positions of layers with a sliding window.
const LOCAL_THETA: f64 = 1e4;
/// Of the published multimodal checkpoints.
const PREFIX: &str = "language_model.";

/// Reads the config of a text model.
pub(crate) fn architecture(config: &Value) -> Result<Architecture, ModelError> {
    let fields = Fields::new(config, MODEL_TYPE)?;
    let mut decoder = decoder(&fields)?;
    decoder.logit_softcap = fields.get("final_logit_softcapping")?;
    Architecture::new(decoder, Names::LLAMA)
}

/// Reads the text part of the config of a multimodal one.
pub(crate) fn multimodal(config: &Value) -> Result<Architecture, ModelError> {
    let outer = Fields::new(config, MULTIMODAL_TYPE)?;
    let default = json!({});
    let text = outer.value("text_config").unwrap_or(&default);
    let fields = Fields::new(text, MULTIMODAL_TYPE)?;
    // The multimodal class of transformers leaves it out; no checkpoint has it.
    fields.supports("final_logit_softcapping", &[], "null")?;
    let mut decoder = decoder(&fields)?;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", true)?;
    let names = Names {
        source: |_, name| TensorSource::whole(format!("{PREFIX}{name}")),
        respelled: respelled_multimodal,
        ignored: |config, name| match name.strip_prefix(PREFIX) {
            Some(text) => ignored_by_llama(config, text),
            None => is_vision(name),
        },
    };
    Architecture::new(decoder, names)
}

fn is_vision(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector.")
}

/// Newer files say `model.language_model.layers` and `lm_head`, older ones `language_model.model.layers` and
/// `language_model.lm_head`.
fn respelled_multimodal(name: &str) -> Cow<'_, str> {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        return format!("{PREFIX}model.{rest}").into();
    }
    match name.starts_with("lm_head.") {
        true => format!("{PREFIX}{name}").into(),
        false => name.into(),
    }
}

fn decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let heads = family::heads(fields, &DEFAULTS)?;
    let context = family::rope_context(fields, &DEFAULTS, heads)?;
    let [full, local] = ropes(fields, context)?;
    let mut decoder = family::decoder_with_rope(fields, &DEFAULTS, full.clone())?;
    embed_like_gemma(&mut decoder);
    decoder.layers.iter_mut().for_each(|layer| layer.norms = NormPlace::Around);
    let pattern: usize = fields.or("sliding_window_pattern", fields.or("_sliding_window_pattern", 6)?)?;
    let sliding = fields.sliding_layers(decoder.layers.len(), |i| !(i + 1).is_multiple_of(pattern))?;
    decoder.slide(fields, &sliding, fields.nullable("sliding_window", Some(4096))?)?;
    let scale = fields.or("query_pre_attn_scalar", 256.0f64)?.powf(-0.5);
    for (_, attention) in decoder.attentions_mut() {
        // `attn_logit_softcapping` is a field of the class that its attention does not look at.
        attention.scale = scale;
        attention.qk_norm = Some(QkNorm::Head);
        attention.rope = Some(if attention.window.is_some() { local.clone() } else { full.clone() });
    }
    Ok(decoder)
}

/// Rotary positions of the layers that see everything and of those with a window. The older spelling's one scaling
/// is meant for the former.
fn ropes(fields: &Fields<'_>, context: RopeContext) -> Result<[RopeConfig; 2], ModelError> {
    let full = RopeContext { theta: fields.or("rope_theta", context.theta)?, ..context };
    let local = RopeContext { theta: fields.or("rope_local_base_freq", LOCAL_THETA)?, ..context };
    Ok([
        rope_of_kind(fields, "full_attention", fields.value("rope_scaling"), full)?,
        rope_of_kind(fields, "sliding_attention", None, local)?,
    ])
}
