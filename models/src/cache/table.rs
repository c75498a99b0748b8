//! Block tables: which blocks hold the positions of a sequence.

use std::sync::Arc;

use super::{BLOCK_POSITIONS, SLACK, blocks::Block, first_seen};

/// The positions of one sequence in a [`super::KvPool`]. A clone is a fork: both continue independently, and share
/// the blocks of their common positions. Blocks return to the pool when the last table that has them is dropped.
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
/// // Another sequence that goes on from the second position.
/// let mut fork = table.clone();
/// assert!(fork.truncate(2));
/// assert_eq!((table.len(), fork.len()), (3, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BlockTable {
    /// The blocks for each kind of layer of the pool.
    pub(super) kinds: Vec<KindTable>,
    pub(super) len: usize,
    /// Whether layers keep states.
    has_states: bool,
    /// The slot of the sequence's states, once it has any.
    pub(super) state: Option<Block>,
    /// A lower bound of the sequence's length, on which rotary frequencies may depend.
    pub(super) sequence_length: usize,
    /// The pool to which the table belongs.
    pub(super) pool: Arc<()>,
}

/// The blocks for one kind of layer.
#[derive(Clone, Debug)]
pub(super) struct KindTable {
    pub(super) window: Option<usize>,
    /// Index of the first of these blocks among all blocks of the sequence; earlier ones are out of the window.
    pub(super) first: usize,
    pub(super) blocks: Vec<Block>,
}

/// A block of a sequence in all kinds of layers, to be shared with sequences with the same prefix. It is full, and
/// not written any more.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, BLOCK_POSITIONS, CausalLm, ForwardBatch};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let mut pool = model.new_pool(&device);
/// let mut table = pool.table();
/// let inputs = Tensor::<Flex, 2>::zeros([BLOCK_POSITIONS, 16], &device);
/// model.forward(ForwardBatch::one(inputs, &mut table), &mut pool)?;
/// // Another sequence that begins with the same positions.
/// let other = pool.table_of(&[table.shared_block(0)]);
/// assert_eq!(other.map(|other| other.len()), Some(BLOCK_POSITIONS));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SharedBlock {
    /// The pool to which the block belongs.
    pub(super) pool: Arc<()>,
    /// The block for each kind of layer; `None` where a window has moved past it.
    pub(super) kinds: Vec<Option<Block>>,
    /// The states at its end, if layers have states and they were kept.
    pub(super) state: Option<Block>,
}

/// The states of a sequence after some of its positions. They are kept because states cannot be rolled back, so that
/// other sequences with the same prefix can continue from there.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, CausalLm, Checkpoint, ForwardBatch};
/// # let config = serde_json::json!({
/// #     "model_type": "lfm2", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
/// #     "layer_types": ["conv", "full_attention"],
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let mut pool = model.new_pool(&device);
/// let mut table = pool.table();
/// let inputs = Tensor::<Flex, 2>::zeros([3, 16], &device);
/// model.forward(ForwardBatch::one(inputs, &mut table), &mut pool)?;
/// let checkpoint: Option<Checkpoint> = table.checkpoint(); // of short convolutions
/// assert_eq!(checkpoint.map(|checkpoint| checkpoint.positions()), Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    positions: usize,
    state: Block,
}

impl Checkpoint {
    /// Number of positions after which the states were kept.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

impl SharedBlock {
    /// Copies what is missing from another block of the same positions.
    pub fn complete(&mut self, other: &Self) {
        for (own, other) in self.kinds.iter_mut().zip(&other.kinds) {
            if own.is_none() {
                own.clone_from(other);
            }
        }
        if self.state.is_none() {
            self.state.clone_from(&other.state);
        }
    }

    /// Adds the states at the end of the block.
    #[must_use]
    pub fn with_checkpoint(self, checkpoint: &Checkpoint) -> Self {
        Self { state: Some(checkpoint.state.clone()), ..self }
    }

    /// Whether it has states.
    pub fn has_state(&self) -> bool {
        self.state.is_some()
    }

    /// Drops the states.
    pub fn drop_state(&mut self) {
        self.state = None;
    }
}

impl BlockTable {
    pub(super) fn new(windows: impl Iterator<Item = Option<usize>>, has_states: bool, pool: Arc<()>) -> Self {
        let kinds = windows.map(|window| KindTable { window, first: 0, blocks: Vec::new() });
        Self { kinds: kinds.collect(), len: 0, has_states, state: None, sequence_length: 0, pool }
    }

    /// The slot of the sequence's states, once it has any.
    pub(crate) fn state_slot(&self) -> Option<usize> {
        self.state.as_ref().map(Block::id)
    }

    /// Number of cached positions.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the length that the sequence will have, before a prompt is prefilled in pieces. Rotary frequencies that
    /// depend on the sequence length are then those of this length from the first piece on, as in a single forward
    /// pass. Steps beyond it raise the length by themselves; [`Self::truncate`] does not lower it.
    pub fn set_sequence_length(&mut self, positions: usize) {
        self.sequence_length = positions;
    }

    /// A lower bound of the sequence's length.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// A full block of the sequence, to be shared.
    ///
    /// # Panics
    /// If the sequence does not have all positions of the block.
    pub fn shared_block(&self, index: usize) -> SharedBlock {
        assert!((index + 1) * BLOCK_POSITIONS <= self.len, "a whole block of the sequence");
        let of_kind = |kind: &KindTable| kind.blocks.get(index.checked_sub(kind.first)?).cloned();
        SharedBlock { pool: self.pool.clone(), kinds: self.kinds.iter().map(of_kind).collect(), state: None }
    }

    /// The states of the layers after all positions, if there are any. They take no memory before the sequence runs
    /// on.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint { positions: self.len, state: self.state.clone()? })
    }

    /// Number of blocks held, for each kind of layer.
    pub fn blocks(&self) -> Vec<usize> {
        self.kinds.iter().map(|kind| kind.blocks.len()).collect()
    }

    /// Drops the positions after the first `len`. Returns false, and changes nothing, where this is not possible:
    /// layers with a sliding window may have dropped positions that the next one sees, but dropping up to 64
    /// positions is always possible for them. Layers with a state can only drop all positions.
    pub fn truncate(&mut self, len: usize) -> bool {
        if len >= self.len {
            return true;
        }
        if self.has_states && len > 0 {
            return false;
        }
        let can = self.kinds.iter().all(|kind| kind.first <= first_seen(len, kind.window) / BLOCK_POSITIONS);
        if can {
            self.len = len;
            self.state = self.state.take().filter(|_| len > 0);
            self.release_reserved();
        }
        can
    }

    /// Drops all positions.
    pub fn clear(&mut self) {
        (self.len, self.sequence_length, self.state) = (0, 0, None);
        for kind in &mut self.kinds {
            (kind.first, kind.blocks) = (0, Vec::new());
        }
    }

    /// Releases blocks after the cached positions.
    pub(crate) fn release_reserved(&mut self) {
        for kind in &mut self.kinds {
            kind.blocks.truncate(self.len.div_ceil(BLOCK_POSITIONS).saturating_sub(kind.first));
        }
    }

    /// Counts positions that were written, and releases blocks that no later position sees.
    pub(crate) fn advance(&mut self, positions: usize) {
        self.len += positions;
        self.sequence_length = self.sequence_length.max(self.len);
        for kind in &mut self.kinds {
            let seen = first_seen(self.len.saturating_sub(SLACK), kind.window) / BLOCK_POSITIONS;
            let unseen = seen.saturating_sub(kind.first);
            kind.blocks.drain(..unseen.min(kind.blocks.len()));
            kind.first += unseen;
        }
    }
}
