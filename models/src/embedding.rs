//! The token embedding: input layer, table of the mixture and, where tied, LM head.

use burn::{
    module::Module,
    tensor::{DType, Int, Tensor, backend::Backend},
};

use crate::{Kernels, Matrix};

/// An embedding table `[vocab, d]`, optionally with a second one for inputs of each layer. As inputs of the model,
/// its rows are multiplied by a factor, or divided by the root of their mean square.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor};
/// use burn_flex::Flex;
/// use moi_models::{Embedding, Mixing, default_kernels};
///
/// let device = Default::default();
/// let embedding = Embedding::<Flex>::new(32, 16, 4.0, &device);
/// let mixing = Mixing::new(0.0, default_kernels::<Flex>());
/// let ids = Tensor::<Flex, 1, Int>::from_ints([1, 2, 3], &device);
/// assert_eq!(mixing.rows(&embedding, ids).dims(), [3, 16]);
/// ```
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// The table, `[vocab, d]`.
    pub weight: Matrix<B>,
    /// The table of each layer's inputs, if they have any.
    pub per_layer: Option<PerLayerTable<B>>,
    scale: f64,
    norm: Option<f64>,
}

/// A table `[vocab, layers * width]` whose rows, times a factor, follow those of the embedding in the model's inputs.
#[derive(Module, Debug)]
pub struct PerLayerTable<B: Backend> {
    /// The table, `[vocab, layers * width]`.
    pub weight: Matrix<B>,
    scale: f64,
}

/// Number of rows that are widened at a time, because a whole table in float32 would take as much memory as the
/// model's.
const ROWS: usize = 4096;

impl<B: Backend> Embedding<B> {
    /// A table of zeros, which are not allocated before they are used or replaced by loaded weights.
    pub fn new(vocab: usize, hidden_size: usize, scale: f64, device: &B::Device) -> Self {
        Self { weight: Matrix::new(vocab, hidden_size, None, device), per_layer: None, scale, norm: None }
    }

    /// Divides rows by the root of their mean square plus epsilon, where an epsilon is given.
    pub(crate) fn with_norm(self, eps: Option<f64>) -> Self {
        Self { norm: eps, ..self }
    }

    /// Adds a table of inputs of `width` values for each layer, where a width is given.
    pub(crate) fn with_per_layer(self, layers: usize, width: Option<usize>, device: &B::Device) -> Self {
        let table = |width: usize| PerLayerTable {
            weight: Matrix::new(self.weight.dims()[0], layers * width, None, device),
            scale: (width as f64).sqrt(),
        };
        Self { per_layer: width.map(table), ..self }
    }

    /// `[vocab, width]`, where the width is that of the model's inputs: d, plus that of the second table if there is
    /// one.
    pub fn dims(&self) -> [usize; 2] {
        let [vocab, width] = self.weight.dims();
        [vocab, width + self.per_layer.as_ref().map_or(0, |table| table.weight.dims()[1])]
    }

    /// The tables, and the factors on their rows.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&Matrix<B>, f64)> {
        let own = (&self.weight, self.scale);
        std::iter::once(own).chain(self.per_layer.iter().map(|table| (&table.weight, table.scale)))
    }

    /// Whether the model's inputs are rows of a single table, times a factor.
    #[cfg(feature = "gpu")]
    pub(crate) fn is_plain(&self) -> bool {
        self.is_linear() && self.per_layer.is_none()
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// Whether the model's inputs are linear in the stored rows: these are only multiplied by a factor.
    pub(crate) fn is_linear(&self) -> bool {
        self.norm.is_none()
    }

    /// The model's inputs for `ids` `[n]`: `[n, width]`.
    pub(crate) fn rows(&self, ids: Tensor<B, 1, Int>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        if let Some(eps) = self.norm {
            let rows = kernels.rows(&self.weight, ids).cast(DType::F32);
            let roots = roots(rows.clone(), eps);
            return scaled(rows / roots, self.scale);
        }
        side_by_side(self.tables().map(|(table, scale)| scaled(kernels.rows(table, ids.clone()), scale)))
    }

    /// Weighted sums of all stored rows, times the tables' factors: `weights` `[n, vocab]` in float32, result
    /// `[n, width]`.
    pub(crate) fn weighted_sum(&self, weights: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        let sum = |(table, scale)| scaled(kernels.weighted_sum(table, weights.clone()), scale);
        side_by_side(self.tables().map(sum))
    }

    /// The divisors of all rows, `[1, vocab]`.
    pub(crate) fn roots(&self, kernels: &dyn Kernels<B>, device: &B::Device) -> Tensor<B, 2> {
        let [vocab, _] = self.weight.dims();
        let Some(eps) = self.norm else { return Tensor::ones([1, vocab], (device, DType::F32)) };
        let part = |start: usize| {
            let end = (start + ROWS).min(vocab);
            let ids = Tensor::<B, 1, Int>::arange(start as i64..end as i64, device);
            roots(kernels.rows(&self.weight, ids).cast(DType::F32), eps)
        };
        Tensor::cat((0..vocab).step_by(ROWS).map(part).collect(), 0).transpose()
    }
}

/// Multiplies rows, or sums of rows, by a factor.
pub(crate) fn scaled<B: Backend>(rows: Tensor<B, 2>, scale: f64) -> Tensor<B, 2> {
    match scale == 1.0 {
        true => rows,
        false => rows.mul_scalar(scale),
    }
}

/// Concatenates the columns of what comes from several tables.
pub(crate) fn side_by_side<B: Backend>(parts: impl Iterator<Item = Tensor<B, 2>>) -> Tensor<B, 2> {
    let mut parts: Vec<Tensor<B, 2>> = parts.collect();
    match parts.len() {
        1 => parts.remove(0),
        // The tables can be of different types.
        _ => Tensor::cat(parts.into_iter().map(|part| part.cast(DType::F32)).collect(), 1),
    }
}

/// The roots of the mean squares of rows `[n, d]`: `[n, 1]`.
fn roots<B: Backend>(rows: Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    (rows.clone() * rows).mean_dim(1).add_scalar(eps).sqrt()
}
