//! Computes hashes of files and streams.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The side on which a copy failed.
pub(crate) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl From<CopyError> for io::Error {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Read(error) | CopyError::Write(error) => error,
        }
    }
}

/// Copies while hashing; calls `progress` with the length of each piece.
pub(crate) fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    hasher: &mut impl Digest,
    mut progress: impl FnMut(u64),
) -> Result<(), CopyError> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                to.write_all(&buffer[..n]).map_err(CopyError::Write)?;
                progress(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(CopyError::Read(error)),
        }
    }
}

pub(crate) fn hex(hasher: impl Digest) -> String {
    hasher.finalize().as_slice().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a file, in hex.
pub(crate) fn of_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    copy(&mut File::open(path)?, &mut io::sink(), &mut hasher, |_| {})?;
    Ok(hex(hasher))
}

/// The SHA-1 of a file, in hex.
pub(crate) fn sha1(path: &Path) -> io::Result<String> {
    let mut hasher = Sha1::new();
    copy(&mut File::open(path)?, &mut io::sink(), &mut hasher, |_| {})?;
    Ok(hex(hasher))
}

/// The SHA-1 that git computes for a blob of this file's content, in hex.
pub(crate) fn git_blob(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha1::new_with_prefix(format!("blob {}\0", file.metadata()?.len()));
    copy(&mut file, &mut io::sink(), &mut hasher, |_| {})?;
    Ok(hex(hasher))
}
