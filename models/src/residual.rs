//! The residual stream on its way through the layers.

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::{
    Norm,
    kernels::{Kernels, Pending},
};

/// The stream `[rows, d]` in float32, whatever the weights are: what each block adds to it is small.
///
/// What a block has computed is added when the next one asks for its input, so that a kernel can do both and the norms
/// around them at once.
pub(crate) struct Residual<'a, B: Backend> {
    x: Tensor<B, 2>,
    pending: Option<Pending<'a, B>>,
}

impl<'a, B: Backend> Residual<'a, B> {
    pub(crate) fn new(x: Tensor<B, 2>) -> Self {
        Self { x: x.cast(DType::F32), pending: None }
    }

    /// Adds what a block has computed, behind a norm of its own and with a factor.
    pub(crate) fn add(&mut self, block: Option<Tensor<B, 2>>, after: Option<&'a Norm<B>>, scale: f64) {
        let Some(block) = block else { return };
        self.settle();
        self.pending = Some(Pending { block, after, scale });
    }

    /// The input of a block: the stream, behind a norm where there is one.
    pub(crate) fn normed(&mut self, before: Option<&Norm<B>>) -> Tensor<B, 2> {
        let Some(before) = before else {
            self.settle();
            return self.x.clone();
        };
        if let Some((sum, Some(normed))) = B::join(&self.x, self.pending.as_ref(), Some(before)) {
            self.pending = None;
            self.x = sum.unwrap_or_else(|| self.x.clone());
            return normed;
        }
        self.settle();
        before.forward(self.x.clone())
    }

    fn settle(&mut self) {
        let Some(pending) = self.pending.take() else { return };
        if let Some((Some(sum), _)) = B::join(&self.x, Some(&pending), None) {
            self.x = sum;
            return;
        }
        let Pending { block, after, scale } = pending;
        let block = match after {
            Some(norm) => norm.forward(block),
            None => block.cast(DType::F32),
        };
        self.x = match scale == 1.0 {
            true => self.x.clone() + block,
            false => self.x.clone() + block.mul_scalar(scale),
        };
    }
}
