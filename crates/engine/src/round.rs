//! One round: the next inputs of all sequences that decode and pieces of prompts run through the model together.

#[cfg(not(target_family = "wasm"))]
use std::time::Instant;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use burn::tensor::{DType, Tensor, backend::Backend};
use moi_models::{BLOCK_POSITIONS, CausalLm, ForwardBatch, Span, Visible, with_values};

use crate::{
    Batch, EngineError, PromptReport, Scored, SequenceId,
    pending_step::{PendingStep, kept},
    pieces::Piece,
    rows::ids_tensor,
    sequence::{Sequence, Stage},
    speculation::{DraftTree, Drafted},
    token_chooser::TokenChooser,
};

/// Decided tokens of some rows that are not reported yet.
#[derive(Debug)]
pub(crate) struct Pending<B: Backend> {
    pub(crate) step: PendingStep<B>,
    pub(crate) rows: Vec<SequenceId>,
    /// What was drafted behind rows that speculate, and ran with them.
    pub(crate) drafted: Option<Drafted<B>>,
    /// Prompt positions that were launched since the last decided tokens, and that have run once these tokens are
    /// known.
    pub(crate) positions: usize,
}

/// Inputs of rows that have not run yet.
#[derive(Debug)]
pub(crate) struct Inputs<B: Backend> {
    /// The inputs `[rows, d]`.
    pub(crate) inputs: Tensor<B, 2>,
    pub(crate) rows: Vec<SequenceId>,
}

impl<B: Backend> Pending<B> {
    /// Keeps the rows for which `stays` is true; `None` if there are none.
    pub(crate) fn retain(self, stays: impl Fn(SequenceId) -> bool, device: &B::Device) -> Option<Self> {
        let (keep, rows) = kept_rows(self.rows, stays);
        (!keep.is_empty()).then(|| Self { step: self.step.keep(&keep, device), rows, ..self })
    }
}

impl<B: Backend> Inputs<B> {
    /// Joins the inputs of different rows; `None` if there are none.
    pub(crate) fn joined(mut parts: Vec<Self>) -> Option<Self> {
        if parts.len() <= 1 {
            return parts.pop();
        }
        let dtype = parts[0].inputs.dtype();
        let rows = parts.iter().flat_map(|part| part.rows.iter().copied()).collect();
        // Mixtures of a device are in float32, those of the host in the embedding's type.
        let inputs = parts.into_iter().map(|part| part.inputs.cast(dtype)).collect();
        Some(Self { inputs: Tensor::cat(inputs, 0), rows })
    }

    /// Keeps the rows for which `stays` is true; `None` if there are none.
    pub(crate) fn retain(self, stays: impl Fn(SequenceId) -> bool, device: &B::Device) -> Option<Self> {
        let (keep, rows) = kept_rows(self.rows, stays);
        (!keep.is_empty()).then(|| Self { inputs: kept(self.inputs, &keep, device), rows })
    }
}

/// The indices and the ids of the rows for which `stays` is true.
fn kept_rows(rows: Vec<SequenceId>, stays: impl Fn(SequenceId) -> bool) -> (Vec<usize>, Vec<SequenceId>) {
    rows.into_iter().enumerate().filter(|(_, row)| stays(*row)).unzip()
}

/// The time at which a round began; empty on targets without a clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(#[cfg(not(target_family = "wasm"))] Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(
            #[cfg(not(target_family = "wasm"))]
            Instant::now(),
        )
    }

    pub(crate) fn elapsed(self) -> Option<Duration> {
        #[cfg(not(target_family = "wasm"))]
        return Some(self.0.elapsed());
        #[cfg(target_family = "wasm")]
        None
    }
}

/// How long rounds take, if that was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RoundTimes {
    /// Time of a round without prompts.
    decode: Option<Duration>,
    /// Time of one position of a prompt.
    position: Option<Duration>,
    /// Prompt positions that were launched after the last decided tokens.
    launched: usize,
    /// Prompt positions that have run since the last measurement.
    ran: usize,
}

/// How many states of a prompt are kept, which were saved where its pieces ended: those of the last pieces.
pub(crate) const MAX_CHECKPOINTS: usize = 2;

/// With fewer prompt positions, the time of one cannot be told from the time that the round takes without them.
const MIN_MEASURED: usize = 16;

/// How many times as long a round may become, where sequences decode, by pieces of prompts.
const MAX_SLOWDOWN: f64 = 3.0;

impl RoundTimes {
    /// Counts prompt positions that are launched.
    fn launch(&mut self, positions: usize) {
        self.launched += positions;
    }

    /// Counts prompt positions that have run, because a result that was waited for came behind them.
    pub(crate) fn ran(&mut self, positions: usize) {
        self.ran += positions;
    }

