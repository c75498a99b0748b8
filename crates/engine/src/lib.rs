//! Requests in, tokens out: sampling, the decode loop and its stop rules, for a batch of rows.
//!
//! There is one loop, [`Batch::round`]: the next inputs of all rows that decode and pieces of prompts go through the
//! model together. A single generation is a batch of one; a [`Scheduler`] lets requests of several owners take turns.
//! After a token is sampled, the row's [`InputRule`] decides what the model is fed.
//!
//! Without the default feature `text`, prompts are token ids or embeddings and steps have no text; the crate then
//! uses nothing that WebAssembly lacks. The feature `web` takes the random numbers that burn asks for from the
//! browser.
//!
//! ```
//! use moi_engine::{Engine, Prompt, Request, StopReason};
//! use moi_models::Architecture;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let config = serde_json::json!({
//! #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
//! #     "num_hidden_layers": 2, "num_attention_heads": 4,
//! # });
//! let device = Default::default();
//! let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
//! let engine = Engine::new(model, device);
//!
//! let mut request = Request::new(Prompt::Ids(vec![1, 2, 3])); // MoI, greedy
//! request.stop.max_tokens = Some(4);
//! for step in engine.generate(request)? {
//!     let step = step?;
//!     println!("{} entropy {:.3} gate {:.3}", step.token, step.entropy, step.gate);
//!     assert!(step.stop.is_none() || step.stop == Some(StopReason::Length));
//! }
//! # Ok(())
//! # }
//! ```

mod admission;
mod batch;
mod device_sampler;
mod engine;
mod error;
mod generation;
mod grammar;
mod leaving;
mod origin;
mod pending_step;
mod pieces;
mod prefix;
mod request;
mod round;
mod rows;
mod sampler;
mod scheduler;
#[cfg(feature = "grammar")]
mod schema;
pub mod self_check;
mod sequence;
mod session;
pub mod speculation;
mod step;
mod stop;
mod text;
mod token_chooser;

pub use admission::PreparedRequest;
pub use batch::Batch;
pub use device_sampler::{DeviceSampler, KernelSampler};
pub use engine::{DEFAULT_PREFILL_CHUNK, Engine};
pub use error::{EngineError, TokenUse};
pub use generation::Generation;
pub use grammar::{Grammar, GrammarLimits};
pub use moi::{InputRule, Knob, Markers, Moi, Noise, Scope, Support};
pub use moi_sampling::{
    Breakers, Decision, Dry, Frequency, Knob as SamplingKnob, KnobKind, LogitBias, MinP, Mirostat,
    NoRepeatNgram, PenaltyWindow, Presence, Reading, Repetition, RowSpec, Sampling, SamplingError,
    SamplingStep, Temperature, TopK, TopNSigma, TopP, Typical, Xtc,
};
pub use origin::Origin;
pub use request::{Prompt, Request, StopRules};
pub use sampler::{Sampled, Sampler, Scored};
pub use scheduler::{Event, Refusal, RequestId, Scheduler, SchedulerOptions};
pub use self_check::{SelfCheck, WrongLogits};
pub use session::Session;
pub use speculation::{
    DepthReport, DrafterChoice, OwnDrafter, Speculated, Speculation, SpeculationReport, Verify,
};
pub use step::{PromptReport, SequenceError, SequenceId, TokenEvent};
pub use stop::{StopReason, StoppedBy};
