//! The feed-forward network that all positions share.

use burn::{
    module::{Module, Param},
    tensor::{
        DType, Tensor,
        activation::{gelu, gelu_approximate, relu, sigmoid, silu, softplus},
        backend::Backend,
    },
};

use crate::{Activation, Linear, MlpConfig, linear::uninitialized};

/// `down(act(gate(x)) * up(x))`, which is SwiGLU with the activation SiLU; `down(act(up(x)))` without a gate.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Activation, Mlp, MlpConfig};
///
/// let device = Default::default();
/// let config = MlpConfig { intermediate_size: 24, gated: true, bias: false, activation: Activation::Silu };
/// let mlp = Mlp::<Flex>::new(16, &config, &device);
/// let x = Tensor::<Flex, 2>::ones([3, 16], &device);
/// assert_eq!(mlp.forward(x).dims(), [3, 16]);
/// ```
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Gate projection, `[intermediate, d]`.
    pub gate_proj: Option<Linear<B>>,
    /// Up projection, `[intermediate, d]`.
    pub up_proj: Linear<B>,
    /// Down projection, `[d, intermediate]`.
    pub down_proj: Linear<B>,
    /// The parameters of [`Activation::Xielu`].
    pub act_fn: Option<Xielu<B>>,
    #[module(skip)]
    activation: Activation,
}

/// The parameters of [`Activation::Xielu`], `[1]` each.
///
/// # Examples
/// ```
/// use burn_flex::Flex;
/// use moi_models::{Activation, Mlp, MlpConfig};
///
/// let config = MlpConfig { intermediate_size: 24, gated: false, bias: false, activation: Activation::Xielu };
/// let mlp = Mlp::<Flex>::new(16, &config, &Default::default());
/// assert_eq!(mlp.act_fn.map(|numbers| numbers.beta.val().dims()), Some([1]));
/// ```
#[derive(Module, Debug)]
pub struct Xielu<B: Backend> {
    /// Factor on the squares of positive inputs, before softplus.
    pub alpha_p: Param<Tensor<B, 1>>,
    /// Factor for negative inputs, before softplus.
    pub alpha_n: Param<Tensor<B, 1>>,
    /// The slope at 0.
    pub beta: Param<Tensor<B, 1>>,
    /// Upper bound of the exponential's input.
    pub eps: Param<Tensor<B, 1>>,
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
            act_fn: (config.activation == Activation::Xielu).then(|| Xielu::new(device)),
            activation: config.activation,
        }
    }

    /// Computes `[rows, d]` from `[rows, d]`, by tensor operations.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.forward_by(x, Linear::forward)
    }

    /// The same, with another implementation of linear layers.
    pub fn forward_by(
        &self,
        x: Tensor<B, 2>,
        linear: impl Fn(&Linear<B>, Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let single = |x: Tensor<B, 2>| x.cast(DType::F32);
        let gate = self.gate_proj.as_ref().map(|gate| single(linear(gate, x.clone())));
        let up = single(linear(&self.up_proj, x));
        let inner = match gate {
            Some(gate) => self.activated(gate, Some(up)),
            None => self.activated(up, None),
        };
        linear(&self.down_proj, inner)
    }

    /// The activation between the linear layers, by tensor operations; without `up`, the MLP has no gate.
    pub(crate) fn activated(&self, gate: Tensor<B, 2>, up: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
        let (inner, up) = match (self.activation, up) {
            (Activation::ClampedSwiGlu { limit }, up) => {
                let gate = gate.clamp_max(limit);
                let up = up.map(|up| up.clamp(-limit, limit).add_scalar(1.0));
                (Activation::QuickGelu.apply(gate), up)
            }
            (activation, up) => match &self.act_fn {
                Some(numbers) => (numbers.apply(gate), up),
                None => (activation.apply(gate), up),
            },
        };
        match up {
            Some(up) => inner * up,
            None => inner,
        }
    }

    /// The activation function between the linear layers.
    pub fn activation(&self) -> Activation {
        self.activation
    }
}

impl<B: Backend> Xielu<B> {
    fn new(device: &B::Device) -> Self {
        let number = || uninitialized([1], device);
        Self { alpha_p: number(), alpha_n: number(), beta: number(), eps: number() }
    }

    fn apply(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let number = |of: &Param<Tensor<B, 1>>| of.val().cast(DType::F32).unsqueeze::<2>();
        let beta = number(&self.beta);
        let above = softplus(number(&self.alpha_p), 1.0);
        let below = beta.clone() + softplus(number(&self.alpha_n), 1.0);
        let is_above = x.clone().greater_elem(0.0);
        // Above the bound, the exponential is that of the bound.
        let bound = number(&self.eps).expand(x.dims());
        let least = x.clone().min_pair(bound);
        let curved = (expm1(least) - x.clone()) * below;
        let square = x.clone() * x.clone() * above;
        curved.mask_where(is_above, square) + x * beta
    }
}

/// e^x - 1 for x of at most 0, accurate for small x, where it is a sum of a few powers.
fn expm1<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    const SMALL: f64 = -0.1;
    let is_small = x.clone().greater_elem(SMALL);
    // 1 + x/2 (1 + x/3 (1 + x/4 (1 + x/5 (1 + x/6)))), times x.
    let mut sum = x.ones_like();
    for n in (2..=6).rev() {
        sum = (sum * x.clone()).div_scalar(f64::from(n)).add_scalar(1.0);
    }
    let few = sum * x.clone();
    x.exp().sub_scalar(1.0).mask_where(is_small, few)
}

impl Activation {
    /// The activation function, applied to the gate, or to the up projection of an MLP without a gate.
    pub(crate) fn apply<B: Backend>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Silu => silu(x),
            Self::Gelu => gelu(x),
            Self::GeluTanh => gelu_approximate(x),
            Self::QuickGelu | Self::ClampedSwiGlu { .. } => x.clone() * sigmoid(x.mul_scalar(1.702)),
            Self::Relu => relu(x),
            Self::ReluSquared => {
                let x = relu(x);
                x.clone() * x
            }
            Self::Xielu => unreachable!("an MLP with this activation has its numbers"),
        }
    }
}
