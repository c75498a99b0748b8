//! A causal convolution of each channel by itself.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, backend::Backend},
};

use crate::linear::uninitialized;

/// `y_t = sum_j w_j u_(t - kernel + 1 + j) (+ b)` of each channel.
#[derive(Module, Debug)]
pub struct CausalConv<B: Backend> {
    /// `[channels, kernel]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[channels]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> CausalConv<B> {
    /// A convolution whose zeros are not allocated before they are used or loaded over.
    pub(crate) fn new(channels: usize, kernel: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: uninitialized([channels, kernel], device),
            bias: bias.then(|| uninitialized([channels], device)),
        }
    }

    /// New inputs `[n, channels]` behind the last ones `[kernel - 1, channels]`, zeros where there are none, to as many
    /// outputs, and the last inputs now; in float32.
    pub(crate) fn forward(
        &self,
        inputs: Tensor<B, 2>,
        last: Option<Tensor<B, 2>>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let ([n, channels], device) = (inputs.dims(), inputs.device());
        let kernel = self.weight.val().dims()[1];
        // One behind the other, so that the taps of all channels are in one piece.
        let weight = self.weight.val().cast(DType::F32).transpose().reshape([kernel * channels]);
        let last = last.unwrap_or_else(|| Tensor::zeros([kernel - 1, channels], (&device, DType::F32)));
        let all = Tensor::cat(vec![last, inputs.cast(DType::F32)], 0);
        let tap = |j: usize| weight.clone().narrow(0, j * channels, channels).unsqueeze::<2>();
        let product = |j: usize| all.clone().narrow(0, j, n) * tap(j);
        let mut out = product(0);
        for j in 1..kernel {
            out = out + product(j);
        }
        if let Some(bias) = &self.bias {
            out = out + bias.val().cast(DType::F32).unsqueeze();
        }
        // Of their own, so that they do not keep all inputs.
        let last = all.narrow(0, n, kernel - 1).mul_scalar(1.0);
        (out, last)
    }
}
