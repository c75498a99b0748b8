//! Turns a request into a sequence of a batch.

use std::sync::Arc;

use burn::tensor::{Tensor, backend::Backend};
use moi::Start;
use moi_models::{BlockTable, CausalLm, is_gpu};

use crate::{
    Batch, DrafterChoice, Engine, EngineError, Prompt, Request, Sampler, SequenceId, Speculation, StopRules,
    TokenUse,
    rows::ids_tensor,
    sequence::{PromptScores, Sequence, Stage},
    speculation::{Drafting, InputLimits, Shared},
    stop::StopMatcher,
    text::{Detokenizer, control_token},
    token_chooser::{Limits, TokenChooser},
};

/// A request that is ready to join a [`Batch`]: it is checked, its text is tokenized and its grammar compiled.
/// [`Engine::prepare`] makes it on any thread, so that no round of a batch waits for this work.
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
/// let prepared = engine.prepare(Request::new(Prompt::Ids(vec![1, 2, 3])))?; // on any thread
/// assert_eq!(prepared.prompt_positions(), 3);
/// let mut batch = engine.batch();
/// batch.add_prepared(prepared)?;
/// assert_eq!(batch.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PreparedRequest<B: Backend> {
    prompt: PreparedPrompt<B>,
    chooser: TokenChooser,
    stop: StopRules,
    stop_tokens: Vec<u32>,
    salt: String,
    priority: i64,
    shown: Vec<u32>,
    prompt_logprobs: Option<usize>,
    drafting: Option<Drafting>,
    /// Identifies the engine that prepared it.
    engine: Arc<()>,
}

/// A prompt of tokens that the model has, or of embeddings `[positions, d]`.
#[derive(Debug)]
enum PreparedPrompt<B: Backend> {
    Ids(Vec<u32>),
    Embeddings(Tensor<B, 2>),
}

impl<B: Backend> PreparedRequest<B> {
    /// The most positions of drafts that a pass runs for it.
    pub(crate) fn drafts(&self) -> usize {
        self.drafting.as_ref().map_or(0, Drafting::budget)
    }

    /// Number of positions of the prompt.
    pub fn prompt_positions(&self) -> usize {
        match &self.prompt {
            PreparedPrompt::Ids(ids) => ids.len(),
            PreparedPrompt::Embeddings(inputs) => inputs.dims()[0],
        }
    }

    /// When the generation ends.
    pub fn stop(&self) -> &StopRules {
        &self.stop
    }

    /// Whether the tokens of the prompt are scored, so that the whole prompt has to run.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.prompt_logprobs.is_some()
    }

    /// Its place among waiting requests: smaller numbers come first.
    pub(crate) fn priority(&self) -> i64 {
        self.priority
    }

    /// The salt of the prefix cache: only requests with the same salt share cached blocks.
    pub(crate) fn salt(&self) -> &str {
        &self.salt
    }

    /// Token ids of the prompt; empty if the caller gave embeddings.
    pub(crate) fn ids(&self) -> &[u32] {
        match &self.prompt {
            PreparedPrompt::Ids(ids) => ids,
            PreparedPrompt::Embeddings(_) => &[],
        }
    }
}

