//! What samplers look back at.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Breakers, History, SamplingStep};

/// What samplers look back at, of one sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The tokens so far.
    pub history: History,
    /// A uniform number of this step, from 0 to below 1, for samplers that leave something to chance. It is not the number
    /// by which the token is drawn.
    pub chance: f64,
    /// Which tokens end a repeated sequence for [`crate::Dry`].
    pub breakers: Arc<Breakers>,
    /// What samplers keep from step to step.
    states: BTreeMap<SamplingStep, f64>,
}

impl Past {
    /// Of a sequence with these tokens.
    pub fn new(history: History) -> Self {
        Self { history, ..Self::default() }
    }

    /// With the tokens that end a repeated sequence.
    pub fn with_breakers(self, breakers: Breakers) -> Self {
        Self { breakers: Arc::new(breakers), ..self }
    }

    /// What a sampler keeps from step to step; `None` before the first.
    pub fn state(&self, step: SamplingStep) -> Option<f64> {
        self.states.get(&step).copied()
    }

    pub(crate) fn set_state(&mut self, step: SamplingStep, state: Option<f64>) {
        match state {
            Some(state) => self.states.insert(step, state),
            None => self.states.remove(&step),
        };
    }
}
