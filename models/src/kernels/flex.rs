//! Tensors of burn's Flex backend are slices in the host's memory.

use std::{
    any::{Any, TypeId},
    sync::Arc,
};

use burn::tensor::{
    DType, FloatDType, Int, Tensor, TensorData, TensorMetadata, TensorPrimitive, backend::Backend,
};
use burn_flex::FlexTensor;
use half::{bf16, f16};
use moi_kernels::{
    Attention, Cached, Dense, Float, Gated, HeadValue, NormSpec, Packed, QuantizedRows, Rounding, RowCache,
    Table, Turned, dense_products, mean_rows, turn_heads, weighted_sums,
};

use super::{Attend, Heads, Means};
use crate::{Activation, Activations, Matrix, Norm, NormConfig, NormKind, PackedMatrix};

pub(super) fn is_flex<B: Backend>() -> bool {
    TypeId::of::<B::FloatTensorPrimitive>() == TypeId::of::<FlexTensor>()
        && TypeId::of::<B::IntTensorPrimitive>() == TypeId::of::<FlexTensor>()
}

/// A value of one type as the other that it is.
fn same<T: 'static, U: 'static>(value: T) -> Option<U> {
    let mut slot = Some(value);
    (&mut slot as &mut dyn Any).downcast_mut::<Option<U>>()?.take()
}

fn float<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Option<FlexTensor> {
    if !is_flex::<B>() {
        return None;
    }
    match tensor.into_primitive() {
        TensorPrimitive::Float(primitive) => same(primitive),
        TensorPrimitive::QFloat(_) => None,
    }
}

fn int<B: Backend, const D: usize>(tensor: Tensor<B, D, Int>) -> Option<FlexTensor> {
    if is_flex::<B>() { same(tensor.into_primitive()) } else { None }
}

fn tensor<B: Backend, const D: usize>(flex: FlexTensor) -> Option<Tensor<B, D>> {
    Some(Tensor::from_primitive(TensorPrimitive::Float(same(flex)?)))
}

fn new<B: Backend, const D: usize, E: burn::tensor::Element>(
    values: Vec<E>,
    shape: [usize; D],
) -> Option<Tensor<B, D>> {
    tensor(FlexTensor::from_data(TensorData::new(values, shape)))
}

/// What cannot fail once the backend is Flex.
fn sure<T>(value: Option<T>) -> T {
    value.unwrap_or_else(|| unreachable!("a tensor of Flex, as was asked before"))
}

/// Float32 values one after the other.
pub(super) struct Values(FlexTensor);

/// The values of a tensor of Flex.
pub(super) fn values<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<Values> {
    Values::of(x)
}

impl Values {
    fn of<B: Backend, const D: usize>(x: &Tensor<B, D>) -> Option<Self> {
        Self::from(float(x.clone())?)
    }

    fn from(flex: FlexTensor) -> Option<Self> {
        match flex.dtype() {
            DType::F32 if flex.as_slice::<f32>().is_some() => Some(Self(flex)),
            DType::F32 => Some(Self(flex.to_contiguous())),
            // Of other types there are few and small ones: parameters of norms.
            DType::F16 | DType::BF16 => {
                let shape = flex.shape();
                let values: Vec<f32> = flex.into_data().iter::<f32>().collect();
                Some(Self(FlexTensor::from_data(TensorData::new(values, shape))))
            }
            _ => None,
        }
    }

    pub(super) fn slice(&self) -> &[f32] {
        self.0.as_slice().unwrap_or_default()
    }
}

/// Floats in their own type, wherever in their storage.
fn stored(flex: &FlexTensor) -> Option<Float<'_>> {
    match flex.dtype() {
        DType::F32 => Some(Float::F32(flex.storage())),
        DType::F16 => Some(Float::F16(flex.storage())),
        DType::BF16 => Some(Float::Bf16(flex.storage())),
        _ => None,
    }
}

/// The same, one after the other from the first on.
fn whole(flex: &FlexTensor) -> Option<Float<'_>> {
    match flex.dtype() {
        DType::F32 => flex.as_slice().map(Float::F32),
        DType::F16 => flex.as_slice().map(Float::F16),
        DType::BF16 => flex.as_slice().map(Float::Bf16),
        _ => None,
    }
}

