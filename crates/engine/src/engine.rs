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
    rows::{Rows, ids_tensor},
    self_check,
    sequence::Sequence,
    speculation::{DraftSource, PassCosts, RecyclingTable},
    text::{self, Tokenizer, thinking_markers},
};

/// The default number of prompt positions that run through the model at once.
pub const DEFAULT_PREFILL_CHUNK: usize = 512;

/// A model, its tokenizer and its end tokens.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Request};
/// # use moi_models::Architecture;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device).with_eos(vec![2]).with_prefix_cache(1 << 20);
///
/// // Two requests in one batch, each with a rule of its own.
/// let mut batch = engine.batch();
/// for rule in ["token", "moi:support=20"] {
///     let mut request = Request::new(Prompt::Ids(vec![1, 5, 7]));
///     request.rule = rule.parse()?;
///     request.stop.max_tokens = Some(3);
///     batch.add(request)?;
/// }
/// while !batch.is_empty() {
///     for step in batch.step()? {
///         let step = step?;
///         println!("row {} token {} gate {:.2}", step.row.0, step.token, step.gate);
///     }
/// }
/// // The log-probability of each token given those before it.
/// assert_eq!(engine.score(&[1, 5, 7], 0)?.len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine<B: Backend, M> {
    pub(crate) model: M,
    pub(crate) device: B::Device,
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) eos: Vec<u32>,
    pub(crate) markers: Option<Markers>,
    /// Blocks of the KV cache of all sequences of this engine.
    pool: Mutex<KvPool<B>>,
    /// Blocks of earlier prompts, which are kept in the pool.
    prefixes: Mutex<PrefixCache>,
    device_sampler: Box<dyn DeviceSampler<B>>,
    mixing: Mixing<B>,
    prefill_chunk: usize,
    checks_device: bool,
    progress: Option<Progress>,
    /// Created when the first grammar is used.
    compiler: OnceLock<Compiler>,
    grammar_limits: GrammarLimits,
    /// Identifies this engine, so that requests prepared by another engine can be refused.
    pub(crate) id: Arc<()>,
    /// The texts of the sequence breakers that were used last, and their tokens.
    breakers: Mutex<(Vec<String>, Arc<Breakers>)>,
    /// The likeliest successors of tokens that ran, for drafters; created when the first sequence drafts.
    pub(crate) recycled: OnceLock<Arc<Mutex<RecyclingTable>>>,
    /// What passes cost on this device; measured when it is first asked for.
    pub(crate) pass_costs: OnceLock<PassCosts>,
    /// The model that drafts.
    pub(crate) draft_model: Option<Box<dyn DraftSource>>,
}

