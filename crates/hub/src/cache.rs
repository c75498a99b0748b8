//! Where fetched files lie.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::NamedTempFile;

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

    /// Removes a catalogue model, and what an unfinished download of it has left. Whether there was anything.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(&self, entry: &Entry) -> Result<bool, FetchError> {
        let directory = self.root.join("models").join(entry.name);
        let mut found = false;
        for path in [self.part(entry), directory] {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Ok(()) => found = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(FetchError::Io { path, error }),
            }
        }
        Ok(found)
    }

    /// What has come of a catalogue model that is being fetched.
    pub(crate) fn part(&self, entry: &Entry) -> PathBuf {
        self.root.join("partial").join(format!("{}.part", entry.sha256))
    }

    /// The file by whose lock one process at a time fetches it.
    pub(crate) fn lock(&self, entry: &Entry) -> PathBuf {
        self.root.join("partial").join(format!("{}.lock", entry.sha256))
    }

    /// Where what GPUs have compiled is kept.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Whether a catalogue model is there. Files get their name only after their hash was checked, so the
    /// length is enough to look at.
    pub fn has(&self, entry: &Entry) -> bool {
        fs::metadata(self.path(entry)).is_ok_and(|meta| meta.is_file() && meta.len() == entry.size)
    }

    /// A directory for downloads under way, on the same file system, rid of what killed processes have left.
    pub(crate) fn partial(&self) -> Result<PathBuf, FetchError> {
        let path = self.root.join("partial");
        create_dir(&path)?;
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            let temporary = entry.file_name().to_string_lossy().starts_with(TEMPORARY);
            let age =
                entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
            if temporary && age.is_some_and(|age| age > FORGOTTEN) {
                let _: io::Result<()> = match entry.path().is_dir() {
                    true => fs::remove_dir_all(entry.path()),
                    false => fs::remove_file(entry.path()),
                };
            }
        }
        Ok(path)
    }
}

/// What names of temporary files and directories begin with.
pub(crate) const TEMPORARY: &str = ".moi-";
/// No download takes this long.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);

/// A file under a temporary name, to be given its own when it is whole; as readable as any new file.
///
/// # Errors
/// If the directory cannot be written.
pub fn new_file_in(directory: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Less the user's umask; a temporary file is otherwise for its owner alone.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(directory)
}

pub(crate) fn create_dir(path: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(path).map_err(|error| FetchError::Io { path: path.to_owned(), error })
}

pub(crate) fn create_parent(path: &Path) -> Result<(), FetchError> {
    path.parent().map_or(Ok(()), create_dir)
}
