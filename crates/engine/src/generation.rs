//! One generation, step by step.

use std::collections::VecDeque;

use burn::tensor::backend::Backend;
use moi_models::CausalLm;

use crate::{Batch, EngineError, SequenceError, Session, TokenEvent};

/// The steps of one generation, as an iterator.
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
/// let mut tokens = Vec::new();
/// for step in engine.generate(request)? {
///     tokens.push(step?.token);
/// }
/// assert_eq!(tokens, [0, 0]); // All logits of this model are 0.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Generation<'e, B: Backend, M> {
    pub(crate) batch: Batch<'e, B, M>,
    /// Steps of the last pass that were not asked for yet.
    pub(crate) steps: VecDeque<Result<TokenEvent, SequenceError>>,
}

impl<'e, B: Backend, M: CausalLm<B>> Generation<'e, B, M> {
    pub(crate) fn new(batch: Batch<'e, B, M>) -> Self {
        Self { batch, steps: VecDeque::new() }
    }

    /// Ends the generation early. Returns the text that was held back, because it could have become a stop string or
    /// was not a whole character yet; before it, the text of steps that a pass with drafts has given and that were
    /// not asked for.
    ///
    /// # Errors
    /// If the tokenizer cannot decode it.
    pub fn finish(mut self) -> Result<String, EngineError> {
        let given = self.take_text();
        Ok(given + &self.batch.finish()?)
    }

    /// The text of steps that were not asked for.
    fn take_text(&mut self) -> String {
        let text = |step: Result<TokenEvent, SequenceError>| match step {
            Ok(step) => step.text,
            Err(error) => error.text,
        };
        self.steps.drain(..).map(text).collect()
    }

    /// Prompt positions that were already cached, by a session or by an earlier prompt with the same beginning.
    pub fn reused_positions(&self) -> usize {
        self.batch.reused_positions()
    }

    /// Ends the generation, early or not. Returns the text that was held back, and the session with this turn in it.
    /// The session is empty unless [`crate::Engine::resume`] began the generation.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the text.
    pub fn into_session(mut self) -> Result<(String, Session), EngineError> {
        let engine = self.batch.engine();
        let text = self.take_text() + &self.batch.flush()?;
        Ok((text, self.batch.into_session().unwrap_or_else(|| engine.session())))
    }
}

impl<B: Backend, M: CausalLm<B>> Iterator for Generation<'_, B, M> {
    type Item = Result<TokenEvent, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.steps.is_empty() {
            match self.batch.step() {
                Ok(steps) => self.steps.extend(steps),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(self.steps.pop_front()?.map_err(|failed| self.batch.keep_text(failed)))
    }
}
