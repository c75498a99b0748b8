//! The token embedding: input layer, mixing table and, where tied, the head.

use burn::{
    module::Module,
    tensor::{Tensor, backend::Backend},
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

    /// Rows or sums of rows as they are stored `[n, d]`, as they enter the model.
    pub fn scaled(&self, rows: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.scale == 1.0 {
            true => rows,
            false => rows.mul_scalar(self.scale),
        }
    }
}
