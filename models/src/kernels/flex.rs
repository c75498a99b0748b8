//! CPU kernels for burn's Flex backend, whose tensors are slices in the host's memory.

mod held;

use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata, backend::Backend};
use burn_flex::FlexTensor;
use half::{bf16, f16};
use moi_kernels::{
    CachedBlocks, Dense, Gated, Packed, QuantizedRows, Rotary, RowCache, Run, StateSteps, dense_products,
    mean_rows, rotate_heads, weighted_sums,
};

use held::{Held, HeldNorm, Values, float, new, sure, tensor, whole};
pub(super) use held::{is_flex, values};

use super::{AttentionPass, Kernels, Means, StateRun, TensorOperations};
use crate::{Activation, BlockRun, CacheLayout, HeadSteps, LayerBlocks, Linear, Matrix, Mlp, Norm, QkSpan};

/// Kernels for the CPU, on Flex tensors; tensors of other types are left to tensor operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlexKernels;

/// The cache layout that the attention kernel reads.
const LAYOUT: CacheLayout = CacheLayout { keys_by_value: true, one_slab: false };

impl<B: Backend> Kernels<B> for FlexKernels {
    fn cache_layout(&self) -> CacheLayout {
        LAYOUT
    }

    fn rounds_activations(&self) -> bool {
        true
    }

    fn linear(&self, layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match products(&x, &[&layer.weight]).and_then(|mut products| products.pop()) {
            Some(product) => layer.biased(product),
            None => layer.forward(x),
        }
    }

    /// The activations are quantized once for all three, and their work is divided among the threads together.
    fn qkv(&self, layers: [&Linear<B>; 3], x: Tensor<B, 2>) -> [Tensor<B, 2>; 3] {
        together(layers, &x).unwrap_or_else(|| layers.map(|layer| self.linear(layer, x.clone())))
    }

    fn attention(
        &self,
        q: Tensor<B, 2>,
        kv: Option<[Tensor<B, 2>; 2]>,
        pass: &AttentionPass<'_, B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        match attention(&q, kv.as_ref(), pass, blocks) {
            Some(out) => out,
            None => TensorOperations.attention(q, kv, pass, blocks),
        }
    }

    fn mlp(&self, mlp: &Mlp<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let single = |x: Tensor<B, 2>| x.cast(DType::F32);
        let (inner, up) = match &mlp.gate_proj {
            Some(gate) => {
                let both = [gate, &mlp.up_proj];
                let [gate, up] =
                    together(both, &x).unwrap_or_else(|| both.map(|layer| self.linear(layer, x.clone())));
                (single(gate), Some(single(up)))
            }
            None => (single(self.linear(&mlp.up_proj, x)), None),
        };
        let inner =
            gated(mlp.activation(), inner, up.as_ref()).unwrap_or_else(|inner| mlp.activated(inner, up));
        self.linear(&mlp.down_proj, inner)
    }

    fn norm(&self, norm: &Norm<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        normed(norm, &x).unwrap_or_else(|| norm.forward(x))
    }

    fn state_steps(&self, steps: &HeadSteps<B>, matrices: Tensor<B, 3>) -> StateRun<B> {
        state_steps(steps, matrices)
    }

    fn logits(&self, table: &Matrix<B>, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let products = products(&hidden, &[table]).and_then(|mut products| products.pop());
        products.unwrap_or_else(|| table.products(hidden))
    }

    fn rows(&self, table: &Matrix<B>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        packed_rows(table, &ids).unwrap_or_else(|| table.rows(ids))
    }

    fn weighted_sum(&self, table: &Matrix<B>, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        weighted_sum(table, &weights).unwrap_or_else(|| table.weighted_sum(weights))
    }

    fn distribution(
        &self,
        logits: &Tensor<B, 2>,
        probabilities: bool,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        distribution(logits, probabilities)
    }

    fn has_tolerance(&self) -> bool {
        true
    }

    fn means(
        &self,
        table: &Matrix<B>,
        spec: &Means<'_, B>,
        read: &mut RowCache,
        logits: &Tensor<B, 2>,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        means(table, spec, read, logits)
    }
}

