//! What tokens are sampled from: penalties and filters as small pure functions, and their order as data.
//!
//! Nothing here knows of tensors, models or random generators. Logits become [`Candidates`]; each function changes their
//! logits ([`penalties`]) or takes some away ([`filters`]); a uniform number picks one of those that are left.
//!
//! ```
//! use moi_sampling::{Candidates, History, Sampling};
//!
//! # fn main() -> Result<(), moi_sampling::SamplingError> {
//! let sampling = Sampling { temperature: 0.5, top_k: 2, ..Sampling::default() };
//! sampling.check()?;
//! let mut candidates = Candidates::new(&[0.0, 3.0, 2.0]);
//! sampling.apply(&mut candidates, &History::default())?;
//! let tokens: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
//! assert_eq!(tokens, [1, 2]);
//! assert_eq!((candidates.draw(0.1), candidates.draw(0.9)), (1, 2));
//! # Ok(())
//! # }
//! ```

mod candidates;
pub mod filters;
mod history;
pub mod penalties;
mod settings;

pub use candidates::{Candidate, Candidates};
pub use history::History;
pub use settings::{Sampling, SamplingError, SamplingStep};
