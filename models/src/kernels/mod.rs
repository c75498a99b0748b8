//! How a decoder's operations are computed: by tensor operations, or by what a backend can do faster.
//!
//! [`Kernels`] has the operations that a forward pass consists of. Each is done by ordinary tensor operations unless an
//! implementation does it otherwise, so that [`TensorOperations`], which does none otherwise, serves every backend and is
//! what all others are compared with. A decoder takes [`default_kernels`] of its backend, or those that
//! [`crate::Decoder::with_kernels`] gives it. With the feature `flex` there are kernels for burn's Flex backend, whose
//! tensors are slices in the host's memory ([`moi_kernels`]); with `cuda` and `wgpu` for its CubeCL backends, on GPUs
//! ([`moi_gpu`]).

#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "gpu")]
mod gpu;
mod held;
mod pass;

use std::{fmt, sync::Arc};

use burn::tensor::{DType, Int, Tensor, backend::Backend};
use moi_kernels::RowCache;
use moi_sampling::{Reading, RowSpec};

pub(crate) use held::KernelsOf;
pub use pass::AttentionPass;

use crate::{
    BlockRun, CacheLayout, Embedding, Experts, HeadSteps, LayerBlocks, Linear, Matrix, Mixing, Mlp, Norm,
};

/// What [`Kernels::state_steps`] gives: outputs and the matrices behind all positions, or the matrices as they were.
pub type StateRun<B> = Result<(Tensor<B, 3>, Tensor<B, 3>), Tensor<B, 3>>;

/// The operations of a decoder on a backend. Inputs and results are `[tokens, width]`, in float32 unless it says otherwise.
///
/// An implementation that hands an operation on to another one's hands on what belongs to it, too: [`Self::cache_layout`] with
/// [`Self::attention`], [`Self::rounds_activations`] with products. Attention kernels leave a cache of another layout to tensor
/// operations.
pub trait Kernels<B: Backend>: fmt::Debug + Send + Sync {
    /// How keys and values lie in the blocks of the cache.
    fn cache_layout(&self) -> CacheLayout {
        CacheLayout::default()
    }

    /// Whether products with packed weights round activations where a model asks for that: see [`crate::Activations`].
    fn rounds_activations(&self) -> bool {
        false
    }

    /// `x` of any float type through a linear layer: in the type of the weights or in float32.
    fn linear(&self, layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        layer.forward(x)
    }

    /// The same through the three inward projections of attention.
    fn qkv(&self, layers: [&Linear<B>; 3], x: Tensor<B, 2>) -> [Tensor<B, 2>; 3] {
        layers.map(|layer| self.linear(layer, x.clone()))
    }

    /// Writes the keys' and values' projections `[tokens, kv_heads * head_dim]` of new positions into the cache, where the layer
    /// has any and does not see those that an earlier one wrote; and attends by the queries' `[tokens, heads * head_dim]` to
    /// what each position sees: `[tokens, heads * head_dim]`.
    fn attention(
        &self,
        q: Tensor<B, 2>,
        kv: Option<[Tensor<B, 2>; 2]>,
        pass: &AttentionPass<'_, B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        pass.by_tensor_operations(q, kv, blocks)
    }

    /// A feed-forward block.
    fn mlp(&self, mlp: &Mlp<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        mlp.forward_by(x, |layer, x| self.linear(layer, x))
    }

    /// A norm.
    fn norm(&self, norm: &Norm<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        norm.forward(x)
    }

    /// The residual stream with what a block adds to it, if there is such; and that behind a norm, if there is one: the
    /// input of the next block.
    fn residual(
        &self,
        stream: Tensor<B, 2>,
        output: Option<BlockOutput<'_, B>>,
        norm: Option<&Norm<B>>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        add_and_norm(stream, output, norm, |norm, x| self.norm(norm, x))
    }

    /// Steps of a layer whose state is a matrix for each head `[heads, keys, values]`, in float32: what comes out
    /// `[positions, heads, values]`, and the matrices behind all positions. The matrices as they were where tensor operations
    /// are to do it.
    fn state_steps(&self, _steps: &HeadSteps<B>, matrices: Tensor<B, 3>) -> StateRun<B> {
        Err(matrices)
    }

    /// What the picked experts give, summed with their weights `[rows, d]`, without reading their choice back: of what the
    /// router's map gives `[rows, experts]`, and of the experts' inputs `[rows, d]`. `None` where it has to be read back.
    fn experts(
        &self,
        _experts: &Experts<B>,
        _values: &Tensor<B, 2>,
        _x: &Tensor<B, 2>,
    ) -> Option<Tensor<B, 2>> {
        None
    }

    /// Products of hidden states with every row of a table `[vocab, d]`: `[tokens, vocab]`.
    fn logits(&self, table: &Matrix<B>, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        table.products(hidden)
    }

    /// The rows of `ids` `[n]` of a table, as they are stored: `[n, d]`.
    fn rows(&self, table: &Matrix<B>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        table.rows(ids)
    }

    /// Weighted sums of all rows of a table: `weights` `[n, vocab]`, result `[n, d]`. Rows of the smallest weights may be left
    /// out, which together have less than 1e-7 of all.
    fn weighted_sum(&self, table: &Matrix<B>, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        table.weighted_sum(weights)
    }

    /// Probabilities and entropies in nats `[n, 1]` of logits `[n, vocab]`; probabilities of no columns where they are not
    /// asked for. `None` where tensor operations serve as well.
    fn distribution(
        &self,
        _logits: &Tensor<B, 2>,
        _probabilities: bool,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        None
    }

