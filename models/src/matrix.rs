//! A weight matrix in any of its forms in memory.

#![allow(non_camel_case_types, reason = "ggml's own names, here and in what is derived")]

use burn::{
    module::{Module, Param},
    tensor::{DType, FloatDType, Int, Tensor, backend::Backend},
};

use crate::{Kernels, PackedForm, PackedMatrix, linear::uninitialized};

/// A matrix `[out, in]`, as checkpoints store it. The variants for packed matrices are named after their forms; from
/// the names a loader knows what belongs there.
///
/// # Examples
/// ```
/// use burn_flex::Flex;
/// use moi_models::{Matrix, PackedForm};
///
/// let device = Default::default();
/// let dense = Matrix::<Flex>::new(64, 256, None, &device);
/// let packed = Matrix::<Flex>::new(64, 256, Some(PackedForm::Q4_K), &device);
/// assert_eq!(dense.dims(), packed.dims());
/// assert!(dense.packed().is_none() && matches!(packed, Matrix::Q4_K(_)));
/// ```
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are few of them, and each holds megabytes elsewhere")]
pub enum Matrix<B: Backend> {
    /// Floats of the model's type.
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
    /// A matrix that is not allocated before it is used or replaced by loaded weights; a dense one if `form` is
    /// `None`.
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

    /// The packed parts, if the matrix is packed.
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

    /// The values, if the matrix is dense.
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

    /// The matrix as either dense or packed.
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

    /// The type of the floats; float32 for packed matrices.
    pub fn dtype(&self) -> DType {
        match self.either() {
            Either::Dense(weight) => weight.val().dtype(),
            Either::Packed(_) => DType::F32,
        }
    }

    /// The type of cached keys and values that this matrix computes, with these kernels: see [`crate::Activations`].
    pub(crate) fn cache_dtype(&self, kernels: &dyn Kernels<B>) -> FloatDType {
        match self.either() {
            Either::Dense(weight) => weight.val().dtype().into(),
            Either::Packed(packed) => packed.activations().cache_dtype(kernels),
        }
    }

    /// Multiplies `x` `[n, in]` of any float type with the transpose: `[n, out]`, in the type of the weights or in
    /// float32, for packed matrices in float32. By tensor operations.
    ///
    /// A dense matrix is transposed as a view: column-major is the layout that matrix-vector kernels need on the
    /// right, and no weight is rearranged when it is loaded.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.either() {
            Either::Dense(weight) => {
                let weight = weight.val();
                x.cast(weight.dtype()).matmul(weight.transpose())
            }
            Either::Packed(packed) => packed.products(x),
        }
    }

    /// Weighted sums of all rows in float32: `weights` `[n, out]`, result `[n, in]`. By tensor operations.
    pub fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.either() {
            Either::Dense(weight) => weighted_sum_of_floats(weight.val(), weights),
            Either::Packed(packed) => packed.weighted_sum(weights),
        }
    }

    /// The rows of `ids` `[n]`: `[n, in]`. By tensor operations.
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

/// Number of values that are widened at a time: few enough not to need memory like a second table, many enough to
/// keep a GPU busy.
const TILE: usize = 1 << 24;

/// `weights` `[n, out]` times `table` `[out, in]`, in float32 whatever the table's type, because a mixture of a whole
/// vocabulary has weights that half precision rounds to 0.
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
