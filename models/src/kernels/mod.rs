//! The operations of a decoder: by tensor operations, or by faster kernels of a backend.
//!
//! [`Kernels`] has the operations that a forward pass consists of. Each has a default implementation by ordinary
//! tensor operations. [`TensorOperations`] overrides none of these, so that it serves every backend, and all kernels
//! are compared with it. A decoder uses the [`default_kernels`] of its backend, or those given to
//! [`crate::Decoder::with_kernels`]. With the feature `flex` there are kernels for burn's Flex backend, whose tensors
//! are slices in the host's memory ([`moi_kernels`]); with `cuda` and `wgpu` there are kernels for its CubeCL
//! backends, on GPUs ([`moi_gpu`]).

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

/// The result of [`Kernels::state_steps`]: outputs and the state matrices after all positions, or the unchanged
/// matrices.
pub type StateRun<B> = Result<(Tensor<B, 3>, Tensor<B, 3>), Tensor<B, 3>>;

/// The operations of a decoder on a backend. Inputs and results are `[tokens, width]`, in float32 unless stated
/// otherwise.
///
/// An implementation that delegates an operation to another one must also delegate what belongs to it:
/// [`Self::cache_layout`] with [`Self::attention`], [`Self::rounds_activations`] with products. Attention kernels
/// leave a cache of another layout to tensor operations.
///
/// # Examples
/// ```
/// use std::sync::{
///     Arc,
///     atomic::{AtomicUsize, Ordering},
/// };
///
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, CausalLm, Kernels, Linear};
///
/// /// Counts linear layers.
/// #[derive(Debug, Default)]
/// struct Counting(AtomicUsize);
///
/// impl Kernels<Flex> for Counting {
///     fn linear(&self, layer: &Linear<Flex>, x: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         layer.forward(x)
///     }
/// }
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let counting = Arc::new(Counting::default());
/// let model = model.with_kernels(counting.clone());
/// model.forward_whole(Tensor::zeros([3, 16], &device))?;
/// // Queries, keys, values and output; gate, up and down; in two layers.
/// assert_eq!(counting.0.load(Ordering::Relaxed), 2 * 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Kernels<B: Backend>: fmt::Debug + Send + Sync {
    /// The memory layout of the cache's blocks.
    fn cache_layout(&self) -> CacheLayout {
        CacheLayout::default()
    }

    /// Whether products with packed weights quantize activations if a model asks for it: see [`crate::Activations`].
    fn rounds_activations(&self) -> bool {
        false
    }

    /// A linear layer of `x`, which is of any float type. The result is in the type of the weights, or in float32.
    fn linear(&self, layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        layer.forward(x)
    }

    /// The three input projections of attention.
    fn qkv(&self, layers: [&Linear<B>; 3], x: Tensor<B, 2>) -> [Tensor<B, 2>; 3] {
        layers.map(|layer| self.linear(layer, x.clone()))
    }

    /// Attention of the queries `[tokens, heads * head_dim]` to what each position sees:
    /// `[tokens, heads * head_dim]`. The projected keys and values of new positions, `[tokens, kv_heads * head_dim]`
    /// each, are written to the cache first; they are `None` if the layer sees those of an earlier layer.
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

    /// The residual stream after a block's output was added, if there is one; and the input of the next block, which
    /// is the norm of this stream, or the stream itself without a norm.
    fn residual(
        &self,
        stream: Tensor<B, 2>,
        output: Option<BlockOutput<'_, B>>,
        norm: Option<&Norm<B>>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        add_and_norm(stream, output, norm, |norm, x| self.norm(norm, x))
    }

    /// Steps of a layer whose state is a matrix per head, `[heads, keys, values]` in float32. Returns the outputs
    /// `[positions, heads, values]` and the matrices after all positions, or the unchanged matrices if tensor
    /// operations should do it.
    fn state_steps(&self, _steps: &HeadSteps<B>, matrices: Tensor<B, 3>) -> StateRun<B> {
        Err(matrices)
    }

    /// The outputs of the picked experts, summed with their weights, `[rows, d]`, without reading the picks back.
    /// `_values` are the router's logits `[rows, experts]`, `_x` the experts' inputs `[rows, d]`. `None` if the picks
    /// must be read back.
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

    /// The stored rows of a table for `ids` `[n]`: `[n, d]`.
    fn rows(&self, table: &Matrix<B>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        table.rows(ids)
    }

    /// Weighted sums of all rows of a table: `weights` `[n, vocab]`, result `[n, d]`. Rows of the smallest weights,
    /// which together have less than 1e-7 of the total weight, may be left out.
    fn weighted_sum(&self, table: &Matrix<B>, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        table.weighted_sum(weights)
    }

    /// Probabilities `[n, vocab]` and entropies in nats `[n, 1]` of logits `[n, vocab]`. The probabilities have no
    /// columns if they are not asked for. `None` if tensor operations are as good.
    fn distribution(
        &self,
        _logits: &Tensor<B, 2>,
        _probabilities: bool,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        None
    }

    /// Whether [`sample_and_mix`] may be used with these kernels.
    fn samples_on_device(&self) -> bool {
        false
    }

    /// Whether mixtures are computed up to a tolerance, by [`Kernels::means`] or [`sample_and_mix`].
    fn has_tolerance(&self) -> bool {
        self.samples_on_device()
    }

    /// The means `[n, d]` of a table's rows under the softmax of logits `[n, vocab]`, and entropies in nats `[n, 1]`:
    /// see [`crate::Mixing`]. `None` if the whole table has to be read, by [`Kernels::weighted_sum`].
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

