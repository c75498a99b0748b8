//! The feed-forward block that every position shares.

use burn::{
    module::Module,
    tensor::{
        DType, Tensor,
        activation::{gelu, gelu_approximate, relu, sigmoid, silu},
        backend::Backend,
    },
};

use crate::{
    Activation, Linear, MlpConfig,
    kernels::{Kernels, Map},
};

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

    /// `[rows, d]` to `[rows, d]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let inward: Vec<_> = self.gate_proj.iter().chain([&self.up_proj]).map(Map::from).collect();
        if let Some(inner) = B::maps(&x, &inward, Some(self.activation)).and_then(|mut inner| inner.pop()) {
            return self.down_proj.forward(inner);
        }
        let single = |x: Tensor<B, 2>| x.cast(DType::F32);
        let (inner, up) = match &self.gate_proj {
            Some(gate) => {
                let [gate, up] = Linear::together([gate, &self.up_proj], x);
                (single(gate), Some(single(up)))
            }
            None => (single(self.up_proj.forward(x)), None),
        };
        let inner = B::gated(self.activation, inner, up.as_ref()).unwrap_or_else(|inner| {
            let inner = self.activation.apply(inner);
            match up {
                Some(up) => inner * up,
                None => inner,
            }
        });
        self.down_proj.forward(inner)
    }
}

impl Activation {
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
