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
    pub(crate) fn add(self, block: Option<Tensor<B, 2>>, after: Option<&'a Norm<B>>, scale: f64) -> Self {
        match block {
            Some(block) => Self { pending: Some(Pending { block, after, scale }), ..self.settled() },
            None => self,
        }
    }

    /// The input of a block: the stream, behind a norm where there is one.
    pub(crate) fn normed(self, before: Option<&Norm<B>>) -> (Self, Tensor<B, 2>) {
        let joined = before.and_then(|before| B::join(&self.x, self.pending.as_ref(), Some(before)));
        if let Some((sum, Some(normed))) = joined {
            return (Self { x: sum.unwrap_or(self.x), pending: None }, normed);
        }
        let stream = self.settled();
        let x = stream.x.clone();
        match before {
            Some(before) => (stream, before.forward(x)),
            None => (stream, x),
        }
    }

    /// With nothing pending. The sum takes the place of the stream, which nobody else has then.
    fn settled(self) -> Self {
        let Self { x, pending: Some(pending) } = self else { return self };
        if let Some((Some(sum), _)) = B::join(&x, Some(&pending), None) {
            return Self { x: sum, pending: None };
        }
        let Pending { block, after, scale } = pending;
        let block = match after {
            Some(norm) => norm.forward(block),
            None => block.cast(DType::F32),
        };
        let block = if scale == 1.0 { block } else { block.mul_scalar(scale) };
        Self { x: x + block, pending: None }
    }
}
