//! Sampling of tokens: samplers as declarations with small pure functions, and their order as data.
//!
//! This crate knows neither tensors nor models nor random generators. Logits become [`Candidates`]; each sampler
//! changes their logits or removes some; a uniform number picks one of those that are left. A sampler is a file of
//! `samplers` with its knobs (key, flag, help, default, allowed values) and its function, and a line of `samplers!`
//! in `sampling.rs`, which sets its place in the default order.
//!
//! ```
//! use moi_sampling::{Candidates, Past, Sampling};
//!
//! # fn main() -> Result<(), moi_sampling::SamplingError> {
//! let sampling = Sampling { temperature: 0.5.into(), top_k: 2.into(), ..Sampling::default() };
//! sampling.check()?;
//! let mut candidates = Candidates::new(&[0.0, 3.0, 2.0]);
//! sampling.apply(&mut candidates, &Past::default())?;
//! let tokens: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
//! assert_eq!(tokens, [1, 2]);
//! assert_eq!((candidates.draw(0.1), candidates.draw(0.9)), (1, 2));
//! # Ok(())
//! # }
//! ```

mod candidates;
mod declare;
mod device;
mod error;
mod history;
mod past;
mod samplers;
mod sampling;

/// Filters as functions, for input rules that have filters of their own.
pub mod filters {
    pub use crate::samplers::{min_p, temperature, top_k, top_p};
}

pub use candidates::{Candidate, Candidates};
pub use declare::{Knob, KnobKind};
pub use device::{Decision, Reading, RowSpec};
pub use error::SamplingError;
pub use history::History;
pub use past::Past;
pub use samplers::{
    Breakers, Dry, Frequency, LogitBias, MinP, Mirostat, NoRepeatNgram, Presence, Repetition, Temperature,
    TopK, TopNSigma, TopP, Typical, Xtc,
};
pub use sampling::{PenaltyWindow, Sampling, SamplingStep};
