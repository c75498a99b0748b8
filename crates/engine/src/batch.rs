//! Sequences that are decoded together: who takes part, and what comes of each round.

use burn::tensor::backend::Backend;
use moi_models::{CausalLm, is_gpu};

use crate::{
    Engine, EngineError, PreparedRequest, PromptReport, Request, RowError, RowId, Session, Step,
    pending_step::{PendingStep, kept},
    round::{Clock, Inputs, Pending, RoundTimes, place},
    row::{Row, Stage},
};

/// Rows that are decoded together. Rows may be added between steps, leave when they end, and can be cancelled at any time.
/// Prompts run in pieces beside the rows that decode, so that none of these waits for a whole prompt.
///
/// On a device that samples and mixes by itself a step is launched before the tokens of the one before are read, so
/// that neither waits for the other. A row that turns out to have ended was then computed once in vain; of one that must
/// end, for its length or its context, that is known in time.
#[derive(Debug)]
pub struct Batch<'e, B: Backend, M> {
    engine: &'e Engine<B, M>,
    pub(crate) rows: Vec<Row<B>>,
    /// Of rows that decode, not yet run through the model.
    pub(crate) inputs: Option<Inputs<B>>,
    /// Decided tokens of rows that decode, not yet reported.
    pub(crate) ahead: Option<Pending<B>>,
    pub(crate) times: RoundTimes,
    /// Whether the shortest prompt goes first in the next round, not the first one.
    pub(crate) shortest_is_next: bool,
    added: usize,
    /// Positions of prompts that were cached before.
    reused: usize,
    /// Whether the inputs of all rows are kept, so that rows can be parked without what is cached of them.
    pub(crate) replays: bool,
    /// Whether states are kept where blocks of prompts end.
    pub(crate) keeps_checkpoints: bool,
    /// Whether what the only row has cached outlives it.
    keeps: bool,
    /// That row.
    ended: Option<Row<B>>,
    /// What rows held back that ended by an error.
    pub(crate) left: Vec<(RowId, String)>,
    /// Prompts that have run and are not reported yet.
    pub(crate) prompts: Vec<(RowId, PromptReport)>,
    /// Whether they are to be reported.
    pub(crate) reports_prompts: bool,
}

impl<'e, B: Backend, M: CausalLm<B>> Batch<'e, B, M> {
    pub(crate) fn new(engine: &'e Engine<B, M>) -> Self {
        // What ended before it was at its end has left memory behind.
        engine.pool().shrink();
        Self {
            engine,
            rows: Vec::new(),
            inputs: None,
            ahead: None,
            times: RoundTimes::default(),
            shortest_is_next: true,
            added: 0,
            reused: 0,
            replays: false,
            keeps_checkpoints: engine.keeps_checkpoints(),
            keeps: false,
            ended: None,
            left: Vec::new(),
            prompts: Vec::new(),
            reports_prompts: false,
        }
    }

    /// A batch of a row whose cached positions outlive it: see [`Batch::into_session`].
    pub(crate) fn keeping(engine: &'e Engine<B, M>) -> Self {
        Self { keeps: true, ..Self::new(engine) }
    }

    /// A batch whose rows can be parked at the cost of their inputs instead of all that is cached of them: these run anew
    /// then.
    pub(crate) fn replaying(engine: &'e Engine<B, M>) -> Self {
        Self { replays: true, ..Self::new(engine) }
    }

    /// What is cached, ended or not, of a batch of one row.
    pub(crate) fn into_session(mut self) -> Option<Session> {
        let Row { table, decider, positions, .. } = self.rows.pop().or(self.ended.take())?;
        let ids = decider.sampler.history().all(0);
        // Embeddings given by a caller are no tokens that a later prompt could begin with.
        let ids = if ids.len() == positions { ids } else { &[] };
        Some(Session::new(table, ids))
    }

    /// Lets a request take part from the next step on. Its prompt runs in pieces beside what others decode.
    ///
    /// # Errors
    /// If the request is refused; the batch is then unchanged.
    pub fn add(&mut self, request: Request<B>) -> Result<RowId, EngineError> {
        Ok(self.join(self.engine.prepare(request)?))
    }

    /// Adds several.
    ///
    /// # Errors
    /// If one is refused; the batch is then unchanged.
    pub fn add_all(&mut self, requests: Vec<Request<B>>) -> Result<Vec<RowId>, EngineError> {
        let prepared = self.engine.prepare_all(requests)?;
        Ok(prepared.into_iter().map(|request| self.join(request)).collect())
    }

