//! The decode loop: one step for rows of different prompts, rules and lengths.

use burn::tensor::{Tensor, backend::Backend};
use moi::{InputRule, RowMix};
use moi_models::{CausalLm, KvCache};

use crate::{
    Engine, EngineError, Request, Sampled, Sampler, StopReason, StopRules,
    engine::Prefilled,
    launch::{Decides, Launched, kept},
    stop::StopMatcher,
    text::{Detokenizer, Tokenizer},
};

/// A row of a batch, by the order in which it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub usize);

/// One token of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Whose.
    pub row: RowId,
    /// The sampled token.
    pub token: u32,
    /// The text that is certain now: a piece of it may have been held back until now, or be held back still.
    pub text: String,
    /// Log-probability of the token in the raw distribution.
    pub logprob: f64,
    /// Normalised entropy on the support of the row's rule, 0 to 1.
    pub entropy: f32,
    /// How far the next input moves towards the mean embedding.
    pub gate: f32,
    /// The largest weights of the next input: (token, weight), largest first.
    pub top: Vec<(u32, f32)>,
    /// Why this was the row's last token.
    pub stop: Option<StopReason>,
}

/// Rows that are decoded together. Rows may be added between steps, and leave when they end.
///
/// On a device that samples and mixes by itself a step is launched before the tokens of the one before are read, so
/// that neither waits for the other. A row that turns out to have ended was then computed once in vain; of one that must
/// end, for its length or its context, that is known in time.
#[derive(Debug)]
pub struct Batch<'e, B: Backend, M> {
    engine: &'e Engine<B, M>,
    /// In the order of the cache's rows, then those that wait.
    rows: Vec<Row>,
    cache: KvCache<B>,
    /// Of the rows in the cache `[rows, d]`, not yet run through the model.
    inputs: Option<Tensor<B, 2>>,
    /// The next tokens of the rows in the cache, if their inputs have run already.
    ahead: Option<Launched<B>>,
    /// Prompts that have run since the last step.
    waiting: Vec<(KvCache<B>, Tensor<B, 2>)>,
    added: usize,
}

/// What a row carries from step to step.
#[derive(Debug)]
struct Row {
    id: RowId,
    rule: InputRule,
    top: usize,
    sampler: Sampler,
    stop: StopRules,
    matcher: StopMatcher,
    detokenizer: Detokenizer,
    /// In the cache.
    positions: usize,
    generated: usize,
}

impl<'e, B: Backend, M: CausalLm<B>> Batch<'e, B, M> {
    pub(crate) fn new(engine: &'e Engine<B, M>) -> Self {
        let cache = engine.model.new_cache(0);
        Self { engine, rows: Vec::new(), cache, inputs: None, ahead: None, waiting: Vec::new(), added: 0 }
    }

    /// Runs a request's prompt and lets it take part from the next step on.
    ///
    /// # Errors
    /// If the request is refused; the batch is then unchanged.
    pub fn add(&mut self, request: Request<B>) -> Result<RowId, EngineError> {
        request.check()?;
        if !request.stop.strings.is_empty() && self.engine.tokenizer.is_none() {
            return Err(EngineError::NoTokenizer("a stop string"));
        }
        let sampler = Sampler::new(request.sampling, request.seed)?;
        let Prefilled { cache, logits, positions } = self.engine.prefill(&request.prompt)?;
        let id = RowId(self.added);
        self.added += 1;
        self.waiting.push((cache, logits));
        self.rows.push(Row {
            id,
            rule: request.rule,
            top: request.top,
            sampler,
            matcher: StopMatcher::new(request.stop.strings.clone()),
            stop: request.stop,
            detokenizer: Detokenizer::default(),
            positions,
            generated: 0,
        });
        Ok(id)
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
        match &self.engine.tokenizer {
            Some(tokenizer) => self.rows.iter_mut().map(|row| row.flush(tokenizer)).collect(),
            None => Ok(String::new()),
        }
    }

    /// One token for every row, in the order in which they were added; none if all have ended.
    ///
    /// # Errors
    /// If a row's logits are broken. All rows have then ended, and the batch is empty.
    pub fn step(&mut self) -> Result<Vec<Step>, EngineError> {
        let stepped = self.step_rows();
        if stepped.is_err() {
            let Self { engine, added, .. } = *self;
            *self = Self { added, ..Self::new(engine) };
        }
        stepped
    }

    fn step_rows(&mut self) -> Result<Vec<Step>, EngineError> {
        let mut rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut current = self.decided(&mut rows)?;
        // Rows that are in the cache and whose inputs are at hand, by their places among all.
        let mut running: Vec<usize> = (0..rows.len()).collect();
        if current.is_coming() {
            running.retain(|&row| !rows[row].ends_with_next(self.engine));
            current = self.launch_ahead(current, &running, &mut rows)?;
        }
        let (outcomes, inputs) = current.wait(|row| rows[row].generated)?;
        let mut steps = Vec::with_capacity(rows.len());
        for (row, (sampled, mix)) in rows.iter_mut().zip(outcomes) {
            steps.push(row.take(sampled, mix, self.engine)?);
        }
        let keep: Vec<usize> = (0..running.len()).filter(|&i| steps[running[i]].stop.is_none()).collect();
        self.rows = rows.into_iter().zip(&steps).filter(|(_, s)| s.stop.is_none()).map(|(r, _)| r).collect();
        let device = &self.engine.device;
        self.cache.keep_rows(&keep, device);
        match self.ahead.take() {
            Some(ahead) => self.ahead = (!keep.is_empty()).then(|| ahead.keep(&keep, device)),
            None => self.inputs = (!keep.is_empty()).then(|| kept(inputs, &keep, device)),
        }
        Ok(steps)
    }

