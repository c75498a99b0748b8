//! The residual stream through the layers.

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::{BlockOutput, Kernels, Norm};

/// The residual stream `[rows, d]`. It is in float32 whatever the type of the weights, because what each block adds
/// to it is small.
///
/// The output of a block is added when the next block asks for its input, so that a kernel can do both, and the norms
/// around them, at once.
pub(crate) struct Residual<'a, B: Backend> {
    x: Tensor<B, 2>,
    pending: Option<BlockOutput<'a, B>>,
    kernels: &'a dyn Kernels<B>,
}

impl<'a, B: Backend> Residual<'a, B> {
    pub(crate) fn new(x: Tensor<B, 2>, kernels: &'a dyn Kernels<B>) -> Self {
        Self { x: x.cast(DType::F32), pending: None, kernels }
    }

    /// Adds the output of a block, after a norm of its own and with a factor.
    pub(crate) fn add(self, block: Option<Tensor<B, 2>>, norm: Option<&'a Norm<B>>, scale: f64) -> Self {
        let Some(output) = block else { return self };
        // A pending output is added first.
        let stream = if self.pending.is_some() { self.normed(None).0 } else { self };
        Self { pending: Some(BlockOutput { output, norm, scale }), ..stream }
    }

    /// Multiplies the stream by a number `[1]`.
    pub(crate) fn scaled(self, by: Tensor<B, 1>) -> Self {
        let (stream, x) = self.normed(None);
        Self { x: x * by.cast(DType::F32).unsqueeze(), ..stream }
    }

    /// The input of a block: the stream, or its norm if one is given.
    pub(crate) fn normed(self, norm: Option<&Norm<B>>) -> (Self, Tensor<B, 2>) {
        let (x, input) = self.kernels.residual(self.x, self.pending, norm);
        (Self { x, pending: None, kernels: self.kernels }, input)
    }
}
