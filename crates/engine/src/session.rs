//! Turns of a conversation that share a cache.

use burn::tensor::backend::Backend;
use moi_models::{BlockTable, CausalLm, KvPool};

/// The positions of earlier turns, ready to be continued: see [`crate::Engine::resume`].
///
/// Where earlier tokens were generated with a rule that mixes, their positions hold the mixtures, as the generation
/// itself saw them. They serve a later prompt only as far as it begins with the same tokens; from the first other token
/// on all is run anew, from tokens as they are. So is all of it where a turn goes beyond the positions up to which a cache
/// of the model serves ([`CausalLm::recompute_beyond`]).
#[derive(Clone, Debug)]
pub struct Session {
    table: BlockTable,
    /// The tokens of the positions in it.
    ids: Vec<u32>,
}

impl Session {
    pub(crate) fn new(mut table: BlockTable, ids: &[u32]) -> Self {
        // The last token may not have run yet; what ran ahead of one that was not generated does not count.
        let positions = table.len().min(ids.len());
        if positions > 0 && table.truncate(positions) {
            return Self { table, ids: ids[..positions].to_vec() };
        }
        table.clear();
        Self { table, ids: Vec::new() }
    }

    /// Positions in the cache.
    pub fn positions(&self) -> usize {
        self.ids.len()
    }

    /// Positions that serve a prompt of these ids: all but one at most, since the last one's logits are needed.
    pub fn known(&self, prompt: &[u32]) -> usize {
        let same = prompt.iter().zip(&self.ids).take_while(|(a, b)| a == b).count();
        same.min(prompt.len().saturating_sub(1))
    }

    /// The positions as far as a prompt begins with them, if it does.
    pub(crate) fn behind<B: Backend, M: CausalLm<B>>(
        mut self,
        prompt: &[u32],
        model: &M,
        pool: &KvPool<B>,
    ) -> Option<BlockTable> {
        let known = self.known(prompt);
        let is_beyond = |positions: usize| model.recompute_beyond().is_some_and(|most| positions > most);
        let is_other =
            !pool.owns(&self.table) || is_beyond(prompt.len()) != is_beyond(self.table.sequence_length());
        (!is_other && known > 0 && self.table.truncate(known)).then_some(self.table)
    }
}
