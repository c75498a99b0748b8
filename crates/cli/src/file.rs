//! Files that appear when they are whole.

use std::{
    fs,
    io::Write,
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