impl<B: Backend, M: CausalLm<B>> Engine<B, M> {
    /// Does all the work that a request needs before it can join a batch and that may be refused: checks it,
    /// tokenizes its text and compiles its grammar. This is independent of the rounds of any batch.
    ///
    /// # Errors
    /// If the request is refused, or the device computes wrong numbers.
    pub fn prepare(&self, request: Request<B>) -> Result<PreparedRequest<B>, EngineError> {
        request.check()?;
        self.check_tokens(&request)?;
        let prompt = match (self.check_prompt(&request.prompt)?, request.prompt) {
            (Some(ids), _) => PreparedPrompt::Ids(ids),
            (None, Prompt::Embeddings(inputs)) => PreparedPrompt::Embeddings(inputs),
            (None, Prompt::Text(_) | Prompt::Ids(_)) => unreachable!("these have ids"),
        };
        if !request.stop.strings.is_empty() && self.tokenizer.is_none() {
            return Err(EngineError::NoTokenizer("a stop string"));
        }
        self.check_device()?;
        let (ids, positions) = match &prompt {
            PreparedPrompt::Ids(ids) => (&ids[..], ids.len()),
            PreparedPrompt::Embeddings(inputs) => (&[][..], inputs.dims()[0]),
        };
        let room = self.model.context_length().saturating_sub(positions) + 1;
        let markers = self.markers;
        let start = Start {
            seed: request.seed,
            scope: request.scope,
            markers,
            thinking: markers.is_some_and(|markers| markers.opened_by(ids)),
            limit: Some(request.stop.max_tokens.map_or(room, |max| max.min(room))),
        };
        let breakers = self.breakers(&request.sampling.dry)?;
        let sampler = Sampler::new(request.sampling, request.seed)?.with_prompt(ids).with_breakers(breakers);
        let constraint = request.grammar.map(|grammar| self.constraint(&grammar)).transpose()?;
        let control = |text: &String| control_token(self.tokenizer.as_ref()?, text);
        let controls = request.stop.strings.iter().filter_map(control);
        let stop_tokens: Vec<u32> = controls.chain(request.stop.tokens.iter().copied()).collect();
        // The model must not sample any of these before `min_tokens`.
        let ends: Vec<u32> = self.eos.iter().chain(&stop_tokens).copied().collect();
        let limits = Limits {
            allowed: request.allowed,
            bad_words: request.bad_words,
            forced: request.forced,
            ..Limits::new(&request.stop, &ends, constraint, request.mix_constrained)
        };
        let chooser = TokenChooser::new(moi::RuleState::new(request.rule, &start)?, sampler, limits);
        let chooser = chooser.reporting(request.top, request.logprobs);
        let drafting = self.drafting(&request.speculation, &chooser, (ids, request.seed))?;
        let (stop, salt, engine) = (request.stop, request.salt, Arc::clone(&self.id));
        let priority = request.priority;
        let (shown, prompt_logprobs) = (request.shown, request.prompt_logprobs);
        Ok(PreparedRequest {
            prompt,
            chooser,
            stop,
            stop_tokens,
            salt,
            priority,
            shown,
            prompt_logprobs,
            drafting,
            engine,
        })
    }

    /// What a request drafts with.
    fn drafting(
        &self,
        speculation: &Speculation,
        chooser: &TokenChooser,
        text: (&[u32], u64),
    ) -> Result<Option<Drafting>, EngineError> {
        if speculation.drafter == DrafterChoice::None {
            return Ok(None);
        }
        let limits = InputLimits::new(&chooser.row, speculation.tolerance, speculation.verify);
        let gains_nothing = if self.model.has_states() {
            Some("layers of this model keep states, which cannot be taken back")
        } else if !self.model.shares_prefixes() && self.model.recompute_beyond().is_none() {
            Some("the rotary frequencies of this model depend on the length of the text")
        } else {
            limits.as_ref().err().copied()
        };
        let is_optional = speculation.drafter == DrafterChoice::Auto || speculation.optional;
        match gains_nothing {
            Some(_) if is_optional => Ok(None),
            Some(why) => Err(EngineError::NoSpeculation(why)),
            None => {
                let limits = limits.unwrap_or_default();
                // Where every input is a mixture, a position is fed several times before it is right, which pays only
                // where positions cost next to nothing. A tolerance asks for it.
                if is_optional && limits.always && speculation.tolerance.is_none() {
                    return Ok(None);
                }
                let table = || Arc::clone(self.recycling_table());
                let shared = Shared {
                    table: &table,
                    model: self.draft_model.as_deref(),
                    is_gpu: is_gpu::<B>(),
                    vocab: self.model.embedding().dims()[0],
                };
                let temperature = chooser.sampler.sampling().temperature.0;
                let drafting = Drafting::new(speculation, &shared, (limits, temperature), text)?;
                if drafting.as_ref().is_some_and(Drafting::adapts) {
                    // Measured now, and not in a round that others wait for.
                    self.pass_costs();
                }
                Ok(drafting)
            }
        }
    }

    /// Refuses a request that another engine has prepared.
    pub(crate) fn owns(&self, request: &PreparedRequest<B>) -> Result<(), EngineError> {
        Arc::ptr_eq(&self.id, &request.engine).then_some(()).ok_or(EngineError::ForeignRequest)
    }