/// What holds a matrix while kernels read it.
#[allow(clippy::large_enum_variant, reason = "it lives as long as a product takes")]
enum Held<'a, B: Backend> {
    Dense(FlexTensor, [usize; 2]),
    Packed { packed: &'a PackedMatrix<B>, words: FlexTensor, scales: FlexTensor, minima: Option<FlexTensor> },
}

impl<'a, B: Backend> Held<'a, B> {
    fn new(matrix: &'a Matrix<B>) -> Option<Self> {
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

    fn dense(&self) -> Option<Dense<'_>> {
        match self {
            Self::Dense(flex, dims) => Dense::new(whole(flex)?, *dims),
            Self::Packed { .. } => None,
        }
    }

    fn packed(&self) -> Option<Packed<'_>> {
        let Self::Packed { packed, words, scales, minima } = self else { return None };
        let minima: &[f16] = match minima {
            Some(minima) => minima.as_slice()?,
            None => &[],
        };
        Packed::new(packed.form(), packed.dims(), words.as_slice()?, scales.as_slice()?, minima)
    }

    fn table(&self) -> Option<Table<'_>> {
        match self.packed() {
            Some(packed) => Some(Table::Packed(packed)),
            None => self.dense().map(Table::Dense),
        }
    }

    fn rounding(&self) -> Option<Rounding> {
        match self {
            Self::Packed { packed, .. } => match packed.activations() {
                Activations::F32 => None,
                Activations::Int8 => Some(Rounding::Int8),
                Activations::Int16 => Some(Rounding::Int16),
            },
            Self::Dense(..) => None,
        }
    }
}

pub(super) fn products<B: Backend>(x: &Tensor<B, 2>, matrices: &[&Matrix<B>]) -> Option<Vec<Tensor<B, 2>>> {
    if !is_flex::<B>() {
        return None;
    }
    let [n, columns] = x.dims();
    let x = Values::of(x)?;
    let held: Vec<Held<'_, B>> = matrices.iter().map(|matrix| Held::new(matrix)).collect::<Option<_>>()?;
    let mut out = vec![Vec::new(); held.len()];
    let dense: Option<Vec<Dense<'_>>> = held.iter().map(Held::dense).collect();
    let packed: Option<Vec<Packed<'_>>> = held.iter().map(Held::packed).collect();
    let rounding = held.first().and_then(Held::rounding);
    let alike = held.iter().all(|held| held.rounding() == rounding);
    match (dense, packed) {
        (Some(dense), _) => dense_products(&dense, x.slice(), &mut out),
        (_, Some(packed)) if alike => match rounding {
            Some(rounding) => {
                let x = QuantizedRows::new(x.slice(), columns, rounding);
                Packed::products_int8(&packed, &x, &mut out);
            }
            None => Packed::products_f32(&packed, x.slice(), &mut out),
        },
        // Of several sorts: one by one.
        _ if matrices.len() > 1 => {
            let x = tensor(x.0)?;
            let each = matrices.iter().map(|&matrix| products(&x, &[matrix])?.pop());
            return each.collect();
        }
        _ => return None,
    }
    out.into_iter().zip(matrices).map(|(values, matrix)| new(values, [n, matrix.dims()[0]])).collect()
}

pub(super) fn weighted_sum<B: Backend>(table: &Matrix<B>, weights: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    if !is_flex::<B>() {
        return None;
    }
    let held = Held::new(table)?;
    let table = held.table()?;
    let sums = weighted_sums(&table, Values::of(weights)?.slice());
    let n = weights.dims()[0];
    new(sums, [n, table.dims()[1]])
}

pub(super) fn means<B: Backend>(
    table: &Matrix<B>,
    spec: &Means<'_, B>,
    read: &mut RowCache,
    logits: &Tensor<B, 2>,
) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
    if !is_flex::<B>() {
        return None;
    }
    let held = Held::new(table)?;
    let table = held.table()?;
    let (n, columns) = (logits.dims()[0], table.dims()[1]);
    let (mean_row, logits) = (Values::of((spec.mean_row)())?, Values::of(logits)?);
    let (means, entropies) =
        mean_rows(&table, read, mean_row.slice(), logits.slice(), spec.share, spec.tolerance);
    Some((new(means, [n, columns])?, new(entropies, [n, 1])?))
}

