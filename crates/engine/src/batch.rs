//! A batch of sequences that are decoded together: its members, and the results of each round.

use burn::tensor::backend::Backend;
use moi_models::{CausalLm, is_gpu};

use crate::{
    Engine, EngineError, PreparedRequest, PromptReport, Request, SequenceError, SequenceId, Session,
    TokenEvent,
    pending_step::{PendingStep, kept},
    round::{Clock, Inputs, Pending, RoundTimes, parts_of, place},
    sequence::{Sequence, Stage},
    speculation::Drafted,
    token_chooser::TokenChooser,
};

/// Sequences that are decoded together. Sequences may be added between steps, leave when they end, and can be
/// cancelled at any time. Prompts run in pieces beside the sequences that decode, so that none of these waits for a
/// whole prompt.
///
/// On a device that samples and mixes by itself, a step is launched before the tokens of the previous step are read,
/// so that neither the device nor the host waits for the other. If such a token ends its sequence, the launched step
/// of that sequence was computed in vain. An end by length or by a full context is known in advance.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Request};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
/// request.stop.max_tokens = Some(2);
/// let mut batch = engine.batch();
/// batch.add_all(vec![request.clone(), Request { seed: 1, ..request }])?;
/// let mut tokens = 0;
/// while !batch.is_empty() {
///     tokens += batch.step()?.len();
/// }
/// assert_eq!(tokens, 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batch<'e, B: Backend, M> {
    engine: &'e Engine<B, M>,
    pub(crate) rows: Vec<Sequence<B>>,
    /// Next inputs of the rows that decode, which have not run through the model yet.
    pub(crate) inputs: Option<Inputs<B>>,
    /// Decided tokens of the rows that decode, which are not reported yet.
    pub(crate) ahead: Option<Pending<B>>,
    pub(crate) times: RoundTimes,
    /// Whether the shortest prompt goes first in the next round, instead of the oldest.
    pub(crate) shortest_is_next: bool,
    added: usize,
    /// Number of prompt positions that were already cached.
    reused: usize,
    /// Whether the inputs of all rows are kept, so that a parked row's KV cache can be dropped and computed again.
    pub(crate) replays: bool,
    /// Whether recurrent states are saved at the ends of a prompt's blocks.
    pub(crate) keeps_checkpoints: bool,
    /// Whether the KV cache of the batch's only row outlives the row.
    keeps: bool,
    /// That row, after its end.
    ended: Option<Sequence<B>>,
    /// Text that was held back by rows that ended with an error.
    pub(crate) left: Vec<(SequenceId, String)>,
    /// Reports of prompts that have run, which are not given out yet.
    pub(crate) prompts: Vec<(SequenceId, PromptReport)>,
    /// Whether prompts are reported.
    pub(crate) reports_prompts: bool,
}

