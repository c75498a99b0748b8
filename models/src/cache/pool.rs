//! The pool of blocks of a model's KV cache.

use std::sync::Arc;

use burn::tensor::{DType, backend::Backend};
use moi_kernels::BlockPlace;

use super::{
    BLOCK_POSITIONS, BlockRun, BlockTable, CacheLayout, LayerBlocks, SLACK, StateSlots,
    blocks::{Block, Blocks},
    first_seen,
    states::SpanStates,
    table::{KindTable, SharedBlock},
};
use crate::{ModelError, non_finite::is_broken};

/// Minimum number of blocks of a slab.
const MIN_SLAB: usize = 4;

/// Blocks for the keys and values of a model's layers. They are allocated in slabs when they are needed, up to a
/// budget if there is one.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, CausalLm, ForwardBatch};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let mut pool = model.new_pool(&device).with_budget(1 << 20);
/// let mut table = pool.table();
/// let inputs = Tensor::<Flex, 2>::zeros([3, 16], &device);
/// model.forward(ForwardBatch::one(inputs, &mut table), &mut pool)?;
/// assert_eq!(pool.used_bytes(), pool.bytes_for(3, 3));
/// drop(table);
/// pool.shrink();
/// assert_eq!(pool.allocated_bytes(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct KvPool<B: Backend> {
    pub(super) kinds: Vec<Kind<B>>,
    layers: Vec<LayerCache>,
    pub(super) states: StateSlots<B>,
    /// Size of the states of one sequence, in bytes.
    state_bytes: usize,
    layout: CacheLayout,
    budget: Option<usize>,
    pub(super) device: B::Device,
    id: Arc<()>,
}

/// What a layer caches of the positions it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerCache {
    /// Nothing.
    None,
    /// Keys and values of all positions: index of the kind of layer, and of the layer in its kind.
    Full(usize, usize),
    /// Keys and values of the last positions, with the same indices.
    Window(usize, usize),
    /// A state: index of the layer among those with a state.
    State(usize),
}

/// The shape of what a layer caches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum CacheShape {
    /// Nothing.
    None,
    /// Keys and values.
    Keys(LayerShape),
    /// A state.
    State,
}

/// Layers that see the same positions, and their blocks.
#[derive(Debug)]
pub(super) struct Kind<B: Backend> {
    window: Option<usize>,
    blocks: Blocks,
    /// Number of blocks of each slab.
    slabs: Vec<usize>,
    pub(super) layers: Vec<LayerBlocks<B>>,
}

/// The shape of the keys and values that a layer with attention caches: heads, values per head, their type, and how
/// many positions it sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerShape {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: DType,
    pub(crate) window: Option<usize>,
    /// Whether values are stored in addition to the keys; latent vectors are both.
    pub(crate) has_values: bool,
}

/// The blocks of a forward pass's positions, in layers of one kind.
#[derive(Clone, Debug)]
pub(crate) struct KindTables {
    pub(crate) window: Option<usize>,
    /// The blocks of each span.
    pub(crate) spans: Vec<Places>,
    /// The new positions of all spans.
    pub(crate) runs: Vec<BlockRun>,
}

/// The blocks of a span, and the index of the first one among all blocks of its sequence.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) first: usize,
    pub(crate) blocks: Vec<BlockPlace>,
}

impl<B: Backend> KvPool<B> {
    /// A pool for layers of these shapes. Nothing is allocated before it is needed.
    pub(crate) fn new(
        shapes: &[CacheShape],
        state_bytes: usize,
        layout: CacheLayout,
        device: &B::Device,
    ) -> Self {
        let (mut kinds, mut states): (Vec<Kind<B>>, usize) = (Vec::new(), 0);
        let layers = shapes.iter().map(|shape| {
            let shape = match *shape {
                CacheShape::Keys(shape) => shape,
                CacheShape::None => return LayerCache::None,
                CacheShape::State => {
                    states += 1;
                    return LayerCache::State(states - 1);
                }
            };
            let window = shape.window;
            let kind = kinds.iter().position(|kind| kind.window == window).unwrap_or_else(|| {
                let (blocks, slabs, layers) = (Blocks::default(), Vec::new(), Vec::new());
                kinds.push(Kind { window, blocks, slabs, layers });
                kinds.len() - 1
            });
            kinds[kind].layers.push(LayerBlocks::new(shape, layout));
            let index = kinds[kind].layers.len() - 1;
            if window.is_some() { LayerCache::Window(kind, index) } else { LayerCache::Full(kind, index) }
        });
        let layers = layers.collect();
        let states = StateSlots::new(states);
        let (budget, device, id) = (None, device.clone(), Arc::default());
        Self { kinds, layers, states, state_bytes, layout, budget, device, id }
    }

