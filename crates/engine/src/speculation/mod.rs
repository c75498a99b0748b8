//! Speculation: drafted tokens run through the model beside the next one, and those that would have been chosen
//! anyway are kept.
//!
//! A pass gives the logits behind the last token and behind each draft. The walk through them is the ordinary step, on
//! rows that are there: sampler, penalties, grammar, stop rules and detokenizer, in the same order. It goes on as long
//! as the chosen token was drafted and the next input is what was fed for it. So the tokens are those of a run without
//! drafts, whatever the drafter.

mod costs;
mod drafting;
mod model;
mod report;
mod settings;
mod walk;

pub(crate) use drafting::{Drafting, Shared};
pub(crate) use model::{DraftModel, DraftSource};
pub use moi_speculation::{
    Chance, Draft, DraftError, DraftTree, Drafter, Growth, JoinedDrafter, LookupDrafter, LookupSettings,
    PassCosts, RecyclingDrafter, RecyclingTable,
};
pub use report::{DepthReport, Speculated, SpeculationReport};
pub use settings::{DrafterChoice, OwnDrafter, Speculation};
pub(crate) use walk::Drafted;
