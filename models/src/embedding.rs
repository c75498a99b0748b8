//! The token embedding: input layer, mixing table and, where tied, the head.

use burn::{
    module::Module,
    tensor::{DType, Int, Tensor, backend::Backend},
};

use crate::{Kernels, Matrix};

/// A table `[vocab, d]`, perhaps a second one for inputs of each layer, and how its rows enter the model: times a factor, or divided by the root of their mean square.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[vocab, d]`.
    pub weight: Matrix<B>,
    /// What a token gives each layer, where it does.
    pub per_layer: Option<PerLayerTable<B>>,
    scale: f64,
    norm: Option<f64>,
}

/// A table `[vocab, layers * width]` whose rows stand behind those of the embedding, times a factor.
#[derive(Module, Debug)]
pub struct PerLayerTable<B: Backend> {
    /// `[vocab, layers * width]`.
    pub weight: Matrix<B>,
    scale: f64,
}

/// Rows that are widened at a time: a whole table in float32 would be a second one.
const ROWS: usize = 4096;

impl<B: Backend> Embedding<B> {
    /// A table whose zeros are not allocated before they are used or loaded over.
    pub fn new(vocab: usize, hidden_size: usize, scale: f64, device: &B::Device) -> Self {
        Self { weight: Matrix::new(vocab, hidden_size, None, device), per_layer: None, scale, norm: None }
    }

    /// The same with rows that are divided by the root of their mean square and of what is added to that.
    pub(crate) fn with_norm(self, eps: Option<f64>) -> Self {
        Self { norm: eps, ..self }
    }

    /// The same with inputs of each of so many layers.
    pub(crate) fn with_per_layer(self, layers: usize, width: Option<usize>, device: &B::Device) -> Self {
        let table = |width: usize| PerLayerTable {
            weight: Matrix::new(self.weight.dims()[0], layers * width, None, device),
            scale: (width as f64).sqrt(),
        };
        Self { per_layer: width.map(table), ..self }
    }

    /// `[vocab, width]`, the width that of what enters the model: d, and that of the second table, if there is one.
    pub fn dims(&self) -> [usize; 2] {
        let [vocab, width] = self.weight.dims();
        [vocab, width + self.per_layer.as_ref().map_or(0, |table| table.weight.dims()[1])]
    }

    /// The tables, with the factors on their rows.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&Matrix<B>, f64)> {
        let own = (&self.weight, self.scale);
        std::iter::once(own).chain(self.per_layer.iter().map(|table| (&table.weight, table.scale)))
    }

    /// Whether what enters the model is a sum of rows of one table, times a factor.
    #[cfg(feature = "gpu")]
    pub(crate) fn is_plain(&self) -> bool {
        self.is_linear() && self.per_layer.is_none()
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    /// Whether sums of rows as they enter the model are sums of rows as they are stored, times a factor.
    pub(crate) fn is_linear(&self) -> bool {
        self.norm.is_none()
    }

    /// The rows of `ids` `[n]` as they enter the model: `[n, width]`.
    pub(crate) fn rows(&self, ids: Tensor<B, 1, Int>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        if let Some(eps) = self.norm {
            let rows = kernels.rows(&self.weight, ids).cast(DType::F32);
            let roots = roots(rows.clone(), eps);
            return scaled(rows / roots, self.scale);
        }
        side_by_side(self.tables().map(|(table, scale)| scaled(kernels.rows(table, ids.clone()), scale)))
    }

    /// Weighted sums of all rows as they are stored, times their factors: `weights` `[n, vocab]` in float32, result
    /// `[n, width]`.
    pub(crate) fn weighted_sum(&self, weights: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        let sum = |(table, scale)| scaled(kernels.weighted_sum(table, weights.clone()), scale);
        side_by_side(self.tables().map(sum))
    }

    /// What each row is divided by `[1, vocab]`.
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

/// Rows or sums of rows, times a factor.
pub(crate) fn scaled<B: Backend>(rows: Tensor<B, 2>, scale: f64) -> Tensor<B, 2> {
    match scale == 1.0 {
        true => rows,
        false => rows.mul_scalar(scale),
    }
}

/// What comes from several tables, in one row each.
pub(crate) fn side_by_side<B: Backend>(parts: impl Iterator<Item = Tensor<B, 2>>) -> Tensor<B, 2> {
    let mut parts: Vec<Tensor<B, 2>> = parts.collect();
    match parts.len() {
        1 => parts.remove(0),
        // Tables can be of several types.
        _ => Tensor::cat(parts.into_iter().map(|part| part.cast(DType::F32)).collect(), 1),
    }
}

/// The roots of mean squares `[n, 1]` of rows `[n, d]`.
fn roots<B: Backend>(rows: Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    (rows.clone() * rows).mean_dim(1).add_scalar(eps).sqrt()
}
