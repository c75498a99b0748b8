//! One process at a time fetches a file; others wait and find it there.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::{FetchError, cache::create_parent};

/// Holds a lock until it is dropped, or its process ends in whatever way.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: File,
}

impl Lock {
    /// Waits for the lock that a file stands for; `say` is told if another process has it.
    pub(crate) fn take(path: &Path, mut say: impl FnMut(&str)) -> Result<Self, FetchError> {
        create_parent(path)?;
        let error = |error| FetchError::Io { path: path.to_owned(), error };
        let file = File::options().create(true).append(true).open(path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => return Ok(Self { _held: file }),
            Err(TryLockError::WouldBlock) => {}
            // Some network file systems have no locks: two processes may then spoil each
            // other's download, which its hash tells.
            Err(TryLockError::Error(_)) => return Ok(Self { _held: file }),
        }
        say("another process is fetching the same; waiting for it");
        file.lock().map_err(error)?;
        Ok(Self { _held: file })
    }
}
