//! A linear layer in the layout of checkpoints.

use burn::{
    module::{Module, Param, ParamId},
    tensor::{DType, Int, Tensor, backend::Backend},
};

use crate::Matrix;

/// `y = x W^T + b`, where `W` is stored as `[out, in]`, as in checkpoints.
///
/// # Examples
/// ```
/// use burn::{module::Param, tensor::Tensor};
/// use burn_flex::Flex;
/// use moi_models::{Linear, Matrix};
///
/// let device = Default::default();
/// let weight = Tensor::<Flex, 2>::from_floats([[1.0, 2.0]], &device);
/// let layer = Linear { weight: Matrix::Dense(Param::from_tensor(weight)), bias: None };
/// let x = Tensor::<Flex, 2>::from_floats([[3.0, 4.0]], &device);
/// assert_eq!(layer.forward(x).to_data().iter::<f32>().collect::<Vec<_>>(), [11.0]);
/// ```
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Matrix<B>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// A layer of zeros, which are not allocated before they are used or replaced by loaded weights.
    pub fn new(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: Matrix::new(outputs, inputs, None, device),
            bias: bias.then(|| uninitialized([outputs], device)),
        }
    }

    /// Computes `[rows, out]`, in the type of the weights or in float32, from `[rows, in]` of any float type; with a
    /// bias, in float32. By tensor operations.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.biased(self.weight.products(x))
    }

    /// Adds the bias to products, if there is one.
    pub(crate) fn biased(&self, y: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.bias {
            Some(bias) => y.cast(DType::F32) + bias.val().cast(DType::F32).unsqueeze(),
            None => y,
        }
    }
}

/// A parameter of zeros, which are not allocated before they are used or replaced by loaded values.
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

/// The same for 32-bit integers.
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
