//! Tensors of burn's Flex backend are slices in the host's memory.

mod held;

use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;
use half::{bf16, f16};
use moi_kernels::{
    CachedBlocks, Dense, Gated, Packed, QuantizedRows, RowCache, Run, Turned, dense_products, mean_rows,
    turn_heads, weighted_sums,
};

use held::{Held, HeldNorm, Values, float, new, sure, tensor, whole};
pub(super) use held::{is_flex, values};

use super::{Attention, Heads, Means};
use crate::{
    Activation, Matrix, Norm,
    cache::{BlockRun, LayerBlocks},
};

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

pub(super) fn heads<B: Backend>(x: &Tensor<B, 2>, spec: &Heads<'_, B>) -> Option<Tensor<B, 3>> {
    if !is_flex::<B>() {
        return None;
    }
    let &Heads { tokens, count, head_dim, scale, dtype, .. } = spec;
    let x = Values::of(x)?;
    let norm = match spec.norm {
        Some(norm) => Some(HeldNorm::of(norm)?),
        None => None,
    };
    let angles = match spec.angles {
        Some(angles) => Some((Values::of(angles.cos())?, Values::of(angles.sin())?, angles.dims())),
        None => None,
    };
    let turned = Turned {
        positions: tokens,
        heads: count,
        head_dim,
        norm: norm.as_ref().map(HeldNorm::spec),
        angles: angles.as_ref().map(|(cos, sin, dims)| (cos.slice(), sin.slice(), *dims)).filter(|a| a.2 > 0),
        scale: scale as f32,
    };
    let shape = [tokens, count, head_dim];
    match dtype {
        DType::F32 => new(turn_heads::<f32>(&turned, x.slice()), shape),
        DType::F16 => new(turn_heads::<f16>(&turned, x.slice()), shape),
        DType::BF16 => new(turn_heads::<bf16>(&turned, x.slice()), shape),
        _ => None,
    }
}

pub(super) fn attend<B: Backend>(
    q: &Tensor<B, 3>,
    blocks: &LayerBlocks<B>,
    spec: &Attention<'_, B>,
) -> Option<Tensor<B, 2>> {
    if !is_flex::<B>() {
        return None;
    }
    let hold =
        |slabs: &[Tensor<B, 4>]| slabs.iter().map(|slab| float(slab.clone())).collect::<Option<Vec<_>>>();
    let (keys, values) = (hold(&blocks.keys)?, hold(&blocks.values)?);
    let cached = CachedBlocks {
        keys: keys.iter().map(whole).collect::<Option<_>>()?,
        values: values.iter().map(whole).collect::<Option<_>>()?,
    };
    let sizes = moi_kernels::Attention {
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        softcap: spec.softcap.map(|cap| cap as f32),
        window: spec.window,
    };
    let spans = spec.context.attention_spans(spec.kind);
    let out = moi_kernels::attend(&sizes, Values::of(q)?.slice(), &cached, &spans);
    new(out, [spec.context.tokens, spec.heads * spec.head_dim])
}

pub(super) fn write_columns<B: Backend>(
    mut slabs: Vec<Tensor<B, 4>>,
    part: &Tensor<B, 3>,
    all: &[BlockRun],
    by_value: bool,
) -> Result<Vec<Tensor<B, 4>>, Vec<Tensor<B, 4>>> {
    let dtype = part.dtype();
    if !is_flex::<B>() || !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(slabs);
    }
    let [_, heads, head_dim] = part.dims();
    let part = sure(float(part.clone())).to_contiguous();
    let mut written: Vec<usize> = all.iter().map(|run| run.place.slab).collect();
    written.sort_unstable();
    written.dedup();
    for index in written {
        let of_slab = all.iter().filter(|run| run.place.slab == index);
        let runs: Vec<Run> = of_slab
            .map(|&BlockRun { token, len, place, at }| Run { first: token, len, block: place.index, at })
            .collect();
        let mut slab = sure(float(slabs.swap_remove(index)));
        let sizes = [heads, head_dim];
        // In place, unless somebody else has it still.
        match dtype {
            DType::F32 => {
                moi_kernels::write_columns::<f32>(slab.storage_mut(), part.storage(), sizes, &runs, by_value)
            }
            DType::F16 => {
                moi_kernels::write_columns::<f16>(slab.storage_mut(), part.storage(), sizes, &runs, by_value)
            }
            _ => {
                moi_kernels::write_columns::<bf16>(slab.storage_mut(), part.storage(), sizes, &runs, by_value)
            }
        }
        slabs.push(sure(tensor(slab)));
        let last = slabs.len() - 1;
        slabs.swap(index, last);
    }
    Ok(slabs)
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
