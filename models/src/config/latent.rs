//! Options of attention over latent vectors.

use crate::RopeConfig;

/// Attention over latent vectors (multi-head latent attention, MLA; DeepSeek V2, arXiv 2405.04434): see
/// [`crate::LatentAttention`].
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind};
///
/// let config = serde_json::json!({"model_type": "deepseek_v3", "num_hidden_layers": 1});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(AttentionKind::Latent(latent)) = &layers[0].attention else { panic!("it has latents") };
/// assert_eq!((latent.kv_rank, latent.rope_dim), (512, 64));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LatentConfig {
    /// Heads.
    pub num_heads: usize,
    /// Width of the queries' own latent vector; `None` if a linear layer computes them directly from the input.
    pub query_rank: Option<usize>,
    /// Width of the latent vector from which keys and values are computed.
    pub kv_rank: usize,
    /// Values per query and key head that are not rotated.
    pub nope_dim: usize,
    /// Values per query head that are rotated; keys have as many, shared by all heads.
    pub rope_dim: usize,
    /// Values per value head.
    pub value_dim: usize,
    /// Whether the linear layers that compute latent vectors, and the output projection, have biases.
    pub bias: bool,
    /// Epsilon of the norms of latent vectors.
    pub norm_eps: f64,
    /// Rotary embedding of the rotated part.
    pub rope: RopeConfig,
    /// Factor on the scores.
    pub scale: f64,
}

impl LatentConfig {
    /// Values per query head.
    pub(crate) fn query_dim(&self) -> usize {
        self.nope_dim + self.rope_dim
    }

    /// Values that are cached per position: its latent vector, and the rotated part of its keys.
    pub(crate) fn cached_dim(&self) -> usize {
        self.kv_rank + self.rope_dim
    }
}
