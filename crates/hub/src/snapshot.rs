//! The hub's own cache, which other tools share: `models--owner--name/{blobs,refs,snapshots}`.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Component, Path, PathBuf},
};

use crate::{
    FetchError,
    cache::{create_parent, new_file_in},
};

/// A repository in the hub's cache.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    root: PathBuf,
}

impl Snapshots {
    /// Of the repository `owner/name`.
    pub(crate) fn new(hub_cache: &Path, id: &str) -> Self {
        Self { root: hub_cache.join(format!("models--{}", id.replace('/', "--"))) }
    }

    /// Where the content with an etag lies.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where it lies while it is fetched; under the name that the hub's tools give it.
    pub(crate) fn part(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The file by whose lock one process at a time fetches it.
    pub(crate) fn lock(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.lock"))
    }

    /// The files of a commit.
    pub(crate) fn directory(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The files of the commit that a revision named when it was fetched.
    pub(crate) fn cached(&self, revision: &str) -> Option<PathBuf> {
        let reference = self.root.join("refs").join(revision);
        let commit = fs::read_to_string(reference).unwrap_or_else(|_| revision.to_owned());
        let commit = commit.trim();
        let directory = self.directory(commit);
        (is_plain(commit) && directory.is_dir()).then_some(directory)
    }

    /// A file of a revision, and the name of the blob that it is: large ones have their sha256 for a name.
    pub(crate) fn file(&self, revision: &str, file: &str) -> Option<(PathBuf, String)> {
        let path = self.cached(revision)?.join(file);
        let blob = fs::canonicalize(&path).ok()?;
        Some((path, blob.file_name()?.to_string_lossy().into_owned()))
    }

    /// Lets a revision name a commit.
    pub(crate) fn name(&self, revision: &str, commit: &str) -> Result<(), FetchError> {
        // A commit names itself.
        if revision == commit {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        // A cache that cannot be written can be used.
        if fs::read_to_string(&path).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        create_parent(&path)?;
        place(&path, |file| file.write_all(commit.as_bytes()))
    }

    /// Gives a whole and verified blob its place among the files of a commit.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<PathBuf, FetchError> {
        let path = self.directory(commit).join(file);
        create_parent(&path)?;
        // From `snapshots/COMMIT/FILE`, and deeper where the file is in a folder.
        let up = "../".repeat(2 + Path::new(file).components().count() - 1);
        let linked = symlink(Path::new(&format!("{up}blobs/{etag}")), &path);
        match linked {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
            // Without the right to make links, or on a file system without them.
            Err(_) => {
                place(&path, |file| io::copy(&mut File::open(self.blob(etag))?, file).map(drop))?;
                Ok(path)
            }
        }
    }
}

/// Gives a file its name when it is whole.
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

/// Whether a path from a server stays below the directory that it is joined to.
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

    /// A copy that breaks off leaves nothing under the name, nor beside it.
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
    fn paths_of_strangers() {
        assert!(["a", "a/b.json", "refs/pr/1"].into_iter().all(is_plain));
        let outside = ["", "..", "../a", "a/../../b", "/a", "C:a", "a\\b", "a\0", "."];
        assert!(!outside.into_iter().any(is_plain));
    }
}
