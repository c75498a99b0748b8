//! A linear layer in the checkpoint's own layout.

use burn::{
    module::{Module, Param, ParamId},
    tensor::{Tensor, backend::Backend},
};

/// `y = x W^T + b` with `W` stored `[out, in]`, as checkpoints store it.
///
/// The product sees a transposed view: column-major on the right is what matrix-vector kernels want, and no
/// weight is rearranged when it is loaded.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// A layer whose zeros are not allocated before they are used or loaded over.
    pub fn new(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: uninitialized([outputs, inputs], device),
            bias: bias.then(|| uninitialized([outputs], device)),
        }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = x.matmul(self.weight.val().transpose());
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
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
