//! Access to the values of Flex tensors while kernels read them.

use std::any::{Any, TypeId};

use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata, TensorPrimitive, backend::Backend};
use burn_flex::FlexTensor;
use half::f16;
use moi_kernels::{Dense, Float, NormSpec, Packed, Rounding, Table};

use crate::{Activations, Matrix, Norm, NormConfig, NormKind, PackedMatrix};

pub(in crate::kernels) fn is_flex<B: Backend>() -> bool {
    TypeId::of::<B::FloatTensorPrimitive>() == TypeId::of::<FlexTensor>()
        && TypeId::of::<B::IntTensorPrimitive>() == TypeId::of::<FlexTensor>()
}

/// Converts a value to the type `U`, if that is its actual type.
pub(in crate::kernels) fn same<T: 'static, U: 'static>(value: T) -> Option<U> {
    let mut slot = Some(value);
    (&mut slot as &mut dyn Any).downcast_mut::<Option<U>>()?.take()
}

pub(in crate::kernels) fn float<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Option<FlexTensor> {
    if !is_flex::<B>() {
        return None;
    }
    match tensor.into_primitive() {
        TensorPrimitive::Float(primitive) => same(primitive),
        TensorPrimitive::QFloat(_) => None,
    }
}

pub(in crate::kernels) fn int<B: Backend, const D: usize>(tensor: Tensor<B, D, Int>) -> Option<FlexTensor> {
    if is_flex::<B>() { same(tensor.into_primitive()) } else { None }
}

pub(in crate::kernels) fn tensor<B: Backend, const D: usize>(flex: FlexTensor) -> Option<Tensor<B, D>> {
    Some(Tensor::from_primitive(TensorPrimitive::Float(same(flex)?)))
}

pub(in crate::kernels) fn new<B: Backend, const D: usize, E: burn::tensor::Element>(
    values: Vec<E>,
    shape: [usize; D],
) -> Option<Tensor<B, D>> {
    tensor(FlexTensor::from_data(TensorData::new(values, shape)))
}

/// Unwraps a value that cannot be `None` once the backend is known to be Flex.
pub(in crate::kernels) fn sure<T>(value: Option<T>) -> T {
    value.unwrap_or_else(|| unreachable!("a tensor of Flex, as was asked before"))
}

/// Contiguous float32 values.
pub(in crate::kernels) struct Values(pub(super) FlexTensor);

/// The values of a Flex tensor, in float32.
pub(in crate::kernels) fn values<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<Values> {
    Values::of(x)
}

impl Values {
    pub(in crate::kernels) fn of<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<Self> {
        Self::from(float(x.clone())?)
    }

    pub(in crate::kernels) fn from(flex: FlexTensor) -> Option<Self> {
        match flex.dtype() {
            DType::F32 if flex.as_slice::<f32>().is_some() => Some(Self(flex)),
            DType::F32 => Some(Self(flex.to_contiguous())),
            // Tensors of other types are few and small: parameters of norms.
            DType::F16 | DType::BF16 => {
                let shape = flex.shape();
                let values: Vec<f32> = flex.into_data().iter::<f32>().collect();
                Some(Self(FlexTensor::from_data(TensorData::new(values, shape))))
            }
            _ => None,
        }
    }

    pub(in crate::kernels) fn slice(&self) -> &[f32] {
        self.0.as_slice().unwrap_or_default()
    }
}

/// The values of a tensor in their own type; `None` if they are not contiguous.
pub(in crate::kernels) fn whole(flex: &FlexTensor) -> Option<Float<'_>> {
    match flex.dtype() {
        DType::F32 => flex.as_slice().map(Float::F32),
        DType::F16 => flex.as_slice().map(Float::F16),
        DType::BF16 => flex.as_slice().map(Float::Bf16),
        _ => None,
    }
}

/// The tensors of a matrix while kernels read them.
#[allow(clippy::large_enum_variant, reason = "it lives as long as a product takes")]
pub(in crate::kernels) enum Held<'a, B: Backend> {
    Dense(FlexTensor, [usize; 2]),
    Packed { packed: &'a PackedMatrix<B>, words: FlexTensor, scales: FlexTensor, minima: Option<FlexTensor> },
}

impl<'a, B: Backend> Held<'a, B> {
    pub(in crate::kernels) fn new(matrix: &'a Matrix<B>) -> Option<Self> {
        Some(match matrix {
            Matrix::Dense(weight) => Self::Dense(float(weight.val())?, matrix.dims()),
            _ => {
                let packed = matrix.packed()?;
                let minima = match &packed.minima {
                    Some(minima) => Some(float(minima.val())?),
                    None => None,
                };
                Self::Packed {
                    packed,
                    words: int(packed.words.val())?,
                    scales: float(packed.scales.val())?,
                    minima,
                }
            }
        })
    }

    pub(in crate::kernels) fn dense(&self) -> Option<Dense<'_>> {
        match self {
            Self::Dense(flex, dims) => Dense::new(whole(flex)?, *dims),
            Self::Packed { .. } => None,
        }
    }

    pub(in crate::kernels) fn packed(&self) -> Option<Packed<'_>> {
        let Self::Packed { packed, words, scales, minima } = self else { return None };
        let minima: &[f16] = match minima {
            Some(minima) => minima.as_slice()?,
            None => &[],
        };
        Packed::new(packed.form(), packed.dims(), words.as_slice()?, scales.as_slice()?, minima)
    }

    pub(in crate::kernels) fn table(&self) -> Option<Table<'_>> {
        match self.packed() {
            Some(packed) => Some(Table::Packed(packed)),
            None => self.dense().map(Table::Dense),
        }
    }

    pub(in crate::kernels) fn rounding(&self) -> Option<Rounding> {
        match self {
            Self::Packed { packed, .. } => match packed.rounded_to() {
                Activations::F32 => None,
                Activations::Int8 => Some(Rounding::Int8),
                Activations::Int16 | Activations::Mixed => Some(Rounding::Int16),
            },
            Self::Dense(..) => None,
        }
    }
}

/// A norm's parameters while kernels read them.
pub(in crate::kernels) struct HeldNorm {
    weight: Values,
    bias: Option<Values>,
    config: NormConfig,
}

impl HeldNorm {
    pub(in crate::kernels) fn of<B: Backend>(norm: &Norm<B>) -> Option<Self> {
        let bias = match &norm.bias {
            Some(bias) => Some(Values::of(&bias.val())?),
            None => None,
        };
        let weight = match &norm.weight {
            Some(weight) => Values::of(&weight.val())?,
            None => {
                Values(FlexTensor::from_data(TensorData::new(vec![1.0f32; norm.width()], [norm.width()])))
            }
        };
        Some(Self { weight, bias, config: norm.config() })
    }

    pub(in crate::kernels) fn spec(&self) -> NormSpec<'_> {
        NormSpec {
            weight: self.weight.slice(),
            bias: self.bias.as_ref().map(Values::slice),
            eps: self.config.eps as f32,
            centered: self.config.kind == NormKind::Layer,
            plus: if self.config.kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 },
        }
    }
}
