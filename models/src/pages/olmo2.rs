//! OLMo 2: Llama with norms after the blocks instead of before, and norms over all of q and all of k.

use crate::{
    Architecture, ModelError, NormPlace, QkSpan,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `Olmo2Config`.
const DEFAULTS: Defaults = Defaults { vocab_size: 50_304, norm_eps: 1e-5, ..LLAMA };

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    // This is an option of OLMo 1.
    fields.supports("clip_qkv", &[], "null")?;
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    decoder.norm_queries_and_keys(QkSpan::Projection);
    decoder.layers.iter_mut().for_each(|layer| layer.norms = NormPlace::After);
    Architecture::new(decoder, Names::LLAMA)
}
