//! What a step of a batch returns for each row.

use crate::{EngineError, Scored, Speculated, StopReason, StoppedBy};

/// Identifies a sequence of a batch, by the order in which sequences were added.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Request, SequenceId};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut batch = engine.batch();
/// assert_eq!(batch.add(Request::new(Prompt::Ids(vec![1, 2, 3])))?, SequenceId(0));
/// assert_eq!(batch.add(Request::new(Prompt::Ids(vec![4, 5])))?, SequenceId(1));
/// assert!(batch.cancel(SequenceId(0)).is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub usize);

/// One token of one sequence.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Request, StopReason};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
/// request.stop.max_tokens = Some(1);
/// request.logprobs = 2;
/// for step in engine.generate(request)? {
///     let step = step?;
///     assert_eq!((step.token, step.stop), (0, Some(StopReason::Length)));
///     assert_eq!(step.likeliest.len(), 2);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The sequence that it continues.
    pub row: SequenceId,
    /// The sampled token.
    pub token: u32,
    /// The text that is certain now. It may include text that was held back before, and other text may still be held
    /// back.
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
    /// Whether the token is one of the model's thoughts, or a marker of thinking.
    pub thinking: bool,
    /// Why this was the sequence's last token; `None` if it was not.
    pub stop: Option<StopReason>,
    /// Which of the stop rules ended it, if `stop` is [`StopReason::Stop`].
    pub stopped_by: Option<StoppedBy>,
    /// How it came out of its pass, if the sequence speculates.
    pub speculated: Option<Speculated>,
}

/// The report that a sequence's prompt has run.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Event, Prompt, Request, Scheduler, SchedulerOptions};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut scheduler = Scheduler::new(&engine, SchedulerOptions::default());
/// let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
/// request.stop.max_tokens = Some(1);
/// request.prompt_logprobs = Some(0);
/// scheduler.submit("ann", request)?;
/// while !scheduler.is_idle() {
///     for event in scheduler.round() {
///         if let Event::Prompt(_, report) = event {
///             assert_eq!((report.reused, report.scored.len()), (0, 2));
///         }
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PromptReport {
    /// Number of its positions that were already cached.
    pub reused: usize,
    /// The scores of its tokens except the first, if they were asked for: one entry less than tokens.
    pub scored: Vec<Scored>,
}

/// The error of a single sequence: its logits are broken, or its constraint or text failed. The other sequences are
/// the same as without it.
///
/// # Examples
/// ```
/// use moi_engine::{EngineError, SequenceError, SequenceId};
///
/// let error = EngineError::BadLogits { step: 7, what: "NaN", origin: None };
/// let error = SequenceError { row: SequenceId(1), error, text: "so far".to_owned() };
/// assert!(error.to_string().starts_with("the logits of step 7 hold NaN"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SequenceError {
    /// The sequence, which has left the batch.
    pub row: SequenceId,
    /// What went wrong.
    pub error: EngineError,
    /// The text that it held back.
    pub text: String,
}