/// [`Kernels::residual`] by tensor operations; only the norms are computed by `apply`.
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

/// Kernels that compute everything by tensor operations.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use moi_models::{Architecture, CausalLm, TensorOperations};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// // To compare with the kernels of this build.
/// let model = model.with_kernels(Arc::new(TensorOperations));
/// assert_eq!(format!("{:?}", model.kernels()), "TensorOperations");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TensorOperations;

impl<B: Backend> Kernels<B> for TensorOperations {}

/// The output of a block, which is not added to the residual stream yet.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::{Flex, FlexDevice};
/// use moi_models::{BlockOutput, Kernels, TensorOperations};
///
/// let stream = Tensor::<Flex, 2>::ones([1, 4], &FlexDevice);
/// let output = BlockOutput { output: stream.clone(), norm: None, scale: 0.5 };
/// let (stream, _input) = TensorOperations.residual(stream, Some(output), None);
/// assert_eq!(stream.to_data().iter::<f32>().collect::<Vec<_>>(), [1.5; 4]);
/// ```
#[derive(Debug)]
pub struct BlockOutput<'a, B: Backend> {
    /// The output, `[tokens, d]`, of any float type.
    pub output: Tensor<B, 2>,
    /// A norm over it, before the addition.
    pub norm: Option<&'a Norm<B>>,
    /// A factor, applied after the norm.
    pub scale: f64,
}

/// How means of a table's rows are computed: see [`crate::Mixing`].
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Kernels, Matrix, Means, RowCache, TensorOperations};
///
/// let device = Default::default();
/// let table = Matrix::<Flex>::new(32, 16, None, &device);
/// let logits = Tensor::<Flex, 2>::zeros([1, 32], &device);
/// let mean = Tensor::<Flex, 1>::zeros([16], &device);
/// let mean_row = || &mean;
/// let share = |_row: usize, _entropy: f32| 1.0f32;
/// let spec = Means::<Flex> { mean_row: &mean_row, share: &share, tolerance: 1e-3 };
/// // Tensor operations read the whole table instead.
/// assert!(TensorOperations.means(&table, &spec, &mut RowCache::default(), &logits).is_none());
/// ```
pub struct Means<'a, B: Backend> {
    /// The mean of all rows, `[d]` in float32.
    pub mean_row: &'a dyn Fn() -> &'a Tensor<B, 1>,
    /// The weight of a mean in its row's input, given the index of the row and its entropy in nats.
    pub share: &'a (dyn Fn(usize, f32) -> f32 + Sync),
    /// The largest weight in an input that goes to the mean of all rows.
    pub tolerance: f32,
}