    /// Limits the bytes of all blocks.
    pub fn with_budget(mut self, bytes: usize) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// A table without positions.
    pub fn table(&self) -> BlockTable {
        let windows = self.kinds.iter().map(|kind| kind.window);
        BlockTable::new(windows, !self.states.is_empty(), self.id.clone())
    }

    /// A table of a sequence that begins with these blocks. `None` if they belong to another pool, if layers with a
    /// window lack a block that the next position sees, or if the last block lacks the states that layers have.
    pub fn table_of(&self, blocks: &[SharedBlock]) -> Option<BlockTable> {
        let state = blocks.last().and_then(|block| block.state.clone());
        let lacks_state = !self.states.is_empty() && state.is_none();
        if lacks_state || blocks.iter().any(|block| !Arc::ptr_eq(&block.pool, &self.id)) {
            return None;
        }
        let mut table = self.table();
        table.state = state;
        table.len = blocks.len() * BLOCK_POSITIONS;
        for (index, kind) in table.kinds.iter_mut().enumerate() {
            kind.first = first_seen(table.len, kind.window) / BLOCK_POSITIONS;
            let own = blocks[kind.first..].iter().map(|block| block.kinds[index].clone());
            kind.blocks = own.collect::<Option<Vec<Block>>>()?;
        }
        Some(table)
    }

    /// Whether a table belongs to this pool.
    pub fn owns(&self, table: &BlockTable) -> bool {
        Arc::ptr_eq(&self.id, &table.pool)
    }

    /// Size of the states of one sequence, in bytes.
    pub fn state_bytes(&self) -> usize {
        self.state_bytes
    }

    /// Bytes of all blocks, in use or not, and of states.
    pub fn allocated_bytes(&self) -> usize {
        self.kinds.iter().map(|kind| kind.blocks.count() * kind.block_bytes()).sum::<usize>()
            + self.bytes_of_states()
    }

    /// Bytes of the blocks that are in use, and of states.
    pub fn used_bytes(&self) -> usize {
        let used = |kind: &Kind<B>| kind.blocks.count() - kind.blocks.free();
        self.kinds.iter().map(|kind| used(kind) * kind.block_bytes()).sum::<usize>() + self.bytes_of_states()
    }

    /// Bytes that a sequence of `positions` positions needs, if it runs in pieces of up to `piece` positions.
    pub fn bytes_for(&self, positions: usize, piece: usize) -> usize {
        let blocks = |kind: &Kind<B>| {
            let all = positions.div_ceil(BLOCK_POSITIONS);
            // The window, the positions of a rollback and a piece, and a block because these need not begin at a
            // block's start.
            let most = kind.window.map(|window| (window + SLACK + piece).div_ceil(BLOCK_POSITIONS) + 1);
            all.min(most.unwrap_or(usize::MAX))
        };
        self.kinds.iter().map(|kind| blocks(kind) * kind.block_bytes()).sum::<usize>() + self.state_bytes
    }

    /// Frees the last slabs while none of their blocks is in use, and the states of dropped sequences.
    pub fn shrink(&mut self) {
        self.states.clear_free();
        for kind in &mut self.kinds {
            while let Some(&last) = kind.slabs.last()
                && kind.blocks.shrink(last)
            {
                kind.slabs.pop();
                kind.layers.iter_mut().for_each(LayerBlocks::shrink);
            }
        }
    }

    /// Reserves blocks for new positions of a table, and copies the last block if it is not full and shared.
    ///
    /// # Errors
    /// If the pool's budget has no room for them; the table's positions are then unchanged.
    pub(crate) fn reserve(&mut self, table: &mut BlockTable, positions: usize) -> Result<(), ModelError> {
        self.own(table, table.len)?;
        let mut new: Vec<Vec<Block>> = Vec::with_capacity(self.kinds.len());
        for (index, of_kind) in table.kinds.iter().enumerate() {
            let end = (table.len + positions).div_ceil(BLOCK_POSITIONS);
            new.push(self.take(index, end.saturating_sub(of_kind.first + of_kind.blocks.len()))?);
        }
        self.own_state(table)?;
        for (of_kind, new) in table.kinds.iter_mut().zip(new) {
            of_kind.blocks.extend(new);
        }
        Ok(())
    }

