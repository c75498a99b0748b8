//! The cache of downloaded files.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::NamedTempFile;

use crate::{Entry, FetchError};

/// The cache directory of downloaded files.
///
/// # Examples
/// ```
/// use moi_hub::{Cache, DEFAULT_MODEL, find};
///
/// let cache = Cache::new(std::env::temp_dir().join("moi-empty-cache"));
/// let entry = find(DEFAULT_MODEL).ok_or("not in the catalogue")?;
/// assert!(cache.path(entry).ends_with(entry.file));
/// assert!(!cache.has(entry));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache at `MOI_CACHE`, or `moi` in the user's cache directory.
    ///
    /// # Errors
    /// If neither of them is known.
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

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path at which a catalogue model's file is stored once it is downloaded.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.root.join("models").join(entry.name).join(entry.file)
    }

    /// Removes a catalogue model, and an unfinished download of it. Returns whether there was anything to remove.
    ///
    /// # Errors
    /// If the files cannot be removed.
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

    /// The path of a catalogue model's partial download.
    pub(crate) fn part(&self, entry: &Entry) -> PathBuf {
        self.root.join("partial").join(format!("{}.part", entry.sha256))
    }

    /// The lock file that lets only one process at a time download the model.
    pub(crate) fn lock(&self, entry: &Entry) -> PathBuf {
        self.root.join("partial").join(format!("{}.lock", entry.sha256))
    }

    /// The directory of compiled GPU kernels.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    /// Whether a catalogue model is downloaded. Files get their name only after their hash was checked, so checking
    /// the length is enough.
    pub fn has(&self, entry: &Entry) -> bool {
        fs::metadata(self.path(entry)).is_ok_and(|meta| meta.is_file() && meta.len() == entry.size)
    }

    /// The directory of partial downloads, on the same file system, after removing what killed processes have left.
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

/// The beginning of the names of temporary files and directories.
pub(crate) const TEMPORARY: &str = ".moi-";
/// The age from which temporary files count as abandoned; no download takes this long.
const FORGOTTEN: Duration = Duration::from_secs(24 * 60 * 60);

/// Creates a file with a temporary name, to be renamed when it is complete. Its permissions are those of any new
/// file.
///
/// # Errors
/// If the directory cannot be written.
///
/// # Examples
/// ```
/// use std::{env, fs, io::Write, process};
///
/// let directory = env::temp_dir();
/// let path = directory.join(format!("moi-new-file-{}", process::id()));
/// let mut file = moi_hub::new_file_in(&directory)?;
/// file.write_all(b"complete")?;
/// file.persist(&path)?;
/// assert_eq!(fs::read_to_string(&path)?, "complete");
/// fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn new_file_in(directory: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The system subtracts the user's umask; by default, only the owner could read a temporary file.
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