impl<B: Backend> fmt::Debug for Means<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Means").field("tolerance", &self.tolerance).finish_non_exhaustive()
    }
}

/// The kernels of this build for a backend, or [`TensorOperations`] if it has none.
///
/// # Examples
/// ```
/// use moi_models::default_kernels;
///
/// // There are none for NdArray.
/// let kernels = default_kernels::<burn_ndarray::NdArray>();
/// assert_eq!(format!("{kernels:?}"), "TensorOperations");
/// ```
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

/// Calls `read` with the float32 values of a tensor, row after row. They are read back from a device, but not copied
/// if they are in the host's memory already.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::with_values;
///
/// let x = Tensor::<Flex, 2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &Default::default());
/// let sum: f32 = with_values(&x, |values| values.iter().sum());
/// assert_eq!(sum, 10.0);
/// ```
pub fn with_values<B: Backend, R>(x: &Tensor<B, 2>, read: impl FnOnce(&[f32]) -> R) -> R {
    #[cfg(feature = "flex")]
    if let Some(values) = flex::values(x) {
        return read(values.slice());
    }
    read(x.to_data().convert::<f32>().as_slice::<f32>().unwrap_or_default())
}

/// Writes keys or values of new positions, `[tokens, heads, head_dim]`, into slabs of blocks, in the layout of keys
/// if `by_value`, else in that of values: see [`LayerBlocks`]. The error is the unchanged slabs, if tensor operations
/// should do it.
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

/// Concatenates the experts' matrices, if there are kernels that read the picked ones by themselves.
pub(crate) fn stack_experts<B: Backend>(experts: &mut Experts<B>) {
    #[cfg(feature = "gpu")]
    gpu::stack(experts);
    #[cfg(not(feature = "gpu"))]
    let _ = experts;
}

/// Whether a backend computes on a GPU with memory of its own. False for backends that this build has no kernels for.
///
/// # Examples
/// ```
/// assert!(!moi_models::is_gpu::<burn_flex::Flex>());
/// ```
pub fn is_gpu<B: Backend>() -> bool {
    #[cfg(feature = "gpu")]
    return gpu::is_gpu::<B>();
    #[cfg(not(feature = "gpu"))]
    false
}

/// Whether the backend has kernels for GPUs, and they are on: see [`use_gpu_kernels`].
///
/// # Examples
/// ```
/// assert!(!moi_models::has_gpu_kernels::<burn_flex::Flex>());
/// ```
pub fn has_gpu_kernels<B: Backend>() -> bool {
    #[cfg(feature = "gpu")]
    return gpu::has_gpu_kernels::<B>();
    #[cfg(not(feature = "gpu"))]
    false
}

/// Turns the kernels for GPUs on or off for this process; without them, tensor operations are used. They are on
/// unless the environment has `MOI_GPU_KERNELS=0`.
///
/// # Examples
/// ```
/// use moi_models::{has_gpu_kernels, use_gpu_kernels};
///
/// use_gpu_kernels(false); // From here on by burn's own operations.
/// assert!(!has_gpu_kernels::<burn_flex::Flex>());
/// # use_gpu_kernels(true);
/// ```
pub fn use_gpu_kernels(on: bool) {
    #[cfg(feature = "gpu")]
    gpu::use_gpu_kernels(on);
    #[cfg(not(feature = "gpu"))]
    let _ = on;
}

/// Samples from logits `[rows, vocab]` and mixes the next inputs `[rows, d]`, in float32, without waiting for the
/// device: the decisions are copied to the host meanwhile. `None` if the backend has no kernels for that, or none for
/// such rows.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Embedding, Mixing, default_kernels, sample_and_mix};
///
/// let device = Default::default();
/// let embedding = Embedding::<Flex>::new(32, 16, 1.0, &device);
/// let mixing = Mixing::new(0.0, default_kernels::<Flex>());
/// let logits = Tensor::<Flex, 2>::zeros([1, 32], &device);
/// // A CPU has no kernels for it: the host samples.
/// assert!(sample_and_mix(&logits, &embedding, &mixing, &[]).is_none());
/// ```
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