    /// Bytes of the states of all sequences that have a slot.
    fn bytes_of_states(&self) -> usize {
        self.states.used() * self.state_bytes
    }

    /// Gives a table a slot of its own for its states, if it has none or shares one.
    fn own_state(&mut self, table: &mut BlockTable) -> Result<(), ModelError> {
        let is_own = table.state.as_ref().is_some_and(|slot| !slot.is_shared());
        if !self.states.is_empty() && !is_own {
            table.state = Some(self.take_state(table.state.as_ref())?);
        }
        Ok(())
    }

    /// Takes a slot without states, or with copies of another slot's states.
    pub(super) fn take_state(&mut self, of: Option<&Block>) -> Result<Block, ModelError> {
        self.states.clear_free();
        let needed = self.allocated_bytes() + self.state_bytes;
        match self.budget.filter(|&budget| needed > budget) {
            Some(budget) => Err(ModelError::PoolFull { needed, budget }),
            None => Ok(self.states.take(of)),
        }
    }

    /// The states of a layer for spans whose tables have these slots.
    pub(crate) fn states<'a>(&'a mut self, layer: usize, slots: &'a [usize]) -> SpanStates<'a, B> {
        match self.layers[layer] {
            LayerCache::State(layer) => SpanStates { slots: &mut self.states, layer, of_spans: slots },
            _ => unreachable!("a pool of this model keeps the states of its layers"),
        }
    }

    /// Whether layers keep states. States cannot be rolled back, and have no trees.
    pub fn has_states(&self) -> bool {
        !self.states.is_empty()
    }

    /// Copies the shared blocks from a position on, so that they can be written.
    fn own(&mut self, table: &mut BlockTable, from: usize) -> Result<(), ModelError> {
        for index in 0..table.kinds.len() {
            let first = (from / BLOCK_POSITIONS).saturating_sub(table.kinds[index].first);
            for at in first..table.kinds[index].blocks.len() {
                if !table.kinds[index].blocks[at].is_shared() {
                    continue;
                }
                let Some(new) = self.take(index, 1)?.pop() else { continue };
                let kind = &mut self.kinds[index];
                let (from, to) = (kind.place(&table.kinds[index].blocks[at]), kind.place(&new));
                kind.layers.iter_mut().for_each(|layer| layer.copy((from, 0), BLOCK_POSITIONS, (to, 0)));
                table.kinds[index].blocks[at] = new;
            }
        }
        Ok(())
    }

    /// Takes `count` blocks of a kind, and allocates blocks if too few are free.
    pub(super) fn take(&mut self, kind: usize, count: usize) -> Result<Vec<Block>, ModelError> {
        let missing = count.saturating_sub(self.kinds[kind].blocks.free());
        if missing > 0 {
            let bytes = self.kinds[kind].block_bytes();
            let room = self.budget.map(|budget| budget.saturating_sub(self.allocated_bytes()) / bytes.max(1));
            if room.is_some_and(|room| room < missing) {
                let needed = self.allocated_bytes() + missing * bytes;
                return Err(ModelError::PoolFull { needed, budget: self.budget.unwrap_or(0) });
            }
            let (own, one_slab) = (&mut self.kinds[kind], self.layout.one_slab);
            // A single slab is copied when it grows, so it grows by a larger share.
            let share = if one_slab { own.blocks.count() / 2 } else { own.blocks.count() / 16 };
            let more = missing.max(MIN_SLAB).max(share).min(room.unwrap_or(usize::MAX));
            own.grow(more, one_slab, &self.device);
        }
        let own = &self.kinds[kind];
        Ok(std::iter::from_fn(|| own.blocks.take()).take(count).collect())
    }

