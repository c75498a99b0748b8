//! Root mean square normalisation.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, backend::Backend},
};

use crate::linear::uninitialized;

/// `x / sqrt(mean(x^2) + eps) * w`, in float32 whatever the model's dtype.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[d]`.
    pub weight: Param<Tensor<B, 1>>,
    #[module(skip)]
    eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// A norm over `hidden_size` values.
    pub fn new(hidden_size: usize, eps: f64, device: &B::Device) -> Self {
        Self { weight: uninitialized([hidden_size], device), eps }
    }

    /// `[rows, d]` to `[rows, d]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let mean = (x.clone() * x.clone()).mean_dim(1);
        let weight = self.weight.val().cast(DType::F32).unsqueeze();
        (x / mean.add_scalar(self.eps).sqrt() * weight).cast(dtype)
    }
}
