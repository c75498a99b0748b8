//! Options of recurrent layers, which keep a state of fixed size.

use super::AttentionKind;

/// A gated delta net: see [`crate::DeltaNet`].
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind};
///
/// let config = serde_json::json!({"model_type": "qwen3_5_text", "num_hidden_layers": 4});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(AttentionKind::DeltaNet(net)) = &layers[0].attention else { panic!("it has a delta net") };
/// assert_eq!((net.num_key_heads, net.num_value_heads), (16, 32));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaNetConfig {
    /// Query and key heads.
    pub num_key_heads: usize,
    /// Value heads, a multiple of the key heads. Value head j reads key head j / (value heads / key heads).
    pub num_value_heads: usize,
    /// Width of a query and a key.
    pub key_head_dim: usize,
    /// Width of a value.
    pub value_head_dim: usize,
    /// Kernel size of the convolution: the inputs that it sees, including the position's own.
    pub conv_kernel: usize,
    /// Epsilon of the norm of the output.
    pub norm_eps: f64,
}

impl DeltaNetConfig {
    /// Width of all key heads.
    pub(crate) fn key_width(&self) -> usize {
        self.num_key_heads.saturating_mul(self.key_head_dim)
    }

    /// Width of all value heads.
    pub(crate) fn value_width(&self) -> usize {
        self.num_value_heads.saturating_mul(self.value_head_dim)
    }
}

/// A short convolution between two gates: see [`crate::ShortConv`].
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind, ShortConvConfig};
///
/// let config = serde_json::json!({
///     "model_type": "lfm2", "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"],
/// });
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let conv = ShortConvConfig { kernel: 3, bias: false };
/// assert_eq!(layers[0].attention, Some(AttentionKind::ShortConv(conv)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvConfig {
    /// Kernel size: the inputs that the convolution sees, including the position's own.
    pub kernel: usize,
    /// Whether both linear layers and the convolution have biases.
    pub bias: bool,
}

/// Mamba 2: see [`crate::Mamba2`].
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind};
///
/// let config = serde_json::json!({"model_type": "nemotron_h", "hybrid_override_pattern": "M*"});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(AttentionKind::Mamba2(mamba)) = &layers[0].attention else { panic!("it has Mamba 2") };
/// assert_eq!((mamba.num_heads, mamba.head_dim, mamba.state_size), (128, 64, 128));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Config {
    /// Heads.
    pub num_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Groups of heads that share keys and queries, B and C; divides the heads.
    pub num_groups: usize,
    /// Width of a key and a query, N.
    pub state_size: usize,
    /// Kernel size of the convolution: the inputs that it sees, including the position's own.
    pub conv_kernel: usize,
    /// Whether the input and output projections have biases.
    pub bias: bool,
    /// Whether the convolution has a bias.
    pub conv_bias: bool,
    /// Minimum and maximum of a step size.
    pub step_limits: [f64; 2],
    /// Epsilon of the norm of the output.
    pub norm_eps: f64,
}

impl Mamba2Config {
    /// Width of all heads' values.
    pub(crate) fn inner_width(&self) -> usize {
        self.num_heads.saturating_mul(self.head_dim)
    }

    /// Width of all groups' keys.
    pub(crate) fn key_width(&self) -> usize {
        self.num_groups.saturating_mul(self.state_size)
    }

    /// Channels of the convolution: values, keys and queries.
    pub(crate) fn conv_width(&self) -> usize {
        self.inner_width().saturating_add(self.key_width().saturating_mul(2))
    }
}

impl AttentionKind {
    /// Number of values in the state of one sequence, which does not depend on its length, in a model of width `d`.
    pub(crate) fn state_values(&self, d: usize) -> usize {
        match self {
            Self::Heads(_) | Self::Latent(_) | Self::Linear => 0,
            Self::DeltaNet(net) => {
                let matrices = net.value_width().saturating_mul(net.key_head_dim);
                (net.conv_kernel - 1) * (2 * net.key_width() + net.value_width()) + matrices
            }
            Self::ShortConv(conv) => (conv.kernel - 1) * d,
            Self::Mamba2(mamba) => {
                let matrices = mamba.inner_width().saturating_mul(mamba.state_size);
                (mamba.conv_kernel - 1) * mamba.conv_width() + matrices
            }
        }
    }
}
