//! The room for kernels: what a backend can do faster than by ordinary tensor operations.
//!
//! [`Kernels`] is there for every backend. Its functions say `None` where there is no kernel, and the caller then uses
//! tensor operations: so NdArray and backends of other crates work as they are. With the feature `flex` there are those
//! of burn's Flex backend, whose tensors are slices in the host's memory ([`moi_kernels`]); with `cuda` and `wgpu` those
//! of its CubeCL backends, on GPUs ([`moi_gpu`]).

#[cfg(feature = "flex")]
mod flex;
#[cfg(not(feature = "flex"))]
#[path = "no_flex.rs"]
mod flex;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(not(feature = "gpu"))]
#[path = "no_gpu.rs"]
mod gpu;
mod spec;

use burn::tensor::{Int, Tensor, backend::Backend};
pub use gpu::use_gpu_kernels;
use moi_kernels::RowCache;
use moi_sampling::{Reading, RowSpec};
pub(crate) use spec::{Attention, Heads, Joined, Map, Means, Pending};

use crate::{
    Activation, Embedding, Matrix, Mixing, Norm, PackedMatrix,
    cache::{BlockRun, LayerBlocks},
};

/// Kernels of a backend.
pub(crate) trait Kernels: Backend {
    /// Whether there are those for the CPU: either all of them or none.
    fn has_kernels() -> bool {
        flex::is_flex::<Self>()
    }

    /// Linear maps of one input `[n, in]`: `[n, out]` in float32 each, or one of all where an activation is asked for:
    /// `activation(first)`, times the second if there is one. On GPUs, for few rows.
    fn maps(
        x: &Tensor<Self, 2>,
        maps: &[Map<'_, Self>],
        activation: Option<Activation>,
    ) -> Option<Vec<Tensor<Self, 2>>> {
        gpu::maps(x, maps, activation)
    }

    /// `x` `[n, in]` times the transposes of matrices of equal widths: `[n, out]` each, in float32. On the CPU.
    fn products(x: &Tensor<Self, 2>, matrices: &[&Matrix<Self>]) -> Option<Vec<Tensor<Self, 2>>> {
        flex::products(x, matrices)
    }

    /// Weighted sums of all rows: `weights` `[n, out]` in float32, result `[n, in]` in float32. On the CPU.
    fn weighted_sum(table: &Matrix<Self>, weights: &Tensor<Self, 2>) -> Option<Tensor<Self, 2>> {
        flex::weighted_sum(table, weights)
    }

    /// The rows of `ids` `[n]` of a packed matrix, in float32.
    fn packed_rows(table: &Matrix<Self>, ids: &Tensor<Self, 1, Int>) -> Option<Tensor<Self, 2>> {
        flex::packed_rows(table, ids).or_else(|| gpu::packed_rows(table, ids))
    }

    /// Rows of a packed matrix from one on, in float32. On GPUs.
    fn unpacked(matrix: &PackedMatrix<Self>, first: usize, rows: usize) -> Option<Tensor<Self, 2>> {
        gpu::unpacked(matrix, first, rows)
    }

    /// A norm over the last axis, in float32.
    fn norm<const D: usize>(norm: &Norm<Self>, x: &Tensor<Self, D>) -> Option<Tensor<Self, D>> {
        flex::norm(norm, x).or_else(|| gpu::norm(norm, x))
    }

    /// The residual stream with what a block adds to it, if there is such, and a norm of that, if one is asked for; both
    /// in float32. On GPUs.
    fn join(
        x: &Tensor<Self, 2>,
        pending: Option<&Pending<'_, Self>>,
        before: Option<&Norm<Self>>,
    ) -> Option<Joined<Self>> {
        gpu::join(x, pending, before)
    }

    /// `activation(gate) * up`, in float32. On the CPU.
    fn gated(
        activation: Activation,
        gate: Tensor<Self, 2>,
        up: Option<&Tensor<Self, 2>>,
    ) -> Result<Tensor<Self, 2>, Tensor<Self, 2>> {
        flex::gated(activation, gate, up)
    }

    /// Whether there may be [`Kernels::attended`].
    fn has_attention() -> bool {
        gpu::has_gpu_kernels::<Self>()
    }

    /// Whether kernels find the blocks of a layer's cache in one slab alone.
    fn wants_one_slab() -> bool {
        gpu::is_gpu::<Self>()
    }

    /// Attention of projections `[tokens, heads * head_dim]`: norms, rotary positions, the cache, and what is attended to, in
    /// float32. On GPUs.
    fn attended(
        qkv: [&Tensor<Self, 2>; 3],
        attention: &Attention<'_, Self>,
        blocks: &mut LayerBlocks<Self>,
    ) -> Option<Tensor<Self, 2>> {
        gpu::attention(qkv, attention, blocks)
    }

    /// Heads on their way from a projection `[tokens, heads * head_dim]` into attention `[tokens, heads, head_dim]`, in the
    /// type asked for. On the CPU.
    fn heads(x: &Tensor<Self, 2>, heads: &Heads<'_, Self>) -> Option<Tensor<Self, 3>> {
        flex::heads(x, heads)
    }

    /// Attention of queries `[tokens, heads, head_dim]`, scaled already: `[tokens, heads * head_dim]`. On the CPU.
    fn attend(
        q: &Tensor<Self, 3>,
        blocks: &LayerBlocks<Self>,
        attention: &Attention<'_, Self>,
    ) -> Option<Tensor<Self, 2>> {
        flex::attend(q, blocks, attention)
    }

    /// Writes keys or values of new positions `[tokens, heads, head_dim]` into slabs of blocks, value by value or position
    /// by position: see [`LayerBlocks`]. The slabs as they were where there is no kernel for it. On the CPU.
    fn write_columns(
        slabs: Vec<Tensor<Self, 4>>,
        new: &Tensor<Self, 3>,
        runs: &[BlockRun],
        by_value: bool,
    ) -> Result<Vec<Tensor<Self, 4>>, Vec<Tensor<Self, 4>>> {
        flex::write_columns(slabs, new, runs, by_value)
    }

    /// Probabilities and entropies in nats `[n, 1]` of logits `[n, vocab]`; probabilities of no columns where they are
    /// not asked for. On the CPU.
    fn distribution(
        logits: &Tensor<Self, 2>,
        probabilities: bool,
    ) -> Option<(Tensor<Self, 2>, Tensor<Self, 2>)> {
        flex::distribution(logits, probabilities)
    }

    /// Whether there are [`Kernels::means`], or a step of a device's own.
    fn has_mean() -> bool {
        flex::is_flex::<Self>() || has_gpu_kernels::<Self>()
    }

    /// The means `[n, d]` of a table's rows by the softmax of logits `[n, vocab]`, in float32, and entropies in nats
    /// `[n, 1]`: see [`crate::Mixing`]. On the CPU.
    fn means(
        table: &Matrix<Self>,
        spec: &Means<'_, Self>,
        read: &mut RowCache,
        logits: &Tensor<Self, 2>,
    ) -> Option<(Tensor<Self, 2>, Tensor<Self, 2>)> {
        flex::means(table, spec, read, logits)
    }

    /// Sampling and mixing: the next inputs `[rows, d]` in float32, and what was decided, on its way to the host. On
    /// GPUs.
    fn step(
        logits: &Tensor<Self, 2>,
        embedding: &Embedding<Self>,
        mixing: &Mixing<Self>,
        rows: &[RowSpec],
    ) -> Option<(Tensor<Self, 2>, Reading)> {
        gpu::step(logits, embedding, mixing, rows)
    }
}

impl<B: Backend> Kernels for B {}

/// Probabilities and entropies in nats `[n, 1]` of logits `[n, vocab]`, where the backend has a kernel for them;
/// probabilities of no columns where they are not asked for.
pub fn distribution<B: Backend>(
    logits: &Tensor<B, 2>,
    probabilities: bool,
) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
    B::distribution(logits, probabilities)
}

