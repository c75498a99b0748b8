//! What the input layer asks of an embedding.

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use crate::Gate;

/// Values of a table that are widened at a time.
const TILE: usize = 1 << 24;

/// The embedding rows that are mixed, each as the model's own input layer emits it (Gemma's scaled by
/// sqrt(d), for example). A tensor `[vocab, d]` is one; a packed or scaled table implements the trait.
pub trait EmbeddingRows<B: Backend> {
    /// `[vocab, d]`.
    fn dims(&self) -> [usize; 2];

    /// The rows of `tokens` `[n]`: `[n, d]`.
    fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2>;

    /// The weighted sums of all rows: `weights` `[n, vocab]` in float32, result `[n, d]`, best in float32 too.
    fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2>;

    /// The mean embeddings `[n, d]` in float32 of the softmax of `logits` `[n, vocab]` in float32, and entropies in nats
    /// `[n, 1]`, where the table knows a faster way than tensor operations. `gates` say how much of each row's next input
    /// its mean will be, which tells how exact it has to be.
    fn means(&self, _logits: &Tensor<B, 2>, _gates: &[Gate]) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        None
    }

    /// Probabilities `[n, vocab]` and entropies in nats `[n, 1]` of `logits` in float32, where the table knows a faster
    /// way than tensor operations. Where probabilities are not asked for theirs may be a tensor of any shape.
    fn distribution(
        &self,
        _logits: &Tensor<B, 2>,
        _probabilities: bool,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        None
    }
}

impl<B: Backend> EmbeddingRows<B> for Tensor<B, 2> {
    fn dims(&self) -> [usize; 2] {
        Tensor::dims(self)
    }

    fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.clone().select(0, tokens)
    }

    fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        if self.dtype() == DType::F32 {
            return weights.matmul(self.clone());
        }
        // In float32, as half precision rounds small weights to nothing; a part of the table at a time, so that it is
        // never there twice.
        let [rows, columns] = Tensor::dims(self);
        let step = (TILE / columns.max(1)).max(1);
        let part = |start: usize| {
            let len = step.min(rows - start);
            let tile = self.clone().narrow(0, start, len).cast(DType::F32);
            weights.clone().narrow(1, start, len).matmul(tile)
        };
        let sum = (0..rows).step_by(step).map(part).reduce(|sum, part| sum + part);
        sum.unwrap_or_else(|| {
            Tensor::zeros([Tensor::dims(&weights)[0], columns], (&weights.device(), DType::F32))
        })
    }
}
