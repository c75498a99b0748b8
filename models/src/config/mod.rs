//! What the one decoder can be told. An architecture's page fills it in.

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
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The architecture's `model_type`, for messages.
    pub model_type: &'static str,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    /// Why these are fewer than its config says, where they are.
    pub context_note: Option<&'static str>,
    /// Norms before the blocks.
    pub norm: NormConfig,
    /// Norms behind the blocks, where a layer has such.
    pub post_norm: NormConfig,
    /// The norm before the head.
    pub final_norm: NormConfig,
    /// Factor on the rows of the embedding as they enter the model (Gemma: sqrt(d)).
    pub embedding_scale: f64,
    /// Where the rows of the embedding are divided by the root of their mean square as they enter the model: what is added
    /// under the root.
    pub embedding_norm: Option<f64>,
    /// Where a table of learned positions is added to the inputs: the row of the first position. The table has a row for
    /// each position of the context behind that.
    pub learned_positions: Option<usize>,
    /// Inputs of each layer that a token has besides its embedding (Gemma 4 E).
    pub per_layer_inputs: Option<PerLayerInputs>,
    /// How queries grow with their position.
    pub query_scale: Option<QueryScale>,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether the head has a bias; one that is the embedding table has none.
    pub head_bias: bool,
    /// Factor on the logits.
    pub logit_scale: f64,
    /// `cap * tanh(logits / cap)`, after the factor.
    pub logit_softcap: Option<f64>,
    /// The positions up to which a cache serves: with one more, all keys are computed anew, because rotary frequencies of
    /// all positions change there (Phi-3's LongRoPE).
    pub recompute_beyond: Option<usize>,
    /// First to last.
    pub layers: Vec<LayerConfig>,
}

/// Inputs of each layer that a token has besides its embedding: of a second table, and of a map of the model's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerLayerInputs {
    /// Values of an input of one layer.
    pub width: usize,
    /// What a layer's gate on them goes through.
    pub activation: Activation,
}

/// Queries times `1 + beta ln(1 + floor(position / original_max_position_embeddings))` (Llama 4, Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    /// How fast they grow.
    pub beta: f64,
    /// Context of the original training, within which the factor is 1.
    pub original_max_position_embeddings: f64,
}

impl QueryScale {
    /// The factor at a position.
    pub fn at(&self, position: usize) -> f64 {
        1.0 + self.beta * (1.0 + (position as f64 / self.original_max_position_embeddings).floor()).ln()
    }
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// What mixes positions; a layer can do without, and has then no norm for it either.
    pub attention: Option<AttentionKind>,
    /// What works on each position; likewise.
    pub feed_forward: Option<FeedForwardKind>,
    /// Where the norms stand.
    pub norms: NormPlace,
    /// Whether attention and feed-forward read the same residual stream and are added to it together.
    pub parallel: bool,
    /// Factor on what a block adds to the residual stream.
    pub residual_scale: f64,
    /// Whether the residual stream is multiplied by a number of the layer's own, `layer_scalar`, at its end.
    pub output_scale: bool,
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// What is computed.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f64,
}

/// What a norm computes.
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

/// Where the norms of a layer stand, under the names that checkpoints give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// Before each block: `input_layernorm`, `post_attention_layernorm`.
    Before,
    /// One before both blocks, which are parallel: `input_layernorm`.
    Shared,
    /// Behind each block, before it is added: `post_attention_layernorm`, `post_feedforward_layernorm`.
    After,
    /// On both sides of each: `input_layernorm`, `post_attention_layernorm`, `pre_feedforward_layernorm`,
    /// `post_feedforward_layernorm`.
    Around,
}

impl DecoderConfig {
    /// A model of these layers without any of the other options: an embedding that is no head, rows of it as they are.
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

    /// Width of what enters the model for a position: d, and behind it the inputs of each layer, where there are such.
    pub fn input_width(&self) -> usize {
        self.hidden_size + self.per_layer_width()
    }

    /// Values of the inputs of all layers that a token has besides its embedding.
    pub(crate) fn per_layer_width(&self) -> usize {
        self.per_layer_inputs.map_or(0, |inputs| inputs.width.saturating_mul(self.layers.len()))
    }

    /// Gives all norms of the residual stream this kind.
    pub fn set_norm_kind(&mut self, kind: NormKind) {
        [&mut self.norm, &mut self.post_norm, &mut self.final_norm]
            .into_iter()
            .for_each(|norm| norm.kind = kind);
    }

    /// Values of the states that all layers keep of a sequence.
    pub(crate) fn state_values(&self) -> usize {
        let kinds = self.layers.iter().filter_map(|layer| layer.attention.as_ref());
        kinds.map(|kind| kind.state_values(self.hidden_size)).sum()
    }

    /// Values that the cache holds for `positions` positions of one row: keys and values of all layers, and states.
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

    /// The norms that this layer has before its blocks, and behind them.
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