/// Computes several linear layers of one input.
fn together<B: Backend, const N: usize>(
    layers: [&Linear<B>; N],
    x: &Tensor<B, 2>,
) -> Option<[Tensor<B, 2>; N]> {
    let products = products(x, &layers.map(|layer| &layer.weight))?;
    let products = <[Tensor<B, 2>; N]>::try_from(products).ok()?;
    let mut layers = layers.into_iter();
    Some(products.map(|y| match layers.next() {
        Some(layer) => layer.biased(y),
        None => y,
    }))
}

/// Prepares the heads, writes the cache, and computes attention. `None`, with unchanged blocks, if there is no kernel
/// for their type.
fn attention<B: Backend>(
    q: &Tensor<B, 2>,
    kv: Option<&[Tensor<B, 2>; 2]>,
    pass: &AttentionPass<'_, B>,
    blocks: &mut LayerBlocks<B>,
) -> Option<Tensor<B, 2>> {
    if blocks.layout != LAYOUT {
        return None;
    }
    let spec = |norm, count, is_rotated, scale, dtype| Heads { norm, count, is_rotated, scale, dtype };
    let q = heads(q, pass, &spec(pass.q_norm, pass.heads, true, pass.scale, DType::F32))?;
    if let Some([k, v]) = kv {
        let k = heads(k, pass, &spec(pass.k_norm, pass.kv_heads, true, 1.0, blocks.dtype))?;
        let v = heads(v, pass, &spec(None, pass.kv_heads, false, 1.0, blocks.dtype))?;
        blocks.write(&k, &v, pass.runs());
    }
    // The cache is written already, so if there is no kernel for its type, tensor operations continue from here.
    Some(attend(&q, blocks, pass).unwrap_or_else(|| pass.attend(q, blocks)))
}

/// The operations on the heads of a projection.
struct Heads<'a, B: Backend> {
    /// A norm over each head or all heads, applied first.
    norm: Option<&'a Norm<B>>,
    count: usize,
    is_rotated: bool,
    /// A factor, applied last.
    scale: f64,
    dtype: DType,
}

fn products<B: Backend>(x: &Tensor<B, 2>, matrices: &[&Matrix<B>]) -> Option<Vec<Tensor<B, 2>>> {
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
        // Matrices of different forms are multiplied one by one.
        _ if matrices.len() > 1 => {
            let x = tensor(x.0)?;
            let each = matrices.iter().map(|&matrix| products(&x, &[matrix])?.pop());
            return each.collect();
        }
        _ => return None,
    }
    out.into_iter().zip(matrices).map(|(values, matrix)| new(values, [n, matrix.dims()[0]])).collect()
}

fn weighted_sum<B: Backend>(table: &Matrix<B>, weights: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    if !is_flex::<B>() {
        return None;
    }
    let held = Held::new(table)?;
    let table = held.table()?;
    let sums = weighted_sums(&table, Values::of(weights)?.slice());
    let n = weights.dims()[0];
    new(sums, [n, table.dims()[1]])
}

