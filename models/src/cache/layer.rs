//! Keys and values of one layer.

use burn::tensor::{DType, Tensor, backend::Backend};
use moi_kernels::BlockPlace;

use super::{BLOCK_POSITIONS, LayerShape};
use crate::kernels;

/// Keys and values of one layer, in slabs of blocks. Slabs have one owner each, so that an assignment works in place, and
/// are taken out while they are written.
#[derive(Clone, Debug)]
pub struct LayerBlocks<B: Backend> {
    /// `[blocks, kv_heads, head_dim, 64]` where the [layout](CacheLayout) has keys value by value, else as values are.
    pub keys: Vec<Tensor<B, 4>>,
    /// `[blocks, kv_heads, 64, head_dim]`; none where the keys are the values, too.
    pub values: Vec<Tensor<B, 4>>,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// The type of both.
    pub dtype: DType,
    /// How they lie.
    pub layout: CacheLayout,
    /// Whether there are values beside the keys.
    has_values: bool,
}

/// How keys and values lie in the blocks of a cache, as kernels want them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheLayout {
    /// Whether the keys of a block are stored value by value, `[head_dim, 64]`, so that one vector has those of several
    /// positions.
    pub keys_by_value: bool,
    /// Whether all blocks are in one slab, which is copied to grow.
    pub one_slab: bool,
}

/// New positions that lie in one block, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first among all new positions.
    pub token: usize,
    /// How many.
    pub len: usize,
    /// The block.
    pub place: BlockPlace,
    /// Where in the block they begin.
    pub at: usize,
}

impl<B: Backend> LayerBlocks<B> {
    pub(crate) fn new(shape: LayerShape, layout: CacheLayout) -> Self {
        let LayerShape { kv_heads, head_dim, dtype, has_values, .. } = shape;
        // What is both is read as it is.
        let layout = CacheLayout { keys_by_value: layout.keys_by_value && has_values, ..layout };
        Self { keys: Vec::new(), values: Vec::new(), kv_heads, head_dim, dtype, layout, has_values }
    }

    /// Whether there are values beside the keys.
    pub(super) fn has_values(&self) -> bool {
        self.has_values
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> usize {
        let each = if self.has_values { 2 } else { 1 };
        each * self.kv_heads * BLOCK_POSITIONS * self.head_dim * self.dtype.size()
    }

    /// Adds a slab of blocks; where the backend's kernels want all in one, the one grows.
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
            // By way of one dimension: a device may put gaps between the rows of what is made in several.
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

    /// Keys and values of blocks, one behind the other: `[kv_heads, positions, head_dim]` each, the same where keys are the
    /// values, too.
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

    /// Copies positions from one place of a block to another one.
    pub(super) fn copy(&mut self, from: (BlockPlace, usize), len: usize, to: (BlockPlace, usize)) {
        let [keys, values] = self.gather(&[from.0]);
        // Of their own, so that the slabs have one owner again.
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