pub(super) fn packed_rows<B: Backend>(table: &Matrix<B>, ids: &Tensor<B, 1, Int>) -> Option<Tensor<B, 2>> {
    if !is_flex::<B>() {
        return None;
    }
    let held = Held::new(table)?;
    let packed = held.packed()?;
    let ids: Vec<usize> =
        ids.to_data().iter::<i64>().map(|id| usize::try_from(id).ok()).collect::<Option<_>>()?;
    let mut values = Vec::with_capacity(ids.len() * packed.dims()[1]);
    packed.rows(&ids, &mut values);
    new(values, [ids.len(), packed.dims()[1]])
}

/// A norm's parameters while kernels read them.
struct HeldNorm {
    weight: Values,
    bias: Option<Values>,
    config: NormConfig,
}

impl HeldNorm {
    fn of<B: Backend>(norm: &Norm<B>) -> Option<Self> {
        let bias = match &norm.bias {
            Some(bias) => Some(Values::of(&bias.val())?),
            None => None,
        };
        Some(Self { weight: Values::of(&norm.weight.val())?, bias, config: norm.config() })
    }

    fn spec(&self) -> NormSpec<'_> {
        NormSpec {
            weight: self.weight.slice(),
            bias: self.bias.as_ref().map(Values::slice),
            eps: self.config.eps as f32,
            centered: self.config.kind == NormKind::Layer,
            plus: if self.config.kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 },
        }
    }
}

pub(super) fn norm<B: Backend, const D: usize>(norm: &Norm<B>, x: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    if !is_flex::<B>() {
        return None;
    }
    let norm = HeldNorm::of(norm)?;
    let values = Values::of(x)?;
    let mut out = vec![0.0f32; values.slice().len()];
    moi_kernels::norm_rows(&norm.spec(), values.slice(), &mut out);
    new(out, x.dims())
}

fn function(activation: Activation) -> Option<Gated> {
    match activation {
        Activation::Silu => Some(Gated::Silu),
        Activation::GeluTanh => Some(Gated::GeluTanh),
        Activation::QuickGelu => Some(Gated::QuickGelu),
        Activation::Relu => Some(Gated::Relu),
        Activation::ReluSquared => Some(Gated::ReluSquared),
        // With the error function.
        Activation::Gelu => None,
    }
}

pub(super) fn gated<B: Backend>(
    activation: Activation,
    gate: Tensor<B, 2>,
    up: Option<&Tensor<B, 2>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let (Some(function), true) = (function(activation), is_flex::<B>() && gate.dtype() == DType::F32) else {
        return Err(gate);
    };
    let up = up.map(|up| sure(Values::of(&up.clone().cast(DType::F32))));
    let Values(mut gate) = sure(float(gate).and_then(Values::from));
    // In place where the gate is all of its storage and nobody else's: as a product leaves it.
    if !(gate.is_unique() && gate.bytes().len() == gate.shape().num_elements() * size_of::<f32>()) {
        let values = gate.as_slice::<f32>().unwrap_or_default().to_vec();
        gate = FlexTensor::from_data(TensorData::new(values, gate.shape()));
    }
    moi_kernels::gated(function, gate.storage_mut(), up.as_ref().map(Values::slice));
    Ok(sure(tensor(gate)))
}

pub(super) fn heads<B: Backend>(x: &Tensor<B, 2>, spec: &Heads<'_, B>) -> Option<Tensor<B, 4>> {
    if !is_flex::<B>() {
        return None;
    }
    let &Heads { batch, seq, count, head_dim, scale, cached, .. } = spec;
    let x = Values::of(x)?;
    let norm = match spec.norm {
        Some(norm) => Some(HeldNorm::of(norm)?),
        None => None,
    };
    let angles = match spec.angles {
        Some(angles) => Some((Values::of(angles.cos())?, Values::of(angles.sin())?, angles.cos().dims()[3])),
        None => None,
    };
    let turned = Turned {
        batch,
        seq,
        heads: count,
        head_dim,
        norm: norm.as_ref().map(HeldNorm::spec),
        angles: angles.as_ref().map(|(cos, sin, dims)| (cos.slice(), sin.slice(), *dims)).filter(|a| a.2 > 0),
        scale: scale as f32,
        heads_first: cached.is_some(),
    };
    fn made<T: HeadValue + burn::tensor::Element, B: Backend>(
        turned: &Turned<'_>,
        x: &Values,
        shape: [usize; 4],
    ) -> Option<Tensor<B, 4>> {
        new(turn_heads::<T>(turned, x.slice()), shape)
    }
    match cached {
        None => made::<f32, B>(&turned, &x, [batch, seq, count, head_dim]),
        Some(FloatDType::F32) => made::<f32, B>(&turned, &x, [batch, count, seq, head_dim]),
        Some(FloatDType::F16) => made::<f16, B>(&turned, &x, [batch, count, seq, head_dim]),
        Some(FloatDType::BF16) => made::<bf16, B>(&turned, &x, [batch, count, seq, head_dim]),
        Some(_) => None,
    }
}