/// What `read` makes of float32 values, row after row. They are read back from a device, but not copied where they are
/// in the host's memory already.
pub fn with_values<B: Backend, R>(x: &Tensor<B, 2>, read: impl FnOnce(&[f32]) -> R) -> R {
    #[cfg(feature = "flex")]
    if let Some(values) = flex::values(x) {
        return read(values.slice());
    }
    read(x.to_data().convert::<f32>().as_slice::<f32>().unwrap_or_default())
}

/// Whether the backend has kernels for the CPU: rounding activations then pays.
pub fn has_kernels<B: Backend>() -> bool {
    <B as Kernels>::has_kernels()
}

/// Whether a backend computes on a GPU, with memory of its own. Backends that this build has no kernels for count as ones
/// that do not.
pub fn is_gpu<B: Backend>() -> bool {
    gpu::is_gpu::<B>()
}

/// Whether the backend has kernels for GPUs, and they are on: see [`use_gpu_kernels`].
pub fn has_gpu_kernels<B: Backend>() -> bool {
    gpu::has_gpu_kernels::<B>()
}

/// Samples from logits `[rows, vocab]` and mixes the next inputs `[rows, d]`, in float32, without waiting for the
/// device: what was decided is on its way to the host meanwhile. `None` where the backend has no kernels for that, or
/// none for such rows.
pub fn sample_and_mix<B: Backend>(
    logits: &Tensor<B, 2>,
    embedding: &Embedding<B>,
    mixing: &Mixing<B>,
    rows: &[RowSpec],
) -> Option<(Tensor<B, 2>, Reading)> {
    B::step(logits, embedding, mixing, rows)
}
