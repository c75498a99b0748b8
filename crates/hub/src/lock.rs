//! Locks a download, so that only one process at a time downloads a file; other processes wait and then find the
//! file.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::{FetchError, cache::create_parent};

/// A lock that is released when it is dropped, or when its process ends in any way.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: File,
}

impl Lock {
    /// Waits for the lock of this file; `say` is told if another process holds it.
    pub(crate) fn take(path: &Path, mut say: impl FnMut(&str)) -> Result<Self, FetchError> {
        create_parent(path)?;
        let error = |error| FetchError::Io { path: path.to_owned(), error };
        let file = File::options().create(true).append(true).open(path).map_err(error)?;
        match file.try_lock() {
            Ok(()) => return Ok(Self { _held: file }),
            Err(TryLockError::WouldBlock) => {}
            // Some network file systems have no locks. Two processes may then corrupt each other's download, which
            // the hash check detects.
            Err(TryLockError::Error(_)) => return Ok(Self { _held: file }),
        }
        say("another process is fetching the same; waiting for it");
        file.lock().map_err(error)?;
        Ok(Self { _held: file })
    }
}
