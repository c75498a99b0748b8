//! Reads small files of a model, and makes untrusted text safe for messages.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    ops::Range,
    path::Path,
};

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::CheckpointError;

/// Most bytes of a `config.json`, and of any other file that is read besides tokenizers and weights.
pub const CONFIG_BYTES: u64 = 16 << 20;
/// Most bytes of an index of shards.
pub const INDEX_BYTES: u64 = 64 << 20;

/// The first bytes of a Git LFS pointer, which a clone has in place of large files if Git LFS is not installed.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// The error message if a file that begins with these bytes is a Git LFS pointer.
pub(crate) fn lfs_pointer(bytes: &[u8]) -> Option<String> {
    let what = "it is a pointer of Git LFS, not the file; fetch the file itself";
    bytes.starts_with(LFS_POINTER).then(|| what.to_owned())
}

/// The error message if a file that begins with these bytes is an HTML page, which a server can send in place of a
/// file.
pub(crate) fn html_page(bytes: &[u8]) -> Option<String> {
    let text: &[u8] = bytes[..bytes.len().min(256)].trim_ascii_start();
    let begins = |start: &str| {
        text.get(..start.len()).is_some_and(|found| found.eq_ignore_ascii_case(start.as_bytes()))
    };
    let what = "it is an HTML page, not the file; fetch the file itself";
    (begins("<!doctype html") || begins("<html")).then(|| what.to_owned())
}

/// Opens a regular file for reading.
///
/// # Errors
/// If the path is no regular file: reading a directory fails, and a device or a pipe could have no end or block the
/// reader.
///
/// # Examples
/// ```
/// use std::io::Read;
///
/// use moi_checkpoint::open_file;
///
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("config.json");
/// std::fs::write(&path, "{}")?;
/// let mut text = String::new();
/// open_file(&path)?.read_to_string(&mut text)?;
/// assert_eq!(text, "{}");
/// assert!(open_file(directory.path()).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_file(path: &Path) -> Result<File, CheckpointError> {
    let error = |error| CheckpointError::Io { path: path.to_owned(), error };
    // The check comes first, because opening a pipe waits for a writer.
    let kind = fs::metadata(path).map_err(|found| error(dangling(path).unwrap_or(found)))?.file_type();
    if kind.is_dir() {
        return Err(error(io::ErrorKind::IsADirectory.into()));
    }
    if !kind.is_file() {
        return Err(error(io::Error::other("it is a device or a pipe, expected a file")));
    }
    File::open(path).map_err(error)
}

/// Whether anything has this name. A name that exists but is no file, such as a link to a removed file, must become
/// an error and not count as absent.
///
/// # Examples
/// ```
/// use moi_checkpoint::is_there;
///
/// # let directory = tempfile::tempdir()?;
/// assert!(is_there(directory.path()));
/// assert!(!is_there(&directory.path().join("absent")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The error for a link whose target cannot be reached.
fn dangling(path: &Path) -> Option<io::Error> {
    let target = fs::read_link(path).ok()?;
    Some(io::Error::other(format!("it is a link to {}, which cannot be reached", target.display())))
}

/// Reads JSON.
///
/// # Errors
/// Says in words what is wrong, for the user who has the file.
///
/// # Examples
/// ```
/// use moi_checkpoint::parse_json;
///
/// let config: serde_json::Value = parse_json(br#"{"model_type": "llama"}"#)?;
/// assert_eq!(config["model_type"], "llama");
/// assert!(parse_json::<serde_json::Value>(b"<html></html>").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    moi_files::json(bytes).map_err(|error| match error.classify() {
        Category::Eof if bytes.is_empty() => "it is empty; fetch it again".to_owned(),
        Category::Eof => format!("it is cut off ({error}); fetch it again"),
        Category::Syntax => lfs_pointer(bytes)
            .or_else(|| html_page(bytes))
            .unwrap_or_else(|| format!("it is not valid JSON ({error})")),
        Category::Io | Category::Data => shown(&error.to_string()),
    })
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// If it is no regular file, cannot be read, or is longer.
///
/// # Examples
/// ```
/// use moi_checkpoint::{CONFIG_BYTES, read_file};
///
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("config.json");
/// std::fs::write(&path, "{}")?;
/// assert_eq!(read_file(&path, CONFIG_BYTES)?, b"{}");
/// assert!(read_file(&path, 1).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = Vec::new();
    let file = open_file(path)?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| CheckpointError::Io { path: path.to_owned(), error })?;
    if bytes.len() as u64 > limit {
        let length = fs::metadata(path).map_or(limit + 1, |meta| meta.len());
        let what = format!("it has {length} bytes, expected {limit} at most; this is no such file");
        return Err(CheckpointError::Format { path: path.to_owned(), place: "length".into(), what });
    }
    Ok(bytes)
}

/// Text from a file in the form in which a message shows it: on one line, without terminal control characters, and of
/// bounded length.
///
/// # Examples
/// ```
/// use moi_checkpoint::shown;
///
/// assert_eq!(shown("model.norm.weight"), "model.norm.weight");
/// assert_eq!(shown("a\u{1b}[2J"), r"a\u{1b}[2J");
/// ```
pub fn shown(text: &str) -> String {
    const MAX_LENGTH: usize = 400;
    let mut out = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == MAX_LENGTH {
            let more = text.chars().count() - at;
            return format!("{out}... ({more} more characters)");
        }
        match c {
            // Control characters, including line ends, and characters that change the direction of writing.
            c if c.is_control()
                || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}

/// The first tensor that shares bytes with another one, and the error message. Sharing is refused because it would
/// let a small file describe a large model. `again` tells the user what to do about it.
pub(crate) fn overlap<N: fmt::Display>(
    mut ranges: Vec<(Range<usize>, N)>,
    again: &str,
) -> Option<(N, String)> {
    ranges.retain(|(range, _)| !range.is_empty());
    ranges.sort_by_key(|(range, _)| range.start);
    let at = ranges.windows(2).position(|pair| pair[1].0.start < pair[0].0.end)?;
    let (first, before) = &ranges[at];
    let what = format!(
        "it begins at byte {}, within tensor `{}`, which ends at byte {}; the file is damaged, {again}",
        ranges[at + 1].0.start,
        shown(&before.to_string()),
        first.end
    );
    Some((ranges.swap_remove(at + 1).1, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untrusted_text_is_escaped() {
        assert_eq!(shown("model.norm.weight é"), "model.norm.weight é");
        assert_eq!(shown("\u{1b}[2Jx\u{202e}"), "\\u{1b}[2Jx\\u{202e}");
        let long = shown(&"x".repeat(1000));
        assert!(long.ends_with("... (600 more characters)") && long.len() < 450, "{long}");
    }

    #[test]
    fn html_pages_are_told() {
        for page in ["<!DOCTYPE html>\n<html>", "\n  <html lang=en>", "<HTML>"] {
            assert!(html_page(page.as_bytes()).is_some(), "{page}");
        }
        for other in ["", "<", "<htm", "{\"a\": \"<html>\"}"] {
            assert!(html_page(other.as_bytes()).is_none(), "{other}");
        }
    }

    #[test]
    fn only_files_of_a_size_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        let error = read_file(&path, 4).unwrap_err().to_string();
        assert!(error.contains("it has 5 bytes, expected 4 at most"), "{error}");
        assert!(read_file(directory.path(), 4).is_err());
        #[cfg(unix)]
        {
            let error = read_file(Path::new("/dev/zero"), 4).unwrap_err().to_string();
            assert!(error.contains("/dev/zero") && error.contains("expected a file"), "{error}");
        }
    }
}
