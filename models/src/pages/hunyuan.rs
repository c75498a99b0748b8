//! Hunyuan, dense: Llama with a norm on each head of q and k after their rotation.

use crate::{
    Architecture, ModelError, QkNorm, QkSpan, TensorSource,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
    rope_fields::{RopeContext, rope},
};

/// Defaults of transformers' `HunYuanDenseV1Config`.
const DEFAULTS: Defaults = Defaults { vocab_size: 290_943, norm_eps: 1e-5, ..LLAMA };

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let context = family::rope_context(fields, &DEFAULTS, family::heads(fields, &DEFAULTS)?)?;
    let rope = rope(fields, RopeContext { alpha: true, ..context })?;
    let mut decoder = family::decoder_with_rope(fields, &DEFAULTS, rope)?;
    let norm = QkNorm { behind_rope: true, ..QkNorm::new(QkSpan::Head, decoder.norm) };
    decoder.attentions_mut().for_each(|(_, attention)| attention.qk_norm = Some(norm));
    const IN_LAYERS: &[(&str, &str)] = &[
        ("self_attn.q_norm.", "self_attn.query_layernorm."),
        ("self_attn.k_norm.", "self_attn.key_layernorm."),
    ];
    let names = Names { source: |_, name| TensorSource::whole(renamed(name, IN_LAYERS)), ..Names::LLAMA };
    Architecture::new(decoder, names)
}
