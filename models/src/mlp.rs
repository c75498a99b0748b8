//! The feed-forward block that every position shares.

use burn::{
    module::Module,
    tensor::{
        DType, Tensor,
        activation::{gelu, gelu_approximate, relu, sigmoid, silu},
        backend::Backend,
    },
};

use crate::{Activation, Linear, MlpConfig};

/// `down(act(gate(x)) * up(x))`, SwiGLU where the activation is SiLU; `down(act(up(x)))` without a gate.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `[intermediate, d]`.
    pub gate_proj: Option<Linear<B>>,
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
        let inward = || Linear::new(hidden_size, inner, config.bias, device);
        Self {
            gate_proj: config.gated.then(inward),
            up_proj: inward(),
            down_proj: Linear::new(inner, hidden_size, config.bias, device),
            activation: config.activation,
        }
    }

    /// `[rows, d]` to `[rows, d]`, by tensor operations.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.forward_by(x, Linear::forward)
    }

    /// The same with another way through the linear layers.
    pub fn forward_by(
        &self,
        x: Tensor<B, 2>,
        linear: impl Fn(&Linear<B>, Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let single = |x: Tensor<B, 2>| x.cast(DType::F32);
        let gate = self.gate_proj.as_ref().map(|gate| single(linear(gate, x.clone())));
        let up = single(linear(&self.up_proj, x));
        let inner = match gate {
            Some(gate) => self.activation.gated(gate, Some(up)),
            None => self.activation.gated(up, None),
        };
        linear(&self.down_proj, inner)
    }

    /// What stands between the linear layers.
    pub fn activation(&self) -> Activation {
        self.activation
    }
}

impl Activation {
    /// `activation(gate) * up`, or the activation alone.
    pub(crate) fn gated<B: Backend>(self, gate: Tensor<B, 2>, up: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
        let inner = self.apply(gate);
        match up {
            Some(up) => inner * up,
            None => inner,
        }
    }

    fn apply<B: Backend>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Silu => silu(x),
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_approximate(x),
            Self::QuickGelu => x.clone() * sigmoid(x.mul_scalar(1.702)),
            Self::Relu => relu(x),
            Self::ReluSquared => {
                let x = relu(x);
                x.clone() * x
            }
        }
    }
}
