//! A weight matrix in any of the forms that memory can hold it in.

#![allow(non_camel_case_types, reason = "ggml's own names, here and in what is derived")]

use burn::{
    module::{Module, Param},
    tensor::{DType, FloatDType, Int, Tensor, backend::Backend},
};

use crate::{Kernels, PackedForm, PackedMatrix, linear::uninitialized};

/// A matrix `[out, in]`, as checkpoints store it. The variants of packed ones bear the names of their forms, by
/// which a loader knows what belongs there.
#[derive(Module, Debug)]
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
    /// See [`PackedForm::Q5_0`].
    Q5_0(PackedMatrix<B>),
    /// See [`PackedForm::Q5_1`].
    Q5_1(PackedMatrix<B>),
    /// See [`PackedForm::Q4_K`].
    Q4_K(PackedMatrix<B>),
    /// See [`PackedForm::Q5_K`].
    Q5_K(PackedMatrix<B>),
    /// See [`PackedForm::Q6_K`].
    Q6_K(PackedMatrix<B>),
}

impl<B: Backend> Matrix<B> {
    /// A matrix that is not allocated before it is used or loaded over; dense without a form.
    pub fn new(rows: usize, columns: usize, form: Option<PackedForm>, device: &B::Device) -> Self {
        let Some(form) = form else { return Self::Dense(uninitialized([rows, columns], device)) };
        let packed = PackedMatrix::new(rows, columns, form, device);
        match form {
            PackedForm::Q8_0 => Self::Q8_0(packed),
            PackedForm::Q4_0 => Self::Q4_0(packed),
            PackedForm::Q4_1 => Self::Q4_1(packed),
            PackedForm::Q5_0 => Self::Q5_0(packed),
            PackedForm::Q5_1 => Self::Q5_1(packed),
            PackedForm::Q4_K => Self::Q4_K(packed),
            PackedForm::Q5_K => Self::Q5_K(packed),
            PackedForm::Q6_K => Self::Q6_K(packed),
        }
    }

    /// What it consists of, if it is packed.
    pub fn packed(&self) -> Option<&PackedMatrix<B>> {
        match self {
            Self::Dense(_) => None,
            Self::Q8_0(packed)
            | Self::Q4_0(packed)
            | Self::Q4_1(packed)
            | Self::Q5_0(packed)
            | Self::Q5_1(packed)
            | Self::Q4_K(packed)
            | Self::Q5_K(packed)
            | Self::Q6_K(packed) => Some(packed),
        }
    }

    /// Its values, if it is dense.
    #[cfg(feature = "gpu")]
    pub(crate) fn dense_mut(&mut self) -> Option<&mut Param<Tensor<B, 2>>> {
        match self {
            Self::Dense(weight) => Some(weight),
            _ => None,
        }
    }

    pub(crate) fn packed_mut(&mut self) -> Option<&mut PackedMatrix<B>> {
        match self {
            Self::Dense(_) => None,
            Self::Q8_0(packed)
            | Self::Q4_0(packed)
            | Self::Q4_1(packed)
            | Self::Q5_0(packed)
            | Self::Q5_1(packed)
            | Self::Q4_K(packed)
            | Self::Q5_K(packed)
            | Self::Q6_K(packed) => Some(packed),
        }
    }

    /// Dense or packed.
    fn either(&self) -> Either<'_, B> {
        match (self, self.packed()) {
            (Self::Dense(weight), _) => Either::Dense(weight),
            (_, Some(packed)) => Either::Packed(packed),
            (_, None) => unreachable!("all others are packed"),
        }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self.either() {
            Either::Dense(weight) => weight.lazy_shape().dims(),
            Either::Packed(packed) => packed.dims(),
        }
    }

    /// The type of its floats: of packed ones float32.
    pub fn dtype(&self) -> DType {
        match self.either() {
            Either::Dense(weight) => weight.val().dtype(),
            Either::Packed(_) => DType::F32,
        }
    }

    /// The type of keys and values that come from it, beside these kernels: see [`crate::Activations`].
    pub(crate) fn cache_dtype(&self, kernels: &dyn Kernels<B>) -> FloatDType {
        match self.either() {
            Either::Dense(weight) => weight.val().dtype().into(),
            Either::Packed(packed) => packed.activations().cache_dtype(kernels),
        }
    }

    /// `x` `[n, in]` of any float type times the transpose: `[n, out]` in the type of the weights or in float32, of
    /// packed ones in float32. By tensor operations.
    ///
    /// A dense matrix is seen transposed: column-major on the right is what matrix-vector kernels want, and no
    /// weight is rearranged when it is loaded.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.either() {
            Either::Dense(weight) => {
                let weight = weight.val();
                x.cast(weight.dtype()).matmul(weight.transpose())
            }
            Either::Packed(packed) => packed.products(x),
        }
    }

    /// Weighted sums of all rows: `weights` `[n, out]` in float32, result `[n, in]` in float32; by tensor operations.
    pub fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.either() {
            Either::Dense(weight) => weighted_sum_of_floats(weight.val(), weights),
            Either::Packed(packed) => packed.weighted_sum(weights),
        }
    }

    /// The rows of `ids` `[n]`: `[n, in]`; by tensor operations.
    pub fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        match self.either() {
            Either::Dense(weight) => weight.val().select(0, ids),
            Either::Packed(packed) => packed.rows(ids),
        }
    }
}

enum Either<'a, B: Backend> {
    Dense(&'a Param<Tensor<B, 2>>),
    Packed(&'a PackedMatrix<B>),
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
