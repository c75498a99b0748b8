//! Sampling and mixing on the device, without a round trip to the host.

use burn::tensor::{Tensor, TensorMetadata, backend::Backend};
use burn_cubecl::CubeRuntime;
use moi_gpu::{EmbeddingTable, can_step};
use moi_sampling::{Reading, RowSpec};

use super::{
    has_gpu_kernels, on_runtime,
    tensors::{buffer, device, single, tensor, weights},
};
use crate::{Embedding, Mixing};

/// Samples from logits `[rows, vocab]` and mixes the next inputs `[rows, d]` in float32. `None` if there is no kernel
/// for it.
pub(in crate::kernels) fn step<B: Backend>(
    logits: &Tensor<B, 2>,
    embedding: &Embedding<B>,
    mixing: &Mixing<B>,
    rows: &[RowSpec],
) -> Option<(Tensor<B, 2>, Reading)> {
    if !has_gpu_kernels::<B>() || !embedding.is_plain() || !can_step(logits.dims()[1], rows) {
        return None;
    }
    on_runtime!(step_on::<B>(logits, embedding, mixing, rows), else None)
}

fn step_on<B: Backend, R: CubeRuntime>(
    logits: &Tensor<B, 2>,
    embedding: &Embedding<B>,
    mixing: &Mixing<B>,
    rows: &[RowSpec],
) -> Option<(Tensor<B, 2>, Reading)> {
    let own_device = logits.device();
    let logits = single::<B, R, 2>(logits)?;
    let device = device(&logits);
    let weights = weights::<B, R>(&embedding.weight)?;
    let width = embedding.weight.dims()[1];
    // The mean row costs a pass over the table, once.
    let needs_mean = rows.iter().any(|row| row.mixes && row.support.is_none() && row.tolerance > 0.0);
    let mean = match needs_mean {
        true => Some(buffer(&single::<B, R, 1>(mixing.mean_row(embedding, &own_device))?)),
        false => None,
    };
    let table =
        EmbeddingTable { weights: &weights, width, scale: embedding.scale() as f32, mean: mean.as_ref() };
    debug_assert_eq!(logits.shape().num_elements(), rows.len() * embedding.dims()[0]);
    let (inputs, decided) = moi_gpu::step(&device, &buffer(&logits), rows, table);
    // This enqueues the copy to the host, before the work of the next step.
    let reading = decided.read(&device);
    Some((tensor(inputs, [rows.len(), width], &logits)?, reading))
}
