//! Gemma 3, text: Gemma 2 without the soft caps, with a norm on each head of q and k. Five layers with a sliding
//! window and a rotary embedding of their own alternate with one layer that sees all positions.
//!
//! Multimodal checkpoints (`gemma3`) have the same text model under a prefix; images are not supported.

use crate::{
    Architecture, DecoderConfig, ModelError, Multimodal, NormPlace, QkSpan, RopeConfig,
    architecture::Names,
    family::{self, Defaults},
    fields::Fields,
    pages::gemma::embed_like_gemma,
    pages::gemma2,
    rope_fields::{RopeContext, rope_of_kind},
};

/// Defaults of transformers' `Gemma3TextConfig`.
const DEFAULTS: Defaults =
    Defaults { vocab_size: 262_208, context_length: 131_072, theta: 1e6, ..gemma2::DEFAULTS };
/// Base of the rotary embedding in layers with a sliding window.
const LOCAL_THETA: f64 = 1e4;
/// Reads the config of a text model.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = decoder(fields)?;
    decoder.logit_softcap = fields.get("final_logit_softcapping")?;
    Architecture::new(decoder, Names::LLAMA)
}

/// Reads the text part of a multimodal model's config.
pub(crate) fn multimodal(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let fields = outer.nested("text_config")?;
    // The multimodal class of transformers does not have this option; no checkpoint has it.
    fields.supports("final_logit_softcapping", &[], "null")?;
    let mut decoder = decoder(&fields)?;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", true)?;
    Architecture::new(decoder, Names { multimodal: Some(Multimodal::UNDER_LANGUAGE_MODEL), ..Names::LLAMA })
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
    decoder.norm_queries_and_keys(QkSpan::Head);
    let scale = fields.or("query_pre_attn_scalar", 256.0f64)?.powf(-0.5);
    for (_, attention) in decoder.attentions_mut() {
        // `attn_logit_softcapping` is a field of the class, but its attention does not use it.
        attention.scale = scale;
        attention.rope = Some(if attention.window.is_some() { local.clone() } else { full.clone() });
    }
    Ok(decoder)
}

/// The rotary embeddings of layers that see all positions, and of those with a window. The single scaling of the
/// older spelling is meant for the former.
fn ropes(fields: &Fields<'_>, context: RopeContext) -> Result<[RopeConfig; 2], ModelError> {
    let full = RopeContext { theta: fields.or("rope_theta", context.theta)?, ..context };
    let local = RopeContext { theta: fields.or("rope_local_base_freq", LOCAL_THETA)?, ..context };
    Ok([
        rope_of_kind(fields, "full_attention", fields.value("rope_scaling"), full)?,
        rope_of_kind(fields, "sliding_attention", None, local)?,
    ])
}