    /// Resets the counts, because what was launched has failed.
    pub(crate) fn reset_launched(&mut self) {
        (self.launched, self.ran) = (0, 0);
    }

    /// Counts all launched positions as run.
    pub(crate) fn ran_all(&mut self) {
        self.ran += std::mem::take(&mut self.launched);
    }

    /// Measures a round that gave `rows` tokens, from its beginning until these were known.
    pub(crate) fn measure(&mut self, rows: usize, clock: Clock) {
        if let Some(took) = clock.elapsed() {
            self.add(rows, took);
        }
    }

    fn add(&mut self, rows: usize, took: Duration) {
        let positions = std::mem::take(&mut self.ran);
        // The old value counts half, because one slow round among many says little.
        let mix = |old: Option<Duration>, new: Duration| Some(old.map_or(new, |old| (old + new) / 2));
        match (rows, positions) {
            (0, 0) => {}
            (_, 0) => self.decode = mix(self.decode, took),
            (_, ..MIN_MEASURED) if self.position.is_some() => {}
            _ => {
                let own = took.saturating_sub(if rows > 0 {
                    self.decode.unwrap_or_default()
                } else {
                    Duration::ZERO
                });
                self.position = mix(self.position, own / positions as u32);
            }
        }
    }

    /// How many prompt positions may run beside sequences that decode: whole blocks, at least one.
    pub(crate) fn positions(&self, most: usize) -> usize {
        let (Some(decode), Some(position)) = (self.decode, self.position) else {
            return BLOCK_POSITIONS.min(most);
        };
        let fit = decode.as_secs_f64() * (MAX_SLOWDOWN - 1.0) / position.as_secs_f64().max(1e-9);
        (fit as usize / BLOCK_POSITIONS * BLOCK_POSITIONS).max(BLOCK_POSITIONS).min(most)
    }
}

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// Runs the inputs of rows that decode, and pieces of prompts if asked to. Then decides the tokens of these rows
    /// and of those whose prompts have ended. `None` if there are no such rows.
    pub(crate) fn run(
        &mut self,
        rows: &mut [Sequence<B>],
        inputs: Option<Inputs<B>>,
        with_prompts: bool,
    ) -> Result<Option<Pending<B>>, EngineError> {
        let decoding: Vec<usize> =
            inputs.iter().flat_map(|inputs| &inputs.rows).map(|&id| place(rows, id)).collect();
        let pieces = if with_prompts { self.pieces(rows, decoding.len()) } else { Vec::new() };
        if decoding.is_empty() && pieces.is_empty() {
            return Ok(None);
        }
        pieces.iter().for_each(|piece| self.engine().report_progress(&rows[piece.row]));
        let begun = Clock::start();
        let trees = self.draft(rows, &decoding, pieces.iter().map(|piece| piece.len).sum());
        let ends: Vec<usize> = trees.iter().scan(0, |end, tree| Some(add(end, tree.len()))).collect();
        let drafted_end = ends.last().copied().unwrap_or(0);
        let lens: Vec<usize> = decoding.iter().map(|&row| rows[row].table.len()).collect();
        let hidden = self.forward(rows, inputs.map(|inputs| inputs.inputs), &decoding, &trees, &pieces)?;
        self.score_pieces(rows, &hidden, drafted_end, &pieces);
        let mut decided = decoding.clone();
        let mut places: Vec<u32> =
            ends.iter().zip(&trees).map(|(end, tree)| (end - tree.len()) as u32).collect();
        let mut end = drafted_end;
        for piece in &pieces {
            end += piece.len;
            if piece.is_last {
                self.engine().report_progress(&rows[piece.row]);
                let same = self.finish_prompt(rows, piece.row);
                places.extend(same.iter().map(|_| end as u32 - 1));
                decided.extend(same);
            }
        }
        self.times.launch(end - drafted_end);
        if places.is_empty() {
            return Ok(None);
        }
        let speculates = decoding.iter().any(|&row| rows[row].drafting.is_some());
        let (logits, drafted) = match speculates {
            false => (self.logits(hidden, &places, end), None),
            // The logits behind all drafts come first, then those behind prompts that have ended.
            true => {
                let prompts = &places[decoding.len()..];
                let all: Vec<u32> = (0..drafted_end as u32).chain(prompts.iter().copied()).collect();
                let logits = self.logits(hidden, &all, end);
                let firsts = places[..decoding.len()].iter().copied();
                let own: Vec<u32> =
                    firsts.chain((0..prompts.len()).map(|prompt| (drafted_end + prompt) as u32)).collect();
                let firsts = match drafted_end == decoding.len() {
                    true => logits.clone(),
                    false => logits.clone().select(0, ids_tensor::<B>(&own, self.engine().device())),
                };
                (firsts, Some(Drafted::new(logits, rows, &decoding, (trees, &lens), begun)))
            }
        };
        if let Some(drafted) = &drafted {
            decoding.iter().for_each(|&row| drafted.set_verification(&mut rows[row]));
        }
        let mut choosers: Vec<&mut TokenChooser> = parts_of(rows, &decided, |row| &mut row.chooser);
        let step = PendingStep::new(self.engine(), logits, &mut choosers)?;
        let rows = decided.iter().map(|&row| rows[row].id).collect();
        let positions = std::mem::take(&mut self.times.launched);
        Ok(Some(Pending { step, rows, drafted, positions }))
    }

    /// The logits behind some of `of` positions `[positions, vocab]`.
    fn logits(&self, hidden: Tensor<B, 2>, places: &[u32], of: usize) -> Tensor<B, 2> {
        let is_all = places.iter().copied().eq(0..of as u32);
        let hidden =
            if is_all { hidden } else { hidden.select(0, ids_tensor::<B>(places, self.engine().device())) };
        self.engine().model().logits(hidden)
    }

    /// The hidden states of the next positions `[positions, d]`: first of rows that decode, then of pieces of
    /// prompts.
    fn forward(
        &self,
        rows: &mut [Sequence<B>],
        inputs: Option<Tensor<B, 2>>,
        decoding: &[usize],
        trees: &[DraftTree],
        pieces: &[Piece],
    ) -> Result<Tensor<B, 2>, EngineError> {
        let mut parts: Vec<Tensor<B, 2>> = match trees.iter().any(|tree| !tree.is_empty()) {
            false => inputs.into_iter().collect(),
            true => {
                inputs.map(|inputs| self.with_drafts(inputs, rows, (decoding, trees))).unwrap_or_default()
            }
        };
        for piece in pieces {
            if let Stage::Prompt(rest) = &rows[piece.row].stage {
                parts.push(rest.clone().narrow(0, 0, piece.len));
            }
        }
        let inputs = match parts.len() {
            1 => parts.remove(0),
            // Mixtures may be in another type than embeddings.
            _ => Tensor::cat(parts.into_iter().map(|part| part.cast(DType::F32)).collect(), 0),
        };
        let of_rows = trees.iter().map(|tree| match tree.is_chain() {
            true => (tree.len(), Visible::Causal),
            false => (tree.len(), Visible::Tree(tree.parents())),
        });
        let of_all = of_rows.chain(pieces.iter().map(|piece| (piece.len, Visible::Causal)));
        let all: Vec<usize> = decoding.iter().copied().chain(pieces.iter().map(|piece| piece.row)).collect();
        let tables = parts_of(rows, &all, |row| &mut row.table);
        let spans =
            tables.into_iter().zip(of_all).map(|(table, (len, visible))| Span { table, len, visible });
        let batch = ForwardBatch { inputs, spans: spans.collect() };
        let engine = self.engine();
        let hidden = engine.model().forward(batch, &mut engine.pool())?;
        for piece in pieces {
            if let Stage::Prompt(rest) = &mut rows[piece.row].stage
                && !piece.is_last
            {
                let left = rest.dims()[0] - piece.len;
                *rest = rest.clone().narrow(0, piece.len, left);
            }
            let row = &mut rows[piece.row];
            let is_shared = row.is_public && row.chooser.generated() == 0;
            if self.keeps_checkpoints && is_shared && row.table.len().is_multiple_of(BLOCK_POSITIONS) {
                row.checkpoints.extend(row.table.checkpoint());
                let over = row.checkpoints.len().saturating_sub(MAX_CHECKPOINTS);
                row.checkpoints.drain(..over);
            }
        }
        Ok(hidden)
    }

    /// Scores the prompt tokens that follow the positions of the given pieces, for rows that asked for it. `hidden`
    /// is of all positions that have run `[positions, d]`, in which the pieces begin at `first`.
    fn score_pieces(&self, rows: &mut [Sequence<B>], hidden: &Tensor<B, 2>, first: usize, pieces: &[Piece]) {
        /// Number of positions whose logits are held at once.
        const POSITIONS: usize = 64;
        let mut begin = first;
        for piece in pieces {
            let row = &mut rows[piece.row];
            let ids = row.chooser.sampler.history().all(0);
            let (to, position) = (begin + piece.len, row.table.len() - piece.len);
            let is_prompt = row.chooser.generated() == 0;
            if let Some(scores) = row.scores.as_mut().filter(|scores| is_prompt && scores.failed.is_none()) {
                // A prompt that runs again is scored again.
                scores.scored.truncate(position);
                for at in (begin..to).step_by(POSITIONS) {
                    let next = &ids[(scores.scored.len() + 1).min(ids.len())..];
                    let count = POSITIONS.min(to - at).min(next.len());
                    if count == 0 {
                        break;
                    }
                    let logits = self.engine().model().logits(hidden.clone().narrow(0, at, count));
                    match score_all(&logits, next, scores.likeliest, scores.scored.len() + 1) {
                        Ok(scored) => scores.scored.extend(scored),
                        Err(error) => {
                            scores.failed = Some(error);
                            break;
                        }
                    }
                }
            }
            begin = to;
        }
    }

    /// Ends the prompt of a row, so that it decodes, and so that rows with the same prompt fork it and decode, too.
    /// Returns the indices of all these rows, its own first.
    fn finish_prompt(&mut self, rows: &mut [Sequence<B>], row: usize) -> Vec<usize> {
        rows[row].stage = Stage::Decode;
        let first = &rows[row];
        // A row that runs again has tokens behind its prompt, and their inputs were mixtures.
        if first.is_public && first.chooser.generated() == 0 {
            let prompt = first.chooser.sampler.history().all(0);
            self.engine().keep_prefix(&first.salt, prompt, &first.table, &first.checkpoints);
        }
        rows[row].checkpoints.clear();
        let (id, table, inputs) = (rows[row].id, rows[row].table.clone(), rows[row].inputs.clone());
        let mut all = vec![row];
        for (other, follower) in
            rows.iter_mut().enumerate().filter(|(_, row)| row.stage.follows() == Some(id))
        {
            (follower.table, follower.inputs, follower.stage) =
                (table.clone(), inputs.clone(), Stage::Decode);
            all.push(other);
        }
        let is_first = rows[row].chooser.generated() == 0;
        if self.reports_prompts && is_first {
            let reused = rows[row].reused;
            let report = |row: &mut Sequence<B>| {
                let scored = row.scores.as_mut().map(|scores| std::mem::take(&mut scores.scored));
                (row.id, PromptReport { reused, scored: scored.unwrap_or_default() })
            };
            let reports: Vec<_> = parts_of(rows, &all, |row| row).into_iter().map(report).collect();
            self.prompts.extend(reports);
        }
        all
    }
}

