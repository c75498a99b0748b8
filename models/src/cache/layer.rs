//! The KV cache of one layer.

use burn::tensor::{DType, Tensor, backend::Backend};
use moi_kernels::BlockPlace;

use super::{BLOCK_POSITIONS, LayerShape};
use crate::kernels;

/// Keys and values of one layer, in slabs of blocks. Each slab has one owner, so that assignments work in place; it
/// is taken out of the vector while it is written.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, AttentionPass, CausalLm, Kernels, LayerBlocks};
///
/// /// Looks at the cache.
/// #[derive(Debug)]
/// struct Looking;
///
/// impl Kernels<Flex> for Looking {
///     fn attention(
///         &self,
///         q: Tensor<Flex, 2>,
///         kv: Option<[Tensor<Flex, 2>; 2]>,
///         pass: &AttentionPass<'_, Flex>,
///         blocks: &mut LayerBlocks<Flex>,
///     ) -> Tensor<Flex, 2> {
///         assert_eq!((blocks.kv_heads, blocks.head_dim), (4, 4));
///         pass.by_tensor_operations(q, kv, blocks)
///     }
/// }
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let model = model.with_kernels(Arc::new(Looking));
/// model.forward_whole(Tensor::zeros([3, 16], &device))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayerBlocks<B: Backend> {
    /// Keys, `[blocks, kv_heads, head_dim, 64]` if the [layout](CacheLayout) stores them by value, else in the layout
    /// of `values`.
    pub keys: Vec<Tensor<B, 4>>,
    /// Values, `[blocks, kv_heads, 64, head_dim]`; empty where the keys are also the values.
    pub values: Vec<Tensor<B, 4>>,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// The type of keys and values.
    pub dtype: DType,
    /// The memory layout of the blocks.
    pub layout: CacheLayout,
    /// Whether values are stored in addition to the keys.
    has_values: bool,
}

/// The memory layout of a cache's blocks, as kernels need it.
///
/// # Examples
/// ```
/// use burn_flex::Flex;
/// use moi_models::{CacheLayout, Kernels, TensorOperations};
///
/// let layout = Kernels::<Flex>::cache_layout(&TensorOperations);
/// assert_eq!(layout, CacheLayout { keys_by_value: false, one_slab: false });
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheLayout {
    /// Whether the keys of a block are stored as `[head_dim, 64]`, so that a vector has the same component of several
    /// positions.
    pub keys_by_value: bool,
    /// Whether all blocks are in one slab, which is copied when it grows.
    pub one_slab: bool,
}

/// Consecutive new positions that lie in one block.
///
/// # Examples
/// ```
/// # use std::sync::Arc;
/// # use burn::tensor::Tensor;
/// # use burn_flex::Flex;
/// # use moi_models::{Architecture, AttentionPass, CausalLm, Kernels, LayerBlocks};
/// # #[derive(Debug)]
/// # struct Looking;
/// # impl Kernels<Flex> for Looking {
/// #     fn attention(
/// #         &self,
/// #         q: Tensor<Flex, 2>,
/// #         kv: Option<[Tensor<Flex, 2>; 2]>,
/// #         pass: &AttentionPass<'_, Flex>,
/// #         blocks: &mut LayerBlocks<Flex>,
/// #     ) -> Tensor<Flex, 2> {
/// // In `Kernels::attention`, for the 70 positions of a new sequence:
/// let runs: Vec<(usize, usize)> = pass.runs().iter().map(|run| (run.token, run.len)).collect();
/// assert_eq!(runs, [(0, 64), (64, 6)]);
/// #         pass.by_tensor_operations(q, kv, blocks)
/// #     }
/// # }
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// # let model = model.with_kernels(Arc::new(Looking));
/// # model.forward_whole(Tensor::zeros([70, 16], &device))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Index of the first one among all new positions.
    pub token: usize,
    /// Number of positions.
    pub len: usize,
    /// The place of the block.
    pub place: BlockPlace,
    /// The position in the block at which they begin.
    pub at: usize,
}

impl<B: Backend> LayerBlocks<B> {
    pub(crate) fn new(shape: LayerShape, layout: CacheLayout) -> Self {
        let LayerShape { kv_heads, head_dim, dtype, has_values, .. } = shape;
        // Keys that are also the values are stored in the layout of values.
        let layout = CacheLayout { keys_by_value: layout.keys_by_value && has_values, ..layout };
        Self { keys: Vec::new(), values: Vec::new(), kv_heads, head_dim, dtype, layout, has_values }
    }

    /// Whether values are stored in addition to the keys.
    pub(super) fn has_values(&self) -> bool {
        self.has_values
    }