    /// Adds a request that was prepared before.
    ///
    /// # Errors
    /// If it was prepared by another engine.
    pub fn add_prepared(&mut self, request: PreparedRequest<B>) -> Result<RowId, EngineError> {
        self.engine.owns(&request)?;
        Ok(self.join(request))
    }

    /// Adds a request. Where the same prompt is to run, or runs, for another row, one run of it serves both: several samples
    /// of a prompt, or one prompt under several rules.
    pub(crate) fn join(&mut self, request: PreparedRequest<B>) -> RowId {
        let runs_it = |row: &&Row<B>| {
            let begins =
                matches!(row.stage, Stage::Prompt(_)) && row.is_public && row.decider.generated() == 0;
            begins && row.salt == request.salt() && row.decider.sampler.history().all(0) == request.ids()
        };
        match self.rows.iter().find(runs_it).map(|row| row.id) {
            Some(first) if !request.scores_prompt() => self.follow(request, first),
            _ if request.scores_prompt() => self.begin(request, None),
            _ => {
                let behind = self.engine.find_prefix(request.salt(), request.ids());
                self.begin(request, behind)
            }
        }
    }

    /// Adds a request behind what a session has cached.
    pub(crate) fn resume(&mut self, session: Session, request: Request<B>) -> Result<RowId, EngineError> {
        let request = self.engine.prepare(request)?;
        let behind = session.behind(request.ids(), &self.engine.model, &self.engine.pool());
        let Some(behind) = behind else {
            let behind = self.engine.find_prefix(request.salt(), request.ids());
            return Ok(self.begin(request, behind));
        };
        let id = self.begin(request, Some(behind));
        if let Some(row) = self.rows.last_mut() {
            // What a session has cached may be of mixtures.
            row.is_public = false;
        }
        Ok(id)
    }

    /// The row that comes next.
    pub(crate) fn next_id(&self) -> RowId {
        RowId(self.added)
    }

    pub(crate) fn push(&mut self, row: Row<B>) -> RowId {
        let id = row.id;
        self.added += 1;
        self.reused += row.reused;
        self.rows.push(row);
        id
    }

    /// Whether the inputs of a row with so many positions are kept, since what is cached of them may have to be computed
    /// anew.
    pub(crate) fn keeps_inputs(&self, positions: usize) -> bool {
        self.replays || self.engine.model.recompute_beyond().is_some_and(|most| positions <= most)
    }

    /// Rows that have not ended.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether every row has ended.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Positions of prompts that were cached before they came, of all rows so far.
    pub fn reused_positions(&self) -> usize {
        self.reused
    }

