//! A bounded cursor over a file's bytes.

use std::{borrow::Cow, path::Path};

use crate::CheckpointError;

pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    position: usize,
    /// Array entries that may still be read; the limit exists because an entry takes more memory than bytes in the
    /// file.
    entries_left: usize,
    /// The number of strings so far that were not UTF-8.
    replaced: usize,
}

/// Most entries of all arrays of a file together; the largest vocabularies, with their scores, types and merges, have
/// less than a million and a half.
const MAX_ENTRIES: usize = 3 << 20;

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, position: 0, entries_left: MAX_ENTRIES, replaced: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn error(&self, what: String) -> CheckpointError {
        let place = format!("byte {}", self.position);
        CheckpointError::Format { path: self.path.to_owned(), place, what }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], CheckpointError> {
        if len > self.left() {
            return Err(self.error(format!(
                "{len} bytes expected, {} left; the file is damaged or incomplete, fetch it again",
                self.left()
            )));
        }
        let taken = &self.bytes[self.position..][..len];
        self.position += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self) -> Result<u32, CheckpointError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Reads a 64-bit size, which must fit into `usize`.
    pub(super) fn size(&mut self) -> Result<usize, CheckpointError> {
        let size = u64::from_le_bytes(self.array()?);
        usize::try_from(size).map_err(|_| self.error(format!("a size of {size} is absurd")))
    }

    /// Reads a number of things of at least `least` bytes each, which must not exceed what the file can hold.
    pub(super) fn count(&mut self, things: &str, least: usize) -> Result<usize, CheckpointError> {
        let count = self.size()?;
        match count.checked_mul(least) {
            Some(bytes) if bytes <= self.left() => Ok(count),
            _ => {
                Err(self
                    .error(format!(
                        "{count} {things} announced, more than the rest of the file can hold; it is damaged or incomplete, \
                         fetch it again"
                    )))
            }
        }
    }

    /// Reads a number of array entries of at least `least` bytes each.
    pub(super) fn entries(&mut self, least: usize) -> Result<usize, CheckpointError> {
        let count = self.count("array entries", least)?;
        match self.entries_left.checked_sub(count) {
            Some(left) => self.entries_left = left,
            None => {
                return Err(self.error(format!("more than {MAX_ENTRIES} array entries in the metadata")));
            }
        }
        Ok(count)
    }

    /// Reads a string of the metadata. Bytes that are not UTF-8 become U+FFFD, as llama.cpp reads them where it
    /// splits text: most strings are never used, and they are no reason to refuse a file.
    pub(super) fn text(&mut self) -> Result<String, CheckpointError> {
        let len = self.count("bytes of a string", 1)?;
        let bytes = self.take(len)?;
        match String::from_utf8_lossy(bytes) {
            Cow::Borrowed(text) => Ok(text.to_owned()),
            Cow::Owned(text) => {
                self.replaced += 1;
                Ok(text)
            }
        }
    }

    /// The number of strings so far that had bytes replaced.
    pub(super) fn replaced(&self) -> usize {
        self.replaced
    }

    /// Reads a tensor's name, which must be UTF-8 because tensors are looked up by name.
    pub(super) fn string(&mut self) -> Result<String, CheckpointError> {
        let len = self.count("bytes of a string", 1)?;
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(self.error(format!("a string is not UTF-8: {error}"))),
        }
    }
}
