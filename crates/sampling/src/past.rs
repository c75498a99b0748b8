//! What samplers know of the steps before.

use std::{collections::BTreeMap, sync::Arc};

use crate::{Breakers, History, SamplingStep};

/// What samplers know of a sequence: earlier tokens, random numbers and values kept from step to step.
///
/// # Examples
/// ```
/// use moi_sampling::{Candidates, History, Past, Sampling};
///
/// let past = Past::new(History::new(&[0, 1, 0]));
/// let sampling = Sampling { no_repeat_ngram: 2.into(), ..Sampling::default() };
/// let mut candidates = Candidates::new(&[2.0, 3.0, 1.0]);
/// sampling.apply(&mut candidates, &past)?;
/// // Token 1 is the most likely, but it would follow token 0 a second time.
/// assert_eq!(candidates.draw(0.5), 0);
/// # Ok::<(), moi_sampling::SamplingError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The tokens so far.
    pub history: History,
    /// A uniform random number of this step, from 0 to below 1, for samplers that act at random. The token itself is
    /// drawn with another number.
    pub chance: f64,
    /// Which tokens end a repeated sequence for [`crate::Dry`].
    pub breakers: Arc<Breakers>,
    /// Values that samplers keep from step to step.
    states: BTreeMap<SamplingStep, f64>,
}

impl Past {
    /// The past of a sequence with these tokens.
    pub fn new(history: History) -> Self {
        Self { history, ..Self::default() }
    }

    /// Sets the tokens that end a repeated sequence.
    pub fn with_breakers(self, breakers: Breakers) -> Self {
        Self { breakers: Arc::new(breakers), ..self }
    }

    /// The value that a sampler keeps from step to step; `None` before the first step.
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
