//! GGUF files, versions 2 and 3, little-endian.
//!
//! Layout (ggml's `docs/gguf.md`): magic, version, tensor count, metadata count, metadata, tensor table,
//! padding to the alignment, data. Sizes in the table are innermost first.

mod config;
mod export;
mod layout;
mod metadata;
mod names;
mod parameters;
mod reader;
mod rope;
mod split;
mod write;

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

pub use export::{export_parameters, is_by_parameter};
pub use layout::MUSE_FACTOR;
pub use metadata::{Metadata, Value};
pub use names::{Exported, LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, export};
pub use write::{NewTensor, write_gguf};

use crate::{BlockFormat, Checkpoint, CheckpointError, LazyTensor, Storage, file::overlap, tensor::Source};
use reader::Reader;

const MAGIC: &[u8; 4] = b"GGUF";
/// The first bytes of files in older formats, and the names of these formats.
const OLD_MAGICS: &[(&[u8; 4], &str)] =
    &[(b"lmgg", "GGML"), (b"fmgg", "GGMF"), (b"tjgg", "GGJT"), (b"algg", "GGLA")];
const DEFAULT_ALIGNMENT: usize = 32;
/// Most axes of a tensor, which is ggml's own limit.
const MAX_DIMS: usize = 4;
/// Most tensors of all layers and experts together; Kimi K2 has 70,000 for its experts.
const MAX_TENSORS: usize = 1 << 17;

/// An open GGUF file, or all parts of a split model.
///
/// # Examples
/// ```
/// use moi_checkpoint::Storage;
/// use moi_checkpoint::gguf::{Gguf, NewTensor, Value, write_gguf};
///
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("model.gguf");
/// let metadata = [("general.architecture".to_owned(), Value::String("mine".to_owned()))];
/// let tensors = [NewTensor { name: "a".to_owned(), shape: vec![1], storage: Storage::F32 }];
/// let mut bytes: Vec<u8> = Vec::new();
/// write_gguf(&mut bytes, &metadata, &tensors, |_, to| {
///     to.extend(2.0f32.to_le_bytes());
///     Ok(())
/// })?;
/// std::fs::write(&path, bytes)?;
///
/// let file = Gguf::open(&path)?;
/// assert_eq!(file.architecture()?, "mine");
/// assert_eq!(file.checkpoint()?.tensors()["a"].read(), [2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Gguf {
    /// The file's metadata; that of the first part for a split model.
    pub metadata: Metadata,
    source: Arc<Source>,
    tensors: BTreeMap<String, Tensor>,
}

/// A single GGUF file.
struct Part {
    metadata: Metadata,
    source: Arc<Source>,
    tensors: BTreeMap<String, Tensor>,
}

/// An entry of the tensor table.
#[derive(Clone, Debug)]
struct Tensor {
    /// Sizes, outermost first.
    shape: Vec<usize>,
    /// ggml's number of the type.
    kind: u32,
    offset: usize,
    /// The file that holds it.
    source: Arc<Source>,
}

impl Part {
    fn open(path: &Path) -> Result<Self, CheckpointError> {
        let source = Source::open(path)?;
        let mut reader = Reader::new(path, source.bytes());
        let (tensor_count, metadata_count) = header(&mut reader)?;
        let metadata = Metadata::read(&mut reader, metadata_count)?;
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, tensor) = table_entry(&mut reader, &source)?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(reader.error(format!("tensor `{name}` stands in the table twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(value) => match value.as_usize() {
                Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 20 => alignment,
                _ => {
                    return Err(
                        reader.error(format!("general.alignment is {value}, expected a power of two"))
                    );
                }
            },
        };
        let data = reader.position().next_multiple_of(alignment);
        for tensor in tensors.values_mut() {
            if !tensor.offset.is_multiple_of(alignment) {
                return Err(reader
                    .error(format!("a tensor's offset {} is not a multiple of {alignment}", tensor.offset)));
            }
            // The offset is checked against the file's length when the tensor's byte range is computed.
            tensor.offset = tensor.offset.saturating_add(data);
        }
        Ok(Self { metadata, source, tensors })
    }

    fn wrong(&self, what: String) -> CheckpointError {
        CheckpointError::Format { path: self.source.path.clone(), place: "metadata".into(), what }
    }
}

