//! From projections to what attention gives, and the cache in between.

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use moi_gpu::{Attend, Turn, attend, can_attend, turn};

use super::{
    has_gpu_kernels,
    maps::{parameters, spec},
    on_runtime,
    tensors::{buffer, device, float, single, tensor, whole},
};
use crate::{KvCache, kernels::Attention};

/// Positions of a row for which the kernel is made: decoding, and a few at once.
const MAX_SEQ: usize = 8;

/// Whether there may be a kernel for so many positions of a row.
pub(in crate::kernels) fn has_attention<B: Backend>(seq: usize) -> bool {
    has_gpu_kernels::<B>() && seq <= MAX_SEQ
}

/// Attention of a step, whose keys and values go into the cache: `[batch * seq, heads * head_dim]` in float32. `None`,
/// with the cache as it was, where there is no kernel for it.
pub(in crate::kernels) fn attention<B: Backend>(
    [q, k, v]: [&Tensor<B, 2>; 3],
    attention: &Attention<'_, B>,
    cache: &mut KvCache<B>,
) -> Option<Tensor<B, 2>> {
    if !has_attention::<B>(attention.step.seq) {
        return None;
    }
    on_runtime!(attention_on::<B>([q, k, v], attention, cache), else None)
}

fn attention_on<B: Backend, R: CubeRuntime>(
    [q, k, v]: [&Tensor<B, 2>; 3],
    attention: &Attention<'_, B>,
    cache: &mut KvCache<B>,
) -> Option<Tensor<B, 2>> {
    let &Attention { step, layer, heads, kv_heads, head_dim, window, .. } = attention;
    let (batch, seq) = (step.batch, step.seq);
    let [q, k, v] = [single::<B, R, 2>(q)?, single::<B, R, 2>(k)?, single::<B, R, 2>(v)?];
    let device = device(&q);
    let cache_type = DType::from(attention.cached);
    if !can_attend(&device, [heads, kv_heads, head_dim], batch * seq, cache_type.into()) {
        return None;
    }
    let norms = match attention.norms {
        Some((q, k)) => Some((parameters::<B, R>(q)?, parameters::<B, R>(k)?)),
        None => None,
    };
    let angles = match attention.angles {
        Some(angles) => {
            let dims = angles.cos().dims()[3];
            (dims > 0).then_some((single::<B, R, 4>(angles.cos())?, single::<B, R, 4>(angles.sin())?, dims))
        }
        None => None,
    };
    let angles = angles.as_ref().map(|(cos, sin, dims)| (buffer(cos), buffer(sin), *dims));
    let room = cache.take_room(layer, [batch, kv_heads, head_dim], step, cache_type);
    let (at, first) = (room.at, room.first);
    let capacity = room.keys.dims()[2];
    let keys: CubeTensor<R> = own(room.keys)?;
    let values: CubeTensor<R> = own(room.values)?;
    let turned = turn(
        &device,
        &Turn {
            q: &buffer(&q),
            k: &buffer(&k),
            v: &buffer(&v),
            angles: angles.as_ref().map(|(cos, sin, dims)| (cos, sin, *dims)),
            norms: norms.as_ref().map(|(q, k)| (q, k)),
            spec: attention.norms.map_or(moi_gpu::NormSpec::default(), |(q, _)| spec(&q.config())),
            cache: (&buffer(&keys), &buffer(&values)),
            capacity,
            at,
            batch,
            seq,
            heads,
            kv_heads,
            head_dim,
            scale: attention.scale as f32,
        },
    );
    let visible: Vec<_> = (0..batch * seq)
        .map(|row| step.columns.seen(row / seq, row % seq, window))
        .map(|seen| seen.start - first..seen.end - first)
        .collect();
    let out = attend(
        &device,
        &Attend {
            q: &turned,
            keys: &buffer(&keys),
            values: &buffer(&values),
            capacity,
            visible: &visible,
            seq,
            heads,
            kv_heads,
            head_dim,
            softcap: attention.softcap.map(|cap| cap as f32),
        },
    );
    cache.put_back(layer, whole(keys)?, whole(values)?);
    tensor(out?, [batch * seq, heads * head_dim], &q)
}

/// A buffer that nobody else has, so that it can be written.
fn own<B: Backend, R: CubeRuntime>(buffer: Tensor<B, 4>) -> Option<CubeTensor<R>> {
    let buffer = float::<B, R, 4>(buffer)?;
    if buffer.can_mut() {
        return Some(buffer);
    }
    let copied = whole::<B, R, 4>(buffer)?.mul_scalar(1.0);
    float(copied)
}
