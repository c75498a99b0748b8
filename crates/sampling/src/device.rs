//! What a device that samples and mixes by itself is told of a row, and what it decides.

use std::pin::Pin;

/// How one row samples and mixes.
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
    /// Below 1: where the cumulative distribution is cut.
    pub uniform: f32,
    /// The gate is `slope * entropy + offset`, between 0 and 1.
    pub slope: f32,
    /// See above.
    pub offset: f32,
    /// Whether the mean embedding is needed.
    pub mixes: bool,
    /// The K most likely tokens are mixed; all of them if there is none.
    pub support: Option<usize>,
    /// The largest share of the next input's weight, gate times probability, that may go to the table's mean row in the
    /// place of the rows of the tokens themselves; 0 reads every row. It matters where the whole vocabulary is mixed.
    pub tolerance: f32,
    /// How many of the most likely tokens are told.
    pub top: usize,
}

/// What was decided for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The sampled token.
    pub token: u32,
    /// Its log-probability in the raw distribution.
    pub logprob: f32,
    /// Of the distribution on the rule's support, divided by ln of its size.
    pub entropy: f32,
    /// How far the input moves towards the mean embedding.
    pub gate: f32,
    /// The largest logit.
    pub largest: f32,
    /// Whether NaN or infinity was among the logits.
    pub broken: bool,
    /// The probability of the token on the support.
    pub token_probability: f32,
    /// The most likely tokens and their probabilities on the support, the most likely first.
    pub likeliest: Vec<(u32, f32)>,
}

/// Decisions on their way to the host.
pub type Reading = Pin<Box<dyn Future<Output = Result<Vec<Decision>, String>> + Send>>;
