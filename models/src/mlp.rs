//! The gated feed-forward block.

use burn::{
    module::Module,
    tensor::{Tensor, activation::silu, backend::Backend},
};

use crate::{Activation, Linear, MlpConfig};

/// `down(act(gate(x)) * up(x))`; SwiGLU where the activation is SiLU.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `[intermediate, d]`.
    pub gate_proj: Linear<B>,
    /// `[intermediate, d]`.
    pub up_proj: Linear<B>,
    /// `[d, intermediate]`.
    pub down_proj: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> Mlp<B> {
    /// A block for a residual stream of `hidden_size`.
    pub fn new(hidden_size: usize, config: &MlpConfig, device: &B::Device) -> Self {
        let inner = config.intermediate_size;
        Self {
            gate_proj: Linear::new(hidden_size, inner, config.bias, device),
            up_proj: Linear::new(hidden_size, inner, config.bias, device),
            down_proj: Linear::new(inner, hidden_size, config.bias, device),
            activation: config.activation,
        }
    }

    /// `[rows, d]` to `[rows, d]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let gate = self.gate_proj.forward(x.clone());
        let gate = match self.activation {
            Activation::Silu => silu(gate),
        };
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}
