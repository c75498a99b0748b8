//! Speculative decoding without a model: what is guessed, how guesses are verified, and when guessing pays.
//!
//! A model computes the distributions behind several positions in one pass, in little more time than behind one.
//! A drafter guesses tokens, [`DraftTree`] holds the guesses, one pass gives the model's distribution behind each of
//! them, and a walk through the tree keeps those that the model would have chosen by itself.
//!
//! - [`DraftTree`]: drafted tokens behind the last token of a text; [`Drafter`]: what drafts them
//! - [`LookupIndex`]: drafts what followed an earlier occurrence of the last tokens
//! - [`RecyclingTable`] and [`template`]: drafts the likeliest successors that were seen last
//! - [`draft_dynamic`], [`likeliest_tree`]: trees from the distributions of a draft model, within a budget
//! - [`Verifier`]: which token is emitted where drafts were sampled from a distribution of their own
//! - [`optimal_acceptance`]: the most that any verifier can accept
//! - [`PassCosts`], [`HitRate`]: how many tokens to draft, from what a pass costs and what was accepted
//!
//! This crate knows neither tensors nor models nor random generators: distributions are slices, and uniform numbers
//! come from a [`Chance`].
//!
//! ```
//! use moi_speculation::{DraftTree, LookupIndex, LookupSettings};
//!
//! let mut index = LookupIndex::new(LookupSettings::default());
//! for token in [5, 6, 7, 8, 5, 6] {
//!     index.push(token);
//! }
//! // Behind the earlier 5, 6 came 7, 8.
//! let found = index.draft(2);
//! assert_eq!(found.tokens, [7, 8]);
//! let tree = DraftTree::chain(&found.tokens);
//! assert_eq!(tree.child(0, 7), Some(1));
//! ```

mod acceptance;
mod chance;
mod drafter;
mod dynamic;
mod lookup;
mod mixture;
mod pace;
mod recycling;
mod tree;
mod trim;
mod verify;

pub use acceptance::{greedy_acceptance, k_seq_acceptance, optimal_acceptance};
pub use chance::Chance;
pub use drafter::{Draft, DraftError, Drafter, JoinedDrafter, LookupDrafter, RecyclingDrafter};
pub use dynamic::{
    Growth, draft_dynamic, draft_greedy, draft_paths, draft_without_replacement, likeliest_tree,
};
pub use lookup::{Found, LookupIndex, LookupSettings};
pub use mixture::{Guess, InputTolerance, relative_error};
pub use pace::{HitRate, PassCosts};
pub use recycling::{RecyclingTable, SUCCESSOR_RATES, likeliest, template};
pub use tree::DraftTree;
pub use trim::trimmed;
pub use verify::{Verifier, greedy_split, k_seq_division, residual};
