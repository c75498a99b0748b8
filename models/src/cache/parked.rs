//! What parked sequences have cached, in the host's memory.

use burn::tensor::{Tensor, TensorData, backend::Backend};

use super::{BLOCK_POSITIONS, BlockRun, BlockTable, KvPool, LayerBlocks, pool::Kind};
use crate::{ModelError, states::LayerState};

/// What a sequence has cached, bit for bit, in the host's memory: see [`KvPool::park`]. It is of no pool.
#[derive(Clone, Debug)]
pub struct ParkedTable {
    len: usize,
    sequence_length: usize,
    kinds: Vec<ParkedKind>,
    /// Of each layer that keeps one, if the sequence has states.
    states: Vec<ParkedState>,
}

/// The inputs of a convolution and matrices of heads.
type ParkedState = (TensorData, Option<TensorData>);

#[derive(Clone, Debug)]
struct ParkedKind {
    /// Which block of the sequence is the first here.
    first: usize,
    /// Keys, and values where there are such beside them, `[kv_heads, positions, head_dim]` of each layer.
    layers: Vec<(TensorData, Option<TensorData>)>,
}

impl ParkedTable {
    /// Positions that are cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in the host's memory.
    pub fn bytes(&self) -> usize {
        let both = self.kinds.iter().flat_map(|kind| &kind.layers);
        let parts = both.chain(&self.states).flat_map(|(first, second)| [Some(first), second.as_ref()]);
        parts.flatten().map(|data| data.bytes.len()).sum()
    }
}

impl<B: Backend> KvPool<B> {
    /// Copies what a sequence has cached to the host, so that its table can be dropped and its blocks serve others: see
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

    /// A table of what was copied to the host from this pool, or from another one of the same model.
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

/// A tensor of what was copied, in its own type.
fn whole<B: Backend, const D: usize>(data: &TensorData, device: &B::Device) -> Tensor<B, D> {
    let shape: [usize; D] = data.shape.dims();
    // By way of one dimension: a device may put gaps between the rows of what is made in several.
    let flat = TensorData { shape: [data.num_elements()].into(), ..data.clone() };
    Tensor::<B, 1>::from_data(flat, (device, data.dtype)).reshape(shape)
}

/// `[kv_heads, positions, head_dim]` as new positions are written: `[positions, kv_heads, head_dim]`.
fn tensor<B: Backend>(data: &TensorData, device: &B::Device) -> Tensor<B, 3> {
    whole::<B, 3>(data, device).swap_dims(0, 1)
}
