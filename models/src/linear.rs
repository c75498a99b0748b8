//! A linear layer in the checkpoint's own layout.

use burn::{
    module::{Module, Param, ParamId},
    tensor::{DType, Int, Tensor, backend::Backend},
};

use crate::Matrix;

/// `y = x W^T + b` with `W` stored `[out, in]`, as checkpoints store it.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Matrix<B>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// A layer whose zeros are not allocated before they are used or loaded over.
    pub fn new(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: Matrix::new(outputs, inputs, None, device),
            bias: bias.then(|| uninitialized([outputs], device)),
        }
    }

    /// `[rows, in]` of any float type to `[rows, out]` in the type of the weights or in float32, with a bias in float32; by
    /// tensor operations.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.biased(self.weight.products(x))
    }

    /// Products with the bias, if there is one.
    pub(crate) fn biased(&self, y: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.bias {
            Some(bias) => y.cast(DType::F32) + bias.val().cast(DType::F32).unsqueeze(),
            None => y,
        }
    }
}

/// A parameter of zeros that is not allocated before it is used or loaded over.
pub(crate) fn uninitialized<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, _| Tensor::zeros(shape, device),
        device.clone(),
        false,
        shape.into(),
    )
}

/// The same of 32-bit integers.
pub(crate) fn uninitialized_int<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D, Int>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, _| Tensor::zeros(shape, (device, DType::I32)),
        device.clone(),
        false,
        shape.into(),
    )
}
