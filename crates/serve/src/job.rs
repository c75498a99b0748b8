//! One generation as HTTP threads ask for it: a request of the engine without the type of its backend.

use std::{collections::HashSet, sync::Arc};

use burn::tensor::{Tensor, TensorData, backend::Backend};
use moi_engine::{Grammar, InputRule, Prompt, Request, Sampling, Scope, Speculation, StopRules};

/// What to continue.
#[derive(Clone, Debug)]
pub(crate) enum JobPrompt {
    Ids(Vec<u32>),
    /// Embeddings `[positions, width]`, row by row.
    Embeddings {
        values: Vec<f32>,
        width: usize,
    },
}

impl JobPrompt {
    /// Number of positions.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Embeddings { values, width } => values.len() / (*width).max(1),
        }
    }

    /// Its token ids; empty for embeddings.
    pub(crate) fn ids(&self) -> &[u32] {
        match self {
            Self::Ids(ids) => ids,
            Self::Embeddings { .. } => &[],
        }
    }
}

/// One generation. See [`Request`], whose fields these are.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) prompt: JobPrompt,
    pub(crate) rule: InputRule,
    pub(crate) scope: Option<Scope>,
    pub(crate) sampling: Sampling,
    /// Shared by the generations of a request.
    pub(crate) grammar: Option<Arc<Grammar>>,
    pub(crate) mix_constrained: bool,
    pub(crate) stop: StopRules,
    pub(crate) seed: u64,
    pub(crate) salt: String,
    pub(crate) priority: i64,
    pub(crate) top: usize,
    pub(crate) logprobs: usize,
    pub(crate) prompt_logprobs: Option<usize>,
    pub(crate) forced: Vec<u32>,
    pub(crate) allowed: Option<Arc<HashSet<u32>>>,
    pub(crate) bad_words: Vec<Vec<u32>>,
    pub(crate) shown: Vec<u32>,
    pub(crate) speculation: Speculation,
}

impl Job {
    /// The job as a request of the engine.
    pub(crate) fn request<B: Backend>(self, device: &B::Device) -> Request<B> {
        let prompt = match self.prompt {
            JobPrompt::Ids(ids) => Prompt::Ids(ids),
            JobPrompt::Embeddings { values, width } => {
                let shape = [values.len() / width.max(1), width];
                Prompt::Embeddings(Tensor::from_data(TensorData::new(values, shape), device))
            }
        };
        Request {
            prompt,
            rule: self.rule,
            scope: self.scope,
            sampling: self.sampling,
            grammar: self.grammar.map(Arc::unwrap_or_clone),
            mix_constrained: self.mix_constrained,
            stop: self.stop,
            seed: self.seed,
            salt: self.salt,
            priority: self.priority,
            top: self.top,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            forced: self.forced,
            allowed: self.allowed,
            bad_words: self.bad_words,
            shown: self.shown,
            speculation: self.speculation,
        }
    }
}