    /// Keeps the new positions on a path through a tree, which become the next positions of the sequence; the other
    /// ones are dropped. Each position of the path follows those before it. `len` is the number of positions before
    /// the tree, which must be what was written last.
    ///
    /// # Errors
    /// If blocks are shared and the pool's budget has no room for copies.
    pub fn keep_path(
        &mut self,
        table: &mut BlockTable,
        len: usize,
        path: &[usize],
    ) -> Result<(), ModelError> {
        if self.has_states() {
            return Err(ModelError::TreeOfStates);
        }
        self.own(table, len)?;
        for (index, of_kind) in table.kinds.iter().enumerate() {
            let kind = &mut self.kinds[index];
            for (to, &from) in path.iter().enumerate().filter(|(to, from)| to != *from) {
                let place = |position: usize| {
                    let block = &of_kind.blocks[position / BLOCK_POSITIONS - of_kind.first];
                    (kind.place(block), position % BLOCK_POSITIONS)
                };
                let (from, to) = (place(len + from), place(len + to));
                kind.layers.iter_mut().for_each(|layer| layer.copy(from, 1, to));
            }
        }
        table.truncate(len + path.len());
        Ok(())
    }

    /// The blocks of the positions of tables and of their `len` new positions, for each kind of layer.
    pub(crate) fn places<'a>(
        &self,
        spans: impl Iterator<Item = (&'a BlockTable, usize)> + Clone,
    ) -> Vec<KindTables> {
        let of_kind = |(index, kind): (usize, &Kind<B>)| {
            let (mut runs, mut token) = (Vec::new(), 0);
            let spans = spans.clone().map(|(table, len)| {
                let KindTable { first, blocks, .. } = &table.kinds[index];
                let blocks: Vec<BlockPlace> = blocks.iter().map(|block| kind.place(block)).collect();
                let (mut position, end) = (table.len, table.len + len);
                while position < end {
                    let (block, at) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
                    let len = (BLOCK_POSITIONS - at).min(end - position);
                    runs.push(BlockRun { token, len, place: blocks[block - first], at });
                    (token, position) = (token + len, position + len);
                }
                Places { first: *first, blocks }
            });
            let spans = spans.collect();
            KindTables { window: kind.window, spans, runs }
        };
        self.kinds.iter().enumerate().map(of_kind).collect()
    }

    /// The kind of a layer and its blocks; `None` if the layer caches no keys.
    pub(crate) fn layer(&mut self, layer: usize) -> Option<(usize, &mut LayerBlocks<B>)> {
        match self.layers[layer] {
            LayerCache::None | LayerCache::State(_) => None,
            LayerCache::Full(kind, index) | LayerCache::Window(kind, index) => {
                Some((kind, &mut self.kinds[kind].layers[index]))
            }
        }
    }

    /// For each layer, whether a sequence's cached values are finite in the first `positions`; `None` for a layer
    /// without any. This reads the cache back to the host, so it is meant for error messages only.
    pub fn finite_layers(&self, table: &BlockTable, positions: usize) -> Vec<Option<bool>> {
        let of_layer = |layer: &LayerCache| {
            let (kind, index) = match *layer {
                LayerCache::Full(kind, index) | LayerCache::Window(kind, index) => (kind, index),
                LayerCache::State(layer) => return self.states.is_finite(layer, table.state.as_ref()?.id()),
                LayerCache::None => return None,
            };
            let (kind, of_kind) = (&self.kinds[kind], &table.kinds[kind]);
            let used = positions.min(table.len).checked_sub(of_kind.first * BLOCK_POSITIONS)?;
            let places: Vec<BlockPlace> = of_kind.blocks.iter().map(|block| kind.place(block)).collect();
            if used == 0 || places.is_empty() {
                return None;
            }
            let both = kind.layers[index].gather(&places);
            Some(!both.into_iter().any(|cached| is_broken(cached.narrow(1, 0, used))))
        };
        self.layers.iter().map(of_layer).collect()
    }
}

impl<B: Backend> Kind<B> {
    fn block_bytes(&self) -> usize {
        self.layers.iter().map(LayerBlocks::block_bytes).sum()
    }

    fn grow(&mut self, blocks: usize, one_slab: bool, device: &B::Device) {
        self.layers.iter_mut().for_each(|layer| layer.grow(blocks, device));
        self.blocks.grow(blocks);
        match self.slabs.last_mut() {
            Some(slab) if one_slab => *slab += blocks,
            _ => self.slabs.push(blocks),
        }
    }

    pub(super) fn place(&self, block: &Block) -> BlockPlace {
        let (mut slab, mut index) = (0, block.id());
        while index >= self.slabs[slab] {
            index -= self.slabs[slab];
            slab += 1;
        }
        BlockPlace { slab, index }
    }
}
