//! Tensors of burn's Flex backend are slices in the host's memory.

mod held;

use std::sync::Arc;

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;
use half::{bf16, f16};
use moi_kernels::{
    Attention, Cached, Dense, Gated, HeadValue, Packed, QuantizedRows, RowCache, Turned, dense_products,
    mean_rows, turn_heads, weighted_sums,
};

use held::{Held, HeldNorm, Values, float, new, stored, sure, tensor};
pub(super) use held::{is_flex, values};

use super::{Attend, Heads, Means};
use crate::{Activation, Matrix, Norm};

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

pub(super) fn norm<B: Backend, const D: usize>(norm: &Norm<B>, x: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    if !is_flex::<B>() {
        return None;
    }
    let norm = HeldNorm::of(norm)?;
    let values = Values::of(x)?;
    new(moi_kernels::norm_rows(&norm.spec(), values.slice()), x.dims())
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