    /// Size of a block in bytes.
    pub(crate) fn block_bytes(&self) -> usize {
        let each = if self.has_values { 2 } else { 1 };
        each * self.kv_heads * BLOCK_POSITIONS * self.head_dim * self.dtype.size()
    }

    /// Adds a slab of blocks; if the backend's kernels need all blocks in one slab, that slab grows.
    pub(super) fn grow(&mut self, blocks: usize, device: &B::Device) {
        let Self { kv_heads, head_dim, dtype, .. } = *self;
        let shape = |by_value: bool, blocks| match by_value {
            true => [blocks, kv_heads, head_dim, BLOCK_POSITIONS],
            false => [blocks, kv_heads, BLOCK_POSITIONS, head_dim],
        };
        let by_value = [self.layout.keys_by_value, false];
        let both = [Some(&mut self.keys), Some(&mut self.values).filter(|_| self.has_values)];
        for (slabs, by_value) in both.into_iter().flatten().zip(by_value) {
            let old = if self.layout.one_slab { slabs.pop() } else { None };
            let before = old.as_ref().map_or(0, |old| old.dims()[0]);
            let shape = shape(by_value, before + blocks);
            // The slab is made in one dimension, because a device may pad the rows of a tensor made in several.
            let len: usize = shape.iter().product();
            let empty = Tensor::<B, 1>::zeros([len], (device, dtype)).reshape(shape);
            slabs.push(match old {
                Some(old) => empty.slice_assign([0..before, 0..shape[1], 0..shape[2], 0..shape[3]], old),
                None => empty,
            });
        }
    }

    /// Drops the last slab.
    pub(super) fn shrink(&mut self) {
        self.keys.pop();
        self.values.pop();
    }

    /// Writes the keys and values of new positions `[tokens, kv_heads, head_dim]`.
    pub fn write(&mut self, keys: &Tensor<B, 3>, values: &Tensor<B, 3>, runs: &[BlockRun]) {
        let by_value = self.layout.keys_by_value;
        self.keys = written(std::mem::take(&mut self.keys), keys, runs, by_value);
        if self.has_values {
            self.values = written(std::mem::take(&mut self.values), values, runs, false);
        }
    }

    /// The keys and values of blocks, one after another: `[kv_heads, positions, head_dim]` each. Both are the same
    /// where the keys are also the values.
    pub fn gather(&self, places: &[BlockPlace]) -> [Tensor<B, 3>; 2] {
        let shape = [self.kv_heads, BLOCK_POSITIONS, self.head_dim];
        let block = |slabs: &[Tensor<B, 4>], place: &BlockPlace, by_value| {
            let block = slabs[place.slab].clone().narrow(0, place.index, 1);
            if by_value { block.swap_dims(2, 3).reshape(shape) } else { block.reshape(shape) }
        };
        let all = |slabs: &[Tensor<B, 4>], by_value| {
            Tensor::cat(places.iter().map(|place| block(slabs, place, by_value)).collect(), 1)
        };
        let keys = all(&self.keys, self.layout.keys_by_value);
        let values = if self.has_values { all(&self.values, false) } else { keys.clone() };
        [keys, values]
    }

    /// Copies `len` positions to another place.
    pub(super) fn copy(&mut self, from: (BlockPlace, usize), len: usize, to: (BlockPlace, usize)) {
        let [keys, values] = self.gather(&[from.0]);
        // The multiplication makes a copy, so that the slabs have one owner again.
        let own = |x: Tensor<B, 3>| x.narrow(1, from.1, len).swap_dims(0, 1).mul_scalar(1.0);
        let (keys, values) = (own(keys), own(values));
        self.write(&keys, &values, &[BlockRun { token: 0, len, place: to.0, at: to.1 }]);
    }
}

fn written<B: Backend>(
    slabs: Vec<Tensor<B, 4>>,
    new: &Tensor<B, 3>,
    runs: &[BlockRun],
    by_value: bool,
) -> Vec<Tensor<B, 4>> {
    let mut slabs = match kernels::write_columns(slabs, new, runs, by_value) {
        Ok(slabs) => return slabs,
        Err(slabs) => slabs,
    };
    let [_, heads, head_dim] = new.dims();
    for &BlockRun { token, len, place, at } in runs {
        // `[heads, len, head_dim]`
        let part = new.clone().narrow(0, token, len).swap_dims(0, 1);
        let slab = slabs.remove(place.slab);
        let (block, columns) = (place.index..place.index + 1, at..at + len);
        let slab = match by_value {
            true => {
                slab.slice_assign([block, 0..heads, 0..head_dim, columns], part.swap_dims(1, 2).unsqueeze())
            }
            false => slab.slice_assign([block, 0..heads, columns, 0..head_dim], part.unsqueeze()),
        };
        slabs.insert(place.slab, slab);
    }
    slabs
}