impl<'e, B: Backend, M: CausalLm<B>> Batch<'e, B, M> {
    pub(crate) fn new(engine: &'e Engine<B, M>) -> Self {
        // Generations that were dropped before their end have left memory allocated.
        engine.shrink();
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

    /// A batch of one row whose KV cache outlives it: see [`Batch::into_session`].
    pub(crate) fn keeping(engine: &'e Engine<B, M>) -> Self {
        Self { keeps: true, ..Self::new(engine) }
    }

    /// A batch whose parked rows keep their inputs instead of their KV cache. The inputs run again when the row
    /// continues.
    pub(crate) fn replaying(engine: &'e Engine<B, M>) -> Self {
        Self { replays: true, ..Self::new(engine) }
    }

    /// The KV cache of a batch of one row, whether that row has ended or not.
    pub(crate) fn into_session(mut self) -> Option<Session> {
        let Sequence { table, chooser, positions, .. } = self.rows.pop().or(self.ended.take())?;
        let ids = chooser.sampler.history().all(0);
        // Embeddings given by a caller are not tokens that a later prompt could begin with.
        let ids = if ids.len() == positions { ids } else { &[] };
        Some(Session::new(table, ids))
    }

    /// Adds a request, which takes part from the next step on. Its prompt runs in pieces beside the rows that decode.
    ///
    /// # Errors
    /// If the request is refused; the batch is then unchanged.
    pub fn add(&mut self, request: Request<B>) -> Result<SequenceId, EngineError> {
        Ok(self.join(self.engine.prepare(request)?))
    }

    /// Adds several requests.
    ///
    /// # Errors
    /// If one is refused; the batch is then unchanged.
    pub fn add_all(&mut self, requests: Vec<Request<B>>) -> Result<Vec<SequenceId>, EngineError> {
        let prepared = self.engine.prepare_all(requests)?;
        Ok(prepared.into_iter().map(|request| self.join(request)).collect())
    }

    /// Adds a request that was prepared before.
    ///
    /// # Errors
    /// If it was prepared by another engine.
    pub fn add_prepared(&mut self, request: PreparedRequest<B>) -> Result<SequenceId, EngineError> {
        self.engine.owns(&request)?;
        Ok(self.join(request))
    }

    /// Adds a request. If the same prompt runs or is about to run for another row, one run serves both: several
    /// samples of a prompt, or one prompt under several rules.
    pub(crate) fn join(&mut self, request: PreparedRequest<B>) -> SequenceId {
        let runs_it = |row: &&Sequence<B>| {
            let begins =
                matches!(row.stage, Stage::Prompt(_)) && row.is_public && row.chooser.generated() == 0;
            begins && row.salt == request.salt() && row.chooser.sampler.history().all(0) == request.ids()
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

    /// Adds a request that continues the KV cache of a session.
    pub(crate) fn resume(
        &mut self,
        session: Session,
        request: Request<B>,
    ) -> Result<SequenceId, EngineError> {
        let request = self.engine.prepare(request)?;
        let behind = session.reuse_prefix(request.ids(), &self.engine.model, &self.engine.pool());
        let Some(behind) = behind else {
            let behind = self.engine.find_prefix(request.salt(), request.ids());
            return Ok(self.begin(request, behind));
        };
        let id = self.begin(request, Some(behind));
        if let Some(row) = self.rows.last_mut() {
            // Cached positions of a session may hold mixtures.
            row.is_public = false;
        }
        Ok(id)
    }

    /// The id of the next row that is added.
    pub(crate) fn next_id(&self) -> SequenceId {
        SequenceId(self.added)
    }

    pub(crate) fn push(&mut self, row: Sequence<B>) -> SequenceId {
        let id = row.id;
        self.added += 1;
        self.reused += row.reused;
        self.rows.push(row);
        id
    }

    /// Whether the inputs of a row with this many positions are kept, because its KV cache may have to be computed
    /// again.
    pub(crate) fn keeps_inputs(&self, positions: usize) -> bool {
        self.replays || self.engine.model.recompute_beyond().is_some_and(|most| positions <= most)
    }

    /// The number of rows that have not ended.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether every row has ended.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Prompt positions that were already cached when their request was added, of all rows so far.
    pub fn reused_positions(&self) -> usize {
        self.reused
    }

    pub(crate) fn engine(&self) -> &'e Engine<B, M> {
        self.engine
    }

    /// Runs the prompts of all rows to their ends. Rows that already decode get no token meanwhile.
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
                    // A GPU may only have queued the work, so the time until now says nothing about how long it
                    // takes.
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

    /// The next tokens: one for each row that decodes, or more for a row that speculates, in the order in which rows
    /// were added; empty if all have ended. A row that fails ends with its own error, and the other rows continue.
    ///
    /// # Errors
    /// If the model or the device fails. All rows have then ended, and the batch is empty; [`crate::Generation::finish`] still
    /// gives the text that was held back.
    pub fn step(&mut self) -> Result<Vec<Result<TokenEvent, SequenceError>>, EngineError> {
        loop {
            let steps = self.round()?;
            if !steps.is_empty() || self.rows.is_empty() {
                return Ok(steps);
            }
        }
    }

    /// One pass through the model. Like [`Batch::step`], except that the result may be empty while prompts run and no
    /// row decodes. Between rounds rows can be added and cancelled.
    ///
    /// # Errors
    /// As [`Batch::step`].
    pub fn round(&mut self) -> Result<Vec<Result<TokenEvent, SequenceError>>, EngineError> {
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
            // The last of its steps says whether it goes on.
            let behind = steps.partition_point(|step| row_of(step) <= row.id);
            let of_row = behind.checked_sub(1).map(|at| &steps[at]).filter(|step| row_of(step) == row.id);
            match of_row {
                None | Some(Ok(TokenEvent { stop: None, .. })) => self.rows.push(row),
                Some(Ok(_)) => self.ended = self.keeps.then_some(row),
                Some(Err(_)) => {}
            }
        }
        if self.rows.is_empty() {
            self.engine.shrink();
        }
        Ok(steps)
    }

    fn round_of(
        &mut self,
        rows: &mut [Sequence<B>],
    ) -> Result<Vec<Result<TokenEvent, SequenceError>>, EngineError> {
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
                let stops = row.parks || row.recomputes_with_next(self.engine) || row.drafting.is_some();
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

    /// Waits for decided tokens and gives them to their rows. Rows whose drafts were right go on with the next tokens
    /// of the same pass. The step launched ahead is kept for the rows that continue.
    fn report(
        &mut self,
        rows: &mut [Sequence<B>],
        current: Pending<B>,
        ahead: Option<Pending<B>>,
    ) -> Result<Vec<Result<TokenEvent, SequenceError>>, EngineError> {
        let Pending { step, rows: ids, mut drafted, positions } = current;
        self.times.ran(positions);
        let mut given = Given {
            ran_ahead: ahead.iter().flat_map(|ahead| ahead.rows.iter().copied()).collect(),
            ..Given::default()
        };
        if let Err(error) = self.walk(rows, step, &ids, &mut drafted, &mut given) {
            // The text of tokens that were taken before the failure is not lost.
            self.left.extend(given.steps.into_iter().map(|step| match step {
                Ok(step) => (step.row, step.text),
                Err(error) => (error.row, error.text),
            }));
            return Err(error);
        }
        if let Some(drafted) = &drafted {
            self.end_drafted(rows, drafted);
        }
        let Given { steps, left, waiting, .. } = given;
        self.inputs = Inputs::joined(waiting);
        self.ahead = ahead.and_then(|ahead| ahead.retain(|row| !left.contains(&row), &self.engine.device));
        Ok(steps)
    }

    /// Gives tokens to rows, and further ones of the same pass to rows whose drafts were right.
    fn walk(
        &self,
        rows: &mut [Sequence<B>],
        step: PendingStep<B>,
        ids: &[SequenceId],
        drafted: &mut Option<Drafted<B>>,
        given: &mut Given<B>,
    ) -> Result<(), EngineError> {
        let mut walking = self.give(rows, step, ids, drafted, given)?;
        while let Some(pass) = drafted.as_ref().filter(|_| !walking.is_empty()) {
            let logits = pass.current(&walking, &self.engine.device);
            let places: Vec<usize> = walking.iter().map(|&id| place(rows, id)).collect();
            places.iter().for_each(|&place| pass.set_verification(&mut rows[place]));
            let mut choosers: Vec<&mut TokenChooser> = parts_of(rows, &places, |row| &mut row.chooser);
            let step = PendingStep::new(self.engine, logits, &mut choosers)?;
            walking = self.give(rows, step, &walking, drafted, given)?;
        }
        Ok(())
    }

    /// Waits for the tokens of some rows and gives them to these. Returns the rows that go on with the same pass.
    fn give(
        &self,
        rows: &mut [Sequence<B>],
        step: PendingStep<B>,
        ids: &[SequenceId],
        drafted: &mut Option<Drafted<B>>,
        given: &mut Given<B>,
    ) -> Result<Vec<SequenceId>, EngineError> {
        let places: Vec<usize> = ids.iter().map(|&id| place(rows, id)).collect();
        let (outcomes, inputs) = step.wait(|at| rows[places[at]].chooser.generated())?;
        let (mut walking, mut waiting) = (Vec::new(), Vec::new());
        for (at, (&place, outcome)) in places.iter().zip(outcomes).enumerate() {
            let row = &mut rows[place];
            let has_run = given.ran_ahead.contains(&row.id);
            let scored = row.scores.as_mut().and_then(|scores| scores.failed.take());
            let outcome = scored.map_or(outcome, Err);
            let step = outcome.and_then(|(sampled, mix)| row.take(sampled, mix, self.engine));
            let goes_on = matches!(step, Ok(TokenEvent { stop: None, .. }));
            let input = inputs.clone().narrow(0, at, 1);
            let logits = drafted.as_ref().map(Drafted::logits);
            let mut walk = drafted.as_mut().and_then(|drafted| drafted.of(row.id));
            let step = step.map(|step| self.speculated(row, step, walk.as_deref_mut(), &input));
            let fed = step.as_ref().ok().and_then(|(_, fed)| fed.clone());
            let is_walking = fed.is_some();
            if let Some((walk, logits)) = walk.zip(logits).filter(|_| !is_walking) {
                self.end_walk(row, walk, &logits)?;
            }
            if goes_on {
                // A guess that was kept is a part of a larger tensor, too.
                let of = if is_walking { 2 } else { places.len() };
                row.keep_input(fed.as_ref().unwrap_or(&input), of);
                if is_walking {
                    walking.push(row.id);
                } else if !has_run && !row.parks_or_restarts(input, self.engine) {
                    waiting.push(at);
                }
            } else {
                given.left.push(row.id);
            }
            let step = step.map(|(step, _)| step).map_err(|error| self.row_error(row, has_run, error));
            given.steps.push(step);
        }
        if !waiting.is_empty() {
            given.waiting.push(Inputs {
                inputs: kept(inputs, &waiting, &self.engine.device),
                rows: waiting.iter().map(|&at| ids[at]).collect(),
            });
        }
        Ok(walking)
    }
}

/// What a round has given so far.
#[derive(Debug)]
struct Given<B: Backend> {
    steps: Vec<Result<TokenEvent, SequenceError>>,
    /// Rows that have ended.
    left: Vec<SequenceId>,
    /// The next inputs of rows that go on.
    waiting: Vec<Inputs<B>>,
    /// Rows whose next inputs run already.
    ran_ahead: Vec<SequenceId>,
}

impl<B: Backend> Default for Given<B> {
    fn default() -> Self {
        Self { steps: Vec::new(), left: Vec::new(), waiting: Vec::new(), ran_ahead: Vec::new() }
    }
}

/// The row that a token or an error belongs to.
fn row_of(step: &Result<TokenEvent, SequenceError>) -> SequenceId {
    match step {
        Ok(step) => step.row,
        Err(error) => error.row,
    }
}

/// Joins the decided tokens of some rows with those of other rows.
fn join<B: Backend>(first: Option<Pending<B>>, second: Option<Pending<B>>) -> Option<Pending<B>> {
    match (first, second) {
        (Some(first), Some(second)) => Some(Pending {
            step: PendingStep::and(first.step, Some(second.step)),
            rows: [first.rows, second.rows].concat(),
            // Steps that were launched ahead have no drafts.
            drafted: first.drafted.or(second.drafted),
            positions: first.positions + second.positions,
        }),
        (first, second) => first.or(second),
    }
}
