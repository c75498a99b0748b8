//! Options of attention.

use super::{DeltaNetConfig, LatentConfig, Mamba2Config, NormConfig, ShortConvConfig};
use crate::RopeConfig;

/// The first block of a layer, which mixes positions.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind};
///
/// let config = serde_json::json!({
///     "model_type": "lfm2", "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"],
/// });
/// let layers = Architecture::from_config(&config)?.config.layers;
/// assert!(matches!(layers[0].attention, Some(AttentionKind::ShortConv(_))));
/// assert!(matches!(layers[1].attention, Some(AttentionKind::Heads(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one per layer, and nearly all are the large one")]
pub enum AttentionKind {
    /// Attention over the positions so far.
    Heads(AttentionConfig),
    /// A gated delta net.
    DeltaNet(DeltaNetConfig),
    /// A short convolution between two gates.
    ShortConv(ShortConvConfig),
    /// Mamba 2.
    Mamba2(Mamba2Config),
    /// Attention over latent vectors (MLA).
    Latent(LatentConfig),
    /// A linear layer in place of attention, `self_attn.linear_attn`.
    Linear,
}

/// Grouped-query attention.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionConfig, AttentionKind};
///
/// let config = serde_json::json!({"model_type": "gemma2", "num_hidden_layers": 2, "sliding_window": 8});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let windows = layers.iter().map(|layer| match &layer.attention {
///     Some(AttentionKind::Heads(AttentionConfig { window, .. })) => *window,
///     _ => None,
/// });
/// assert_eq!(windows.collect::<Vec<_>>(), [Some(8), None]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether the q, k and v projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// If each head of the values is divided by the root of its mean square, the epsilon that is added to the mean
    /// square.
    pub value_norm: Option<f64>,
    /// Whether the values are the keys before their norm and rotation, so that there is no `v_proj`.
    pub keys_are_values: bool,
    /// Index of an earlier layer whose keys and values this layer attends to instead of its own; there is no `k_proj`
    /// and no `v_proj` then.
    pub shared_cache: Option<usize>,
    /// A gate on the output of attention, before the output projection.
    pub gate: Option<OutputGate>,
    /// Rotary embedding.
    pub rope: Option<RopeConfig>,
    /// Sliding window: the number of positions that a query sees, including its own; all if `None`.
    pub window: Option<usize>,
    /// Factor on the scores, before the softmax.
    pub scale: f64,
    /// Soft cap: scores become `cap * tanh(score / cap)`, after the factor.
    pub softcap: Option<f64>,
    /// Whether there are attention sinks: a logit per head that adds to the softmax denominator but has no value.
    pub sinks: bool,
}

/// Norms of queries and keys.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind, QkNorm, QkSpan};
///
/// let config = serde_json::json!({"model_type": "qwen3", "num_hidden_layers": 1});
/// let config = Architecture::from_config(&config)?.config;
/// let expected = Some(QkNorm::new(QkSpan::Head, config.norm));
/// let attention = &config.layers[0].attention;
/// assert!(matches!(attention, Some(AttentionKind::Heads(heads)) if heads.qk_norm == expected));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNorm {
    /// What each norm spans.
    pub span: QkSpan,
    /// What each norm computes.
    pub norm: NormConfig,
    /// Whether the norms are applied after the rotary embedding.
    pub behind_rope: bool,
}

/// What a norm of queries or keys spans.
///
/// # Examples
/// ```
/// use moi_models::{AttentionConfig, NormConfig, NormKind, QkNorm, QkSpan};
/// # use moi_models::{DecoderConfig, FeedForwardKind, LayerConfig, NormConfig as Norm, NormKind as Kind};
/// # let of_layer = |attention: AttentionConfig| {
/// #     let norm = Norm { kind: Kind::Rms, eps: 1e-6 };
/// #     let layer = LayerConfig::new(attention, FeedForwardKind::Linear);
/// #     DecoderConfig::new("tiny", [100, 32, 128], norm, vec![layer])
/// # };
///
/// let norm = NormConfig { kind: NormKind::Rms, eps: 1e-6 };
/// let width_of = |span| {
///     let qk_norm = Some(QkNorm::new(span, norm));
///     let config = of_layer(AttentionConfig { qk_norm, ..AttentionConfig::new(4, 2, 8) });
///     let shapes: std::collections::BTreeMap<_, _> = config.parameters().into_iter().collect();
///     shapes["model.layers.0.self_attn.q_norm.weight"][0]
/// };
/// assert_eq!((width_of(QkSpan::Head), width_of(QkSpan::Projection)), (8, 32));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkSpan {
    /// Each head by itself; all heads share one weight of a head's width.
    Head,
    /// The whole projection.
    Projection,
}

