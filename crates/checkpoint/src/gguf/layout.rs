//! Sizes from a file's metadata that determine the layout of its tensors' rows.

use super::{Metadata, Value};

/// The metadata of one architecture.
#[derive(Clone, Copy)]
pub(super) struct Layout<'a> {
    pub(super) architecture: &'a str,
    metadata: &'a Metadata,
}

/// A metadata key that is no part of the format: Muse Glimmer's factor on queries, which files hold as a norm's
/// weight. It is only used for writing that weight.
pub const MUSE_FACTOR: &str = "muse-glimmer.query_factor";

/// The heads of a gated delta net.
#[derive(Clone, Copy)]
pub(super) struct NetHeads {
    pub(super) key_heads: usize,
    pub(super) value_heads: usize,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
}

/// What mixes positions in a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mixer {
    /// Attention.
    Attention,
    /// A gated delta net, Mamba 2 or a short convolution.
    State,
    /// The layer does not mix positions.
    None,
}

impl<'a> Layout<'a> {
    pub(super) fn new(architecture: &'a str, metadata: &'a Metadata) -> Self {
        Self { architecture, metadata }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    pub(super) fn usize(&self, key: &str) -> Option<usize> {
        self.get(key)?.as_usize()
    }

    /// The entry of a layer if the value is a list, or the one value for all layers.
    pub(super) fn of_layer(&self, key: &str, layer: usize) -> Option<usize> {
        match self.get(key)? {
            Value::Array(values) => values.get(layer)?.as_usize(),
            one => one.as_usize(),
        }
    }

    /// The number of layers without those for multi-token prediction.
    pub(super) fn layers(&self) -> usize {
        let all = self.usize("block_count").unwrap_or(0);
        all.saturating_sub(self.usize("nextn_predict_layers").unwrap_or(0))
    }

    pub(super) fn heads(&self, layer: usize) -> usize {
        self.of_layer("attention.head_count", layer).unwrap_or(0)
    }

    pub(super) fn kv_heads(&self, layer: usize) -> usize {
        self.of_layer("attention.head_count_kv", layer).unwrap_or_else(|| self.heads(layer))
    }

    pub(super) fn head_dim(&self, layer: usize) -> usize {
        let shared = || self.usize("embedding_length")?.checked_div(self.heads(layer));
        self.usize("attention.key_length").or_else(shared).unwrap_or(0)
    }

    /// Whether a layer has a sliding window, if the file lists this for each layer.
    pub(super) fn is_sliding(&self, layer: usize) -> Option<bool> {
        match self.get("attention.sliding_window_pattern")? {
            Value::Array(values) => match values.get(layer)? {
                Value::Bool(sliding) => Some(*sliding),
                other => other.as_usize().map(|number| number != 0),
            },
            _ => None,
        }
    }

    pub(super) fn muse_factor(&self) -> Option<f64> {
        self.metadata.f64(MUSE_FACTOR)
    }

    /// Whether the architecture has the delta nets of Qwen3-Next and Qwen3.5.
    pub(super) fn has_delta_nets(&self) -> bool {
        ["qwen35", "qwen35moe", "qwen3next"].contains(&self.architecture)
    }

    /// The heads of delta nets if llama.cpp has reordered their value heads; originally, the value heads of one key
    /// head follow those of another.
    pub(super) fn reordered_net(&self) -> Option<NetHeads> {
        let is_reordered = ["qwen35", "qwen35moe"].contains(&self.architecture);
        self.net().filter(|net| is_reordered && net.key_heads != net.value_heads)
    }

    pub(super) fn net(&self) -> Option<NetHeads> {
        let (key_heads, value_heads) = (self.usize("ssm.group_count")?, self.usize("ssm.time_step_rank")?);
        let value_dim = self.usize("ssm.inner_size")?.checked_div(value_heads)?;
        let fits = key_heads > 0 && value_heads.is_multiple_of(key_heads);
        fits.then_some(NetHeads { key_heads, value_heads, key_dim: self.usize("ssm.state_size")?, value_dim })
    }

    pub(super) fn mixer(&self, layer: usize) -> Mixer {
        let state = |has_state: bool| if has_state { Mixer::State } else { Mixer::Attention };
        match self.architecture {
            "qwen35" | "qwen35moe" | "qwen3next" => {
                let listed = match self.get("attention.recurrent_layers") {
                    Some(Value::Array(values)) => values.get(layer).map(|value| *value == Value::Bool(true)),
                    _ => None,
                };
                let interval = self.usize("full_attention_interval").unwrap_or(4).max(1);
                state(listed.unwrap_or(!(layer + 1).is_multiple_of(interval)))
            }
            "lfm2" | "lfm2moe" | "granitehybrid" => state(self.kv_heads(layer) == 0),
            "nemotron_h" | "nemotron_h_moe" => {
                match (self.kv_heads(layer), self.of_layer("feed_forward_length", layer).unwrap_or(0)) {
                    (0, 0) => Mixer::State,
                    (_, 0) => Mixer::Attention,
                    _ => Mixer::None,
                }
            }
            _ => Mixer::Attention,
        }
    }

    /// The heads of queries or keys whose rotary rows are stored as adjacent pairs: the rows of a head, and how many
    /// of its first rows are not rotated.
    pub(super) fn pairs(&self, parameter: &str, layer: usize) -> Option<(usize, usize)> {
        match self.architecture {
            "mistral3" | "granitemoe" | "granitehybrid" | "muse-glimmer" | "nemotron_h"
            | "nemotron_h_moe" | "ernie4_5" | "ernie4_5-moe" => {
                let is_rotated = ["self_attn.q_proj", "self_attn.k_proj"].contains(&parameter);
                is_rotated.then(|| (self.head_dim(layer), 0))
            }
            "deepseek2" | "mistral4" | "deepseek32" | "glm-dsa" => {
                let (head, turned) = (self.latent_query_dim()?, self.usize("rope.dimension_count")?);
                let rank = self.usize("attention.kv_lora_rank")?;
                match parameter {
                    "self_attn.q_proj" | "self_attn.q_b_proj" => Some((head, head.checked_sub(turned)?)),
                    "self_attn.kv_a_proj" => Some((rank + turned, rank)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Values per query head in attention over latent vectors.
    pub(super) fn latent_query_dim(&self) -> Option<usize> {
        self.usize("attention.key_length_mla").or(self.usize("attention.key_length"))
    }

    /// Values per value head in attention over latent vectors.
    pub(super) fn latent_value_dim(&self) -> Option<usize> {
        self.usize("attention.value_length_mla").or(self.usize("attention.value_length"))
    }

    /// Whether the file stores a norm's weight with 1 added.
    pub(super) fn is_plus_one(&self, parameter: &str) -> bool {
        match self.architecture {
            // All norms, except the norm of a delta net's output.
            "qwen35" | "qwen35moe" | "qwen3next" => {
                parameter.ends_with("norm.weight") && !parameter.ends_with("self_attn.norm.weight")
            }
            "muse-glimmer" => parameter.ends_with("layernorm.weight"),
            _ => false,
        }
    }
}
