//! Speculation: drafted tokens run through the model beside the next one, and those that would have been chosen
//! anyway are kept.
//!
//! A pass gives the logits behind the last token and behind each draft. The walk through them is the ordinary step, on
//! rows that are there: sampler, penalties, grammar, stop rules and detokenizer, in the same order. It goes on as long
//! as the chosen token was drafted and the next input is what was fed for it. So the tokens are those of a run without
//! drafts, whatever the drafter.
//!
//! Where the input rule feeds mixtures, a pass is fed guesses of them. A walk that ends because a token was right and
//! its input was not near enough leaves better guesses for the next pass: the rows behind were computed with nearly the
//! right inputs.
//!
//! Where drafts were drawn from a distribution, a verifier may decide in place of the sampler's number. The tokens are
//! then others, of the same distribution.

mod costs;
mod drafting;
mod guesses;
mod input_limits;
mod model;
mod report;
mod settings;
mod verification;
mod walk;

pub(crate) use drafting::{Drafting, Shared};
pub(crate) use input_limits::InputLimits;
pub(crate) use model::{DraftModel, DraftSource};
pub use moi_speculation::{
    Chance, Draft, DraftError, DraftTree, Drafter, Growth, JoinedDrafter, LookupDrafter, LookupSettings,
    PassCosts, RecyclingDrafter, RecyclingTable, draft_dynamic, draft_greedy, draft_paths,
    draft_without_replacement, likeliest_tree,
};
pub use report::{DepthReport, Speculated, SpeculationReport};
pub use settings::{DrafterChoice, OwnDrafter, Speculation, Verify};
pub(crate) use verification::Verification;
pub(crate) use walk::Drafted;