/// A gate on the output of attention: a linear layer of the same input as the queries', `self_attn.gate_proj`.
///
/// # Examples
/// ```
/// use moi_models::{AttentionConfig, GateKind, GateSpan, OutputGate};
/// # use moi_models::{DecoderConfig, FeedForwardKind, LayerConfig, NormConfig as Norm, NormKind as Kind};
/// # let of_layer = |attention: AttentionConfig| {
/// #     let norm = Norm { kind: Kind::Rms, eps: 1e-6 };
/// #     let layer = LayerConfig::new(attention, FeedForwardKind::Linear);
/// #     DecoderConfig::new("tiny", [100, 32, 128], norm, vec![layer])
/// # };
///
/// let gate = Some(OutputGate { kind: GateKind::Sigmoid, span: GateSpan::Head });
/// let config = of_layer(AttentionConfig { gate, ..AttentionConfig::new(4, 2, 8) });
/// // One value for each of four heads.
/// let gate = ("model.layers.0.self_attn.gate_proj.weight".to_owned(), vec![4, 32]);
/// assert!(config.parameters().contains(&gate));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputGate {
    /// The function that is applied to its values.
    pub kind: GateKind,
    /// What one of its values multiplies.
    pub span: GateSpan,
}

/// The function that is applied to the values of a gate.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind, GateKind};
///
/// let config = serde_json::json!({"model_type": "laguna", "num_hidden_layers": 1});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(AttentionKind::Heads(heads)) = &layers[0].attention else { panic!("Laguna has attention") };
/// assert_eq!(heads.gate.map(|gate| gate.kind), Some(GateKind::Softplus));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// ln(1 + e^x).
    Softplus,
}

/// What one value of a gate multiplies.
///
/// # Examples
/// ```
/// use moi_models::{AttentionConfig, GateKind, GateSpan, OutputGate};
/// # use moi_models::{DecoderConfig, FeedForwardKind, LayerConfig, NormConfig as Norm, NormKind as Kind};
/// # let of_layer = |attention: AttentionConfig| {
/// #     let norm = Norm { kind: Kind::Rms, eps: 1e-6 };
/// #     let layer = LayerConfig::new(attention, FeedForwardKind::Linear);
/// #     DecoderConfig::new("tiny", [100, 32, 128], norm, vec![layer])
/// # };
///
/// let gate = Some(OutputGate { kind: GateKind::Sigmoid, span: GateSpan::Value });
/// let config = of_layer(AttentionConfig { gate, ..AttentionConfig::new(4, 2, 8) });
/// // One value for each of the eight values of four heads.
/// let gate = ("model.layers.0.self_attn.gate_proj.weight".to_owned(), vec![32, 32]);
/// assert!(config.parameters().contains(&gate));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateSpan {
    /// A whole head.
    Head,
    /// One value of a head.
    Value,
}

impl QkNorm {
    /// Norms before the rotary embedding.
    pub fn new(span: QkSpan, norm: NormConfig) -> Self {
        Self { span, norm, behind_rope: false }
    }
}

impl AttentionConfig {
    /// Attention without any of the other options, its scores multiplied by `head_dim^-1/2`.
    pub fn new(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            num_heads,
            num_kv_heads,
            head_dim,
            qkv_bias: false,
            output_bias: false,
            qk_norm: None,
            value_norm: None,
            keys_are_values: false,
            shared_cache: None,
            gate: None,
            rope: None,
            window: None,
            scale: (head_dim as f64).powf(-0.5),
            softcap: None,
            sinks: false,
        }
    }

    /// Number of outputs of the gate's linear layer.
    pub(crate) fn gate_width(&self) -> Option<usize> {
        self.gate.map(|gate| match gate.span {
            GateSpan::Head => self.num_heads,
            GateSpan::Value => self.num_heads * self.head_dim,
        })
    }
}
