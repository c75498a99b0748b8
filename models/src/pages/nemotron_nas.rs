//! Nemotron-NAS (`DeciLMForCausalLM`), such as Llama-3.3-Nemotron-Super-49B: Llama whose layers were reduced one by
//! one by an architecture search.
//!
//! `block_configs` defines for each layer what it has: attention with its own number of key and value heads, a linear
//! layer in place of attention, or none; a feed-forward block of its own width, a linear layer, or none.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    Architecture, AttentionKind, FeedForwardKind, LayerConfig, ModelError,
    architecture::Names,
    family::{self, Defaults, LLAMA},
    fields::Fields,
};

/// The widths of blocks come from `block_configs`.
const DEFAULTS: Defaults = Defaults { intermediate_size: 1, ..LLAMA };
/// Widths of feed-forward blocks are multiples of this.
const WIDTH_STEP: usize = 256;

#[derive(Debug, Deserialize)]
struct Block {
    attention: Part,
    ffn: Part,
}

/// The attention or feed-forward block of a layer; each uses one of the two sizes.
#[derive(Debug, Deserialize)]
struct Part {
    n_heads_in_group: Option<usize>,
    ffn_mult: Option<f64>,
    #[serde(default)]
    no_op: bool,
    #[serde(default)]
    replace_with_linear: bool,
    /// The other options that the search can vary, none of which is implemented.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let mlp_bias = fields.or("mlp_bias", false)?;
    let blocks: Vec<Block> = fields
        .get("block_configs")?
        .ok_or_else(|| fields.wrong("field `block_configs` is missing".to_owned()))?;
    let layers = decoder.layers.len();
    fields.one_for_each_layer("block_configs", blocks.len(), layers)?;
    for (index, (layer, block)) in decoder.layers.iter_mut().zip(&blocks).enumerate() {
        for rest in [&block.attention.rest, &block.ffn.rest] {
            refuse_rest(fields, rest)?;
        }
        let wrong = |what: &str| fields.wrong(format!("`block_configs[{index}]`: {what}"));
        attention(layer, &block.attention).map_err(|what| wrong(&what))?;
        feed_forward(layer, &block.ffn, decoder.hidden_size, mlp_bias).map_err(|what| wrong(&what))?;
    }
    Architecture::new(decoder, Names::LLAMA)
}

/// Refuses any other option that is set, because it would change the result.
fn refuse_rest(fields: &Fields<'_>, rest: &Map<String, Value>) -> Result<(), ModelError> {
    match rest.iter().find(|(_, value)| !matches!(value, Value::Null | Value::Bool(false))) {
        None => Ok(()),
        Some((name, value)) => {
            let set = Value::String(format!("{name}: {value}"));
            Err(fields.unsupported(
                "block_configs",
                &set,
                "n_heads_in_group, ffn_mult, no_op, replace_with_linear",
            ))
        }
    }
}

fn attention(layer: &mut LayerConfig, block: &Part) -> Result<(), String> {
    if block.no_op {
        layer.attention = None;
    } else if block.replace_with_linear {
        layer.attention = Some(AttentionKind::Linear);
    } else if let Some(AttentionKind::Heads(attention)) = &mut layer.attention {
        let group = block.n_heads_in_group.ok_or("n_heads_in_group is missing")?;
        if group == 0 || !attention.num_heads.is_multiple_of(group) {
            return Err(format!(
                "n_heads_in_group is {group}, which does not divide {} heads",
                attention.num_heads
            ));
        }
        attention.num_kv_heads = attention.num_heads / group;
    }
    Ok(())
}

fn feed_forward(layer: &mut LayerConfig, block: &Part, d: usize, bias: bool) -> Result<(), String> {
    if block.no_op {
        layer.feed_forward = None;
    } else if block.replace_with_linear {
        layer.feed_forward = Some(FeedForwardKind::Linear);
    } else if let Some(FeedForwardKind::Mlp(mlp)) = &mut layer.feed_forward {
        let factor = block.ffn_mult.ok_or("ffn_mult is missing")?;
        if !(factor.is_finite() && factor > 0.0) {
            return Err(format!("ffn_mult is {factor}, expected a number above 0"));
        }
        mlp.intermediate_size = ((2.0 * factor * d as f64 / 3.0) as usize).next_multiple_of(WIDTH_STEP);
        mlp.bias = bias;
    }
    Ok(())
}
