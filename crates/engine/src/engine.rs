//! A model ready to serve requests.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use burn::tensor::{Tensor, backend::Backend};
use moi_models::{BlockTable, CausalLm, Checkpoint, ForwardBatch, KvPool, Mixing, with_values};
use moi_sampling::{Breakers, Dry};

use crate::{
    Batch, DeviceSampler, EngineError, Generation, Grammar, GrammarLimits, KernelSampler, Markers, Prompt,
    Request, Scored, Session,
    grammar::{Compiler, Constraint},
    prefix::PrefixCache,
    row::Row,
    rows::{Rows, ids_tensor},
    self_check,
    text::{self, Tokenizer, thinking_markers},
};

/// Prompt positions that go through the model at once, unless set otherwise.
pub const DEFAULT_PREFILL_CHUNK: usize = 512;

/// A model, its tokenizer and its end tokens.
#[derive(Debug)]
pub struct Engine<B: Backend, M> {
    pub(crate) model: M,
    pub(crate) device: B::Device,
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) eos: Vec<u32>,
    pub(crate) markers: Option<Markers>,
    /// Keys and values of all sequences that there are of this engine.
    pool: Mutex<KvPool<B>>,
    /// What prompts have left in it.
    prefixes: Mutex<PrefixCache>,
    device_sampler: Box<dyn DeviceSampler<B>>,
    mixing: Mixing<B>,
    prefill_chunk: usize,
    checks_device: bool,
    progress: Option<Progress>,
    /// Made when the first grammar is used.
    compiler: OnceLock<Compiler>,
    grammar_limits: GrammarLimits,
    /// Tells it from other engines.
    pub(crate) id: Arc<()>,
    /// Of the sequence breakers that were asked for last.
    breakers: Mutex<(Vec<String>, Arc<Breakers>)>,
}

/// Is told how many positions of a prompt have run, and of how many.
struct Progress(Box<dyn Fn(usize, usize) + Send + Sync>);

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

impl<B: Backend, M: CausalLm<B>> Engine<B, M> {
    /// An engine without a tokenizer and without end tokens.
    pub fn new(model: M, device: B::Device) -> Self {
        Self {
            pool: Mutex::new(model.new_pool(&device)),
            prefixes: Mutex::default(),
            device_sampler: Box::new(KernelSampler),
            mixing: Mixing::auto(model.embedding(), model.kernels()),
            model,
            device,
            tokenizer: None,
            eos: Vec::new(),
            markers: None,
            prefill_chunk: DEFAULT_PREFILL_CHUNK,
            checks_device: true,
            progress: None,
            compiler: OnceLock::new(),
            grammar_limits: GrammarLimits::default(),
            id: Arc::default(),
            breakers: Mutex::default(),
        }
    }

    /// With a tokenizer: text prompts, and text in the steps. What it has as markers of thinking is taken for such,
    /// if the model has rows for them.
    pub fn with_tokenizer(mut self, tokenizer: Option<Tokenizer>) -> Self {
        let rows = self.model.embedding().dims()[0];
        let has = |markers: &Markers| {
            let all = [Some(markers.open), markers.name, Some(markers.close)];
            all.into_iter().flatten().all(|token| (token as usize) < rows)
        };
        self.markers = tokenizer.as_ref().and_then(thinking_markers).filter(has);
        self.tokenizer = tokenizer;
        self
    }

    /// With other tokens between which the model thinks, or with none.
    pub fn with_markers(mut self, markers: Option<Markers>) -> Self {
        self.markers = markers;
        self
    }

    /// With a function that is told, while a prompt runs, how many of its positions have run and of how many.
    pub fn with_progress(mut self, progress: impl Fn(usize, usize) + Send + Sync + 'static) -> Self {
        self.progress = Some(Progress(Box::new(progress)));
        self
    }

    /// With other limits on grammars than the default ones.
    pub fn with_grammar_limits(mut self, limits: GrammarLimits) -> Self {
        self.grammar_limits = limits;
        self
    }