/// Scores the first tokens of `next` by logits `[positions, vocab]`. `position` is the number of tokens before the
/// first of them.
fn score_all<B: Backend>(
    logits: &Tensor<B, 2>,
    next: &[u32],
    likeliest: usize,
    position: usize,
) -> Result<Vec<Scored>, EngineError> {
    let [positions, vocab] = logits.dims();
    with_values(logits, |host| {
        let places: Vec<Mutex<Option<Result<Scored, EngineError>>>> =
            (0..positions).map(|_| Mutex::new(None)).collect();
        moi_kernels::pool::run_unequal(positions, |at| {
            let scored = Scored::new(&host[at * vocab..][..vocab], next[at], likeliest, position + at);
            *places[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(scored);
        });
        let scored = |place: Mutex<Option<_>>| place.into_inner().unwrap_or_else(PoisonError::into_inner);
        places.into_iter().filter_map(scored).collect()
    })
}

/// Adds to a sum. Returns the new sum.
fn add(sum: &mut usize, more: usize) -> usize {
    *sum += more;
    *sum
}

/// The index of a row.
pub(crate) fn place<B: Backend>(rows: &[Sequence<B>], id: SequenceId) -> usize {
    let place = rows.iter().position(|row| row.id == id);
    place.unwrap_or_else(|| unreachable!("rows that left were taken out of what is pending"))
}

/// A part of each of some different rows, in the order of `places`.
pub(crate) fn parts_of<'r, B: Backend, T: 'r>(
    rows: &'r mut [Sequence<B>],
    places: &[usize],
    part: impl Fn(&'r mut Sequence<B>) -> &'r mut T,
) -> Vec<&'r mut T> {
    let mut all: Vec<Option<&mut Sequence<B>>> = rows.iter_mut().map(Some).collect();
    places.iter().filter_map(|&place| all[place].take()).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_take_what_time_there_is() {
        let ms = Duration::from_millis;
        let mut times = RoundTimes::default();
        let mut measure = |rows, positions, took| {
            times.ran(positions);
            times.add(rows, took);
            times
        };
        assert_eq!(RoundTimes::default().positions(512), 64);
        measure(4, 0, ms(10));
        let times = measure(0, 512, ms(51));
        // A tenth of a millisecond each: 200 fit into twice a round.
        assert_eq!((times.positions(512), times.positions(128), times.positions(7)), (192, 128, 7));
        // Slower prompts.
        let times = measure(4, 100, ms(10 + 100));
        assert!(times.positions(512) < 192 && times.positions(512) >= 64);
        for _ in 0..9 {
            measure(4, 64, ms(1000));
        }
        assert_eq!(measure(4, 64, ms(1000)).positions(512), 64);
    }
}
