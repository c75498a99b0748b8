//! Muse Glimmer: embeddings divided by their root mean square, norms before and after each block, a sigmoid gate on
//! the output of attention, and norms of queries and keys without weights.

use crate::{
    Architecture, DecoderConfig, GateKind, GateSpan, ModelError, Multimodal, NormConfig, NormKind, NormPlace,
    OutputGate, QkNorm, QkSpan,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `MuseGlimmerTextConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 202_048,
    hidden_size: 6656,
    intermediate_size: 19_968,
    num_layers: 52,
    num_heads: 32,
    num_kv_heads: Some(2),
    head_dim: Some(128),
    context_length: 131_072,
    norm_eps: 1e-5,
    activation: ("hidden_activation", "silu"),
    ..LLAMA
};

const IGNORED: &[&str] = &["model.vision_tower.", "model.vision_adapter.", "model.vision_projection."];

/// Reads the text part of a multimodal model's config.
pub(crate) fn multimodal(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let fields = outer.nested("text_config")?;
    let mut decoder = decoder(&fields)?;
    let inner = decoder.tie_word_embeddings;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", inner)?;
    let place = Multimodal { body: "model.language_model.", head: "lm_head.", ignored: IGNORED };
    Architecture::new(decoder, Names { multimodal: Some(place), ..Names::LLAMA })
}

/// Reads the config of that text model alone.
pub(crate) fn text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let place = Multimodal { body: "model.", head: "lm_head.", ignored: IGNORED };
    Architecture::new(decoder(fields)?, Names { multimodal: Some(place), ..Names::LLAMA })
}

fn decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let (layers, eps) = (decoder.layers.len(), decoder.norm.eps);
    decoder.embedding_norm = Some(eps);
    decoder.norm.kind = NormKind::RmsPlusOne;
    decoder.post_norm = NormConfig { kind: NormKind::RmsPlusOne, eps: fields.or("post_norm_eps", 1e-8)? };
    decoder.logit_scale = fields.or("output_multiplier", 0.196_116_135_138_184_04)?;
    decoder.logit_softcap = fields.nullable("final_logit_softcapping", Some(20.0))?;
    decoder.layers.iter_mut().for_each(|layer| layer.norms = NormPlace::Around);
    let is_full = |i: usize| (layers - 1 - i).is_multiple_of(4);
    let sliding = fields.sliding_layers(layers, |i| !is_full(i))?;
    decoder.slide(fields, &sliding, fields.nullable("sliding_window", Some(2048))?)?;
    let thetas = fields.get::<Vec<f64>>("layer_rope_theta")?;
    if let Some(thetas) = &thetas {
        fields.one_for_each_layer("layer_rope_theta", thetas.len(), layers)?;
    }
    let scale: f64 = fields.or("qk_scale_factor", 3.87)?;
    let norm = QkNorm::new(QkSpan::Head, NormConfig { kind: NormKind::RmsAlone, eps });
    for (index, attention) in decoder.attentions_mut() {
        attention.gate = Some(OutputGate { kind: GateKind::Sigmoid, span: GateSpan::Value });
        attention.qk_norm = Some(norm);
        // The queries have a factor of their own, which is part of the scale because it comes after their norm.
        attention.scale *= scale;
        match (&thetas, &mut attention.rope) {
            (Some(thetas), rope) if thetas[index] == 0.0 => *rope = None,
            (Some(thetas), Some(rope)) => rope.theta = thetas[index],
            (None, rope) if is_full(index) => *rope = None,
            _ => {}
        }
    }
    Ok(decoder)
}