    /// With the tokens that end a generation.
    pub fn with_eos(mut self, eos: Vec<u32>) -> Self {
        self.eos = eos;
        self
    }

    /// With another tolerance of mixtures, 0 or more, than the one that belongs to the model's table: see
    /// [`Engine::mix_tolerance`].
    pub fn with_mix_tolerance(mut self, tolerance: f32) -> Self {
        self.mixing = Mixing::new(tolerance, self.model.kernels());
        self
    }

    /// The largest share of an input's weight, gate times probability, that may go to the mean of all embeddings in the
    /// place of the least likely tokens' own. 0 reads every row of the table; backends without kernels for it always do.
    pub fn mix_tolerance(&self) -> f32 {
        self.mixing.tolerance()
    }

    /// The embedding whose rows are mixed, and how.
    pub(crate) fn rows(&self) -> Rows<'_, B> {
        Rows { embedding: self.model.embedding(), mixing: &self.mixing }
    }

    /// With another number of prompt positions at once, 1 or more: a larger one needs more memory.
    pub fn with_prefill_chunk(mut self, positions: usize) -> Self {
        self.prefill_chunk = positions.max(1);
        self
    }

    /// Positions of prompts that go through the model at once.
    pub(crate) fn prefill_chunk(&self) -> usize {
        self.prefill_chunk
    }

    pub(crate) fn device(&self) -> &B::Device {
        &self.device
    }

    /// With so many bytes at most for what is cached of prompts that came before: one that begins with the same tokens, by
    /// whole blocks of 64, then runs only its rest. What mixtures or embeddings of a caller were behind is never shared.
    /// Without it nothing is kept. Of a model with states they may take half of the bytes, or one state what it needs; where
    /// not even that fits, nothing is kept either.
    pub fn with_prefix_cache(mut self, bytes: usize) -> Self {
        let (block, state) = {
            let pool = self.pool();
            (pool.bytes_for(1, 1) - pool.state_bytes(), pool.state_bytes())
        };
        if !self.model.shares_prefixes() || self.model.recompute_beyond().is_some() {
            return self;
        }
        /// What a block takes in the host's memory besides, about.
        const NODE_BYTES: usize = 512;
        let for_states = if state > 0 { (bytes / 2).max(state) } else { 0 };
        let Some(for_blocks) = bytes.checked_sub(for_states) else { return self };
        let blocks = for_blocks / block.max(NODE_BYTES);
        self.prefixes = Mutex::new(PrefixCache::new(blocks, for_states / state.max(1)));
        self
    }

    /// A table of what is cached of a prompt's beginning.
    pub(crate) fn find_prefix(&self, salt: &str, prompt: &[u32]) -> Option<BlockTable> {
        self.prefixes().find(salt, prompt, &self.pool())
    }

    /// Keeps what a table has of a prompt for others that begin alike.
    pub(crate) fn keep_prefix(
        &self,
        salt: &str,
        prompt: &[u32],
        table: &BlockTable,
        checkpoints: &[Checkpoint],
    ) {
        self.prefixes().insert(salt, prompt, table, checkpoints);
    }

    /// Whether states are kept where blocks of a prompt end.
    pub(crate) fn keeps_checkpoints(&self) -> bool {
        self.model.has_states() && self.prefixes().keeps_states()
    }

    fn prefixes(&self) -> MutexGuard<'_, PrefixCache> {
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With another way to sample and mix on the device than by the kernels that there are for it.
    pub fn with_device_sampler(mut self, sampler: impl DeviceSampler<B> + 'static) -> Self {
        self.device_sampler = Box::new(sampler);
        self
    }

    pub(crate) fn device_sampler(&self) -> &dyn DeviceSampler<B> {
        &*self.device_sampler
    }

    /// Without the [self-check](self_check) at the device's first use in a process, which takes a fraction of a
    /// second.
    pub fn without_self_check(mut self) -> Self {
        self.checks_device = false;
        self
    }

    /// The token sequences that end a repeated sequence for DRY. They are looked for in the whole vocabulary, so the last
    /// ones are kept.
    pub(crate) fn breakers(&self, dry: &Dry) -> Result<Arc<Breakers>, EngineError> {
        let texts = &dry.sequence_breakers;
        if dry.multiplier == 0.0 || texts.is_empty() {
            return Ok(Arc::default());
        }
        let tokenizer = self.tokenizer.as_ref().ok_or(EngineError::NoBreakers)?;
        let mut last = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != *texts {
            let vocab = self.model.embedding().dims()[0];
            *last = (texts.clone(), Arc::new(text::breakers(tokenizer, vocab, texts)?));
        }
        Ok(last.1.clone())
    }

    /// Keys and values of all sequences.
    pub(crate) fn pool(&self) -> MutexGuard<'_, KvPool<B>> {
        self.pool.lock().unwrap_or_else(|poisoned| {
            // Whoever panicked while it was locked may have left a layer without its blocks. A new pool refuses the tables of
            // the old one.
            let mut pool = poisoned.into_inner();
            *pool = self.model.new_pool(&self.device);
            self.pool.clear_poison();
            pool
        })
    }

    /// Bytes of the keys and values of sequences that are under way, and of what is allocated for them.
    pub fn cache_bytes(&self) -> [usize; 2] {
        let pool = self.pool();
        [pool.used_bytes(), pool.allocated_bytes()]
    }

    /// Bytes of the keys and values of a sequence of so many positions.
    pub fn bytes_for(&self, positions: usize) -> usize {
        self.pool().bytes_for(positions, self.prefill_chunk)
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The tokens between which the model thinks, where they are known.
    pub fn markers(&self) -> Option<Markers> {
        self.markers
    }

    /// A session of no turns yet.
    pub fn session(&self) -> Session {
        Session::new(self.pool().table(), &[])
    }

    /// As [`Engine::generate`], behind the turns of a session: of a prompt that begins with the same tokens only the rest
    /// is run. [`Generation::into_session`] gives the session back, with this turn in it.
    ///
    /// # Errors
    /// If the request is refused, or the device computes wrong numbers.
    pub fn resume(&self, session: Session, request: Request<B>) -> Result<Generation<'_, B, M>, EngineError> {
        let mut batch = Batch::keeping(self);
        batch.resume(session, request)?;
        batch.run_prompts()?;
        Ok(Generation { batch })
    }

    /// A grammar ready to constrain a row.
    pub(crate) fn constraint(&self, grammar: &Grammar) -> Result<Constraint, EngineError> {
        let tokenizer = self.tokenizer.as_ref().ok_or(EngineError::NoTokenizer("a grammar"))?;
        let compiler = match self.compiler.get() {
            Some(compiler) => compiler,
            None => {
                let compiler = Compiler::new(tokenizer, self.model.embedding().dims()[0], &self.eos)?;
                self.compiler.get_or_init(|| compiler)
            }
        };
        compiler.compile(grammar, &self.grammar_limits)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch<'_, B, M> {
        Batch::new(self)
    }

    /// Runs the prompt and gives the steps of its continuation, each computed when it is asked for.
    ///
    /// # Errors
    /// If the request is refused, or the device computes wrong numbers.
    pub fn generate(&self, request: Request<B>) -> Result<Generation<'_, B, M>, EngineError> {
        let mut batch = self.batch();
        batch.add(request)?;
        batch.run_prompts()?;
        Ok(Generation { batch })
    }

    /// The logits of every position of `ids`: `[seq, vocab]` in float32.
    ///
    /// # Errors
    /// If the prompt is empty, too long, or holds a token the model does not have; or if the device computes wrong
    /// numbers.
    pub fn logits(&self, ids: &[u32]) -> Result<Tensor<B, 2>, EngineError> {
        let inputs = self.embed(ids)?;
        let mut table = self.pool().table();
        table.set_sequence_length(ids.len());
        let mut logits = Vec::new();
        for chunk in inputs.split(self.prefill_chunk, 0) {
            let hidden = self.model.forward(ForwardBatch::one(chunk, &mut table), &mut self.pool())?;
            logits.push(self.model.logits(hidden));
        }
        drop(table);
        self.pool().shrink();
        Ok(Tensor::cat(logits, 0))
    }

    /// How likely each token of `ids` is behind those before it, but for the first, which has nothing before it: one entry
    /// less than ids. `likeliest` is how many of the likeliest tokens are told beside each.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    pub fn score(&self, ids: &[u32], likeliest: usize) -> Result<Vec<Scored>, EngineError> {
        let inputs = self.embed(ids)?;
        let mut table = self.pool().table();
        table.set_sequence_length(ids.len());
        let mut scored = Vec::with_capacity(ids.len());
        let mut next = ids.iter().skip(1);
        for chunk in inputs.split(self.prefill_chunk, 0) {
            let hidden = self.model.forward(ForwardBatch::one(chunk, &mut table), &mut self.pool())?;
            let logits = self.model.logits(hidden);
            let vocab = logits.dims()[1];
            with_values(&logits, |host| {
                for (logits, &token) in host.chunks(vocab).zip(next.by_ref()) {
                    scored.push(Scored::new(logits, token, likeliest, scored.len() + 1)?);
                }
                Ok::<_, EngineError>(())
            })
            .map_err(|error| error.traced(&self.model, &self.pool(), &table, table.len()))?;
        }
        drop(table);
        self.pool().shrink();
        Ok(scored)
    }

    /// Tells how far a row's prompt has run.
    pub(crate) fn report_progress(&self, row: &Row<B>) {
        if let Some(Progress(tell)) = &self.progress {
            tell(row.table.len() - row.reused, row.positions - row.reused);
        }
    }

    /// Refuses a device that does not compute what it should.
    pub(crate) fn check_device(&self) -> Result<(), EngineError> {
        if self.checks_device {
            self_check::at_first_use::<B>(&self.device, self.model.embedding().weight.dtype())?;
        }
        Ok(())
    }

    /// Tokens as the model takes them `[ids, d]`.
    fn embed(&self, ids: &[u32]) -> Result<Tensor<B, 2>, EngineError> {
        self.check_ids(ids)?;
        self.check_device()?;
        Ok(self.model.embed(ids_tensor::<B>(ids, &self.device)))
    }

    /// The tokens of a prompt that can run, unless it is of embeddings.
    pub(crate) fn check_prompt(&self, prompt: &Prompt<B>) -> Result<Option<Vec<u32>>, EngineError> {
        let ids = match prompt {
            Prompt::Embeddings(embeddings) => {
                let ([seq, found], expected) = (embeddings.dims(), self.model.embedding().dims()[1]);
                if found != expected {
                    return Err(EngineError::EmbeddingWidth { expected, found });
                }
                self.check_length(seq)?;
                return Ok(None);
            }
            Prompt::Ids(ids) => ids.clone(),
            Prompt::Text(text) => {
                let tokenizer = self.tokenizer.as_ref().ok_or(EngineError::NoTokenizer("a text prompt"))?;
                tokenizer.encode(text, true)?
            }
        };
        self.check_ids(&ids)?;
        Ok(Some(ids))
    }

    fn check_ids(&self, ids: &[u32]) -> Result<(), EngineError> {
        self.check_length(ids.len())?;
        let vocab_size = self.model.embedding().dims()[0];
        match ids.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(EngineError::TokenOutsideVocabulary { token, vocab_size }),
            None => Ok(()),
        }
    }

    fn check_length(&self, prompt: usize) -> Result<(), EngineError> {
        let context_length = self.model.context_length();
        match prompt {
            0 => Err(EngineError::EmptyPrompt),
            _ if prompt > context_length => Err(EngineError::PromptTooLong { prompt, context_length }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use moi_models::Decoder;

    use super::*;

    /// Threads share an engine by `Arc`: a server's tokenise and check requests while one of them decodes.
    #[test]
    fn an_engine_is_shared_between_threads() {
        fn is_shared<T: Send + Sync>() {}
        is_shared::<Engine<Flex, Decoder<Flex>>>();
        is_shared::<Session>();
    }
}
