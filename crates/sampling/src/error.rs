//! Errors of sampling.

use crate::SamplingStep;

/// A value that is not allowed, or nothing to sample from.
///
/// # Examples
/// ```
/// use moi_sampling::{Sampling, SamplingError, SamplingStep};
///
/// let error = Sampling { top_p: 2.0.into(), ..Sampling::default() }.check().unwrap_err();
/// assert_eq!(error.to_string(), "top-p must be above 0 and at most 1, got 2");
/// let twice = Sampling { samplers: vec![SamplingStep::TopK; 2], ..Sampling::default() };
/// assert_eq!(twice.check(), Err(SamplingError::Twice(SamplingStep::TopK)));
/// ```
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A value that is not allowed.
    #[error("{name} must be {allowed}, got {value}")]
    Value {
        /// The knob, as a flag spells it.
        name: String,
        /// Which values are allowed.
        allowed: &'static str,
        /// The value.
        value: String,
    },
    /// A bias that is not finite.
    #[error("the logit bias of token {id} must be finite, got {value}; ban the token instead")]
    Bias {
        /// The token.
        id: u32,
        /// Its bias.
        value: f64,
    },
    /// No sampler has this name.
    #[error("there is no sampler `{0}`; there are {names}", names = names())]
    Step(String),
    /// No sampler has a knob of this name.
    #[error("no sampler has `{0}`")]
    Knob(String),
    /// A sampler occurs twice in the order.
    #[error("the sampler `{0}` is given twice")]
    Twice(SamplingStep),
    /// All tokens were removed.
    #[error("no token is left to sample: all are banned, would repeat a sequence, or break the grammar")]
    NothingLeft,
}

impl SamplingError {
    pub(crate) fn value(key: &str, allowed: &'static str, value: &str) -> Self {
        Self::Value { name: key.replace('_', "-"), allowed, value: value.to_owned() }
    }
}

fn names() -> String {
    SamplingStep::ALL.iter().map(|step| step.name()).collect::<Vec<_>>().join(", ")
}
