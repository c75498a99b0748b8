//! The options of the decoder. The page of an architecture sets them.

mod attention;
mod feed_forward;
mod latent;
mod parameters;
mod states;

pub use attention::{AttentionConfig, AttentionKind, GateKind, GateSpan, OutputGate, QkNorm, QkSpan};
pub use feed_forward::{
    Activation, ExpertGroups, ExpertsConfig, FeedForwardKind, GroupScore, LatentExperts, MlpConfig,
    RouterConfig, RouterScore, SharedExpertConfig,
};
pub use latent::LatentConfig;
pub use states::{DeltaNetConfig, Mamba2Config, ShortConvConfig};

/// A decoder-only transformer: the options that [`crate::Decoder`] implements.
///
/// # Examples
/// ```
/// use moi_models::{
///     Activation, AttentionConfig, DecoderConfig, FeedForwardKind, LayerConfig, MlpConfig, NormConfig, NormKind,
/// };
///
/// let mlp = MlpConfig { intermediate_size: 64, gated: true, bias: false, activation: Activation::Silu };
/// let layer = LayerConfig::new(AttentionConfig::new(4, 2, 8), FeedForwardKind::Mlp(mlp));
/// let norm = NormConfig { kind: NormKind::Rms, eps: 1e-6 };
/// // 100 tokens, a width of 32, 128 positions, two layers.
/// let config = DecoderConfig::new("tiny", [100, 32, 128], norm, vec![layer; 2]).validated()?;
/// assert_eq!(config.num_params(), 24_992);
/// assert_eq!(config.cached_values(10), 640);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The architecture's `model_type`, for messages.
    pub model_type: &'static str,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Number of positions that the model supports.
    pub context_length: usize,
    /// The reason why these are fewer than the checkpoint's config says, if they are.
    pub context_note: Option<&'static str>,
    /// Norms before the blocks.
    pub norm: NormConfig,
    /// Norms after the blocks, where a layer has them.
    pub post_norm: NormConfig,
    /// The norm before the LM head.
    pub final_norm: NormConfig,
    /// Factor on embeddings as inputs of the model (Gemma: sqrt(d)).
    pub embedding_scale: f64,
    /// If embeddings as inputs of the model are divided by the root of their mean square, the epsilon that is added
    /// to the mean square.
    pub embedding_norm: Option<f64>,
    /// If learned position embeddings are added to the inputs, the row of the first position in their table. The
    /// table has a row for each position of the context from there on.
    pub learned_positions: Option<usize>,
    /// Inputs of each layer that a token has in addition to its embedding (Gemma 4 E).
    pub per_layer_inputs: Option<PerLayerInputs>,
    /// A factor on queries that grows with their position.
    pub query_scale: Option<QueryScale>,
    /// Whether the LM head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the LM head has a bias; a tied one has none.
    pub head_bias: bool,
    /// Factor on the logits.
    pub logit_scale: f64,
    /// Soft cap: logits become `cap * tanh(logit / cap)`, after the factor.
    pub logit_softcap: Option<f64>,
    /// Number of positions up to which a cache is valid. With one more, all keys are recomputed, because the rotary
    /// frequencies of all positions change there (Phi-3's LongRoPE).
    pub recompute_beyond: Option<usize>,
    /// The layers, from first to last.
    pub layers: Vec<LayerConfig>,
}

/// Inputs of each layer that a token has in addition to its embedding. They come from a second embedding table, and
/// from a linear layer of the model's input.
///
/// # Examples
/// ```
/// use moi_models::{Activation, Architecture, PerLayerInputs};
///
/// let config = serde_json::json!({"model_type": "gemma4_text", "num_hidden_layers": 6});
/// let config = Architecture::from_config(&config)?.config;
/// let inputs = PerLayerInputs { width: 256, activation: Activation::GeluTanh };
/// assert_eq!(config.per_layer_inputs, Some(inputs));
/// assert_eq!(config.input_width(), config.hidden_size + 6 * 256);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerLayerInputs {
    /// Values per layer.
    pub width: usize,
    /// The activation function of a layer's gate on them.
    pub activation: Activation,
}

/// A factor on queries: `1 + beta ln(1 + floor(position / original_max_position_embeddings))` (Llama 4, Ministral 3).
///
/// # Examples
/// ```
/// use moi_models::QueryScale;
///
/// let scale = QueryScale { beta: 0.1, original_max_position_embeddings: 16_384.0 };
/// assert_eq!(scale.at(16_383), 1.0);
/// assert!(scale.at(16_384) > 1.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    /// How fast the factor grows.
    pub beta: f64,
    /// Context length of the original training, within which the factor is 1.
    pub original_max_position_embeddings: f64,
}

impl QueryScale {
    /// The factor at a position.
    pub fn at(&self, position: usize) -> f64 {
        1.0 + self.beta * (1.0 + (position as f64 / self.original_max_position_embeddings).floor()).ln()
    }
}

/// One layer.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, NormPlace};
///
/// let config = serde_json::json!({"model_type": "phi", "num_hidden_layers": 1});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// assert!(layers[0].parallel && layers[0].norms == NormPlace::Shared);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// The block that mixes positions. A layer without it has no norm for it either.
    pub attention: Option<AttentionKind>,
    /// The feed-forward block. A layer without it has no norm for it either.
    pub feed_forward: Option<FeedForwardKind>,
    /// The places of the norms.
    pub norms: NormPlace,
    /// Whether attention and feed-forward read the same residual stream and are added to it together.
    pub parallel: bool,
    /// Factor on what a block adds to the residual stream.
    pub residual_scale: f64,
    /// Whether the residual stream is multiplied by the layer's own `layer_scalar` at its end.
    pub output_scale: bool,
}