    /// Whether the [device's own step](sample_and_mix) belongs to these kernels.
    fn samples_on_device(&self) -> bool {
        false
    }

    /// Whether mixtures are computed up to a tolerance, by [`Kernels::means`] or the device's own step.
    fn has_tolerance(&self) -> bool {
        self.samples_on_device()
    }

    /// The means `[n, d]` of a table's rows by the softmax of logits `[n, vocab]`, and entropies in nats `[n, 1]`: see
    /// [`crate::Mixing`]. `None` where the whole table is to be read by [`Kernels::weighted_sum`].
    fn means(
        &self,
        _table: &Matrix<B>,
        _spec: &Means<'_, B>,
        _read: &mut RowCache,
        _logits: &Tensor<B, 2>,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        None
    }
}

/// See [`Kernels::residual`]: by tensor operations, but for the norms.
fn add_and_norm<B: Backend>(
    stream: Tensor<B, 2>,
    output: Option<BlockOutput<'_, B>>,
    norm: Option<&Norm<B>>,
    apply: impl Fn(&Norm<B>, Tensor<B, 2>) -> Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let stream = match output {
        Some(BlockOutput { output, norm, scale }) => {
            let output = match norm {
                Some(norm) => apply(norm, output),
                None => output.cast(DType::F32),
            };
            stream + if scale == 1.0 { output } else { output.mul_scalar(scale) }
        }
        None => stream,
    };
    let input = stream.clone();
    match norm {
        Some(norm) => (stream, apply(norm, input)),
        None => (stream, input),
    }
}

/// Everything by tensor operations.
#[derive(Clone, Copy, Debug)]
pub struct TensorOperations;

impl<B: Backend> Kernels<B> for TensorOperations {}

/// What a block has computed and the residual stream has not got yet.
#[derive(Debug)]
pub struct BlockOutput<'a, B: Backend> {
    /// `[tokens, d]`, of any float type.
    pub output: Tensor<B, 2>,
    /// A norm over it.
    pub norm: Option<&'a Norm<B>>,
    /// A factor, behind the norm.
    pub scale: f64,
}

/// How means of a table's rows are computed: see [`crate::Mixing`].
pub struct Means<'a, B: Backend> {
    /// The mean of all rows `[d]`, in float32.
    pub mean_row: &'a dyn Fn() -> &'a Tensor<B, 1>,
    /// How much of a row's input its mean will be, given the row and its entropy in nats.
    pub share: &'a (dyn Fn(usize, f32) -> f32 + Sync),
    /// The largest share of an input's weight that goes to the mean of all rows.
    pub tolerance: f32,
}

impl<B: Backend> fmt::Debug for Means<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Means").field("tolerance", &self.tolerance).finish_non_exhaustive()
    }
}

/// The kernels of this build for a backend; [`TensorOperations`] where it has none.
pub fn default_kernels<B: Backend>() -> Arc<dyn Kernels<B>> {
    #[cfg(feature = "flex")]
    if flex::is_flex::<B>() {
        return Arc::new(flex::FlexKernels);
    }
    #[cfg(feature = "gpu")]
    if gpu::is_gpu::<B>() {
        return Arc::new(gpu::GpuKernels);
    }
    Arc::new(TensorOperations)
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

/// Writes keys or values of new positions `[tokens, heads, head_dim]` into slabs of blocks, value by value or position by
/// position: see [`LayerBlocks`]. The slabs as they were where tensor operations are to do it.
pub(crate) fn write_columns<B: Backend>(
    slabs: Vec<Tensor<B, 4>>,
    new: &Tensor<B, 3>,
    runs: &[BlockRun],
    by_value: bool,
) -> Result<Vec<Tensor<B, 4>>, Vec<Tensor<B, 4>>> {
    #[cfg(feature = "flex")]
    return flex::write_columns(slabs, new, runs, by_value);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (new, runs, by_value);
        Err(slabs)
    }
}

/// Puts experts' matrices together for kernels that find the picked ones by themselves, where there are such kernels.
pub(crate) fn stack_experts<B: Backend>(experts: &mut Experts<B>) {
    #[cfg(feature = "gpu")]
    gpu::stack(experts);
    #[cfg(not(feature = "gpu"))]
    let _ = experts;
}

/// Whether a backend computes on a GPU, with memory of its own. Backends that this build has no kernels for count as ones
/// that do not.
pub fn is_gpu<B: Backend>() -> bool {
    #[cfg(feature = "gpu")]
    return gpu::is_gpu::<B>();
    #[cfg(not(feature = "gpu"))]
    false
}

/// Whether the backend has kernels for GPUs, and they are on: see [`use_gpu_kernels`].
pub fn has_gpu_kernels<B: Backend>() -> bool {
    #[cfg(feature = "gpu")]
    return gpu::has_gpu_kernels::<B>();
    #[cfg(not(feature = "gpu"))]
    false
}

/// Turns the kernels for GPUs on or off for the process: without them all is done by tensor operations. They are on
/// unless the environment says `MOI_GPU_KERNELS=0`.
pub fn use_gpu_kernels(on: bool) {
    #[cfg(feature = "gpu")]
    gpu::use_gpu_kernels(on);
    #[cfg(not(feature = "gpu"))]
    let _ = on;
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
    #[cfg(feature = "gpu")]
    return gpu::step(logits, embedding, mixing, rows);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (logits, embedding, mixing, rows);
        None
    }
}
