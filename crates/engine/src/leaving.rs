//! Rows that leave a batch: cancelled, parked, or ended by an error.

use burn::tensor::backend::Backend;
use moi_models::CausalLm;

use crate::{
    Batch, EngineError, SequenceError, SequenceId,
    sequence::{Sequence, Stage},
};

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// Ends a row in any stage, without effect on the others. Returns the text that it held back; `None` if there is
    /// no such row any more.
    pub fn cancel(&mut self, id: SequenceId) -> Option<String> {
        let at = self.rows.iter().position(|row| row.id == id)?;
        let mut row = self.rows.remove(at);
        self.hand_over(&row);
        let device = self.engine().device();
        let stays = |row| row != id;
        self.inputs = self.inputs.take().and_then(|inputs| inputs.retain(stays, device));
        self.ahead = self.ahead.take().and_then(|ahead| ahead.retain(stays, device));
        let text = self.held_back(&mut row);
        drop(row);
        if self.rows.is_empty() {
            self.engine().shrink();
        }
        Some(text)
    }

    /// If other rows wait for the prompt of a row that leaves, the first of them takes the prompt over.
    fn hand_over(&mut self, row: &Sequence<B>) {
        let id = row.id;
        let waits = |other: &Sequence<B>| other.stage.follows() == Some(id);
        let (Stage::Prompt(_), Some(successor)) = (&row.stage, self.rows.iter().position(waits)) else {
            return;
        };
        let new = self.rows[successor].id;
        for other in self.rows[successor..].iter_mut().filter(|other| waits(other)) {
            other.stage = Stage::Follows(new);
        }
        let successor = &mut self.rows[successor];
        (successor.stage, successor.reused, successor.inputs) =
            (row.stage.clone(), row.reused, row.inputs.clone());
        (successor.table, successor.is_public) = (row.table.clone(), row.is_public);
        successor.checkpoints.clone_from(&row.checkpoints);
    }

    /// Parks a row, so that others can use its blocks: at once, or, if a device is still computing its next input, as
    /// soon as that is known. The other rows are not affected.
    pub(crate) fn park(&mut self, id: SequenceId) {
        let Some(at) = self.rows.iter().position(|row| row.id == id) else { return };
        let mut row = self.rows.remove(at);
        row.parks = true;
        if let Stage::Prompt(rest) = &row.stage {
            let rest = rest.clone();
            self.hand_over(&row);
            row.park(rest, self.engine());
        } else if let (Stage::Parked(parked), false) = (&row.stage, row.keeps_blocks) {
            // A paused row kept its blocks, and gives them up now.
            if let Some(input) = parked.waiting() {
                row.park(input, self.engine());
            }
            row.parks = false;
        } else if let Some(inputs) = &self.inputs
            && let Some(place) = inputs.rows.iter().position(|&other| other == id)
        {
            row.park(inputs.inputs.clone().narrow(0, place, 1), self.engine());
            let device = self.engine().device();
            self.inputs = self.inputs.take().and_then(|inputs| inputs.retain(|other| other != id, device));
        }
        self.rows.insert(at, row);
    }

    /// Lets a row wait with its KV cache until [`Batch::unpark`]: at once, or as soon as its next input is known. The
    /// other rows are not affected.
    pub(crate) fn pause(&mut self, id: SequenceId) {
        let is_there = |row: &&mut Sequence<B>| row.id == id && !matches!(row.stage, Stage::Parked(_));
        if let Some(row) = self.rows.iter_mut().find(is_there) {
            row.keeps_blocks = true;
            self.park(id);
        }
    }

    /// Makes a paused row give up its KV cache.
    pub(crate) fn park_paused(&mut self, id: SequenceId) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.id == id) {
            row.keeps_blocks = false;
            self.park(id);
        }
    }

    /// Lets a row take part again that is parked, or was about to be.
    ///
    /// # Errors
    /// If the pool has no room for its KV cache. The row has then ended.
    pub(crate) fn unpark(&mut self, id: SequenceId) -> Result<(), SequenceError> {
        let Some(at) = self.rows.iter().position(|row| row.id == id) else { return Ok(()) };
        let engine = self.engine();
        self.rows[at].parks = false;
        if !matches!(self.rows[at].stage, Stage::Parked(_)) {
            self.rows[at].keeps_blocks = false;
        }
        self.rows[at].unpark(engine).map_err(|error| {
            let mut row = self.rows.remove(at);
            self.row_error(&mut row, false, error)
        })
    }

    /// Whether a row has not ended.
    pub(crate) fn has(&self, id: SequenceId) -> bool {
        self.rows.iter().any(|row| row.id == id)
    }

    /// Ends all rows. Returns the text that they held back, in order.
    pub(crate) fn finish(mut self) -> Result<String, EngineError> {
        self.flush()
    }

    /// The text that rows hold back, in order.
    pub(crate) fn flush(&mut self) -> Result<String, EngineError> {
        match self.engine().tokenizer() {
            Some(tokenizer) => {
                let left = self.take_left().into_iter().map(|(_, text)| text).collect();
                self.rows.iter_mut().try_fold(left, |text: String, row| Ok(text + &row.held_back(tokenizer)?))
            }
            None => Ok(String::new()),
        }
    }

    /// Keeps the text that a failed row held back for [`Batch::finish`].
    pub(crate) fn keep_text(&mut self, SequenceError { row, error, text }: SequenceError) -> EngineError {
        self.left.push((row, text));
        error
    }

    /// The text that was held back by each row that ended with an error.
    pub(crate) fn take_left(&mut self) -> Vec<(SequenceId, String)> {
        std::mem::take(&mut self.left)
    }

    /// Ends all rows because the whole round failed, except parked rows, which took no part in it.
    pub(crate) fn end_all(&mut self, rows: Vec<Sequence<B>>, error: EngineError) -> EngineError {
        (self.inputs, self.ahead) = (None, None);
        self.times.reset_launched();
        for mut row in rows {
            match row.stage {
                Stage::Parked(_) => self.rows.push(row),
                _ => {
                    let text = self.held_back(&mut row);
                    self.left.push((row.id, text));
                }
            }
        }
        self.engine().shrink();
        error
    }

    /// The error of a row that failed by itself, traced to where in the model its values stopped being finite.
    pub(crate) fn row_error(
        &self,
        row: &mut Sequence<B>,
        ran_ahead: bool,
        error: EngineError,
    ) -> SequenceError {
        // A step that was launched ahead has written one more position, from an input made of the broken logits.
        let positions = row.table.len().saturating_sub(usize::from(ran_ahead));
        let engine = self.engine();
        let error = error.traced(engine.model(), &engine.pool(), &row.table, positions);
        SequenceError { row: row.id, error, text: self.held_back(row) }
    }

    /// The text that a row has held back; empty if it cannot be decoded, because that is not worth a second error.
    fn held_back(&self, row: &mut Sequence<B>) -> String {
        let text = self.engine().tokenizer().and_then(|tokenizer| row.held_back(tokenizer).ok());
        text.unwrap_or_default()
    }
}