impl From<Part> for Gguf {
    fn from(part: Part) -> Self {
        let Part { metadata, source, tensors } = part;
        Self { metadata, source, tensors }
    }
}

impl Gguf {
    /// Opens a file and reads its metadata and tensor table. If the file is any part of a split model, all parts are
    /// opened.
    ///
    /// # Errors
    /// If the file cannot be opened, is no GGUF file of version 2 or 3, or is truncated or damaged; if a part is
    /// missing or belongs to another model.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        split::open(path)
    }

    /// Adds the tensors of another part of the same model.
    fn add(&mut self, part: Part) -> Result<(), CheckpointError> {
        for (name, tensor) in part.tensors {
            if let Some(known) = self.tensors.get(&name) {
                let path = &known.source.path;
                let what = format!(
                    "it stands in {} too; the parts are not of one model, fetch them all again",
                    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
                );
                let place = format!("tensor `{name}`");
                return Err(CheckpointError::Format { path: tensor.source.path.clone(), place, what });
            }
            self.tensors.insert(name, tensor);
        }
        Ok(())
    }

    /// The file's path; that of the first part for a split model.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// The architecture's name in the file, for example `llama`.
    ///
    /// # Errors
    /// If the file does not say.
    pub fn architecture(&self) -> Result<&str, CheckpointError> {
        self.metadata.str("general.architecture").ok_or_else(|| self.lacks("general.architecture"))
    }

    /// The metadata as the fields of a Hugging Face `config.json`. For an architecture whose tensor names are not
    /// known here, it holds only `model_type`.
    ///
    /// # Errors
    /// If a field is missing or of the wrong type.
    pub fn config(&self) -> Result<serde_json::Value, CheckpointError> {
        config::config(self)
    }

    /// The tensors under their Hugging Face names and in Hugging Face's layout.
    ///
    /// # Errors
    /// If a tensor lies outside the file or overlaps another, or has a type that is not supported, or the config
    /// cannot be read.
    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        // The tensors of a file that names no architecture keep the file's names.
        let config = match self.architecture() {
            Ok(_) => self.config()?,
            Err(_) => serde_json::Value::Null,
        };
        self.check_overlaps()?;
        let mut tensors = BTreeMap::new();
        for name in self.tensors.keys() {
            if tensors.len() > MAX_TENSORS {
                let what = format!("with all experts there are more than {MAX_TENSORS} tensors");
                return Err(self.wrong_tensor(name, what));
            }
            let named = match self.architecture() {
                Ok(own) if parameters::ARCHITECTURES.contains(&own) => parameters::tensors(self, own, name)?,
                _ => names::tensors(self, &config, name)?,
            };
            for (new, tensor) in named {
                if tensors.insert(new.clone(), tensor).is_some() {
                    let what = format!("another tensor is `{new}` too");
                    return Err(self.wrong_tensor(name, what));
                }
            }
        }
        let own = self.architecture().unwrap_or_default();
        tensors.extend(parameters::from_metadata(self, own)?);
        let is_by_parameter = parameters::ARCHITECTURES.contains(&own);
        Ok(Checkpoint { path: self.source.path.clone(), tensors, notes: Vec::new(), is_by_parameter })
    }

    /// Refuses tensors that share bytes, because sharing would let a small file describe a large model.
    fn check_overlaps(&self) -> Result<(), CheckpointError> {
        let mut files: BTreeMap<&Path, Vec<(Range<usize>, &str)>> = BTreeMap::new();
        for (name, entry) in &self.tensors {
            // A tensor with an unknown type or outside the file is refused with its reason when it is read.
            let range = storage(entry.kind).and_then(|storage| entry.range(storage));
            let ranges = files.entry(entry.source.path.as_path()).or_default();
            ranges.extend(range.ok().map(|range| (range, name.as_str())));
        }
        for ranges in files.into_values() {
            if let Some((name, what)) = overlap(ranges, "fetch it again") {
                return Err(self.wrong_tensor(name, what));
            }
        }
        Ok(())
    }

    /// A tensor under its own name in the file.
    fn tensor(&self, name: &str) -> Result<LazyTensor, CheckpointError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.wrong_tensor(name, "is missing".into()))?;
        let storage = storage(entry.kind).map_err(|what| self.wrong_tensor(name, what))?;
        let range = entry.range(storage).map_err(|what| self.wrong_tensor(name, what))?;
        Ok(LazyTensor::stored(entry.shape.clone(), storage, entry.source.clone(), range))
    }

    fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    fn wrong(&self, place: String, what: String) -> CheckpointError {
        CheckpointError::Format { path: self.source.path.clone(), place, what }
    }

    /// The error about a tensor, with the file that holds it.
    fn wrong_tensor(&self, name: &str, what: String) -> CheckpointError {
        let source = self.tensors.get(name).map_or(&self.source, |entry| &entry.source);
        CheckpointError::Format { path: source.path.clone(), place: format!("tensor `{name}`"), what }
    }

    fn lacks(&self, key: &str) -> CheckpointError {
        self.wrong("metadata".into(), format!("`{key}` is missing or of the wrong type"))
    }
}

