//! Norms of the residual stream, of queries and of keys.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, backend::Backend},
};

use crate::{NormConfig, NormKind, linear::uninitialized};

/// A norm over the last axis, computed in float32 whatever the model's type.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Norm, NormConfig, NormKind};
///
/// let device = Default::default();
/// let norm = Norm::<Flex>::new(2, NormConfig { kind: NormKind::RmsAlone, eps: 0.0 }, &device);
/// let x = Tensor::<Flex, 2>::from_floats([[2.0, -2.0]], &device);
/// assert_eq!(norm.forward(x).to_data().iter::<f32>().collect::<Vec<_>>(), [1.0, -1.0]);
/// ```
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// Weights, `[width]`.
    pub weight: Option<Param<Tensor<B, 1>>>,
    /// Biases, `[width]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    config: NormConfig,
    width: usize,
}

impl<B: Backend> Norm<B> {
    /// A norm over `width` values.
    pub fn new(width: usize, config: NormConfig, device: &B::Device) -> Self {
        let bias = (config.kind == NormKind::Layer).then(|| uninitialized([width], device));
        let weight = (config.kind != NormKind::RmsAlone).then(|| uninitialized([width], device));
        Self { weight, bias, config, width }
    }

    /// Computes `[.., width]` in float32 from `[.., width]` of any float type, by tensor operations.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let mut x = x.cast(DType::F32);
        if self.config.kind == NormKind::Layer {
            x = x.clone() - x.mean_dim(D - 1);
        }
        let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
        let y = x / mean_square.add_scalar(self.config.eps).sqrt();
        let y = match &self.weight {
            Some(weight) => {
                let weight = weight.val().cast(DType::F32);
                let weight =
                    if self.config.kind == NormKind::RmsPlusOne { weight.add_scalar(1.0) } else { weight };
                y * weight.unsqueeze()
            }
            None => y,
        };
        match &self.bias {
            Some(bias) => y + bias.val().cast(DType::F32).unsqueeze(),
            None => y,
        }
    }

    /// Number of values that the norm spans.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The kind of the norm, and its epsilon.
    pub fn config(&self) -> NormConfig {
        self.config
    }
}
