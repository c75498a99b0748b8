//! Llama 2 and 3, SmolLM and SmolLM2, and every checkpoint with `model_type` "llama".
//!
//! Pre-norm RMSNorm, rotary embedding, grouped-query attention, SwiGLU. Fields and defaults are those of
//! transformers' `LlamaConfig`.

use crate::{
    Architecture, ModelError,
    architecture::Names,
    family::{self, LLAMA},
    fields::Fields,
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &LLAMA)?;
    let mlp_bias = fields.or("mlp_bias", false)?;
    decoder.mlps_mut().for_each(|mlp| mlp.bias = mlp_bias);
    Architecture::new(decoder, Names::LLAMA)
}
