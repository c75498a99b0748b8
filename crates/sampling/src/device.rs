//! Interface to a device that samples and mixes without the host: the settings of a row and the device's results.

use std::pin::Pin;

/// How one row of the batch samples and mixes.
///
/// # Examples
/// ```
/// use moi_sampling::RowSpec;
///
/// // The most likely token, and MoI with a beta of 1 over the 20 most likely ones: the gate is H / 2.
/// let row = RowSpec {
///     temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, uniform: 0.5,
///     slope: 0.5, offset: 0.0, floor: 0.0, mixes: true, support: Some(20), tolerance: 0.0, top: 3,
/// };
/// let gate = |entropy: f32| (row.slope * entropy + row.offset).clamp(0.0, 1.0);
/// assert_eq!(gate(0.5), 0.25);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSpec {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the K most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// The random number of the draw, from 0 to below 1: the position in the cumulative distribution.
    pub uniform: f32,
    /// Slope of the gate `clamp(slope * entropy + offset, 0, 1)`.
    pub slope: f32,
    /// Offset of the gate.
    pub offset: f32,
    /// Below it the gate is 0.
    pub floor: f32,
    /// Whether the mean embedding is needed.
    pub mixes: bool,
    /// The K most likely tokens are mixed; `None` means the whole vocabulary.
    pub support: Option<usize>,
    /// The largest share of the next input's weight, gate times probability, for which the table's mean row may
    /// replace the rows of the tokens themselves; 0 reads every row. It matters only if the whole vocabulary is
    /// mixed.
    pub tolerance: f32,
    /// How many of the most likely tokens are reported.
    pub top: usize,
}

/// What the device decided for one row.
///
/// # Examples
/// ```
/// use moi_sampling::Decision;
///
/// let decision = Decision {
///     token: 1, logprob: -0.29, entropy: 0.81, gate: 0.25, largest: 3.0, broken: false,
///     token_probability: 0.75, likeliest: vec![(1, 0.75), (0, 0.25)],
/// };
/// // The token's weight in the next input: what it keeps, and its part of the mean embedding.
/// let weight = 1.0 - decision.gate + decision.gate * decision.token_probability;
/// assert_eq!(weight, 0.9375);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The sampled token.
    pub token: u32,
    /// Its log-probability in the raw distribution.
    pub logprob: f32,
    /// Entropy of the distribution on the rule's support, divided by ln of the support's size.
    pub entropy: f32,
    /// How far the input moves towards the mean embedding.
    pub gate: f32,
    /// The largest logit.
    pub largest: f32,
    /// Whether the logits contained NaN or infinity.
    pub broken: bool,
    /// The probability of the token on the support.
    pub token_probability: f32,
    /// The most likely tokens and their probabilities on the support, the most likely first.
    pub likeliest: Vec<(u32, f32)>,
}

/// A future that yields the decisions of a batch once they have been copied to the host.
///
/// # Examples
/// ```
/// use std::{
///     future::ready,
///     task::{Context, Poll, Waker},
/// };
///
/// use moi_sampling::{Decision, Reading};
///
/// let lost: Result<Vec<Decision>, String> = Err("the device is lost".to_owned());
/// let mut reading: Reading = Box::pin(ready(lost.clone()));
/// let polled = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
/// assert_eq!(polled, Poll::Ready(lost));
/// ```
pub type Reading = Pin<Box<dyn Future<Output = Result<Vec<Decision>, String>> + Send>>;
