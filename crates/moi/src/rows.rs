//! The embedding table as the input layer uses it.

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use crate::Gate;

/// The number of table values that are converted to float32 at a time.
const TILE: usize = 1 << 24;

/// The embedding rows that are mixed, each as the model's own input layer emits it (Gemma's scaled by sqrt(d), for
/// example). A tensor `[vocab, d]` implements this trait; a packed or scaled table needs its own implementation.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor, backend::Backend};
/// use moi::{EmbeddingRows, InputRule, Support, burn, next_inputs};
///
/// /// A table whose rows enter the model scaled, as Gemma's do.
/// struct Scaled<B: Backend> {
///     table: Tensor<B, 2>,
///     by: f64,
/// }
///
/// impl<B: Backend> EmbeddingRows<B> for Scaled<B> {
///     fn dims(&self) -> [usize; 2] {
///         self.table.dims()
///     }
///     fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2> {
///         self.table.clone().select(0, tokens).mul_scalar(self.by)
///     }
///     fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
///         weights.matmul(self.table.clone()).mul_scalar(self.by)
///     }
/// }
///
/// type B = burn_flex::Flex;
/// let device = Default::default();
/// let table = Scaled::<B> { table: Tensor::<B, 2>::from_floats([[1.0], [3.0]], &device), by: 2.0 };
/// let logits = Tensor::<B, 2>::from_floats([[0.0, 0.0]], &device);
/// let sampled = Tensor::<B, 1, Int>::from_ints([0], &device);
/// let mixed = next_inputs(logits, sampled, &table, &[InputRule::direct(Support::Full)?], 0)?;
/// assert_eq!(mixed.inputs.to_data().iter::<f32>().collect::<Vec<_>>(), [4.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait EmbeddingRows<B: Backend> {
    /// The size of the table: `[vocab, d]`.
    fn dims(&self) -> [usize; 2];

    /// The embeddings `[n, d]` of `tokens` `[n]`.
    fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2>;

    /// The weighted sums `[n, d]` of all rows by `weights` `[n, vocab]` in float32. The sums should be float32, too.
    fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2>;

    /// The mean embeddings `[n, d]` in float32 of the softmax of `logits` `[n, vocab]` in float32, and entropies in
    /// nats `[n, 1]`; `None` if the table has no faster way than tensor operations. `gates` say how large the mean's
    /// share of each row's next input will be, because that determines how exact the mean has to be.
    fn means(&self, _logits: &Tensor<B, 2>, _gates: &[Gate]) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        None
    }

    /// Probabilities `[n, vocab]` and entropies in nats `[n, 1]` of `logits` in float32; `None` if the table has no
    /// faster way than tensor operations. If probabilities are not asked for, their tensor may have any shape.
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
        // Computed in float32, because half precision rounds small weights to 0, and one part of the table at a time,
        // so that no second copy of the whole table is in memory.
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
