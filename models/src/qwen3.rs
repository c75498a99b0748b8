//! Qwen3 (dense): Qwen2 without its biases, with a norm on each head of q and k.

use serde_json::Value;

use crate::{
    Architecture, ModelError, QkNorm,
    architecture::Names,
    family::{self, Defaults},
    fields::Fields,
    qwen2,
};

/// As `config.json` spells it.
pub const MODEL_TYPE: &str = "qwen3";

/// transformers' `Qwen3Config`.
const DEFAULTS: Defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };

/// Reads the config.
pub(crate) fn architecture(config: &Value) -> Result<Architecture, ModelError> {
    let fields = Fields::new(config, MODEL_TYPE)?;
    let mut decoder = family::decoder(&fields, &DEFAULTS)?;
    decoder.attentions_mut().for_each(|(_, attention)| attention.qk_norm = Some(QkNorm::Head));
    qwen2::slide(&mut decoder, &fields)?;
    Architecture::new(decoder, Names::LLAMA)
}
