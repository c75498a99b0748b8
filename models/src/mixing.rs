//! Mean embeddings: which rows of the table are read, and what stands for the others.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use moi_kernels::RowCache;

use crate::{
    Activations, Embedding, Kernels, Matrix, Means,
    embedding::{scaled, side_by_side},
};

/// Of weights in float32 without rounded activations: with it what the mean row stands for is lost among the rounding of
/// a model's sums.
const EXACT: f32 = 1e-5;

/// A table of no more rows is read as a whole: as many are read on average where [`EXACT`] is the tolerance.
const SMALL: usize = 4096;

/// Where weights or activations are rounded to 8 or 16 bits: a rounding of 2^-9 of a value, as bfloat16's, is twice this.
const ROUNDED: f32 = 1.0 / 1024.0;

/// How kernels compute mean embeddings: of a next input's weight at most a tolerance goes to the mean of all rows, in the
/// place of the rows of the least likely tokens.
#[derive(Debug)]
pub struct Mixing<B: Backend> {
    kernels: Arc<dyn Kernels<B>>,
    tolerance: f32,
    /// Of the embedding, and of the table for inputs of each layer.
    tables: [TableCache<B>; 2],
    /// What rows are divided by before they are mixed, computed when the first mixture needs it.
    roots: OnceLock<Tensor<B, 2>>,
}

/// What the mixtures of a table keep between steps.
#[derive(Debug)]
struct TableCache<B: Backend> {
    /// Computed when the first mixture needs it.
    mean_row: OnceLock<Tensor<B, 1>>,
    /// Rows of a packed table that were read before; on the CPU.
    read: Mutex<RowCache>,
}

impl<B: Backend> Default for TableCache<B> {
    fn default() -> Self {
        Self { mean_row: OnceLock::new(), read: Mutex::default() }
    }
}

impl<B: Backend> Mixing<B> {
    /// With a tolerance of 0 every row is read that has a weight in float32.
    pub fn new(tolerance: f32, kernels: Arc<dyn Kernels<B>>) -> Self {
        Self { kernels, tolerance, tables: Default::default(), roots: OnceLock::new() }
    }

    /// With the tolerance that belongs to a table: 1e-5 where it is in float32 and activations are not rounded, else
    /// 2^-10; 0 for a table of at most 4,096 rows.
    pub fn auto(embedding: &Embedding<B>, kernels: Arc<dyn Kernels<B>>) -> Self {
        let is_exact = match &embedding.weight {
            Matrix::Dense(weight) => weight.val().dtype() == DType::F32,
            packed => packed.packed().is_some_and(|packed| packed.activations() == Activations::F32),
        };
        let tolerance = match is_exact {
            _ if embedding.dims()[0] <= SMALL => 0.0,
            true => EXACT,
            false => ROUNDED,
        };
        Self::new(tolerance, kernels)
    }

    /// The largest share of an input's weight, gate times probability, that goes to the mean row; 0 on backends without
    /// kernels for it, which read the whole table.
    pub fn tolerance(&self) -> f32 {
        match self.kernels.has_tolerance() {
            true => self.tolerance,
            false => 0.0,
        }
    }

    /// The mean embeddings `[n, width]` in float32 of the softmax of `logits` `[n, vocab]`, and entropies in nats `[n, 1]`.
    /// `share` is told a row and its entropy, and says how much of the row's input the mean will be. `None` where the
    /// backend has no kernel for it.
    pub fn means(
        &self,
        embedding: &Embedding<B>,
        logits: &Tensor<B, 2>,
        share: &(dyn Fn(usize, f32) -> f32 + Sync),
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        if !embedding.is_linear() {
            return None;
        }
        let mut entropies = None;
        let mut means = Vec::new();
        for ((table, scale), kept) in embedding.tables().zip(&self.tables) {
            let mean_row = || self.mean_row_of(table, kept, &logits.device());
            // Whoever panicked has left it with rows that are whole or not yet told of.
            let mut read = kept.read.lock().unwrap_or_else(PoisonError::into_inner);
            let spec = Means { mean_row: &mean_row, share, tolerance: self.tolerance };
            let (mean, of_row) = self.kernels.means(table, &spec, &mut read, logits)?;
            means.push(scaled(mean, scale));
            entropies = Some(of_row);
        }
        Some((side_by_side(means.into_iter()), entropies?))
    }

    /// How rows are read and mixed.
    pub fn kernels(&self) -> &dyn Kernels<B> {
        &*self.kernels
    }

    /// The rows of `ids` `[n]` as they enter the model: `[n, width]`.
    pub fn rows(&self, embedding: &Embedding<B>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        embedding.rows(ids, self.kernels())
    }

    /// Weighted sums of all rows as they enter the model: `weights` `[n, vocab]` in float32, result
    /// `[n, width]`.
    pub fn weighted_sum(&self, embedding: &Embedding<B>, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        let weights = match embedding.is_linear() {
            true => weights,
            false => {
                let device = weights.device();
                let roots = self.roots.get_or_init(|| embedding.roots(self.kernels(), &device));
                weights / roots.clone()
            }
        };
        embedding.weighted_sum(weights, self.kernels())
    }

    /// Probabilities and entropies: see [`Kernels::distribution`].
    pub fn distribution(
        &self,
        logits: &Tensor<B, 2>,
        probabilities: bool,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        self.kernels.distribution(logits, probabilities)
    }

    /// The mean of all rows of the embedding as they are stored `[d]`, in float32.
    #[cfg(feature = "gpu")]
    pub(crate) fn mean_row(&self, embedding: &Embedding<B>, device: &B::Device) -> &Tensor<B, 1> {
        self.mean_row_of(&embedding.weight, &self.tables[0], device)
    }

    fn mean_row_of<'a>(
        &self,
        table: &Matrix<B>,
        kept: &'a TableCache<B>,
        device: &B::Device,
    ) -> &'a Tensor<B, 1> {
        kept.mean_row.get_or_init(|| {
            let [vocab, width] = table.dims();
            let weights = Tensor::full([1, vocab], 1.0 / vocab as f64, (device, DType::F32));
            self.kernels.weighted_sum(table, weights).cast(DType::F32).reshape([width])
        })
    }
}
