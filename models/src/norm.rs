//! Normalisation of the residual stream, of queries and of keys.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, backend::Backend},
};

use crate::{NormConfig, NormKind, linear::uninitialized};

/// A norm over the last axis, in float32 whatever the model's dtype.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// `[width]`.
    pub weight: Option<Param<Tensor<B, 1>>>,
    /// `[width]`.
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

    /// `[.., width]` of any float type to `[.., width]` in float32, by tensor operations.
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

    /// How many values it goes over.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Its kind, and what keeps it from dividing by zero.
    pub fn config(&self) -> NormConfig {
        self.config
    }
}
