//! Caches of parked sequences, in the host's memory.

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::{BLOCK_POSITIONS, BlockRun, BlockTable, KvPool, LayerBlocks, pool::Kind};
use crate::{ModelError, states::LayerState};

/// A bit-for-bit copy of a sequence's cache in the host's memory: see [`KvPool::park`]. It belongs to no pool.
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
/// let mut pool = model.new_pool(&device);
/// let mut table = pool.table();
/// let inputs = Tensor::<Flex, 2>::zeros([3, 16], &device);
/// model.forward(ForwardBatch::one(inputs, &mut table), &mut pool)?;
/// let parked = pool.park(&table);
/// drop(table); // Other sequences can have its blocks.
/// let table = pool.unpark(&parked)?;
/// assert_eq!((parked.len(), table.len()), (3, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ParkedTable {
    len: usize,
    sequence_length: usize,
    kinds: Vec<ParkedKind>,
    /// The state of each layer that keeps one, if the sequence has states.
    states: Vec<ParkedState>,
}

/// The inputs of a layer's convolution, and the state matrices of its heads.
type ParkedState = (TensorData, Option<TensorData>);

#[derive(Clone, Debug)]
struct ParkedKind {
    /// Index of the first of these blocks among all blocks of the sequence.
    first: usize,
    /// Keys, and values if they are stored separately, of each layer, `[kv_heads, positions, head_dim]`.
    layers: Vec<(TensorData, Option<TensorData>)>,
}

impl ParkedTable {
    /// Number of cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in the host's memory, in bytes.
    pub fn bytes(&self) -> usize {
        let both = self.kinds.iter().flat_map(|kind| &kind.layers);
        let parts = both.chain(&self.states).flat_map(|(first, second)| [Some(first), second.as_ref()]);
        parts.flatten().map(|data| data.bytes.len()).sum()
    }
}

impl<B: Backend> KvPool<B> {
    /// Copies a sequence's cache to the host, so that its table can be dropped and its blocks used by others: see
    /// [`Self::unpark`].
    pub fn park(&self, table: &BlockTable) -> ParkedTable {
        let of_kind = |(index, kind): (usize, &Kind<B>)| {
            let own = &table.kinds[index];
            let positions = table.len.saturating_sub(own.first * BLOCK_POSITIONS);
            let blocks = &own.blocks[..positions.div_ceil(BLOCK_POSITIONS)];
            let places: Vec<_> = blocks.iter().map(|block| kind.place(block)).collect();
            let copied = |layer: &LayerBlocks<B>| {
                let [keys, values] = layer.gather(&places).map(|part| part.narrow(1, 0, positions));
                (keys.into_data(), layer.has_values().then(|| values.into_data()))
            };
            let layers = kind.layers.iter().filter(|_| positions > 0).map(copied);
            ParkedKind { first: own.first, layers: layers.collect() }
        };
        let kinds = self.kinds.iter().enumerate().map(of_kind).collect();
        let of_state = |(inputs, matrices): (Tensor<B, 2>, Option<Tensor<B, 3>>)| {
            (inputs.into_data(), matrices.map(Tensor::into_data))
        };
        let states = table.state.iter().flat_map(|slot| {
            let layers = (0..self.states.layers()).filter_map(|layer| self.states.get(layer, slot.id()));
            layers.map(|state| of_state(state.parts()))
        });
        ParkedTable {
            len: table.len,
            sequence_length: table.sequence_length,
            kinds,
            states: states.collect(),
        }
    }

    /// Copies a parked cache back, from this pool or from another pool of the same model.
    ///
    /// # Errors
    /// If the pool's budget has no room for it.
    pub fn unpark(&mut self, parked: &ParkedTable) -> Result<BlockTable, ModelError> {
        let mut table = self.table();
        table.sequence_length = parked.sequence_length;
        for (index, ParkedKind { first, layers }) in parked.kinds.iter().enumerate() {
            let positions = parked.len.saturating_sub(first * BLOCK_POSITIONS);
            let own = &mut table.kinds[index];
            (own.first, own.blocks) = (*first, self.take(index, positions.div_ceil(BLOCK_POSITIONS))?);
            let kind = &mut self.kinds[index];
            let run = |at: usize| BlockRun {
                token: at * BLOCK_POSITIONS,
                len: BLOCK_POSITIONS.min(positions - at * BLOCK_POSITIONS),
                place: kind.place(&own.blocks[at]),
                at: 0,
            };
            let runs: Vec<BlockRun> = (0..own.blocks.len()).map(run).collect();
            for (layer, (keys, values)) in kind.layers.iter_mut().zip(layers) {
                let keys = tensor::<B>(keys, &self.device);
                let values = values.as_ref().map_or_else(|| keys.clone(), |data| tensor(data, &self.device));
                layer.write(&keys, &values, &runs);
            }
        }
        if !parked.states.is_empty() {
            let slot = self.take_state(None)?;
            for (layer, (inputs, matrices)) in parked.states.iter().enumerate() {
                let matrices = matrices.as_ref().map(|data| whole::<B, 3>(data, &self.device));
                let state = LayerState { inputs: whole(inputs, &self.device), matrices };
                self.states.set(layer, slot.id(), state);
            }
            table.state = Some(slot);
        }
        table.len = parked.len;
        Ok(table)
    }
}

/// A tensor with the shape and type of the copied data.
fn whole<B: Backend, const D: usize>(data: &TensorData, device: &B::Device) -> Tensor<B, D> {
    let shape: [usize; D] = data.shape.dims();
    // The tensor is made in one dimension, because a device may pad the rows of a tensor made in several.
    let flat = TensorData { shape: [data.num_elements()].into(), ..data.clone() };
    Tensor::<B, 1>::from_data(flat, (device, data.dtype)).reshape(shape)
}

/// Converts `[kv_heads, positions, head_dim]` to the layout of new positions, `[positions, kv_heads, head_dim]`.
fn tensor<B: Backend>(data: &TensorData, device: &B::Device) -> Tensor<B, 3> {
    whole::<B, 3>(data, device).swap_dims(0, 1)
}
