//! Named tensors in a mapped file.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use memmap2::Mmap;

use crate::{CheckpointError, gguf::blocks};

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum Storage {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// Blocks of 32: a scale and 32 signed bytes.
    Q8_0,
    /// Blocks of 32: a scale and 32 nibbles around 8.
    Q4_0,
    /// Blocks of 32: a scale, a minimum and 32 nibbles.
    Q4_1,
}

impl Storage {
    /// Values in a block, and bytes that hold them.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (blocks::LEN, 34),
            Self::Q4_0 => (blocks::LEN, 18),
            Self::Q4_1 => (blocks::LEN, 20),
        }
    }
}

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    map: Mmap,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, CheckpointError> {
        let error = |error| CheckpointError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(error)?;
        if file.metadata().map_err(error)?.is_dir() {
            return Err(error(std::io::ErrorKind::IsADirectory.into()));
        }
        // SAFETY: the map is only read; a file changed by another process while it is mapped can give wrong
        // values, as reading it twice could, and every byte pattern is a valid value of the types read.
        let map = unsafe { Mmap::map(&file) }.map_err(error)?;
        Ok(Arc::new(Self { path: path.to_owned(), map }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// A tensor whose values stay in the file until they are read.
#[derive(Clone, Debug)]
pub struct LazyTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) storage: Storage,
    pub(crate) source: Arc<Source>,
    pub(crate) range: Range<usize>,
    /// Heads whose rows stand in interleaved pairs and are read back as halves.
    pub(crate) interleaved_heads: Option<usize>,
}

impl LazyTensor {
    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How the values are stored.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Bytes in the file.
    pub fn num_bytes(&self) -> usize {
        self.range.len()
    }

    /// The name of the file that holds it, for messages.
    pub(crate) fn file_name(&self) -> String {
        let path = &self.source.path;
        path.file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Reads the values as float32, in the order of the shape; exact for every storage.
    pub fn read(&self) -> Vec<f32> {
        let bytes = &self.source.bytes()[self.range.clone()];
        let mut values = Vec::with_capacity(self.shape.iter().product());
        match self.storage {
            Storage::F32 => values.extend(words(bytes).map(f32::from_le_bytes)),
            Storage::F16 => values.extend(words(bytes).map(|w| f16::from_le_bytes(w).to_f32())),
            Storage::BF16 => values.extend(words(bytes).map(|w| bf16::from_le_bytes(w).to_f32())),
            Storage::Q8_0 => blocks::q8_0(bytes, &mut values),
            Storage::Q4_0 => blocks::q4_0(bytes, &mut values),
            Storage::Q4_1 => blocks::q4_1(bytes, &mut values),
        }
        match self.interleaved_heads {
            Some(heads) => halves(&values, self.shape[0], heads),
            None => values,
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// llama.cpp stores the rows of a rotary head as pairs (0, h/2, 1, h/2 + 1, ...); the halves are put back.
fn halves(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (width, head_dim) = (values.len() / rows, rows / heads);
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        let stored = head * head_dim + 2 * pair + half;
        out.extend_from_slice(&values[stored * width..][..width]);
    }
    out
}

/// The named tensors of one model.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    pub(crate) tensors: BTreeMap<String, LazyTensor>,
}

impl Checkpoint {
    /// The file it was read from, or the index of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, LazyTensor> {
        &self.tensors
    }

    /// Bytes of all tensors in their files.
    pub fn num_bytes(&self) -> usize {
        self.tensors.values().map(LazyTensor::num_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves() {
        // Two heads of four rows, one value a row: stored 0, 2, 1, 3 within each head.
        let stored = [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0];
        assert_eq!(halves(&stored, 8, 2), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]);
    }
}
