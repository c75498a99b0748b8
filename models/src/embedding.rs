//! The token embedding: input layer, mixing table and, where tied, the head.

use burn::{
    module::Module,
    tensor::{Int, Tensor, backend::Backend},
};

use crate::Matrix;

/// A table `[vocab, d]`, and the factor with which its rows enter the model.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[vocab, d]`.
    pub weight: Matrix<B>,
    scale: f64,
}

impl<B: Backend> Embedding<B> {
    /// A table whose zeros are not allocated before they are used or loaded over.
    pub fn new(vocab: usize, hidden_size: usize, scale: f64, device: &B::Device) -> Self {
        Self { weight: Matrix::new(vocab, hidden_size, None, device), scale }
    }

    /// `[vocab, d]`.
    pub fn dims(&self) -> [usize; 2] {
        self.weight.dims()
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// The rows of `ids` `[n]` as they enter the model: `[n, d]`.
    pub fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.scaled(self.weight.rows(ids))
    }

    /// Weighted sums of all rows as they enter the model: `weights` `[n, vocab]` in float32, result `[n, d]`.
    pub fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        self.scaled(self.weight.weighted_sum(weights))
    }

    pub(crate) fn scaled(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.scale == 1.0 {
            true => rows,
            false => rows.mul_scalar(self.scale),
        }
    }

    /// Products of `x` `[n, d]` with every row as it is stored `[n, vocab]`: the tied head.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.weight.products(x)
    }
}