    pub(crate) fn engine(&self) -> &'e Engine<B, M> {
        self.engine
    }

    /// Runs the prompts of all rows to their ends, without a token of those that decode already.
    ///
    /// # Errors
    /// If the model or the device fails: as [`Batch::step`].
    pub fn run_prompts(&mut self) -> Result<(), EngineError> {
        while self.rows.iter().any(|row| matches!(row.stage, Stage::Prompt(_))) {
            let begun = Clock::start();
            let mut rows = std::mem::take(&mut self.rows);
            let ran = self.run(&mut rows, None, true);
            match ran {
                Ok(mut new) => {
                    // A device may only have been asked to run them: nothing is known of the time that takes.
                    let launched = new.as_mut().map_or(0, |new| std::mem::take(&mut new.positions));
                    if !is_gpu::<B>() {
                        self.times.ran(launched);
                        self.times.ran_all();
                        self.times.measure(0, begun);
                    }
                    self.ahead = join(self.ahead.take(), new);
                }
                Err(error) => return Err(self.end_all(rows, error)),
            }
            self.rows = rows;
        }
        Ok(())
    }

    /// The next tokens: one for each row that decodes, in the order in which rows were added; none if all have ended. A row
    /// that fails ends with its own error, and the others go on.
    ///
    /// # Errors
    /// If the model or the device fails. All rows have then ended, and the batch is empty; [`crate::Generation::finish`] still
    /// gives the text that was held back.
    pub fn step(&mut self) -> Result<Vec<Result<Step, RowError>>, EngineError> {
        loop {
            let steps = self.round()?;
            if !steps.is_empty() || self.rows.is_empty() {
                return Ok(steps);
            }
        }
    }

    /// One pass through the model: [`Batch::step`], but that there may be no token yet where no row decodes and prompts are
    /// under way. Between rounds rows can be added and cancelled.
    ///
    /// # Errors
    /// As [`Batch::step`].
    pub fn round(&mut self) -> Result<Vec<Result<Step, RowError>>, EngineError> {
        let begun = Clock::start();
        let mut rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut steps = match self.round_of(&mut rows) {
            Ok(steps) => steps,
            Err(error) => return Err(self.end_all(rows, error)),
        };
        if steps.is_empty() && !is_gpu::<B>() {
            self.times.ran_all();
        }
        self.times.measure(steps.len(), begun);
        steps.sort_by_key(row_of);
        for row in rows {
            let of_row = steps.binary_search_by_key(&row.id, row_of).ok().map(|at| &steps[at]);
            match of_row {
                None | Some(Ok(Step { stop: None, .. })) => self.rows.push(row),
                Some(Ok(_)) => self.ended = self.keeps.then_some(row),
                Some(Err(_)) => {}
            }
        }
        if self.rows.is_empty() {
            self.engine.pool().shrink();
        }
        Ok(steps)
    }

    fn round_of(&mut self, rows: &mut [Row<B>]) -> Result<Vec<Result<Step, RowError>>, EngineError> {
        let (mut current, mut ran_prompts) = (self.ahead.take(), false);
        if current.is_none() || self.inputs.is_some() {
            let inputs = self.inputs.take();
            let new = self.run(rows, inputs, true)?;
            (current, ran_prompts) = (join(current, new), true);
        }
        let Some(current) = current else { return Ok(Vec::new()) };
        let mut ahead = None;
        if current.step.is_in_flight() {
            let goes_on = |&at: &usize| {
                let row = &rows[place(rows, current.rows[at])];
                let stops = row.parks || row.recomputes_with_next(self.engine);
                !row.ends_with_next(self.engine) && !stops
            };
            let keep: Vec<usize> = (0..current.rows.len()).filter(goes_on).collect();
            let inputs = (!keep.is_empty()).then(|| Inputs {
                inputs: kept(current.step.inputs.clone(), &keep, &self.engine.device),
                rows: keep.iter().map(|&at| current.rows[at]).collect(),
            });
            ahead = self.run(rows, inputs, !ran_prompts)?;
        }
        self.report(rows, current, ahead)
    }

    /// Waits for decided tokens and gives them to their rows. What has run ahead of them is kept for those that go on.
    fn report(
        &mut self,
        rows: &mut [Row<B>],
        current: Pending<B>,
        ahead: Option<Pending<B>>,
    ) -> Result<Vec<Result<Step, RowError>>, EngineError> {
        let places: Vec<usize> = current.rows.iter().map(|&id| place(rows, id)).collect();
        self.times.ran(current.positions);
        let (outcomes, inputs) = current.step.wait(|at| rows[places[at]].decider.generated())?;
        let has_run = |id: RowId| ahead.as_ref().is_some_and(|ahead| ahead.rows.contains(&id));
        let (mut steps, mut left, mut waiting) = (Vec::with_capacity(places.len()), Vec::new(), Vec::new());
        for (at, (&place, outcome)) in places.iter().zip(outcomes).enumerate() {
            let row = &mut rows[place];
            let scored = row.scores.as_mut().and_then(|scores| scores.failed.take());
            let outcome = scored.map_or(outcome, Err);
            let step = outcome.and_then(|(sampled, mix)| row.take(sampled, mix, self.engine));
            let step = step.map_err(|error| self.row_error(row, has_run(row.id), error));
            if !matches!(step, Ok(Step { stop: None, .. })) {
                left.push(row.id);
            } else {
                let input = inputs.clone().narrow(0, at, 1);
                row.keep_input(&input, places.len());
                if !has_run(row.id) && !row.parks_or_restarts(input, self.engine) {
                    waiting.push(at);
                }
            }
            steps.push(step);
        }
        let device = &self.engine.device;
        self.inputs = (!waiting.is_empty()).then(|| Inputs {
            inputs: kept(inputs, &waiting, device),
            rows: waiting.iter().map(|&at| current.rows[at]).collect(),
        });
        self.ahead = ahead.and_then(|ahead| ahead.retain(|row| !left.contains(&row), device));
        Ok(steps)
    }
}

/// The row that a step or an error is of.
fn row_of(step: &Result<Step, RowError>) -> RowId {
    match step {
        Ok(step) => step.row,
        Err(error) => error.row,
    }
}

/// Decided tokens of some rows, and of others behind them.
fn join<B: Backend>(first: Option<Pending<B>>, second: Option<Pending<B>>) -> Option<Pending<B>> {
    match (first, second) {
        (Some(first), Some(second)) => Some(Pending {
            step: PendingStep::and(first.step, Some(second.step)),
            rows: [first.rows, second.rows].concat(),
            positions: first.positions + second.positions,
        }),
        (first, second) => first.or(second),
    }
}
