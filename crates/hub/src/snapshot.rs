//! The hub's own cache, which other tools share: `models--owner--name/{blobs,refs,snapshots}`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use hf_hub::{Cache as HubCache, CacheRepo, Repo};

use crate::{
    FetchError,
    cache::{create_parent, new_file_in},
};

/// A repository in the hub's cache.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    cache: HubCache,
    id: String,
}

impl Snapshots {
    /// The cache of the repository `owner/name`.
    pub(crate) fn new(hub_cache: &Path, id: &str) -> Self {
        Self { cache: HubCache::new(hub_cache.to_owned()), id: id.to_owned() }
    }

    /// hf-hub's layout of the repository's cache.
    fn layout(&self) -> CacheRepo {
        self.cache.model(self.id.clone())
    }

    /// The file that records the commit of a revision. hf-hub would overwrite it in place, where a write can be cut
    /// short.
    fn reference(&self, revision: &str) -> PathBuf {
        self.cache.path().join(Repo::model(self.id.clone()).folder_name()).join("refs").join(revision)
    }

    /// The path of the blob with this etag.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.layout().blob_path(etag)
    }

    /// The path of the blob's partial download, with the name that the hub's tools use.
    pub(crate) fn part(&self, etag: &str) -> PathBuf {
        self.layout().blob_path(&format!("{etag}.incomplete"))
    }

    /// The lock file that lets only one process at a time download the blob.
    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.layout().blob_path(&format!("{etag}.lock"))
    }

    /// The directory of a commit's files.
    pub(crate) fn directory(&self, commit: &str) -> PathBuf {
        self.layout().pointer_path(commit)
    }

    /// The directory of the commit to which a revision referred when it was downloaded.
    pub(crate) fn cached(&self, revision: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.reference(revision)).unwrap_or_else(|_| revision.to_owned());
        let commit = commit.trim();
        let directory = self.directory(commit);
        (is_plain(commit) && directory.is_dir()).then_some(directory)
    }

    /// The path of a file of a revision, and the name of its blob, which is the SHA-256 for large files.
    pub(crate) fn file(&self, revision: &str, file: &str) -> Option<(PathBuf, String)> {
        let path = self.cached(revision)?.join(file);
        let blob = fs::canonicalize(&path).ok()?;
        Some((path, blob.file_name()?.to_string_lossy().into_owned()))
    }

    /// Records the commit to which a revision refers.
    pub(crate) fn name(&self, revision: &str, commit: &str) -> Result<(), FetchError> {
        // A commit needs no record.
        if revision == commit {
            return Ok(());
        }
        let path = self.reference(revision);
        // Without this check, a read-only cache could not be used.
        if fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        create_parent(&path)?;
        place(&path, |file| file.write_all(commit.as_bytes()))
    }

    /// Links a complete and verified blob into the directory of a commit.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<PathBuf, FetchError> {
        let path = self.directory(commit).join(file);
        create_parent(&path)?;
        // The link is relative to `snapshots/COMMIT/FILE`, or deeper if the file is in a folder.
        let up = "../".repeat(2 + Path::new(file).components().count() - 1);
        let linked = symlink(Path::new(&format!("{up}blobs/{etag}")), &path);
        match linked {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
            // Links may be forbidden for this user or unknown to the file system; then the file is copied.
            Err(_) => {
                place(&path, |file| io::copy(&mut File::open(self.blob(etag))?, file).map(drop))?;
                Ok(path)
            }
        }
    }
}

/// Writes a file under a temporary name, and renames it when it is complete.
fn place(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), FetchError> {
    let written = || {
        let mut file = new_file_in(path.parent().unwrap_or(Path::new(".")))?;
        write(file.as_file_mut())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error).map(drop)
    };
    written().map_err(|error| FetchError::Io { path: path.to_owned(), error })
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether a path from a server stays below the directory to which it is joined.
pub(crate) fn is_plain(path: &str) -> bool {
    let mut parts = Path::new(path).components().peekable();
    parts.peek().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && !path.contains(['\\', ':', '\0'])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use std::{
        fs,
        io::{self, Write},
    };

    use super::{is_plain, place};

    /// A failed copy leaves nothing under the final name, nor beside it.
    #[test]
    fn what_is_copied_has_its_name_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        let broken = place(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(broken.unwrap_err().to_string().contains("model.safetensors"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        place(&path, |file| file.write_all(b"whole")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn untrusted_paths() {
        assert!(["a", "a/b.json", "refs/pr/1"].into_iter().all(is_plain));
        let outside = ["", "..", "../a", "a/../../b", "/a", "C:a", "a\\b", "a\0", "."];
        assert!(!outside.into_iter().any(is_plain));
    }
}
