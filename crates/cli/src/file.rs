//! Writes files that appear only when they are complete, and reads texts that the user names.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Checks that a file can be written, before hours of measuring.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn check(path: &Path) -> Result<()> {
    if is_special(path) {
        return Ok(());
    }
    let directory = directory(path);
    if !directory.is_dir() {
        bail!("{}: there is no directory {}", cannot(path), directory.display());
    }
    // The temporary file is removed immediately.
    moi_hub::new_file_in(&directory).map(drop).with_context(|| cannot(path))
}

/// Writes a file under a temporary name first, so that a partial file never replaces a complete one. Pipes, devices
/// and other special files are written directly.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    if is_special(path) {
        return fs::write(path, content).with_context(|| cannot(path));
    }
    // A symbolic link stays a link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut file = moi_hub::new_file_in(&directory(&target)).with_context(|| cannot(path))?;
    file.write_all(content).with_context(|| cannot(path))?;
    file.persist(&target).with_context(|| cannot(path))?;
    Ok(())
}

/// Largest size of a text that is read as a whole.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a text from a file, which may be a pipe.
///
/// # Errors
/// If the file cannot be read, is longer than [`MAX_BYTES`], or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    text(fs::File::open(path)?)
}

/// Reads a text from stdin.
///
/// # Errors
/// As [`read_text`].
pub(crate) fn stdin_text() -> Result<String> {
    text(std::io::stdin().lock())
}

fn text(from: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("it has more than {MAX_BYTES} bytes");
    }
    Ok(moi_files::text(bytes)?)
}

fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| !meta.is_file())
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn cannot(path: &Path) -> String {
    format!("cannot write {}", path.display())
}