    /// Prepares several requests. A text prompt that equals the one before it is not tokenized again.
    ///
    /// # Errors
    /// As [`Engine::prepare`], if one is refused.
    pub fn prepare_all(&self, requests: Vec<Request<B>>) -> Result<Vec<PreparedRequest<B>>, EngineError> {
        let mut prepared: Vec<PreparedRequest<B>> = Vec::with_capacity(requests.len());
        let mut last: Option<Prompt<B>> = None;
        for request in requests {
            let prompt = match (&last, prepared.last()) {
                (Some(last), Some(before)) if last.is_same(&request.prompt) => {
                    Prompt::Ids(before.ids().to_vec())
                }
                _ => {
                    last = Some(request.prompt.clone());
                    request.prompt
                }
            };
            prepared.push(self.prepare(Request { prompt, ..request })?);
        }
        Ok(prepared)
    }

    /// Checks that the tokens named by a request or by the engine are in the model's vocabulary.
    fn check_tokens(&self, request: &Request<B>) -> Result<(), EngineError> {
        let sampling = &request.sampling;
        let vocab_size = self.model.embedding().dims()[0];
        let all = |markers: &moi::Markers| [Some(markers.open), markers.name, Some(markers.close)];
        let mut markers = self.markers.iter().flat_map(all).flatten();
        let mut biased = sampling.logit_bias.0.keys().copied();
        let mut allowed = request.allowed.iter().flat_map(|allowed| allowed.iter().copied());
        let check = |what, mut tokens: &mut dyn Iterator<Item = u32>| {
            let unknown = Iterator::find(&mut tokens, |&token| token as usize >= vocab_size);
            unknown.map_or(Ok(()), |token| Err(EngineError::UnknownToken { what, token, vocab_size }))
        };
        check(TokenUse::Banned, &mut sampling.banned.iter().copied())?;
        check(TokenUse::Biased, &mut biased)?;
        check(TokenUse::Forced, &mut request.forced.iter().copied())?;
        check(TokenUse::Allowed, &mut allowed)?;
        check(TokenUse::BadWord, &mut request.bad_words.iter().flatten().copied())?;
        check(TokenUse::Stop, &mut request.stop.tokens.iter().copied())?;
        check(TokenUse::Marker, &mut markers)
    }
}

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// Adds a sequence whose prompt runs from the end of the cached blocks in `behind`, if there are any.
    pub(crate) fn begin(&mut self, request: PreparedRequest<B>, behind: Option<BlockTable>) -> SequenceId {
        let engine = self.engine();
        let (positions, is_public) = (request.prompt_positions(), !request.ids().is_empty());
        let mut table = behind.unwrap_or_else(|| engine.pool().table());
        table.set_sequence_length(positions);
        let (known, keeps) = (table.len(), self.keeps_inputs(positions));
        let inputs = match &request.prompt {
            PreparedPrompt::Embeddings(inputs) => inputs.clone(),
            // The embeddings of cached positions are needed only if all inputs may have to run again.
            PreparedPrompt::Ids(ids) => {
                let first = if keeps { 0 } else { known };
                engine.model.embed(ids_tensor::<B>(&ids[first..], &engine.device))
            }
        };
        let kept = keeps.then(|| vec![inputs.clone()]);
        let (given, new) = (inputs.dims()[0], positions - known);
        let stage = Stage::Prompt(inputs.narrow(0, given - new, new));
        let row = Sequence { reused: known, is_public, inputs: kept, ..self.row(request, stage, table) };
        self.push(row)
    }

    /// Adds a sequence that waits for the same prompt of another row.
    pub(crate) fn follow(&mut self, request: PreparedRequest<B>, first: SequenceId) -> SequenceId {
        let table = self.engine().pool().table();
        let row = self.row(request, Stage::Follows(first), table);
        self.push(row)
    }

    fn row(&self, request: PreparedRequest<B>, stage: Stage<B>, table: BlockTable) -> Sequence<B> {
        let positions = request.prompt_positions();
        let PreparedRequest { chooser, stop, stop_tokens, salt, shown, prompt_logprobs, drafting, .. } =
            request;
        let scores = |likeliest| PromptScores { likeliest, ..PromptScores::default() };
        Sequence {
            id: self.next_id(),
            stage,
            stop_tokens,
            chooser,
            matcher: StopMatcher::new(stop.strings.clone(), stop.includes_string),
            stop,
            detokenizer: Detokenizer::default(),
            table,
            positions,
            reused: 0,
            is_public: false,
            salt,
            inputs: None,
            checkpoints: Vec::new(),
            parks: false,
            keeps_blocks: false,
            shown,
            scores: prompt_logprobs.map(scores),
            drafting,
            guesses: Vec::new(),
        }
    }
}
