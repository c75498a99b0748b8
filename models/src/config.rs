//! What the one decoder can be told. An architecture's page fills it in.

use crate::{ModelError, rope::RopeConfig};

/// A decoder-only transformer: the options that [`crate::Decoder`] implements.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The architecture's `model_type`, for messages.
    pub model_type: &'static str,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Attention of every layer.
    pub attention: AttentionConfig,
    /// Feed-forward of every layer.
    pub mlp: MlpConfig,
}

/// Grouped-query attention with rotary positions.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Biases on q, k, v and o.
    pub bias: bool,
    /// Rotary positions.
    pub rope: RopeConfig,
}

/// Gated feed-forward: `down(act(gate(x)) * up(x))`.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// Inner width.
    pub intermediate_size: usize,
    /// Biases on gate, up and down.
    pub bias: bool,
    /// The gate's non-linearity.
    pub activation: Activation,
}

/// A feed-forward non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x), also called swish.
    Silu,
}

impl DecoderConfig {
    /// The config itself, if its sizes fit together.
    ///
    /// # Errors
    /// If a size is 0, or the heads do not divide as attention needs it.
    pub fn validated(self) -> Result<Self, ModelError> {
        let attention = &self.attention;
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_layers),
            ("max_position_embeddings", self.context_length),
            ("num_attention_heads", attention.num_heads),
            ("num_key_value_heads", attention.num_kv_heads),
            ("head_dim", attention.head_dim),
            ("intermediate_size", self.mlp.intermediate_size),
        ];
        let wrong = |what| Err(ModelError::Inconsistent { model_type: self.model_type, what });
        // No real model comes near these; beyond them a broken config would fill the memory before its
        // tensors are looked at, or sizes would overflow when multiplied.
        for (name, size) in sizes {
            let largest = match name {
                "num_hidden_layers" | "num_attention_heads" | "num_key_value_heads" => 1 << 12,
                "head_dim" => 1 << 16,
                _ => 1 << 28,
            };
            if !(1..=largest).contains(&size) {
                return wrong(format!("{name} is {size}, expected 1 to {largest}"));
            }
        }
        if !attention.num_heads.is_multiple_of(attention.num_kv_heads) {
            return wrong(format!(
                "num_key_value_heads ({}) does not divide num_attention_heads ({})",
                attention.num_kv_heads, attention.num_heads
            ));
        }
        if !attention.head_dim.is_multiple_of(2) {
            return wrong(format!(
                "head_dim ({}) is odd; rotary positions pair its halves",
                attention.head_dim
            ));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return wrong(format!("rms_norm_eps is {}", self.norm_eps));
        }
        if let Err(what) = attention.rope.check(attention.head_dim) {
            return wrong(what);
        }
        Ok(self)
    }

    /// Parameters of the model, tied ones counted once.
    pub fn num_params(&self) -> usize {
        let (d, a, m) = (self.hidden_size, &self.attention, &self.mlp);
        let (q, kv, f) = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, m.intermediate_size);
        let attention = 2 * d * q + 2 * d * kv + if a.bias { q + 2 * kv + d } else { 0 };
        let mlp = 3 * d * f + if m.bias { 2 * f + d } else { 0 };
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_layers * (attention + mlp + 2 * d) + d + tables * self.vocab_size * d
    }

    /// Weights that one decoded token reads: all but the rows of an untied embedding.
    pub fn weights_per_token(&self) -> usize {
        let looked_up = if self.tie_word_embeddings { 0 } else { self.vocab_size * self.hidden_size };
        self.num_params() - looked_up
    }
}
