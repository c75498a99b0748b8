//! Tasks, scorers and paired statistics, to find out which sampling rule solves more problems.
//!
//! This crate is independent of models: a [`Task`] has problems with prompts, a [`Scorer`] judges whether an answer
//! solves one, a [`Log`] keeps samples in an append-only file, and a [`Summary`] compares rules that were given the
//! same problems with the same seeds.
//!
//! ```
//! use moi_eval::{Countdown, Task};
//!
//! let task = Task::countdown(&Countdown { numbers: 3, ..Countdown::default() }, 5);
//! let problem = &task.problems[0];
//! assert!(problem.prompt.contains("numbers"));
//! assert!(!problem.scorer.score("I do not know").correct);
//! assert!(problem.scorer.score(problem.solution.as_deref().unwrap_or_default()).correct);
//! ```

mod answers;
mod boxes;
mod chart;
mod choice;
mod countdown;
mod error;
mod expression;
mod latex;
mod log;
mod number;
mod number_answer;
mod pattern;
mod report;
mod shard;
mod statement;
mod statistics;
mod summary;
mod task;
mod units;

pub use answers::{Score, Scorer};
pub use countdown::Countdown;
pub use error::EvalError;
pub use expression::{ExpressionError, evaluate};
pub use log::{Log, Sample};
pub use report::{page, table};
pub use shard::{Merged, Shard, ShardFacts, merge};
pub use statistics::{Interval, McNemar, bootstrap_difference, mcnemar, wilson};
pub use summary::{Difference, RuleSummary, Summary, are_equal, configurations};
pub use task::{Problem, Task};
