//! The decode loop: one step for rows of different prompts, rules and lengths.

use burn::tensor::{Tensor, backend::Backend};
use moi::{InputRule, RowMix, next_inputs};
use moi_models::{CausalLm, KvCache, with_values};

use crate::{
    Engine, EngineError, Request, Sampled, Sampler, StopReason, StopRules,
    engine::{Prefilled, Rows, ids_tensor},
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
#[derive(Debug)]
pub struct Batch<'e, B: Backend, M> {
    engine: &'e Engine<B, M>,
    /// In the order of the cache's rows, then those that wait.
    rows: Vec<Row>,
    cache: KvCache<B>,
    /// Of the rows in the cache `[rows, d]`.
    inputs: Option<Tensor<B, 2>>,
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
        Self { engine, rows: Vec::new(), cache, inputs: None, waiting: Vec::new(), added: 0 }
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
    /// The last token's input runs through the model when the next step is asked for, so a token can be
    /// shown as soon as it is known and a row that has ended costs nothing more.
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
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.advance()?;
        let (steps, rows) = self.sample(logits, rows)?;
        let keep: Vec<usize> = (0..steps.len()).filter(|&i| steps[i].stop.is_none()).collect();
        self.rows = rows.into_iter().zip(&steps).filter(|(_, s)| s.stop.is_none()).map(|(r, _)| r).collect();
        self.cache.keep_rows(&keep, &self.engine.device);
        self.inputs = self.inputs.take().filter(|_| !keep.is_empty()).map(|inputs| {
            if keep.len() == steps.len() {
                return inputs;
            }
            let keep: Vec<u32> = keep.iter().map(|&row| row as u32).collect();
            inputs.select(0, ids_tensor::<B>(&keep, &self.engine.device))
        });
        Ok(steps)
    }

    /// The logits `[rows, vocab]` of all rows: those in the cache step once, those that wait join them.
    fn advance(&mut self) -> Result<Tensor<B, 2>, EngineError> {
        let mut logits = Vec::new();
        if let Some(inputs) = self.inputs.take() {
            let hidden = self.engine.model.forward(inputs.unsqueeze_dim(1), &mut self.cache)?;
            logits.push(self.engine.model.logits(hidden).squeeze_dim::<2>(1));
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
        Ok(match logits.len() {
            1 => logits.remove(0),
            _ => Tensor::cat(logits, 0),
        })
    }

    /// Samples every row, and sets the next inputs.
    fn sample(
        &mut self,
        logits: Tensor<B, 2>,
        mut rows: Vec<Row>,
    ) -> Result<(Vec<Step>, Vec<Row>), EngineError> {
        let vocab = logits.dims()[1];
        let sampled: Vec<Sampled> = with_values(&logits, |host| {
            let rows = rows.iter_mut().zip(host.chunks(vocab));
            rows.map(|(row, logits)| row.sampler.sample(logits)).collect::<Result<_, _>>()
        })?;

        let tokens: Vec<u32> = sampled.iter().map(|sampled| sampled.token).collect();
        let tokens = ids_tensor::<B>(&tokens, &self.engine.device);
        let rules: Vec<InputRule> = rows.iter().map(|row| row.rule).collect();
        let top = rows.iter().map(|row| row.top).max().unwrap_or(0);
        let mixed = next_inputs(logits, tokens, &Rows(self.engine.model.embedding()), &rules, top)?;
        self.inputs = Some(mixed.inputs.clone());

        let mut steps = Vec::with_capacity(rows.len());
        for ((row, sampled), mix) in rows.iter_mut().zip(sampled).zip(mixed.into_rows()) {
            steps.push(row.take(sampled, mix, self.engine)?);
        }
        Ok((steps, rows))
    }
}

impl Row {
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
