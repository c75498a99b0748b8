//! What a step of a batch gives for each row.

use crate::{EngineError, Scored, StopReason, StoppedBy};

/// A row of a batch, by the order in which it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(pub usize);

/// One token of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The row that it continues.
    pub row: RowId,
    /// The sampled token.
    pub token: u32,
    /// The text that is certain now: a piece of it may have been held back until now, or be held back still.
    pub text: String,
    /// Log-probability of the token in the raw distribution.
    pub logprob: f64,
    /// Normalised entropy on the support of the row's rule, 0 to 1.
    pub entropy: f32,
    /// How far the next input moves towards the mean embedding.
    pub gate: f32,
    /// The largest weights of the next input: (token, weight), largest first.
    pub top: Vec<(u32, f32)>,
    /// The likeliest tokens of the raw distribution: (token, log-probability), as many as were asked for.
    pub likeliest: Vec<(u32, f64)>,
    /// Whether the token is one of the model's thoughts, or a marker of these.
    pub thinking: bool,
    /// Why this was the row's last token.
    pub stop: Option<StopReason>,
    /// What of the stop rules ended it, where that is [`StopReason::Stop`].
    pub stopped_by: Option<StoppedBy>,
}

/// A row's prompt has run.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptReport {
    /// Positions of it that were cached before it came.
    pub reused: usize,
    /// How likely its tokens are, but for the first, where that was asked for: one entry less than tokens.
    pub scored: Vec<Scored>,
}

/// A row that could not go on, alone: its logits are broken, or its constraint or text failed. The others are as they would
/// be without it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct RowError {
    /// The row, which has left the batch.
    pub row: RowId,
    /// What went wrong.
    pub error: EngineError,
    /// The text that it held back.
    pub text: String,
}
