//! Files that appear when they are whole, and texts that the user names.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Says before hours of measuring that a file cannot be written.
///
/// # Errors
/// If it cannot.
pub(crate) fn check(path: &Path) -> Result<()> {
    if is_special(path) {
        return Ok(());
    }
    let directory = directory(path);
    if !directory.is_dir() {
        bail!("{}: there is no directory {}", cannot(path), directory.display());
    }
    // It goes as it comes.
    moi_hub::new_file_in(&directory).map(drop).with_context(|| cannot(path))
}

/// Writes under a temporary name first: no half-written file takes the place of a whole one. What is no regular
/// file, such as a pipe or a device, is written to as it is.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    if is_special(path) {
        return fs::write(path, content).with_context(|| cannot(path));
    }
    // A link stays one.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut file = moi_hub::new_file_in(&directory(&target)).with_context(|| cannot(path))?;
    file.write_all(content).with_context(|| cannot(path))?;
    file.persist(&target).with_context(|| cannot(path))?;
    Ok(())
}

/// No text that is read whole is longer.
const MOST_BYTES: u64 = 16 << 20;

/// A text in a file, which may be a pipe.
///
/// # Errors
/// If it cannot be read, has no end within [`MOST_BYTES`], or is not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    text(fs::File::open(path)?)
}

/// A text on stdin.
///
/// # Errors
/// As [`read_text`].
pub(crate) fn stdin_text() -> Result<String> {
    text(std::io::stdin().lock())
}

fn text(from: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        bail!("it has more than {MOST_BYTES} bytes");
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
