//! Rows that leave a batch: cancelled, parked, or ended by an error.

use burn::tensor::backend::Backend;
use moi_models::CausalLm;

use crate::{
    Batch, EngineError, RowError, RowId,
    row::{Row, Stage},
};

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// Ends a row, wherever it stands; the others are not disturbed. The text that it held back; `None` if there is no such
    /// row any more.
    pub fn cancel(&mut self, id: RowId) -> Option<String> {
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
            self.engine().pool().shrink();
        }
        Some(text)
    }

    /// The first row that waits for the prompt of a row which leaves takes it over.
    fn hand_over(&mut self, row: &Row<B>) {
        let id = row.id;
        let waits = |other: &Row<B>| other.stage.follows() == Some(id);
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

    /// Parks a row, so that its blocks serve others: at once, or where its next input is under way on a device, as soon as
    /// that is known. The others are not disturbed.
    pub(crate) fn park(&mut self, id: RowId) {
        let Some(at) = self.rows.iter().position(|row| row.id == id) else { return };
        let mut row = self.rows.remove(at);
        row.parks = true;
        if let Stage::Prompt(rest) = &row.stage {
            let rest = rest.clone();
            self.hand_over(&row);
            row.park(rest, self.engine());
        } else if let (Stage::Parked(parked), false) = (&row.stage, row.keeps_blocks) {
            // It waits with its blocks, and gives them up now.
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

    /// Lets a row wait with all that it has cached, until [`Batch::unpark`]: at once, or as soon as its next input is known.
    /// The others are not disturbed.
    pub(crate) fn pause(&mut self, id: RowId) {
        let is_there = |row: &&mut Row<B>| row.id == id && !matches!(row.stage, Stage::Parked(_));
        if let Some(row) = self.rows.iter_mut().find(is_there) {
            row.keeps_blocks = true;
            self.park(id);
        }
    }

    /// Has a row that waits with all that it has cached give that up.
    pub(crate) fn park_paused(&mut self, id: RowId) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.id == id) {
            row.keeps_blocks = false;
            self.park(id);
        }
    }

    /// Lets a row take part again that is parked, or was to be.
    ///
    /// # Errors
    /// If the pool has no room for what it had cached; it has then ended.
    pub(crate) fn unpark(&mut self, id: RowId) -> Result<(), RowError> {
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
    pub(crate) fn has(&self, id: RowId) -> bool {
        self.rows.iter().any(|row| row.id == id)
    }

    /// Ends all rows: the text that they held back, in order.
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
    pub(crate) fn keep_text(&mut self, RowError { row, error, text }: RowError) -> EngineError {
        self.left.push((row, text));
        error
    }

    /// The text of each row that ended by an error, which it had held back.
    pub(crate) fn take_left(&mut self) -> Vec<(RowId, String)> {
        std::mem::take(&mut self.left)
    }

    /// Ends all rows for an error of all, but those that are parked, which took no part.
    pub(crate) fn end_all(&mut self, rows: Vec<Row<B>>, error: EngineError) -> EngineError {
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
        self.engine().pool().shrink();
        error
    }

    /// What a row that failed by itself ends with: its error, traced to where in the model its numbers broke.
    pub(crate) fn row_error(&self, row: &mut Row<B>, ran_ahead: bool, error: EngineError) -> RowError {
        // A step that was launched ahead has written one position more, of an input made of broken logits.
        let positions = row.table.len().saturating_sub(usize::from(ran_ahead));
        let engine = self.engine();
        let error = error.traced(engine.model(), &engine.pool(), &row.table, positions);
        RowError { row: row.id, error, text: self.held_back(row) }
    }

    /// The text that a row has held back. One that cannot be decoded is no second reason for an error.
    fn held_back(&self, row: &mut Row<B>) -> String {
        let text = self.engine().tokenizer().and_then(|tokenizer| row.held_back(tokenizer).ok());
        text.unwrap_or_default()
    }
}
