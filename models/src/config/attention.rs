//! Options of attention.

use super::{DeltaNetConfig, LatentConfig, Mamba2Config, NormConfig, ShortConvConfig};
use crate::RopeConfig;

/// The first block of a layer.
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
    /// Attention over latents.
    Latent(LatentConfig),
    /// One linear map in its place, `self_attn.linear_attn`.
    Linear,
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub output_bias: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Where each head of the values is divided by the root of its mean square: what is added under the root.
    pub value_norm: Option<f64>,
    /// Whether the values are the keys, as they are before their norm and rotation: there is no `v_proj`.
    pub keys_are_values: bool,
    /// The number of an earlier layer whose keys and values these queries see, if it is not their own one: there is no
    /// `k_proj` and no `v_proj`.
    pub shared_cache: Option<usize>,
    /// A gate on what attention gives, before o.
    pub gate: Option<OutputGate>,
    /// Rotary positions.
    pub rope: Option<RopeConfig>,
    /// Positions that a query sees, its own included; all where none is given.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f64,
    /// `cap * tanh(scores / cap)`, after the factor.
    pub softcap: Option<f64>,
    /// A logit of each head that takes a share of the softmax and gives nothing.
    pub sinks: bool,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkNorm {
    /// What each goes over.
    pub span: QkSpan,
    /// What is computed.
    pub norm: NormConfig,
    /// Whether they come behind the rotation.
    pub behind_rope: bool,
}

/// What a norm of queries or keys spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkSpan {
    /// Each head by itself, all with one weight of a head's width.
    Head,
    /// The whole projection.
    Projection,
}

/// A gate on what attention gives: a map of the same input as the queries', `self_attn.gate_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputGate {
    /// What is done to its values.
    pub kind: GateKind,
    /// What one of its values is for.
    pub span: GateSpan,
}

/// What is done to the values of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// ln(1 + e^x).
    Softplus,
}

/// What one value of a gate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateSpan {
    /// A whole head.
    Head,
    /// One value of a head.
    Value,
}

impl QkNorm {
    /// Before the rotation.
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

    /// Outputs of the gate's map.
    pub(crate) fn gate_width(&self) -> Option<usize> {
        self.gate.map(|gate| match gate.span {
            GateSpan::Head => self.num_heads,
            GateSpan::Value => self.num_heads * self.head_dim,
        })
    }
}
