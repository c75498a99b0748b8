//! Where fetched files lie.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Entry, FetchError};

/// The directory of fetched files.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `MOI_CACHE`, or `moi` in the user's cache directory.
    ///
    /// # Errors
    /// If neither is known.
    pub fn from_env() -> Result<Self, FetchError> {
        match std::env::var_os("MOI_CACHE") {
            Some(root) if !root.is_empty() => Ok(Self::new(PathBuf::from(root))),
            _ => {
                let user = directories::ProjectDirs::from("", "", "moi").ok_or(FetchError::NoCache)?;
                Ok(Self::new(user.cache_dir().to_owned()))
            }
        }
    }

    /// A cache in this directory, which need not exist yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Where a catalogue model lies once it is fetched.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.root.join("models").join(entry.name).join(entry.file)
    }

    /// Whether a catalogue model is there. Files get their name only after their hash was checked, so the
    /// length is enough to look at.
    pub fn has(&self, entry: &Entry) -> bool {
        fs::metadata(self.path(entry)).is_ok_and(|meta| meta.is_file() && meta.len() == entry.size)
    }

    /// A directory for downloads under way, on the same file system.
    pub(crate) fn partial(&self) -> Result<PathBuf, FetchError> {
        let path = self.root.join("partial");
        create_dir(&path)?;
        Ok(path)
    }
}

pub(crate) fn create_dir(path: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(path).map_err(|error| FetchError::Io { path: path.to_owned(), error })
}
