//! Conversions between tensors and buffers.

use std::any::{Any, TypeId};

use burn::tensor::{DType, Int, Tensor, TensorMetadata, TensorPrimitive, backend::Backend};
use burn_cubecl::{CubeRuntime, kernel::into_contiguous, tensor::CubeTensor};
use moi_gpu::{Buffer, Device, PackedBuffer, Weights};

use crate::{Matrix, PackedMatrix};

/// Whether the backend's tensors belong to this runtime.
pub(in crate::kernels) fn is_on<B: Backend, R: CubeRuntime>() -> bool {
    TypeId::of::<B::FloatTensorPrimitive>() == TypeId::of::<CubeTensor<R>>()
        && TypeId::of::<B::IntTensorPrimitive>() == TypeId::of::<CubeTensor<R>>()
}

/// Converts a value to the type `U`, if that is its actual type.
pub(super) fn same<T: 'static, U: 'static>(value: T) -> Option<U> {
    let mut slot = Some(value);
    (&mut slot as &mut dyn Any).downcast_mut::<Option<U>>()?.take()
}

/// The contiguous buffer of a float tensor.
pub(super) fn float<B: Backend, R: CubeRuntime, const D: usize>(
    tensor: Tensor<B, D>,
) -> Option<CubeTensor<R>> {
    match tensor.into_primitive() {
        TensorPrimitive::Float(primitive) => same(primitive).map(into_contiguous),
        TensorPrimitive::QFloat(_) => None,
    }
}

pub(super) fn int<B: Backend, R: CubeRuntime, const D: usize>(
    tensor: Tensor<B, D, Int>,
) -> Option<CubeTensor<R>> {
    same(tensor.into_primitive()).map(into_contiguous)
}

/// The same, converted to float32.
pub(super) fn single<B: Backend, R: CubeRuntime, const D: usize>(
    tensor: &Tensor<B, D>,
) -> Option<CubeTensor<R>> {
    float(tensor.clone().cast(DType::F32))
}

pub(super) fn buffer<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Buffer {
    Buffer { handle: tensor.handle.clone(), len: tensor.shape().num_elements(), dtype: tensor.dtype().into() }
}

pub(super) fn device<R: CubeRuntime>(tensor: &CubeTensor<R>) -> Device<R> {
    Device { client: tensor.client.clone() }
}

/// A float32 buffer as a tensor on the same device as another one.
pub(super) fn tensor<B: Backend, R: CubeRuntime, const D: usize>(
    buffer: Buffer,
    shape: [usize; D],
    beside: &CubeTensor<R>,
) -> Option<Tensor<B, D>> {
    let CubeTensor { client, device, .. } = beside;
    let made =
        CubeTensor::new_contiguous(client.clone(), device.clone(), shape.into(), buffer.handle, DType::F32);
    whole(made)
}

pub(super) fn whole<B: Backend, R: CubeRuntime, const D: usize>(
    tensor: CubeTensor<R>,
) -> Option<Tensor<B, D>> {
    Some(Tensor::from_primitive(TensorPrimitive::Float(same(tensor)?)))
}

/// A matrix of any form.
pub(super) fn weights<B: Backend, R: CubeRuntime>(matrix: &Matrix<B>) -> Option<Weights> {
    Some(match matrix {
        Matrix::Dense(weight) => Weights::Dense(buffer(&float::<B, R, 2>(weight.val())?)),
        _ => Weights::Packed(packed::<B, R>(matrix.packed()?)?),
    })
}

pub(super) fn packed<B: Backend, R: CubeRuntime>(matrix: &PackedMatrix<B>) -> Option<PackedBuffer> {
    let numbers = |tensor: Tensor<B, 2>| float::<B, R, 2>(tensor).map(|tensor| buffer(&tensor));
    Some(PackedBuffer {
        form: matrix.form(),
        words: buffer(&int::<B, R, 2>(matrix.words.val())?),
        scales: numbers(matrix.scales.val())?,
        minima: match &matrix.minima {
            Some(minima) => Some(numbers(minima.val())?),
            None => None,
        },
        width: matrix.dims()[1],
    })
}
