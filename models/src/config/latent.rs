//! Options of attention over latents.

use crate::RopeConfig;

/// Attention over latents (multi-head latent attention, DeepSeek V2, arXiv 2405.04434): see [`crate::LatentAttention`].
#[derive(Clone, Debug, PartialEq)]
pub struct LatentConfig {
    /// Heads.
    pub num_heads: usize,
    /// Width of the queries' own latent; none where they are a map of the input.
    pub query_rank: Option<usize>,
    /// Width of the latent that keys and values are maps of.
    pub kv_rank: usize,
    /// Values of a head of queries and keys that are not rotated.
    pub nope_dim: usize,
    /// Values of a head of queries that are rotated; keys have as many, the same for all heads.
    pub rope_dim: usize,
    /// Values of a head of values.
    pub value_dim: usize,
    /// Biases on the maps to the latents, and on o.
    pub bias: bool,
    /// Added under the root in the norms of latents.
    pub norm_eps: f64,
    /// Rotary positions of the rotated part.
    pub rope: RopeConfig,
    /// Factor on the scores.
    pub scale: f64,
}

impl LatentConfig {
    /// Values of a head of queries.
    pub(crate) fn query_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }

    /// Values that are cached of a position: its latent, and the rotated part of its keys.
    pub(crate) fn cached_dim(&self) -> usize {
        self.kv_rank + self.rope_dim
    }
}
