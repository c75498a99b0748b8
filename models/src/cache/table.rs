//! Which blocks hold the positions of a sequence.

use std::sync::Arc;

use super::{BLOCK_POSITIONS, SLACK, blocks::Block, first_seen};

/// The positions of one sequence in a [`super::KvPool`]. A clone is a fork: both go on by themselves, and share the blocks
/// of what they have in common. Blocks go back to the pool when the last table that has them is dropped.
#[derive(Clone, Debug)]
pub struct BlockTable {
    /// One for each kind of layer that the pool has.
    pub(super) kinds: Vec<KindTable>,
    pub(super) len: usize,
    /// Whether layers keep states.
    has_states: bool,
    /// The slot of its states, once it has any.
    pub(super) state: Option<Block>,
    /// Positions that the sequence is known to have, at least: rotary frequencies may depend on it.
    pub(super) sequence_length: usize,
    /// The pool that it is of.
    pub(super) pool: Arc<()>,
}

/// The blocks of one kind of layer.
#[derive(Clone, Debug)]
pub(super) struct KindTable {
    pub(super) window: Option<usize>,
    /// Which block of the sequence is the first here; those before it are out of the window.
    pub(super) first: usize,
    pub(super) blocks: Vec<Block>,
}

/// A block of a sequence in all kinds of layers, to be shared with sequences that begin alike. It is whole: nobody writes to
/// it any more.
#[derive(Clone, Debug)]
pub struct SharedBlock {
    /// The pool that it is of.
    pub(super) pool: Arc<()>,
    /// None in layers with a window that has passed it.
    pub(super) kinds: Vec<Option<Block>>,
    /// The states at its end, where layers have such and they were kept.
    pub(super) state: Option<Block>,
}

/// The states of a sequence behind some of its positions, kept so that others which begin alike can go on from there: states
/// cannot be cut back.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    positions: usize,
    state: Block,
}

impl Checkpoint {
    /// How many positions it is behind.
    pub fn positions(&self) -> usize {
        self.positions
    }
}

impl SharedBlock {
    /// Takes what is missing here from another one of the same positions.
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

    /// With the states at its end.
    #[must_use]
    pub fn with_checkpoint(self, checkpoint: &Checkpoint) -> Self {
        Self { state: Some(checkpoint.state.clone()), ..self }
    }

    /// Whether it has states.
    pub fn has_state(&self) -> bool {
        self.state.is_some()
    }

    /// Lets go of its states.
    pub fn drop_state(&mut self) {
        self.state = None;
    }
}

impl BlockTable {
    pub(super) fn new(windows: impl Iterator<Item = Option<usize>>, has_states: bool, pool: Arc<()>) -> Self {
        let kinds = windows.map(|window| KindTable { window, first: 0, blocks: Vec::new() });
        Self { kinds: kinds.collect(), len: 0, has_states, state: None, sequence_length: 0, pool }
    }

    /// The slot of its states, once it has any.
    pub(crate) fn state_slot(&self) -> Option<usize> {
        self.state.as_ref().map(Block::id)
    }

    /// Positions that are cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says, before a prompt runs in pieces, that the sequence will have so many positions when it has run. Rotary
    /// frequencies that depend on the length of the sequence are then those of this length from the first piece on, as in
    /// one forward pass of all. Steps beyond it raise the length by themselves; [`Self::truncate`] does not lower it.
    pub fn set_sequence_length(&mut self, positions: usize) {
        self.sequence_length = positions;
    }

    /// Positions that the sequence is known to have, at least.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length
    }

    /// A whole block of the sequence, to be shared.
    ///
    /// # Panics
    /// If the sequence does not have all its positions.
    pub fn shared_block(&self, index: usize) -> SharedBlock {
        assert!((index + 1) * BLOCK_POSITIONS <= self.len, "a whole block of the sequence");
        let of_kind = |kind: &KindTable| kind.blocks.get(index.checked_sub(kind.first)?).cloned();
        SharedBlock { pool: self.pool.clone(), kinds: self.kinds.iter().map(of_kind).collect(), state: None }
    }

    /// The states of its layers behind all its positions, if there are any. It takes no memory before the sequence goes on.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint { positions: self.len, state: self.state.clone()? })
    }

    /// Blocks that are held, of each kind of layer.
    pub fn blocks(&self) -> Vec<usize> {
        self.kinds.iter().map(|kind| kind.blocks.len()).collect()
    }

    /// Drops the positions behind the first `len`. Whether that can be: layers with a sliding window may have dropped
    /// positions that the next one sees; by 64 positions it can always be. Layers with a state can forget all or nothing. If
    /// not, the table is as it was.
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

    /// Lets go of blocks behind the positions in use.
    pub(crate) fn release_reserved(&mut self) {
        for kind in &mut self.kinds {
            kind.blocks.truncate(self.len.div_ceil(BLOCK_POSITIONS).saturating_sub(kind.first));
        }
    }

    /// Counts positions that were written, and lets go of blocks that nothing sees any more.
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
