//! What the input layer asks of an embedding.

use burn::tensor::{Int, Tensor, backend::Backend};

/// The embedding rows that are mixed, each as the model's own input layer emits it (Gemma's scaled by
/// sqrt(d), for example). A tensor `[vocab, d]` is one; a packed or scaled table implements the trait.
pub trait EmbeddingRows<B: Backend> {
    /// `[vocab, d]`.
    fn dims(&self) -> [usize; 2];

    /// The rows of `tokens` `[n]`: `[n, d]`.
    fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2>;

    /// The weighted sums of all rows: `weights` `[n, vocab]` in float32, result `[n, d]`.
    fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2>;
}

impl<B: Backend> EmbeddingRows<B> for Tensor<B, 2> {
    fn dims(&self) -> [usize; 2] {
        Tensor::dims(self)
    }

    fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.clone().select(0, tokens)
    }

    fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        // The product runs in the table's own dtype: widening the table would copy it every step.
        weights.cast(self.dtype()).matmul(self.clone())
    }
}
