//! Qwen3 (dense): Qwen2 without its biases, with a norm on each head of q and k.

use crate::{
    Architecture, ModelError, QkSpan,
    architecture::Names,
    family::{self, Defaults},
    fields::Fields,
    pages::qwen2,
};

/// Defaults of transformers' `Qwen3Config`.
const DEFAULTS: Defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    decoder.norm_queries_and_keys(QkSpan::Head);
    qwen2::slide(&mut decoder, fields, 28)?;
    Architecture::new(decoder, Names::LLAMA)
}
