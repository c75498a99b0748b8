//! Options of layers that keep a state of fixed size.

use super::AttentionKind;

/// A gated delta net: see [`crate::DeltaNet`].
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaNetConfig {
    /// Heads of queries and keys.
    pub num_key_heads: usize,
    /// Heads of values; a multiple of them. Value head j reads key head j / (value heads / key heads).
    pub num_value_heads: usize,
    /// Width of a query and a key.
    pub key_head_dim: usize,
    /// Width of a value.
    pub value_head_dim: usize,
    /// Inputs that the convolution sees, the position's own included.
    pub conv_kernel: usize,
    /// Added under the root in the norm of what comes out.
    pub norm_eps: f64,
}

impl DeltaNetConfig {
    /// Of all key heads.
    pub(crate) fn key_width(&self) -> usize {
        self.num_key_heads.saturating_mul(self.key_head_dim)
    }

    /// Of all value heads.
    pub(crate) fn value_width(&self) -> usize {
        self.num_value_heads.saturating_mul(self.value_head_dim)
    }
}

/// A short convolution between two gates: see [`crate::ShortConv`].
#[derive(Clone, Debug, PartialEq)]
pub struct ShortConvConfig {
    /// Inputs that it sees, the position's own included.
    pub kernel: usize,
    /// Biases on both maps and the convolution.
    pub bias: bool,
}

/// Mamba 2: see [`crate::Mamba2`].
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Config {
    /// Heads.
    pub num_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Groups of heads that read and write by the same keys and queries, B and C; divides the heads.
    pub num_groups: usize,
    /// Width of a key and a query, N.
    pub state_size: usize,
    /// Inputs that the convolution sees, the position's own included.
    pub conv_kernel: usize,
    /// Biases on the maps in and out.
    pub bias: bool,
    /// A bias of the convolution.
    pub conv_bias: bool,
    /// What a step is at least and at most.
    pub step_limits: [f64; 2],
    /// Added under the root in the norm of what comes out.
    pub norm_eps: f64,
}

impl Mamba2Config {
    /// Values of all heads.
    pub(crate) fn inner_width(&self) -> usize {
        self.num_heads.saturating_mul(self.head_dim)
    }

    /// Keys of all groups.
    pub(crate) fn key_width(&self) -> usize {
        self.num_groups.saturating_mul(self.state_size)
    }

    /// Channels of the convolution: values, keys and queries.
    pub(crate) fn conv_width(&self) -> usize {
        self.inner_width().saturating_add(self.key_width().saturating_mul(2))
    }
}

impl AttentionKind {
    /// Values of the state that it keeps of a sequence, whatever its length, in a model of this width.
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