/// A callback that is given how many positions of a prompt have run, and how many there are.
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
            recycled: OnceLock::new(),
            pass_costs: OnceLock::new(),
            draft_model: None,
        }
    }

    /// Sets a tokenizer, for text prompts and for text in the steps. The markers of thinking that it has are used, if
    /// the model has embedding rows for them.
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

    /// Sets the tokens between which the model thinks, or none.
    pub fn with_markers(mut self, markers: Option<Markers>) -> Self {
        self.markers = markers;
        self
    }

    /// Sets a function that is called while a prompt runs, with how many of its positions have run and how many there
    /// are.
    pub fn with_progress(mut self, progress: impl Fn(usize, usize) + Send + Sync + 'static) -> Self {
        self.progress = Some(Progress(Box::new(progress)));
        self
    }

    /// Sets the limits on grammars.
    pub fn with_grammar_limits(mut self, limits: GrammarLimits) -> Self {
        self.grammar_limits = limits;
        self
    }

    /// Sets the tokens that end a generation.
    pub fn with_eos(mut self, eos: Vec<u32>) -> Self {
        self.eos = eos;
        self
    }

    /// Sets the tolerance of mixtures, 0 or more, instead of the default for the model's embedding table: see
    /// [`Engine::mix_tolerance`].
    pub fn with_mix_tolerance(mut self, tolerance: f32) -> Self {
        self.mixing = Mixing::new(tolerance, self.model.kernels());
        self
    }

    /// The largest share of an input's weight, gate times probability, for which the mean of all embeddings may
    /// replace the embeddings of the least likely tokens. 0 reads every row of the table; backends without kernels
    /// for it always do.
    pub fn mix_tolerance(&self) -> f32 {
        self.mixing.tolerance()
    }

    /// The embedding whose rows are mixed, and the way in which they are mixed.
    pub(crate) fn rows(&self) -> Rows<'_, B> {
        Rows { embedding: self.model.embedding(), mixing: &self.mixing }
    }

    /// Sets how many prompt positions run at once, 1 or more. A larger number needs more memory.
    pub fn with_prefill_chunk(mut self, positions: usize) -> Self {
        self.prefill_chunk = positions.max(1);
        self
    }

    /// Number of prompt positions that run through the model at once.
    pub(crate) fn prefill_chunk(&self) -> usize {
        self.prefill_chunk
    }

    /// The device that it computes on.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// Enables the prefix cache with at most this many bytes: a prompt that begins with the same tokens as an earlier
    /// one, in whole blocks of 64, then runs only its rest. Positions behind a mixture or behind a caller's embedding
    /// are never shared. Without this call nothing is kept. For a model with recurrent states, the states may take
    /// half of the bytes, or the size of one state if that is more; if the bytes do not suffice for that, nothing is
    /// kept either.
    pub fn with_prefix_cache(mut self, bytes: usize) -> Self {
        let (block, state) = {
            let pool = self.pool();
            (pool.bytes_for(1, 1) - pool.state_bytes(), pool.state_bytes())
        };
        if !self.model.shares_prefixes() || self.model.recompute_beyond().is_some() {
            return self;
        }
        /// Approximate host memory of a block's node in the cache.
        const NODE_BYTES: usize = 512;
        let for_states = if state > 0 { (bytes / 2).max(state) } else { 0 };
        let Some(for_blocks) = bytes.checked_sub(for_states) else { return self };
        let blocks = for_blocks / block.max(NODE_BYTES);
        self.prefixes = Mutex::new(PrefixCache::new(blocks, for_states / state.max(1)));
        self
    }

    /// A block table of the longest cached beginning of a prompt, if there is one.
    pub(crate) fn find_prefix(&self, salt: &str, prompt: &[u32]) -> Option<BlockTable> {
        self.prefixes().find(salt, prompt, &self.pool())
    }

    /// Keeps the blocks that a table has of a prompt, for other prompts with the same beginning.
    pub(crate) fn keep_prefix(
        &self,
        salt: &str,
        prompt: &[u32],
        table: &BlockTable,
        checkpoints: &[Checkpoint],
    ) {
        self.prefixes().insert(salt, prompt, table, checkpoints);
    }

    /// Whether recurrent states are saved at the ends of a prompt's blocks.
    pub(crate) fn keeps_checkpoints(&self) -> bool {
        self.model.has_states() && self.prefixes().keeps_states()
    }

    fn prefixes(&self) -> MutexGuard<'_, PrefixCache> {
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets another way to sample and mix on the device than the kernels that the backend has for it.
    pub fn with_device_sampler(mut self, sampler: impl DeviceSampler<B> + 'static) -> Self {
        self.device_sampler = Box::new(sampler);
        self
    }

    pub(crate) fn device_sampler(&self) -> &dyn DeviceSampler<B> {
        &*self.device_sampler
    }

    /// Skips the [self-check](self_check) at the device's first use in a process, which takes a fraction of a second.
    pub fn without_self_check(mut self) -> Self {
        self.checks_device = false;
        self
    }

    /// The token sequences that end a repeated sequence for DRY. Finding them means a search of the whole vocabulary,
    /// so the last result is kept.
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

    /// The pool with the keys and values of all sequences.
    pub(crate) fn pool(&self) -> MutexGuard<'_, KvPool<B>> {
        self.pool.lock().unwrap_or_else(|poisoned| {
            // A thread that panicked while it held the lock may have left a layer without its blocks. A new pool
            // refuses the tables of the old one.
            let mut pool = poisoned.into_inner();
            *pool = self.model.new_pool(&self.device);
            self.pool.clear_poison();
            pool
        })
    }

    /// Gives memory of caches back that no sequence uses.
    pub(crate) fn shrink(&self) {
        self.pool().shrink();
        if let Some(model) = &self.draft_model {
            model.shrink();
        }
    }

    /// Bytes of the keys and values that are in use, and bytes that are allocated for them.
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

    /// A session without turns.
    pub fn session(&self) -> Session {
        Session::new(self.pool().table(), &[])
    }

    /// Like [`Engine::generate`], but continues a session: if the prompt begins with the same tokens, only the rest
    /// of it runs. [`Generation::into_session`] returns the session with this turn in it.
    ///
    /// # Errors
    /// If the request is refused, or the device computes wrong numbers.
    pub fn resume(&self, session: Session, request: Request<B>) -> Result<Generation<'_, B, M>, EngineError> {
        let mut batch = Batch::keeping(self);
        batch.resume(session, request)?;
        batch.run_prompts()?;
        Ok(Generation::new(batch))
    }

    /// Compiles a grammar into a constraint for one row.
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

    /// Runs the prompt and returns the steps of its continuation, each computed when it is asked for.
    ///
    /// # Errors
    /// If the request is refused, or the device computes wrong numbers.
    pub fn generate(&self, request: Request<B>) -> Result<Generation<'_, B, M>, EngineError> {
        let mut batch = self.batch();
        batch.add(request)?;
        batch.run_prompts()?;
        Ok(Generation::new(batch))
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

    /// The log-probability of each token of `ids` given those before it. The first token has none, so there is one
    /// entry less than ids. `likeliest` is how many of the most likely tokens are reported for each.
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

    /// Reports how far a row's prompt has run.
    pub(crate) fn report_progress(&self, row: &Sequence<B>) {
        if let Some(Progress(tell)) = &self.progress {
            tell(row.table.len() - row.reused, row.positions - row.reused);
        }
    }

    /// Refuses a device that fails the self-check.
    pub(crate) fn check_device(&self) -> Result<(), EngineError> {
        if self.checks_device {
            self_check::at_first_use::<B>(&self.device, self.model.embedding().weight.dtype())?;
        }
        Ok(())
    }

    /// The embeddings of tokens `[ids, d]`.
    fn embed(&self, ids: &[u32]) -> Result<Tensor<B, 2>, EngineError> {
        self.check_ids(ids)?;
        self.check_device()?;
        Ok(self.model.embed(ids_tensor::<B>(ids, &self.device)))
    }

    /// Checks a prompt. Returns its tokens, or `None` if it consists of embeddings.
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

    /// Threads share an engine by `Arc`: in a server, some tokenize and check requests while another one decodes.
    #[test]
    fn an_engine_is_shared_between_threads() {
        fn is_shared<T: Send + Sync>() {}
        is_shared::<Engine<Flex, Decoder<Flex>>>();
        is_shared::<Session>();
        fn is_sent<T: Send>() {}
        is_sent::<crate::Batch<'static, Flex, Decoder<Flex>>>();
        is_sent::<crate::Generation<'static, Flex, Decoder<Flex>>>();
        is_sent::<crate::Scheduler<'static, Flex, Decoder<Flex>>>();
        is_sent::<Request<Flex>>();
        fn is_error<T: std::error::Error + Send + Sync + 'static>() {}
        is_error::<EngineError>();
        is_error::<crate::SequenceError>();
        is_error::<crate::Refusal>();
        is_error::<moi_models::ModelError>();
        is_error::<moi::MixError>();
        is_error::<moi::RuleError>();
    }
}