/// A norm.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, NormConfig, NormKind};
///
/// let config = Architecture::from_config(&serde_json::json!({"model_type": "gpt2"}))?.config;
/// assert_eq!(config.norm, NormConfig { kind: NormKind::Layer, eps: 1e-5 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// What is computed.
    pub kind: NormKind,
    /// Epsilon that is added to the mean square or the variance.
    pub eps: f64,
}

/// What a norm computes.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, NormKind};
///
/// let config = Architecture::from_config(&serde_json::json!({"model_type": "gemma"}))?.config;
/// assert_eq!(config.norm.kind, NormKind::RmsPlusOne);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w`.
    Rms,
    /// `x / rms(x) * (1 + w)`.
    RmsPlusOne,
    /// `x / rms(x)`, without a weight.
    RmsAlone,
    /// `(x - mean(x)) / std(x) * w + b`.
    Layer,
}

/// The places of a layer's norms, with the names that checkpoints give them.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, NormPlace};
///
/// let config = Architecture::from_config(&serde_json::json!({"model_type": "gemma2"}))?.config;
/// assert_eq!(config.layers[0].norms, NormPlace::Around);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// Before each block: `input_layernorm`, `post_attention_layernorm`.
    Before,
    /// One before both blocks, which are parallel: `input_layernorm`.
    Shared,
    /// After each block, before the residual addition: `post_attention_layernorm`, `post_feedforward_layernorm`.
    After,
    /// Before and after each block: `input_layernorm`, `post_attention_layernorm`, `pre_feedforward_layernorm`,
    /// `post_feedforward_layernorm`.
    Around,
}

impl DecoderConfig {
    /// A model of these layers without other options: its embedding is not the LM head, and has no factor.
    pub fn new(
        model_type: &'static str,
        [vocab_size, hidden_size, context_length]: [usize; 3],
        norm: NormConfig,
        layers: Vec<LayerConfig>,
    ) -> Self {
        Self {
            model_type,
            vocab_size,
            hidden_size,
            context_length,
            context_note: None,
            norm,
            post_norm: norm,
            final_norm: norm,
            embedding_scale: 1.0,
            embedding_norm: None,
            learned_positions: None,
            per_layer_inputs: None,
            query_scale: None,
            tie_word_embeddings: false,
            head_bias: false,
            logit_scale: 1.0,
            logit_softcap: None,
            recompute_beyond: None,
            layers,
        }
    }

    /// Width of the model's input for a position: d, followed by the inputs of each layer, if there are any.
    pub fn input_width(&self) -> usize {
        self.hidden_size + self.per_layer_width()
    }

    /// Number of values that a token has as inputs of all layers, in addition to its embedding.
    pub(crate) fn per_layer_width(&self) -> usize {
        self.per_layer_inputs.map_or(0, |inputs| inputs.width.saturating_mul(self.layers.len()))
    }

    /// Sets the kind of all norms of the residual stream.
    pub fn set_norm_kind(&mut self, kind: NormKind) {
        [&mut self.norm, &mut self.post_norm, &mut self.final_norm]
            .into_iter()
            .for_each(|norm| norm.kind = kind);
    }

    /// Number of values in the states of one sequence, in all layers.
    pub(crate) fn state_values(&self) -> usize {
        let kinds = self.layers.iter().filter_map(|layer| layer.attention.as_ref());
        kinds.map(|kind| kind.state_values(self.hidden_size)).sum()
    }

    /// Number of values cached for `positions` positions of one sequence: keys and values of all layers, and states.
    pub fn cached_values(&self, positions: usize) -> usize {
        let of_layer = |layer: &LayerConfig| match &layer.attention {
            Some(AttentionKind::Heads(a)) if a.shared_cache.is_none() => {
                2 * a.num_kv_heads * a.head_dim * a.window.map_or(positions, |window| window.min(positions))
            }
            Some(AttentionKind::Latent(latent)) => latent.cached_dim() * positions,
            Some(other) => other.state_values(self.hidden_size),
            None => 0,
        };
        self.layers.iter().map(of_layer).sum()
    }
}

impl LayerConfig {
    /// A layer with norms before its blocks.
    pub fn new(attention: AttentionConfig, feed_forward: FeedForwardKind) -> Self {
        Self {
            attention: Some(AttentionKind::Heads(attention)),
            feed_forward: Some(feed_forward),
            norms: NormPlace::Before,
            parallel: false,
            residual_scale: 1.0,
            output_scale: false,
        }
    }

    /// The names of the norms before this layer's blocks, and of those after them.
    pub(crate) fn norm_names(&self) -> [Vec<&'static str>; 2] {
        let (attention, feed_forward): ([&[&str]; 2], [&[&str]; 2]) = match self.norms {
            NormPlace::Before => ([&["input_layernorm"], &[]], [&["post_attention_layernorm"], &[]]),
            NormPlace::Shared => ([&["input_layernorm"], &[]], [&[], &[]]),
            NormPlace::After => {
                ([&[], &["post_attention_layernorm"]], [&[], &["post_feedforward_layernorm"]])
            }
            NormPlace::Around => (
                [&["input_layernorm"], &["post_attention_layernorm"]],
                [&["pre_feedforward_layernorm"], &["post_feedforward_layernorm"]],
            ),
        };
        let present = |there: bool, names: &'static [&'static str]| if there { names } else { &[] };
        let (has_attention, has_feed_forward) = (self.attention.is_some(), self.feed_forward.is_some());
        std::array::from_fn(|side| {
            [present(has_attention, attention[side]), present(has_feed_forward, feed_forward[side])].concat()
        })
    }
}
