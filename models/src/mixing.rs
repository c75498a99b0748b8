//! Mean embeddings: which rows of the table are read, and the mean row that stands for the others.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use moi_kernels::RowCache;

use crate::{
    Activations, Embedding, Kernels, Matrix, Means,
    embedding::{scaled, side_by_side},
};

/// The tolerance for weights in float32 without quantized activations: the error of using the mean row is then lost
/// among the rounding errors of a model's sums.
const EXACT: f32 = 1e-5;

/// A table of at most this many rows is read completely: about as many are read on average with the tolerance
/// [`EXACT`].
const SMALL: usize = 4096;

/// The tolerance if weights or activations are rounded to 8 or 16 bits: half of 2^-9, bfloat16's relative rounding
/// error.
const ROUNDED: f32 = 1.0 / 1024.0;

/// How kernels compute mean embeddings: of the weight in a next input, at most a tolerance goes to the mean of all
/// rows instead of to the rows of the least likely tokens.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, CausalLm, Mixing};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let mixing = Mixing::auto(model.embedding(), model.kernels());
/// assert_eq!(mixing.tolerance(), 0.0); // So small a table is read completely.
/// let weights = Tensor::<Flex, 2>::full([1, 32], 1.0 / 32.0, &device);
/// assert_eq!(mixing.weighted_sum(model.embedding(), weights).dims(), [1, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Mixing<B: Backend> {
    kernels: Arc<dyn Kernels<B>>,
    tolerance: f32,
    /// Caches for the embedding table, and for the table of each layer's inputs.
    tables: [TableCache<B>; 2],
    /// The divisors of the embedding's rows, computed when the first mixture needs them.
    roots: OnceLock<Tensor<B, 2>>,
}

/// What is kept between the mixtures of a table.
#[derive(Debug)]
struct TableCache<B: Backend> {
    /// The mean of all rows, computed when the first mixture needs it.
    mean_row: OnceLock<Tensor<B, 1>>,
    /// The rows of a packed table that were read before, on the CPU.
    read: Mutex<RowCache>,
}

impl<B: Backend> Default for TableCache<B> {
    fn default() -> Self {
        Self { mean_row: OnceLock::new(), read: Mutex::default() }
    }
}

impl<B: Backend> Mixing<B> {
    /// With a tolerance of 0, every row is read whose weight is not zero in float32.
    pub fn new(tolerance: f32, kernels: Arc<dyn Kernels<B>>) -> Self {
        Self { kernels, tolerance, tables: Default::default(), roots: OnceLock::new() }
    }

    /// Uses the tolerance that suits a table: 1e-5 if it is in float32 and activations are not quantized, else 2^-10;
    /// 0 for a table of at most 4,096 rows.
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

    /// The largest weight in an input, gate times probability, that goes to the mean row; 0 on backends without
    /// kernels for it, which read the whole table.
    pub fn tolerance(&self) -> f32 {
        match self.kernels.has_tolerance() {
            true => self.tolerance,
            false => 0.0,
        }
    }

    /// The mean embeddings `[n, width]` in float32 under the softmax of `logits` `[n, vocab]`, and entropies in nats
    /// `[n, 1]`. `share`, called with the index of a row and its entropy, returns the weight of the mean in the row's
    /// input. `None` if the backend has no kernel for it.
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
            // A poisoned lock is ignored: the rows that were read stay in use after a panic.
            let mut read = kept.read.lock().unwrap_or_else(PoisonError::into_inner);
            let spec = Means { mean_row: &mean_row, share, tolerance: self.tolerance };
            let (mean, of_row) = self.kernels.means(table, &spec, &mut read, logits)?;
            means.push(scaled(mean, scale));
            entropies = Some(of_row);
        }
        Some((side_by_side(means.into_iter()), entropies?))
    }

    /// The kernels that read and mix rows.
    pub fn kernels(&self) -> &dyn Kernels<B> {
        &*self.kernels
    }

    /// The model's inputs for `ids` `[n]`: `[n, width]`.
    pub fn rows(&self, embedding: &Embedding<B>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        embedding.rows(ids, self.kernels())
    }

    /// Weighted sums of all rows as inputs of the model: `weights` `[n, vocab]` in float32, result `[n, width]`.
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

    /// The mean of all stored rows of the embedding, `[d]` in float32.
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
