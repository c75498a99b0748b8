//! Reads burnpack files, the format of burn-store 0.21: a header of ten bytes, CBOR metadata, and the tensors from
//! the next multiple of 256 bytes on.
//!
//! burn-store's own reader copies what it reads and is limited to 100 GB; here the file is memory-mapped, like the
//! other formats.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::{
    Checkpoint, CheckpointError, LazyTensor, Storage, file::overlap, tensor::Source, unique::Unique,
};

/// The name of a burnpack file in a model's directory.
pub const BURNPACK_FILE: &str = "model.bpk";

/// "BURN" as a little-endian number.
const MAGIC: u32 = 0x4255_524e;
const VERSION: u16 = 1;
const HEADER: usize = 10;
const ALIGNMENT: usize = 256;

#[derive(Deserialize)]
struct Metadata {
    tensors: Unique<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    dtype: ciborium::Value,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Opens a burnpack file.
///
/// # Errors
/// If it cannot be opened, is truncated or damaged, or has a type other than F64, F32, F16 or BF16.
///
/// # Examples
/// ```no_run
/// use std::path::Path;
///
/// use moi_checkpoint::{BURNPACK_FILE, open_burnpack};
///
/// let checkpoint = open_burnpack(&Path::new("model").join(BURNPACK_FILE))?;
/// for (name, tensor) in checkpoint.tensors() {
///     println!("{name}: {} {:?}", tensor.storage().name(), tensor.shape());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn open_burnpack(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let source = Source::open(path)?;
    let bytes = source.bytes();
    let wrong = |place: String, what: String| CheckpointError::Format { path: path.to_owned(), place, what };
    let header = |what: String| wrong("header".into(), what);
    let damaged = "the file is damaged or incomplete, make it again";
    let Some((start, rest)) = bytes.split_at_checked(HEADER) else {
        return Err(header(format!("{} bytes are no header; {damaged}", bytes.len())));
    };
    let [a, b, c, d, e, f, g, h, i, j] = *start else { return Err(header(damaged.to_owned())) };
    let magic = u32::from_le_bytes([a, b, c, d]);
    if magic != MAGIC {
        return Err(header(format!("not a burnpack file: it starts with {magic:08x}, expected {MAGIC:08x}")));
    }
    let version = u16::from_le_bytes([e, f]);
    if version != VERSION {
        return Err(header(format!("burnpack version {version} is not supported (supported: {VERSION})")));
    }
    let size = u32::from_le_bytes([g, h, i, j]) as usize;
    let metadata = rest.get(..size).ok_or_else(|| {
        header(format!("{size} bytes of metadata announced, {} left; {damaged}", rest.len()))
    })?;
    let metadata: Metadata =
        ciborium::from_reader(metadata).map_err(|error| wrong("metadata".into(), said(error)))?;
    let data = (HEADER + size).next_multiple_of(ALIGNMENT);
    let mut ranges = Vec::new();
    let tensor = |(name, descriptor): (String, Descriptor)| {
        let wrong = |what: String| wrong(format!("tensor `{name}`"), what);
        let storage = storage(&descriptor.dtype).map_err(wrong)?;
        let range = range(&descriptor, storage, data, bytes.len())
            .ok_or_else(|| wrong(format!("its offsets do not fit its shape or the file; {damaged}")))?;
        let shape = descriptor.shape.iter().map(|&size| size as usize).collect();
        ranges.push((range.clone(), name.clone()));
        Ok((name.clone(), LazyTensor::stored(shape, storage, source.clone(), range)))
    };
    let tensors: BTreeMap<String, LazyTensor> =
        metadata.tensors.0.into_iter().map(tensor).collect::<Result<_, CheckpointError>>()?;
    if let Some((name, what)) = overlap(ranges, "make it again") {
        return Err(wrong(format!("tensor `{name}`"), what));
    }
    Ok(Checkpoint { path: path.to_owned(), tensors, notes: Vec::new(), is_by_parameter: false })
}

/// An error of the CBOR reader, in words.
fn said(error: ciborium::de::Error<std::io::Error>) -> String {
    use ciborium::de::Error;
    let what = match error {
        // Reading from memory can only fail because bytes are missing.
        Error::Io(_) => "it ends too soon".to_owned(),
        Error::Syntax(at) => format!("byte {at} is no CBOR"),
        Error::Semantic(Some(at), what) => format!("byte {at}: {what}"),
        Error::Semantic(None, what) => what,
        Error::RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    };
    format!("{what}; the file is damaged or incomplete, make it again")
}

fn storage(dtype: &ciborium::Value) -> Result<Storage, String> {
    Ok(match dtype.as_text() {
        Some("F64") => Storage::F64,
        Some("F32" | "Flex32") => Storage::F32,
        Some("F16") => Storage::F16,
        Some("BF16") => Storage::BF16,
        _ => return Err(format!("type {dtype:?} is not supported (supported: F64, F32, F16, BF16)")),
    })
}

fn range(
    descriptor: &Descriptor,
    storage: Storage,
    data: usize,
    length: usize,
) -> Option<std::ops::Range<usize>> {
    let (from, to) = descriptor.data_offsets;
    let at = |offset: u64| usize::try_from(offset).ok()?.checked_add(data);
    let (from, to) = (at(from)?, at(to)?);
    let values =
        descriptor.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(usize::try_from(size).ok()?));
    let bytes = values?.checked_mul(storage.block().1)?;
    (from <= to && to <= length && to - from == bytes).then_some(from..to)
}
