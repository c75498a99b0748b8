//! A weight matrix in any of the forms that memory can hold it in.

use burn::{
    module::{Module, Param},
    tensor::{DType, Int, Tensor, backend::Backend},
};

use crate::{PackedForm, PackedMatrix, linear::uninitialized};

/// A matrix `[out, in]`, as checkpoints store it. The variants of packed ones bear the names of their forms, by
/// which a loader knows what belongs there.
#[derive(Module, Debug)]
#[allow(non_camel_case_types, reason = "ggml's own names")]
#[allow(clippy::large_enum_variant, reason = "there are few of them, and each holds megabytes elsewhere")]
pub enum Matrix<B: Backend> {
    /// A float of the model's type for each value.
    Dense(Param<Tensor<B, 2>>),
    /// See [`PackedForm::Q8_0`].
    Q8_0(PackedMatrix<B>),
    /// See [`PackedForm::Q4_0`].
    Q4_0(PackedMatrix<B>),
    /// See [`PackedForm::Q4_1`].
    Q4_1(PackedMatrix<B>),
}

impl<B: Backend> Matrix<B> {
    /// A matrix that is not allocated before it is used or loaded over; dense without a form.
    pub fn new(rows: usize, columns: usize, form: Option<PackedForm>, device: &B::Device) -> Self {
        let packed = |form| PackedMatrix::new(rows, columns, form, device);
        match form {
            None => Self::Dense(uninitialized([rows, columns], device)),
            Some(form @ PackedForm::Q8_0) => Self::Q8_0(packed(form)),
            Some(form @ PackedForm::Q4_0) => Self::Q4_0(packed(form)),
            Some(form @ PackedForm::Q4_1) => Self::Q4_1(packed(form)),
        }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.lazy_shape().dims(),
            Self::Q8_0(packed) | Self::Q4_0(packed) | Self::Q4_1(packed) => packed.dims(),
        }
    }

    /// The type that products have.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Dense(weight) => weight.val().dtype(),
            Self::Q8_0(_) | Self::Q4_0(_) | Self::Q4_1(_) => DType::F32,
        }
    }

    /// `x` `[n, in]` of any float type times the transpose: `[n, out]` in the type of the weights, of packed ones in
    /// float32.
    ///
    /// A dense matrix is seen transposed: column-major on the right is what matrix-vector kernels want, and no
    /// weight is rearranged when it is loaded.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Dense(weight) => {
                let weight = weight.val();
                x.cast(weight.dtype()).matmul(weight.transpose())
            }
            Self::Q8_0(packed) | Self::Q4_0(packed) | Self::Q4_1(packed) => packed.products(x),
        }
    }

    /// Weighted sums of all rows: `weights` `[n, out]` in float32, result `[n, in]` in float32.
    pub fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Self::Dense(weight) => weighted_sum_of_floats(weight.val(), weights),
            Self::Q8_0(packed) | Self::Q4_0(packed) | Self::Q4_1(packed) => packed.weighted_sum(weights),
        }
    }

    /// The rows of `ids` `[n]`: `[n, in]`.
    pub fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        match self {
            Self::Dense(weight) => weight.val().select(0, ids),
            Self::Q8_0(packed) | Self::Q4_0(packed) | Self::Q4_1(packed) => packed.rows(ids),
        }
    }
}

/// Values that are widened at a time: few enough to be no second table, many enough to keep a GPU busy.
const TILE: usize = 1 << 24;

/// `weights` `[n, out]` times `table` `[out, in]` in float32, whatever the table's type: a mixture of a whole
/// vocabulary has weights that half precision rounds to nothing.
fn weighted_sum_of_floats<B: Backend>(table: Tensor<B, 2>, weights: Tensor<B, 2>) -> Tensor<B, 2> {
    if table.dtype() == DType::F32 {
        return weights.matmul(table);
    }
    let [rows, columns] = table.dims();
    let step = (TILE / columns.max(1)).max(1);
    let part = |start: usize| {
        let len = step.min(rows - start);
        let tile = table.clone().narrow(0, start, len).cast(DType::F32);
        weights.clone().narrow(1, start, len).matmul(tile)
    };
    let sum = (0..rows).step_by(step).map(part).reduce(|sum, part| sum + part);
    sum.unwrap_or_else(|| Tensor::zeros([weights.dims()[0], columns], (&weights.device(), DType::F32)))
}
