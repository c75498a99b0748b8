//! Attention on a GPU, from the projections to the output, including the writes to the cache.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use moi_gpu::{Attend, AttentionPlan, Rotate, attend, plan_words, queries_at_once, rotate};

use super::{
    LAYOUT, has_gpu_kernels,
    linears::{norm, parameters, spec},
    on_runtime,
    tensors::{buffer, device, float, int, single, tensor, whole},
};
use crate::{LayerBlocks, QkSpan, context::Plan, kernels::AttentionPass};

/// Attention of a forward pass, whose keys and values are written to the cache: `[tokens, heads * head_dim]` in
/// float32. `None`, with an unchanged cache, if there is no kernel for it.
pub(super) fn attention<B: Backend>(
    q: &Tensor<B, 2>,
    kv: Option<&[Tensor<B, 2>; 2]>,
    pass: &AttentionPass<'_, B>,
    blocks: &mut LayerBlocks<B>,
) -> Option<Tensor<B, 2>> {
    if !has_gpu_kernels::<B>() || blocks.layout != LAYOUT {
        return None;
    }
    // If another layer wrote the keys and values, only the queries need to be rotated.
    let Some([k, v]) = kv else {
        let rotated = pass.queries(q.clone());
        return on_runtime!(attention_on::<B>(Projections::Queries(&rotated), pass, blocks), else None);
    };
    if let (Some(q_norm), Some(k_norm), QkSpan::Projection) = (pass.q_norm, pass.k_norm, pass.norm_span) {
        let (q, k) = (norm(q_norm, q)?, norm(k_norm, k)?);
        let pass = AttentionPass { q_norm: None, k_norm: None, ..pass.clone() };
        return on_runtime!(attention_on::<B>(Projections::All([&q, &k, v]), &pass, blocks), else None);
    }
    on_runtime!(attention_on::<B>(Projections::All([q, k, v]), pass, blocks), else None)
}

/// The input of attention.
enum Projections<'a, B: Backend> {
    /// The projected queries, keys and values, `[tokens, heads * head_dim]`.
    All([&'a Tensor<B, 2>; 3]),
    /// Queries that are rotated and scaled already, `[tokens, heads, head_dim]`.
    Queries(&'a Tensor<B, 3>),
}

fn attention_on<B: Backend, R: CubeRuntime>(
    projections: Projections<'_, B>,
    pass: &AttentionPass<'_, B>,
    blocks: &mut LayerBlocks<B>,
) -> Option<Tensor<B, 2>> {
    let &AttentionPass { context, kind, heads, kv_heads, head_dim, window, .. } = pass;
    let tokens = context.tokens;
    let (own_device, q, kv) = match projections {
        Projections::All([q, k, v]) => {
            (q.device(), single::<B, R, 2>(q)?, Some([single::<B, R, 2>(k)?, single::<B, R, 2>(v)?]))
        }
        Projections::Queries(q) => (q.device(), single::<B, R, 3>(q)?, None),
    };
    let device = device(&q);
    let longest = context.spans.iter().map(|span| span.len).max()?;
    let queries = queries_at_once(&device, [heads, kv_heads, head_dim], longest, blocks.dtype.into())?;
    let norms = pass.q_norm.zip(pass.k_norm);
    let weights = match norms {
        Some((q, k)) => Some((parameters::<B, R>(q, &own_device)?, parameters::<B, R>(k, &own_device)?)),
        None => None,
    };
    let sinks = match &pass.sinks {
        Some(sinks) => Some(buffer(&single::<B, R, 1>(sinks)?)),
        None => None,
    };
    let angles = match pass.angles {
        Some(angles) => {
            let dims = angles.dims();
            (dims > 0).then_some((single::<B, R, 2>(angles.cos())?, single::<B, R, 2>(angles.sin())?, dims))
        }
        None => None,
    };
    let angles = angles.as_ref().map(|(cos, sin, dims)| (buffer(cos), buffer(sin), *dims));
    let plan = context.plan(kind, queries, || {
        let made = plan_words(&context.attention_spans(kind), window, queries);
        let words: Vec<i32> = made.words.iter().map(|&word| word as i32).collect();
        let count = words.len();
        let data = TensorData::new(words, [count]);
        let words = Tensor::<B, 1, Int>::from_data(data, (&own_device, DType::I32));
        Plan { words, tiles: made.tiles, longest: made.longest }
    });
    let words = int::<B, R, 1>(plan.words)?;
    let plan =
        AttentionPlan { words: buffer(&words), tokens, tiles: plan.tiles, queries, longest: plan.longest };
    let (Some(keys), Some(values), true) = (blocks.keys.pop(), blocks.values.pop(), blocks.keys.is_empty())
    else {
        return None;
    };
    let keys: CubeTensor<R> = own(keys)?;
    let values: CubeTensor<R> = own(values)?;
    let rotated = match &kv {
        Some([k, v]) => rotate(
            &device,
            &Rotate {
                q: &buffer(&q),
                k: &buffer(k),
                v: &buffer(v),
                angles: angles.as_ref().map(|(cos, sin, dims)| (cos, sin, *dims)),
                norms: weights.as_ref().map(|(q, k)| (q, k)),
                spec: norms.map_or(moi_gpu::NormSpec::default(), |(q, _)| spec(&q.config())),
                cache: (&buffer(&keys), &buffer(&values)),
                plan: &plan,
                heads,
                kv_heads,
                head_dim,
                scale: pass.scale as f32,
            },
        ),
        None => buffer(&q),
    };
    let out = attend(
        &device,
        &Attend {
            q: &rotated,
            keys: &buffer(&keys),
            values: &buffer(&values),
            plan: &plan,
            heads,
            kv_heads,
            head_dim,
            softcap: pass.softcap.map(|cap| cap as f32),
            sinks: sinks.as_ref(),
        },
    );
    blocks.keys.push(whole(keys)?);
    blocks.values.push(whole(values)?);
    tensor(out?, [tokens, heads * head_dim], &q)
}

/// A buffer that is not shared, so that it can be written: this one, or a copy of it.
fn own<B: Backend, R: CubeRuntime>(buffer: Tensor<B, 4>) -> Option<CubeTensor<R>> {
    let buffer = float::<B, R, 4>(buffer)?;
    if buffer.can_mut() {
        return Some(buffer);
    }
    let copied = whole::<B, R, 4>(buffer)?.mul_scalar(1.0);
    float(copied)
}
