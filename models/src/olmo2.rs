//! OLMo 2: Llama with its norms behind the blocks, and norms over all of q and all of k.

use serde_json::Value;

use crate::{
    Architecture, ModelError, NormPlace, QkNorm,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// As `config.json` spells it.
pub const MODEL_TYPE: &str = "olmo2";

/// transformers' `Olmo2Config`.
const DEFAULTS: Defaults = Defaults { vocab_size: 50_304, norm_eps: 1e-5, ..LLAMA };

/// Reads the config.
pub(crate) fn architecture(config: &Value) -> Result<Architecture, ModelError> {
    let fields = Fields::new(config, MODEL_TYPE)?;
    // Of OLMo 1.
    fields.supports("clip_qkv", &[], "null")?;
    let mut decoder = family::decoder(&fields, &DEFAULTS)?;
    decoder.attentions_mut().for_each(|(_, attention)| attention.qk_norm = Some(QkNorm::Projection));
    decoder.layers.iter_mut().for_each(|layer| layer.norms = NormPlace::After);
    Architecture::new(decoder, Names::LLAMA)
}