    /// The next tokens of all rows: of those in the cache and of those that wait, which join them.
    fn decided(&mut self, rows: &mut [Row]) -> Result<Launched<B>, EngineError> {
        let ahead = self.ahead.take();
        let known = if ahead.is_some() { self.cache.batch() } else { 0 };
        let mut logits = Vec::new();
        if let Some(inputs) = self.inputs.take() {
            logits.push(self.forward(inputs)?);
        }
        if !self.waiting.is_empty() {
            let empty = self.engine.model.new_cache(0);
            let mut caches = vec![std::mem::replace(&mut self.cache, empty)];
            for (cache, last) in self.waiting.drain(..) {
                caches.push(cache);
                logits.push(last);
            }
            if let Some(cache) = KvCache::stack(caches) {
                self.cache = cache;
            }
        }
        let logits = match logits.len() {
            0 => None,
            1 => logits.pop(),
            _ => Some(Tensor::cat(logits, 0)),
        };
        let new = match logits {
            Some(logits) => Some(Launched::new(self.engine, logits, &mut rows[known..])?),
            None => None,
        };
        match (ahead, new) {
            (Some(ahead), new) => Ok(ahead.and(new)),
            (None, Some(new)) => Ok(new),
            (None, None) => unreachable!("there are rows, and each is in the cache or waits"),
        }
    }

    /// Runs the next inputs of the rows that go on, and decides their tokens, before the current ones are known.
    fn launch_ahead(
        &mut self,
        current: Launched<B>,
        running: &[usize],
        rows: &mut [Row],
    ) -> Result<Launched<B>, EngineError> {
        let device = &self.engine.device;
        self.cache.keep_rows(running, device);
        if running.is_empty() {
            return Ok(current);
        }
        let logits = self.forward(kept(current.inputs.clone(), running, device))?;
        let mut of_running: Vec<&mut Row> = Vec::with_capacity(running.len());
        let mut next = running.iter().copied().peekable();
        for (index, row) in rows.iter_mut().enumerate() {
            if next.next_if_eq(&index).is_some() {
                of_running.push(row);
            }
        }
        self.ahead = Some(Launched::new(self.engine, logits, &mut of_running)?);
        Ok(current)
    }

    /// Logits `[rows, vocab]` behind the next inputs of the rows in the cache.
    fn forward(&mut self, inputs: Tensor<B, 2>) -> Result<Tensor<B, 2>, EngineError> {
        let hidden = self.engine.model.forward(inputs.unsqueeze_dim(1), &mut self.cache)?;
        Ok(self.engine.model.logits(hidden).squeeze_dim::<2>(1))
    }
}

impl Decides for Row {
    fn rule(&self) -> InputRule {
        self.rule
    }

    fn top(&self) -> usize {
        self.top
    }

    fn sampler(&mut self) -> &mut Sampler {
        &mut self.sampler
    }
}

impl Row {
    /// Whether the next token is the last, whatever it is.
    fn ends_with_next<B: Backend, M: CausalLm<B>>(&self, engine: &Engine<B, M>) -> bool {
        self.stop.max_tokens.is_some_and(|max| self.generated + 1 >= max)
            || self.positions >= engine.model.context_length()
    }

    /// Counts a sampled token, turns it into text and sees whether it is the last.
    fn take<B: Backend, M: CausalLm<B>>(
        &mut self,
        Sampled { token, logprob }: Sampled,
        mut mix: RowMix,
        engine: &Engine<B, M>,
    ) -> Result<Step, EngineError> {
        self.generated += 1;
        let eos = !self.stop.ignore_eos && engine.eos.contains(&token);
        let (mut text, stopped) = match &engine.tokenizer {
            Some(tokenizer) if !eos => self.matcher.push(&self.detokenizer.push(tokenizer, token)?),
            _ => (String::new(), false),
        };
        let context_full = self.positions >= engine.model.context_length();
        let stop = match self.stop.max_tokens {
            _ if eos => Some(StopReason::Eos),
            _ if stopped => Some(StopReason::Stop),
            Some(max) if self.generated >= max => Some(StopReason::Length),
            _ if context_full => Some(StopReason::Context),
            _ => None,
        };
        if let (Some(reason), Some(tokenizer)) = (stop, &engine.tokenizer)
            && reason != StopReason::Stop
        {
            text += &self.flush(tokenizer)?;
        }
        self.positions += 1;
        mix.top.truncate(self.top);
        let RowMix { entropy, gate, top } = mix;
        Ok(Step { row: self.id, token, text, logprob, entropy, gate, top, stop })
    }

    /// The text held back, at the end.
    fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String, EngineError> {
        let rest = std::mem::take(&mut self.detokenizer).finish(tokenizer)?;
        let (mut text, stopped) = self.matcher.push(&rest);
        if !stopped {
            text += &self.matcher.finish();
        }
        Ok(text)
    }
}
