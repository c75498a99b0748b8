//! Chooses which pieces of prompts run in a round.

use burn::tensor::backend::Backend;
use moi_models::{BLOCK_POSITIONS, CausalLm};

use crate::{
    Batch,
    sequence::{Sequence, Stage},
};

/// A piece of a row's prompt.
pub(crate) struct Piece {
    pub(crate) row: usize,
    pub(crate) len: usize,
    /// Whether it is the last piece of the prompt.
    pub(crate) is_last: bool,
}

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// Chooses the pieces of prompts for a round: as many positions as fit beside the rows that decode. Each piece
    /// ends where a block of the cache or its prompt ends. The oldest prompt and the prompt with the fewest positions
    /// left go first in turns: a short prompt then does not wait for a long one, and a long one makes progress
    /// however many short ones come.
    pub(crate) fn pieces(&mut self, rows: &[Sequence<B>], decoding: usize) -> Vec<Piece> {
        let most = self.engine().prefill_chunk();
        let mut room = if decoding > 0 { self.times.positions(most) } else { most };
        let left = |row: &Sequence<B>| match &row.stage {
            Stage::Prompt(rest) => Some(rest.dims()[0]),
            _ => None,
        };
        let mut prompts: Vec<(usize, usize)> =
            rows.iter().enumerate().filter_map(|(row, one)| Some((row, left(one)?))).collect();
        if prompts.len() > 1 {
            if self.shortest_is_next {
                prompts.sort_by_key(|&(_, left)| left);
            }
            self.shortest_is_next = !self.shortest_is_next;
        }
        let mut pieces = Vec::new();
        for (row, left) in prompts {
            let (one, at) = (&rows[row], rows[row].table.len());
            let len = match left <= room {
                true => left,
                false => ((at + room) / BLOCK_POSITIONS * BLOCK_POSITIONS).saturating_sub(at),
            };
            // Recurrent states cannot be cut back to the end of the prompt's last whole block, so the prompt runs up
            // to there first.
            let whole = (at + left - 1) / BLOCK_POSITIONS * BLOCK_POSITIONS;
            let len = match len == left && one.is_public && whole > at && self.keeps_checkpoints {
                true => whole - at,
                false => len,
            };
            // If no whole block fits, the piece takes as many positions as fit.
            let len = if len == 0 && pieces.is_empty() { room.min(left) } else { len };
            if len == 0 {
                break;
            }
            pieces.push(Piece { row, len, is_last: len == left });
            room -= len;
            if room == 0 {
                break;
            }
        }
        // Sorted by row, because the tables of all pieces are borrowed at once.
        pieces.sort_by_key(|piece| piece.row);
        pieces
    }
}
