//! OLMo 3: OLMo 2 with a sliding window in three of four layers, whose rotary embedding is not scaled.

use crate::{
    Architecture, ModelError, NormPlace, QkSpan,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    rope_fields::{RopeContext, rope_of_kind},
};

/// Defaults of transformers' `Olmo3Config`.
const DEFAULTS: Defaults = Defaults { vocab_size: 50_304, norm_eps: 1e-5, theta: 5e5, ..LLAMA };

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    fields.supports("clip_qkv", &[], "null")?;
    let context = family::rope_context(fields, &DEFAULTS, family::heads(fields, &DEFAULTS)?)?;
    let full = RopeContext { theta: fields.or("rope_theta", DEFAULTS.theta)?, ..context };
    // As in transformers: by kind of layer, or, in the older spelling, a base for all and a scaling for layers
    // without a window.
    let full = rope_of_kind(fields, "full_attention", fields.value("rope_scaling"), full)?;
    let sliding_rope = rope_of_kind(fields, "sliding_attention", None, context)?;
    let mut decoder = family::decoder_with_rope(fields, &DEFAULTS, full)?;
    decoder.norm_queries_and_keys(QkSpan::Projection);
    decoder.layers.iter_mut().for_each(|layer| layer.norms = NormPlace::After);
    let sliding = fields.sliding_layers(decoder.layers.len(), |i| !(i + 1).is_multiple_of(4))?;
    decoder.slide(fields, &sliding, fields.nullable("sliding_window", Some(4096))?)?;
    for (_, attention) in decoder.attentions_mut().filter(|(_, attention)| attention.window.is_some()) {
        attention.rope = Some(sliding_rope.clone());
    }
    Architecture::new(decoder, Names::LLAMA)
}