impl Tensor {
    /// The byte range of the tensor in its file.
    fn range(&self, storage: Storage) -> Result<Range<usize>, String> {
        let (block, bytes) = storage.block();
        let row = self.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(block) {
            return Err(format!(
                "a row of {row} values is no whole number of {} blocks of {block}",
                storage.name()
            ));
        }
        let values = self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let size = values.and_then(|n| (n / block).checked_mul(bytes));
        let end = size.and_then(|size| self.offset.checked_add(size));
        let length = self.source.bytes().len();
        match end {
            Some(end) if end <= length => Ok(self.offset..end),
            _ => Err(format!(
                "{} of shape {:?} at byte {} ends outside the file of {length} bytes; \
                 the file is damaged or incomplete, fetch it again",
                storage.name(),
                self.shape,
                self.offset
            )),
        }
    }
}

/// Reads the number of tensors and of metadata entries.
fn header(reader: &mut Reader<'_>) -> Result<(usize, usize), CheckpointError> {
    let magic = reader.take(4)?;
    if let Some((_, name)) = OLD_MAGICS.iter().find(|(old, _)| magic == *old) {
        return Err(reader.error(format!(
            "it is in the old format {name}, which llama.cpp does not read any more either; fetch the model as GGUF, or \
             convert it (convert_llama_ggml_to_gguf.py of llama.cpp)"
        )));
    }
    if magic != MAGIC {
        return Err(reader.error(format!("not a GGUF file: it starts with {magic:02x?}, expected \"GGUF\"")));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        let hint = match version.swap_bytes() {
            2..=3 => " (a big-endian file)",
            _ => "",
        };
        return Err(reader.error(format!("GGUF version {version}{hint} is not supported (supported: 2, 3)")));
    }
    // A table entry has at least a name's length, a number of axes, a type and an offset; a metadata entry has at
    // least a key's length, a type and one byte.
    let tensors = reader.count("tensors", 8 + 4 + 4 + 8)?;
    let metadata = reader.count("metadata entries", 8 + 4 + 1)?;
    Ok((tensors, metadata))
}

fn table_entry(reader: &mut Reader<'_>, source: &Arc<Source>) -> Result<(String, Tensor), CheckpointError> {
    let name = reader.string()?;
    let dims = reader.u32()? as usize;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(reader.error(format!("tensor `{name}` has {dims} dimensions, expected 1 to {MAX_DIMS}")));
    }
    let mut shape = (0..dims).map(|_| reader.size()).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    let kind = reader.u32()?;
    let offset = reader.size()?;
    Ok((name, Tensor { shape, kind, offset, source: source.clone() }))
}

/// The storage for ggml's number of a type. Types without a decoder are refused by name; a new block format is added
/// to [`BlockFormat`].
fn storage(kind: u32) -> Result<Storage, String> {
    if let Some(&block) = BlockFormat::ALL.iter().find(|block| block.ggml_type() == kind) {
        return Ok(Storage::Block(block));
    }
    let name = match kind {
        0 => return Ok(Storage::F32),
        1 => return Ok(Storage::F16),
        28 => return Ok(Storage::F64),
        30 => return Ok(Storage::BF16),
        9 => "Q8_1",
        15 => "Q8_K",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        // ggml has removed these formats and now reorders blocks at load time.
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        41 => "Q1_0",
        _ => return Err(format!("type number {kind} is not defined")),
    };
    let blocks: Vec<&str> = BlockFormat::ALL.iter().map(|block| block.name()).collect();
    Err(format!("type {name} is not supported (supported: F32, F16, BF16, {})", blocks.join(", ")))
}
