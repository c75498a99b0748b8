//! One request, step by step.

use burn::tensor::backend::Backend;
use moi_models::CausalLm;

use crate::{Batch, EngineError, Session, Step};

/// The steps of one generation.
#[derive(Debug)]
pub struct Generation<'e, B: Backend, M> {
    pub(crate) batch: Batch<'e, B, M>,
}

impl<B: Backend, M: CausalLm<B>> Generation<'_, B, M> {
    /// Ends early: the text that was held back until now, because it could have become a stop string or was
    /// no whole character yet.
    ///
    /// # Errors
    /// If the tokenizer cannot decode it.
    pub fn finish(self) -> Result<String, EngineError> {
        self.batch.finish()
    }

    /// Positions of the prompt that were cached before, by a session or by prompts that began alike.
    pub fn reused_positions(&self) -> usize {
        self.batch.reused_positions()
    }

    /// Ends, early or not: the text that was held back, and the session with this turn in it. It is empty unless
    /// [`crate::Engine::resume`] began it.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the text.
    pub fn into_session(mut self) -> Result<(String, Session), EngineError> {
        let engine = self.batch.engine();
        let text = self.batch.flush()?;
        Ok((text, self.batch.into_session().unwrap_or_else(|| engine.session())))
    }
}

impl<B: Backend, M: CausalLm<B>> Iterator for Generation<'_, B, M> {
    type Item = Result<Step, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.batch.step() {
            Ok(steps) => Some(steps.into_iter().next()?.map_err(|failed| self.batch.keep_text(failed))),
            Err(error) => Some(Err(error)),
        }
    }
}