/// Keys or values as kernels want them: columns of whole heads, one behind the other.
fn columns(flex: FlexTensor) -> FlexTensor {
    let strides = flex.layout().strides();
    let (head_dim, per_column) = (flex.shape()[3], strides[2]);
    let as_wanted =
        strides[3] == 1 && per_column == head_dim as isize && strides.iter().all(|&stride| stride >= 0);
    if as_wanted { flex } else { flex.to_contiguous() }
}

fn cached(flex: &FlexTensor) -> Option<Cached<'_>> {
    let strides = flex.layout().strides();
    Some(Cached {
        values: stored(flex)?,
        start: flex.layout().start_offset(),
        batch_stride: usize::try_from(strides[0]).ok()?,
        head_stride: usize::try_from(strides[1]).ok()?,
        columns: flex.shape()[2],
    })
}

pub(super) fn attend<B: Backend>(
    q: &Tensor<B, 4>,
    k: &Tensor<B, 4>,
    v: &Tensor<B, 4>,
    spec: &Attend<'_, B>,
) -> Option<Tensor<B, 2>> {
    if !is_flex::<B>() {
        return None;
    }
    let (k, v) = (columns(float(k.clone())?), columns(float(v.clone())?));
    let sizes = Attention {
        batch: spec.step.batch,
        seq: spec.step.seq,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        softcap: spec.softcap.map(|cap| cap as f32),
    };
    let (all, window) = (&spec.step.columns, spec.window);
    let visible = |batch: usize, position: usize| all.visible(batch, position, window);
    let out = moi_kernels::attend(&sizes, Values::of(q)?.slice(), &cached(&k)?, &cached(&v)?, &visible);
    new(out, [sizes.batch * sizes.seq, sizes.heads * sizes.head_dim])
}

pub(super) fn assign_columns<B: Backend>(
    buffer: Tensor<B, 4>,
    at: usize,
    part: &Tensor<B, 4>,
) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    if !is_flex::<B>() || buffer.dtype() != part.dtype() {
        return Err(buffer);
    }
    let [batch, heads, capacity, head_dim] = buffer.dims();
    let size = buffer.dtype().size() * head_dim;
    let part = sure(float(part.clone())).to_contiguous();
    let columns = part.shape()[2];
    let mut buffer = sure(float(buffer));
    if buffer.bytes().len() != batch * heads * capacity * size || !buffer.is_contiguous() {
        buffer = buffer.to_contiguous();
    }
    let (layout, dtype) = (buffer.layout().clone(), buffer.dtype());
    let mut data = buffer.data_arc();
    drop(buffer);
    // In place, unless somebody else has it still.
    let to = Arc::make_mut(&mut data);
    for head in 0..batch * heads {
        let from = &part.bytes()[head * columns * size..][..columns * size];
        to[(head * capacity + at) * size..][..columns * size].copy_from_slice(from);
    }
    Ok(sure(tensor(FlexTensor::from_arc(data, layout, dtype))))
}

pub(super) fn distribution<B: Backend>(
    logits: &Tensor<B, 2>,
    probabilities: bool,
) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
    if !is_flex::<B>() {
        return None;
    }
    let [n, vocab] = logits.dims();
    let columns = if probabilities { vocab } else { 0 };
    let logits = Values::of(logits)?;
    let (mut all, mut entropies) = (Vec::new(), Vec::with_capacity(n));
    for logits in logits.slice().chunks(vocab) {
        let mut row = moi_kernels::distribution(logits, probabilities);
        // Of logits that are none.
        row.probability.resize(columns, f32::NAN);
        match n {
            1 => all = row.probability,
            _ => all.append(&mut row.probability),
        }
        entropies.push(row.entropy);
    }
    Some((new(all, [n, columns])?, new(entropies, [n, 1])?))
}
