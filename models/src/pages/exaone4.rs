//! EXAONE 4: norms after the blocks and on each head of q and k. If some layers have a sliding window, those without
//! one have no rotary embedding.

use serde_json::Value;

use crate::{
    Architecture, ModelError, NormPlace, QkSpan,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// Defaults of transformers' `Exaone4Config`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 102_400,
    intermediate_size: 16_384,
    num_kv_heads: Some(32),
    norm_eps: 1e-5,
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
    }
    decoder.norm_queries_and_keys(QkSpan::Head);
    decoder.layers.iter_mut().for_each(|layer| layer.norms = NormPlace::After);
    let window: Option<usize> = fields.nullable("sliding_window", Some(4096))?;
    let pattern = pattern(fields)?;
    let is_sliding = |i: usize| window.is_some() && pattern[i % pattern.len()];
    let sliding = fields.sliding_layers(decoder.layers.len(), is_sliding)?;
    decoder.slide(fields, &sliding, window)?;
    if window.is_some() {
        for (_, attention) in decoder.attentions_mut().filter(|(_, attention)| attention.window.is_none()) {
            attention.rope = None;
        }
    }
    Architecture::new(decoder, Names::LLAMA)
}

/// Which layers of a period have a window: given as a number n, every n-th layer has none; or given as letters,
/// `LLLG`.
fn pattern(fields: &Fields<'_>) -> Result<Vec<bool>, ModelError> {
    const FIELD: &str = "sliding_window_pattern";
    let windows_then_none = |period: usize| (1..=period).map(|i| i != period).collect();
    match fields.value(FIELD) {
        None => Ok(windows_then_none(4)),
        Some(Value::String(letters)) if !letters.is_empty() && letters.chars().all(|c| "LG".contains(c)) => {
            Ok(letters.chars().map(|letter| letter == 'L').collect())
        }
        Some(value) => match value.as_u64() {
            Some(period @ 1..=4096) => Ok(windows_then_none(period as usize)),
            _ => Err(fields.unsupported(FIELD, value, "a number of layers, or letters L and G")),
        },
    }
}
