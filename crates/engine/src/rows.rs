//! The model's embedding as the input layer uses it.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi::{EmbeddingRows, Gate};
use moi_models::{Embedding, Mixing};

/// Token ids as a tensor `[ids]`.
pub(crate) fn ids_tensor<B: Backend>(ids: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    let shape = [ids.len()];
    Tensor::from_data(TensorData::new(ids, shape), device)
}

/// The model's embedding as the input layer uses it.
pub(crate) struct Rows<'a, B: Backend> {
    pub(crate) embedding: &'a Embedding<B>,
    pub(crate) mixing: &'a Mixing<B>,
}

impl<B: Backend> EmbeddingRows<B> for Rows<'_, B> {
    fn dims(&self) -> [usize; 2] {
        self.embedding.dims()
    }

    fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.mixing.rows(self.embedding, tokens)
    }

    fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        self.mixing.weighted_sum(self.embedding, weights)
    }

    fn means(&self, logits: &Tensor<B, 2>, gates: &[Gate]) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        let vocab = logits.dims()[1];
        self.mixing.means(self.embedding, logits, &|row, nats| gates[row].at_nats(nats, vocab))
    }

    fn distribution(
        &self,
        logits: &Tensor<B, 2>,
        probabilities: bool,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        self.mixing.distribution(logits, probabilities)
    }
}
