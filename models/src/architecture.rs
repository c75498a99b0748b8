//! From a checkpoint's `model_type` to its page.

use serde_json::Value;

use crate::{DecoderConfig, ModelError, llama};

/// The `model_type`s that have a page.
pub const SUPPORTED_MODEL_TYPES: &[&str] = &[llama::MODEL_TYPE];

/// A checkpoint's architecture: what to build and which of its tensors are not weights.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// What to build.
    pub config: DecoderConfig,
    /// Whether a tensor of this name may stand in a checkpoint without being read.
    pub ignores: fn(&DecoderConfig, &str) -> bool,
}

impl Architecture {
    /// Reads a `config.json`, given as its JSON value.
    ///
    /// # Errors
    /// If its `model_type` has no page, a field is missing or wrong, or an option is not implemented.
    pub fn from_config(config: &Value) -> Result<Self, ModelError> {
        let model_type = config.get("model_type").and_then(Value::as_str).ok_or(ModelError::NoModelType)?;
        match model_type {
            llama::MODEL_TYPE => llama::architecture(config),
            other => Err(ModelError::UnsupportedModelType(other.to_owned())),
        }
    }
}