fn means<B: Backend>(
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

fn packed_rows<B: Backend>(table: &Matrix<B>, ids: &Tensor<B, 1, Int>) -> Option<Tensor<B, 2>> {
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

fn normed<B: Backend>(norm: &Norm<B>, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
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
        // These have no kernel: the error function, a product of another form, and parameters of the layer.
        Activation::Gelu | Activation::ClampedSwiGlu { .. } | Activation::Xielu => None,
    }
}

fn gated<B: Backend>(
    activation: Activation,
    gate: Tensor<B, 2>,
    up: Option<&Tensor<B, 2>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    let (Some(function), true) = (function(activation), is_flex::<B>() && gate.dtype() == DType::F32) else {
        return Err(gate);
    };
    let up = up.map(|up| sure(Values::of(&up.clone().cast(DType::F32))));
    let Values(mut gate) = sure(float(gate).and_then(Values::from));
    // This works in place if the gate is all of its storage and not shared, as a product leaves it.
    if !(gate.is_unique() && gate.bytes().len() == gate.shape().num_elements() * size_of::<f32>()) {
        let values = gate.as_slice::<f32>().unwrap_or_default().to_vec();
        gate = FlexTensor::from_data(TensorData::new(values, gate.shape()));
    }
    moi_kernels::gated(function, gate.storage_mut(), up.as_ref().map(Values::slice));
    Ok(sure(tensor(gate)))
}

/// Prepares the heads of a projection for attention, `[tokens, heads, head_dim]`.
fn heads<B: Backend>(
    x: &Tensor<B, 2>,
    pass: &AttentionPass<'_, B>,
    spec: &Heads<'_, B>,
) -> Option<Tensor<B, 3>> {
    if !is_flex::<B>() {
        return None;
    }
    let (tokens, head_dim) = (pass.tokens(), pass.head_dim);
    let &Heads { count, scale, dtype, .. } = spec;
    let (x, norm) = match (spec.norm, pass.norm_span) {
        (Some(norm), QkSpan::Projection) => (Values::of(&normed(norm, x)?)?, None),
        (Some(norm), QkSpan::Head) => (Values::of(x)?, Some(HeldNorm::of(norm)?)),
        (None, _) => (Values::of(x)?, None),
    };
    let angles = match pass.angles.filter(|_| spec.is_rotated) {
        Some(angles) => Some((Values::of(angles.cos())?, Values::of(angles.sin())?, angles.dims())),
        None => None,
    };
    let rotated = Rotary {
        positions: tokens,
        heads: count,
        head_dim,
        norm: norm.as_ref().map(HeldNorm::spec),
        angles: angles.as_ref().map(|(cos, sin, dims)| (cos.slice(), sin.slice(), *dims)).filter(|a| a.2 > 0),
        scale: scale as f32,
    };
    let shape = [tokens, count, head_dim];
    match dtype {
        DType::F32 => new(rotate_heads::<f32>(&rotated, x.slice()), shape),
        DType::F16 => new(rotate_heads::<f16>(&rotated, x.slice()), shape),
        DType::BF16 => new(rotate_heads::<bf16>(&rotated, x.slice()), shape),
        _ => None,
    }
}

fn attend<B: Backend>(
    q: &Tensor<B, 3>,
    blocks: &LayerBlocks<B>,
    pass: &AttentionPass<'_, B>,
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
    let sinks = match &pass.sinks {
        Some(sinks) => Some(Values::of(sinks)?),
        None => None,
    };
    let sizes = moi_kernels::AttentionSizes {
        heads: pass.heads,
        kv_heads: pass.kv_heads,
        head_dim: pass.head_dim,
        softcap: pass.softcap.map(|cap| cap as f32),
        window: pass.window,
        sinks: sinks.as_ref().map(Values::slice),
    };
    let out = moi_kernels::attend(&sizes, Values::of(q)?.slice(), &cached, &pass.spans());
    new(out, [pass.tokens(), pass.heads * pass.head_dim])
}

/// Computes steps one by one, for prompts too: chunks take 1.6 to 1.8 times as long here, because they need many
/// small tensors.
fn state_steps<B: Backend>(steps: &HeadSteps<B>, matrices: Tensor<B, 3>) -> StateRun<B> {
    let ([n, heads, values], [_, groups, keys]) = (steps.v.dims(), steps.k.dims());
    if !is_flex::<B>() {
        return Err(matrices);
    }
    let hold = |x: &Tensor<B, 3>| Values::of(&x.clone().cast(DType::F32));
    let flat = |x: &Tensor<B, 2>| Values::of(&x.clone().cast(DType::F32));
    let beta = steps.beta.as_ref().map(flat);
    let (Some(q), Some(k), Some(v), Some(decay)) =
        (hold(&steps.q), hold(&steps.k), hold(&steps.v), flat(&steps.decay))
    else {
        return Err(matrices);
    };
    if beta.as_ref().is_some_and(Option::is_none) {
        return Err(matrices);
    }
    let beta = beta.flatten();
    let (q, k, v, decay) = (q.slice(), k.slice(), v.slice(), decay.slice());
    let spec =
        StateSteps { heads, groups, keys, values, q, k, v, decay, beta: beta.as_ref().map(Values::slice) };
    // This works in place, unless the storage is shared.
    let mut states = sure(float(matrices)).to_contiguous();
    let out = moi_kernels::state_steps(&spec, states.storage_mut());
    Ok((sure(new(out, [n, heads, values])), sure(tensor(states))))
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
        // This works in place, unless the storage is shared.
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

fn distribution<B: Backend>(
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
        // For broken logits, the probabilities are NaN.
        row.probability.resize(columns, f32::NAN);
        match n {
            1 => all = row.probability,
            _ => all.append(&mut row.probability),
        }
        entropies.push(row.entropy);
    }
    Some((new(all, [n, columns])?, new(entropies, [n, 1])?))
}
