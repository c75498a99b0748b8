//! The decode loop: one step for rows of different prompts, rules and lengths.

use burn::tensor::{Tensor, backend::Backend};
use moi::Start;
use moi_models::{BlockTable, CausalLm, ForwardBatch};

use crate::{
    Engine, EngineError, Prompt, Request, RowError, RowId, Sampler, Session, Step,
    decider::{Decider, Limits},
    engine::{Encoded, Prefilled},
    pending_step::{PendingStep, kept},
    row::Row,
    stop::StopMatcher,
    text::{Detokenizer, control_token},
};

/// Rows that are decoded together. Rows may be added between steps, and leave when they end.
///
/// On a device that samples and mixes by itself a step is launched before the tokens of the one before are read, so
/// that neither waits for the other. A row that turns out to have ended was then computed once in vain; of one that must
/// end, for its length or its context, that is known in time.
#[derive(Debug)]
pub struct Batch<'e, B: Backend, M> {
    engine: &'e Engine<B, M>,
    /// Those that run, then those that wait.
    rows: Vec<Row<B>>,
    /// Of the rows that run `[rows, d]`, not yet run through the model.
    inputs: Option<Tensor<B, 2>>,
    /// The next tokens of the rows that run, if their inputs have run already.
    ahead: Option<PendingStep<B>>,
    /// Logits `[1, vocab]` behind prompts that have run since the last step.
    waiting: Vec<Tensor<B, 2>>,
    added: usize,
    /// Whether what the only row has cached outlives it.
    keeps: bool,
    /// That row.
    ended: Option<Row<B>>,
    /// What rows held back when a step failed.
    left: String,
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
            waiting: Vec::new(),
            added: 0,
            keeps: false,
            ended: None,
            left: String::new(),
        }
    }

    /// A batch of a row whose cached positions outlive it: see [`Batch::into_session`].
    pub(crate) fn keeping(engine: &'e Engine<B, M>) -> Self {
        Self { keeps: true, ..Self::new(engine) }
    }

    /// What is cached, ended or not, of a batch of one row.
    pub(crate) fn into_session(mut self) -> Option<Session> {
        let Row { table, decider, positions, .. } = self.rows.pop().or(self.ended.take())?;
        let ids = decider.sampler.history().all(0);
        // Embeddings given by a caller are no tokens that a later prompt could begin with.
        let ids = if ids.len() == positions { ids } else { &[] };
        Some(Session::new(table, ids))
    }

    /// Runs a request's prompt and lets it take part from the next step on.
    ///
    /// # Errors
    /// If the request is refused; the batch is then unchanged.
    pub fn add(&mut self, request: Request<B>) -> Result<RowId, EngineError> {
        let rows = self.add_all(vec![request])?;
        Ok(rows[0])
    }

    /// Adds several. Those with the same prompt, as ids or as text, share one run of it: several samples of a prompt, or
    /// one prompt under several rules.
    ///
    /// # Errors
    /// If one is refused; the batch is then unchanged.
    pub fn add_all(&mut self, requests: Vec<Request<B>>) -> Result<Vec<RowId>, EngineError> {
        let mut added: Vec<(Row<B>, Tensor<B, 2>)> = Vec::with_capacity(requests.len());
        let mut prompts: Vec<Prompt<B>> = Vec::with_capacity(requests.len());
        for request in requests {
            let id = RowId(self.added + added.len());
            let same = prompts.iter().position(|prompt| prompt.is_same(&request.prompt));
            prompts.push(request.prompt.clone());
            added.push(match same {
                Some(same) => {
                    let (first, logits) = &added[same];
                    let ids = first.decider.sampler.history().all(0);
                    let mut row = self.row(id, request, ids, first.positions)?;
                    (row.table, row.inputs) = (first.table.clone(), first.inputs.clone());
                    (row, logits.clone())
                }
                None => {
                    request.check()?;
                    let Encoded { inputs, ids } = self.engine.encode(&request.prompt)?;
                    let row = self.row(id, request, &ids, inputs.dims()[0])?.keeping(&inputs, self.engine);
                    self.prefilled(row, inputs, None)?
                }
            });
        }
        Ok(added.into_iter().map(|(row, logits)| self.push(row, logits)).collect())
    }

    /// Adds a request behind what a session has cached.
    pub(crate) fn resume(&mut self, session: Session, request: Request<B>) -> Result<RowId, EngineError> {
        request.check()?;
        let Encoded { inputs, ids } = self.engine.encode(&request.prompt)?;
        let row = self.row(RowId(self.added), request, &ids, inputs.dims()[0])?.keeping(&inputs, self.engine);
        let (table, known) = session.behind(&ids, &self.engine.model, &self.engine.pool());
        let new = inputs.dims()[0] - known;
        let (row, logits) = self.prefilled(row, inputs.narrow(0, known, new), Some(table))?;
        Ok(self.push(row, logits))
    }

    /// A row whose prompt, as far as it is not cached in a table, has run; and the logits behind it.
    fn prefilled(
        &self,
        row: Row<B>,
        inputs: Tensor<B, 2>,
        table: Option<BlockTable>,
    ) -> Result<(Row<B>, Tensor<B, 2>), EngineError> {
        let table = table.unwrap_or_else(|| self.engine.pool().table());
        let Prefilled { table, logits } = self.engine.prefill(inputs, table)?;
        Ok((Row { table, ..row }, logits))
    }

    fn push(&mut self, row: Row<B>, logits: Tensor<B, 2>) -> RowId {
        let id = row.id;
        self.added = id.0 + 1;
        self.waiting.push(logits);
        self.rows.push(row);
        id
    }

    /// A row before its first token, behind a prompt of these ids, if it has any, and so many positions.
    fn row(
        &self,
        id: RowId,
        request: Request<B>,
        prompt: &[u32],
        positions: usize,
    ) -> Result<Row<B>, EngineError> {
        request.check()?;
        let Engine { tokenizer, eos, markers, .. } = self.engine;
        if !request.stop.strings.is_empty() && tokenizer.is_none() {
            return Err(EngineError::NoTokenizer("a stop string"));
        }
        self.check_tokens(&request)?;
        let room = self.engine.model.context_length().saturating_sub(positions) + 1;
        let marker = prompt.iter().rev().find(|&&id| markers.is_some_and(|m| id == m.open || id == m.close));
        let start = Start {
            seed: request.seed,
            scope: request.scope,
            markers: *markers,
            thinking: marker.is_some_and(|&id| markers.is_some_and(|markers| id == markers.open)),
            limit: Some(request.stop.max_tokens.map_or(room, |max| max.min(room))),
        };
        let breakers = self.engine.breakers(&request.sampling.dry)?;
        let sampler =
            Sampler::new(request.sampling, request.seed)?.with_prompt(prompt).with_breakers(breakers);
        let constraint = request.grammar.map(|grammar| self.engine.constraint(&grammar)).transpose()?;
        let control = |text: &String| control_token(tokenizer.as_ref()?, text);
        let stop_tokens: Vec<u32> = request.stop.strings.iter().filter_map(control).collect();
        // None of them may come before its time.
        let ends: Vec<u32> = eos.iter().chain(&stop_tokens).copied().collect();
        let limits = Limits::new(&request.stop, &ends, constraint, request.mix_constrained);
        let decider = Decider::new(moi::Row::new(request.rule, &start)?, sampler, limits);
        Ok(Row {
            id,
            stop_tokens,
            decider: decider.reporting(request.top, request.logprobs),
            matcher: StopMatcher::new(request.stop.strings.clone()),
            stop: request.stop,
            detokenizer: Detokenizer::default(),
            table: self.engine.pool().table(),
            positions,
            inputs: None,
            was_recomputed: false,
        })
    }

    /// Tokens that are named by a request or of the engine must be the model's.
    fn check_tokens(&self, request: &Request<B>) -> Result<(), EngineError> {
        let vocab_size = self.engine.model.embedding().dims()[0];
        let markers = self.engine.markers.iter().flat_map(|markers| [markers.open, markers.close]);
        let biased = request.sampling.logit_bias.0.keys().copied();
        let named = [("banned", request.sampling.banned.clone()), ("biased", biased.collect())];
        for (what, tokens) in named.into_iter().chain([("marker of thinking", markers.collect())]) {
            if let Some(token) = tokens.into_iter().find(|&token| token as usize >= vocab_size) {
                return Err(EngineError::UnknownToken { what, token, vocab_size });
            }
        }
        Ok(())
    }

    /// Rows that have not ended.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether every row has ended.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Ends all rows: the text that they held back, in order.
    pub(crate) fn finish(mut self) -> Result<String, EngineError> {
        self.flush()
    }

    /// The text that rows hold back, in order.
    pub(crate) fn flush(&mut self) -> Result<String, EngineError> {
        match &self.engine.tokenizer {
            Some(tokenizer) => {
                let left = std::mem::take(&mut self.left);
                self.rows.iter_mut().try_fold(left, |text, row| Ok(text + &row.flush(tokenizer)?.0))
            }
            None => Ok(String::new()),
        }
    }

    /// Keeps the text that a failed row held back for [`Batch::finish`].
    pub(crate) fn keep_text(&mut self, RowError { error, text, .. }: RowError) -> EngineError {
        self.left += &text;
        error
    }

    pub(crate) fn engine(&self) -> &'e Engine<B, M> {
        self.engine
    }

    /// One token for every row, in the order in which they were added; none if all have ended. A row that fails ends with
    /// its own error, and the others go on.
    ///
    /// # Errors
    /// If the model or the device fails. All rows have then ended, and the batch is empty; [`crate::Generation::finish`] still
    /// gives the text that was held back.
    pub fn step(&mut self) -> Result<Vec<Result<Step, RowError>>, EngineError> {
        let mut rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let stepped = self.step_rows(&mut rows);
        match stepped {
            Ok(mut steps) => {
                for (row, step) in rows.into_iter().zip(&steps) {
                    match step {
                        Ok(Step { stop: None, .. }) => self.rows.push(row),
                        Ok(_) => self.ended = self.keeps.then_some(row),
                        Err(_) => {}
                    }
                }
                // Those that wait stand behind those that run.
                self.rows.sort_by_key(|row| row.was_recomputed);
                self.rows.iter_mut().for_each(|row| row.was_recomputed = false);
                if self.rows.is_empty() {
                    self.engine.pool().shrink();
                }
                steps.sort_by_key(|step| match step {
                    Ok(step) => step.row,
                    Err(error) => error.row,
                });
                Ok(steps)
            }
            Err(error) => {
                let Self { engine, added, .. } = *self;
                *self = Self { rows, added, ..Self::new(engine) };
                // A text that cannot be decoded is no second reason.
                let left = self.flush().unwrap_or_default();
                *self = Self { left, added, ..Self::new(engine) };
                Err(error)
            }
        }
    }

    fn step_rows(&mut self, rows: &mut [Row<B>]) -> Result<Vec<Result<Step, RowError>>, EngineError> {
        let current = self.decided(rows)?;
        // Rows that have run ahead, by their places among all.
        let mut ahead: Vec<usize> = Vec::new();
        if current.is_in_flight() {
            let goes_on =
                |row: &Row<B>| !row.ends_with_next(self.engine) && !row.recomputes_with_next(self.engine);
            ahead = (0..rows.len()).filter(|&row| goes_on(&rows[row])).collect();
            self.launch_ahead(&current, &ahead, rows)?;
        }
        let (outcomes, inputs) = current.wait(|row| rows[row].decider.generated())?;
        let mut steps = Vec::with_capacity(rows.len());
        for (index, (row, outcome)) in rows.iter_mut().zip(outcomes).enumerate() {
            let step = outcome.and_then(|(sampled, mix)| row.take(sampled, mix, self.engine));
            let ran_ahead = ahead.binary_search(&index).is_ok();
            steps.push(step.map_err(|error| self.row_error(row, ran_ahead, error)));
        }
        let goes_on = |index: usize| matches!(steps[index], Ok(Step { stop: None, .. }));
        for index in (0..rows.len()).filter(|&index| goes_on(index)) {
            self.recompute_cache(&mut rows[index], inputs.clone().narrow(0, index, 1))?;
        }
        let stays = |index: usize| goes_on(index) && !rows[index].was_recomputed;
        let device = &self.engine.device;
        match self.ahead.take() {
            Some(launched) => {
                let keep: Vec<usize> = (0..ahead.len()).filter(|&i| stays(ahead[i])).collect();
                self.ahead = (!keep.is_empty()).then(|| launched.keep(&keep, device));
            }
            None => {
                let keep: Vec<usize> = (0..rows.len()).filter(|&index| stays(index)).collect();
                self.inputs = (!keep.is_empty()).then(|| kept(inputs, &keep, device));
            }
        }
        Ok(steps)
    }

    /// Keeps the next input `[1, d]` of a row whose cached positions may have to be computed anew, and computes them anew
    /// where that is due.
    fn recompute_cache(&mut self, row: &mut Row<B>, input: Tensor<B, 2>) -> Result<(), EngineError> {
        let Some(inputs) = &mut row.inputs else { return Ok(()) };
        let dtype = inputs.first().map_or(input.dtype(), Tensor::dtype);
        inputs.push(input.cast(dtype));
        if self.engine.model.recompute_beyond().is_none_or(|most| row.positions <= most) {
            return Ok(());
        }
        let inputs = Tensor::cat(row.inputs.take().unwrap_or_default(), 0);
        // The blocks of the old one go back before new ones are taken.
        row.table = self.engine.pool().table();
        let Prefilled { table, logits } = self.engine.prefill(inputs, row.table.clone())?;
        row.table = table;
        self.waiting.push(logits);
        row.was_recomputed = true;
        Ok(())
    }

    /// A row's error, traced to where in the model its numbers broke.
    fn row_error(&self, row: &mut Row<B>, ran_ahead: bool, error: EngineError) -> RowError {
        // A step that was launched ahead has written one position more, of an input made of broken logits.
        let positions = row.table.len() - usize::from(ran_ahead);
        let error = error.traced(&self.engine.model, &self.engine.pool(), &row.table, positions);
        // A text that cannot be decoded is no second reason.
        let text = self.engine.tokenizer.as_ref().and_then(|tokenizer| row.flush(tokenizer).ok());
        RowError { row: row.id, error, text: text.map(|(text, _)| text).unwrap_or_default() }
    }

    /// The next tokens of all rows: of those that run and of those that wait, which join them.
    fn decided(&mut self, rows: &mut [Row<B>]) -> Result<PendingStep<B>, EngineError> {
        let ahead = self.ahead.take();
        let known = if ahead.is_some() { rows.len() - self.waiting.len() } else { 0 };
        let mut logits = Vec::new();
        if let Some(inputs) = self.inputs.take() {
            let count = inputs.dims()[0];
            logits.push(self.forward(inputs, rows[..count].iter_mut())?);
        }
        logits.append(&mut self.waiting);
        let logits = match logits.len() {
            0 => None,
            1 => logits.pop(),
            _ => Some(Tensor::cat(logits, 0)),
        };
        let new = match logits {
            Some(logits) => {
                let mut deciders: Vec<&mut Decider> =
                    rows[known..].iter_mut().map(|row| &mut row.decider).collect();
                Some(PendingStep::new(self.engine, logits, &mut deciders)?)
            }
            None => None,
        };
        match (ahead, new) {
            (Some(ahead), new) => Ok(ahead.and(new)),
            (None, Some(new)) => Ok(new),
            (None, None) => unreachable!("there are rows, and each runs or waits"),
        }
    }

    /// Runs the next inputs of the rows that go on, and decides their tokens, before the current ones are known.
    fn launch_ahead(
        &mut self,
        current: &PendingStep<B>,
        running: &[usize],
        rows: &mut [Row<B>],
    ) -> Result<(), EngineError> {
        if running.is_empty() {
            return Ok(());
        }
        let inputs = kept(current.inputs.clone(), running, &self.engine.device);
        let mut next = running.iter().copied().peekable();
        let is_running = |(index, row)| next.next_if_eq(&index).map(|_| row);
        let mut of_running: Vec<&mut Row<B>> = rows.iter_mut().enumerate().filter_map(is_running).collect();
        let logits = self.forward(inputs, of_running.iter_mut().map(|row| &mut **row))?;
        let mut deciders: Vec<&mut Decider> = of_running.into_iter().map(|row| &mut row.decider).collect();
        self.ahead = Some(PendingStep::new(self.engine, logits, &mut deciders)?);
        Ok(())
    }

    /// Logits `[rows, vocab]` behind the next inputs of some rows.
    fn forward<'r>(
        &self,
        inputs: Tensor<B, 2>,
        rows: impl Iterator<Item = &'r mut Row<B>>,
    ) -> Result<Tensor<B, 2>, EngineError> {
        let tables = rows.map(|row| &mut row.table);
        let hidden =
            self.engine.model.forward(ForwardBatch::step(inputs, tables), &mut self.engine.pool())?;
        Ok(self.engine.model.logits(hidden))
    }
}
