//! Reads files of `torch.save`: an archive with a pickle that describes tensors, and a file of values for each
//! storage.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    rc::Rc,
};

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use crate::{
    ConvertError,
    pickle::{self, TensorView},
};

/// Most bytes of a pickle, which holds only names and sizes; the values stand in files beside it.
const MAX_BYTES: u64 = 64 << 20;

/// How many times tensors may share the same bytes on average; a tied embedding and head share theirs, which makes
/// two.
const MAX_VIEWS: u64 = 4;

/// An open file.
pub(crate) struct TorchFile {
    path: PathBuf,
    file: File,
    tensors: Vec<(String, Tensor)>,
}

/// A tensor of floats that lies completely in the file.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    view: Rc<TensorView>,
    /// The position in the file of the storage's first byte.
    start: u64,
}

impl Tensor {
    pub(crate) fn shape(&self) -> &[usize] {
        &self.view.shape
    }

    /// Bytes of the tensor's values.
    pub(crate) fn num_bytes(&self) -> usize {
        self.view.shape.iter().product::<usize>() * self.width()
    }

    fn width(&self) -> usize {
        self.dtype.bitsize() / 8
    }
}

impl TorchFile {
    /// Opens a file and locates its tensors. Integers and booleans, which are masks and positions, are left out.
    ///
    /// # Errors
    /// If it is no file of `torch.save`, or a tensor lies partly outside it.
    pub(crate) fn open(path: &Path) -> Result<Self, ConvertError> {
        let wrong = |what: String| ConvertError::file(path, what);
        let io = |error| ConvertError::io(path, error);
        let file = moi_checkpoint::open_file(path)?;
        let mut archive = ZipArchive::new(file.try_clone().map_err(io)?).map_err(|error| {
            wrong(format!("{error}; only files of PyTorch 1.6 and newer are read, save it again with one"))
        })?;
        let name = archive.file_names().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
        let name = name.ok_or_else(|| wrong("it holds no data.pkl".to_owned()))?.to_owned();
        let directory = name.trim_end_matches("data.pkl");
        if member(&mut archive, &format!("{directory}byteorder")).is_ok_and(|order| order.is(&file, b"big")) {
            return Err(wrong("its numbers are big-endian, expected little-endian".to_owned()));
        }
        let pickled = member(&mut archive, &name).map_err(wrong)?;
        if pickled.len > MAX_BYTES {
            return Err(wrong(format!("data.pkl has {} bytes, expected {MAX_BYTES} at most", pickled.len)));
        }
        let pickle = read(&file, pickled.start, pickled.len as usize).map_err(io)?;
        let mut storages = HashMap::new();
        let mut tensors = Vec::new();
        for (name, view) in pickle::tensors(&pickle).map_err(wrong)? {
            let wrong = |what: String| wrong(format!("tensor `{name}`: {what}"));
            let Some(dtype) = dtype(&view.storage.kind).map_err(wrong)? else { continue };
            let key = view.storage.key.clone();
            let storage = match storages.get(&key) {
                Some(&storage) => storage,
                None => {
                    let storage = member(&mut archive, &format!("{directory}data/{key}")).map_err(wrong)?;
                    *storages.entry(key).or_insert(storage)
                }
            };
            check(&view, storage.len / (dtype.bitsize() / 8) as u64).map_err(wrong)?;
            tensors.push((name, Tensor { dtype, view, start: storage.start }));
        }
        let all = tensors.iter().map(|(_, tensor)| tensor.num_bytes() as u64).fold(0, u64::saturating_add);
        let has = file.metadata().map_err(io)?.len();
        if all / MAX_VIEWS > has {
            return Err(wrong(format!(
                "its tensors, which share storages, would come to {all} bytes, expected at most {MAX_VIEWS} times the \
                 {has} of the file"
            )));
        }
        Ok(Self { path: path.to_owned(), file, tensors })
    }

    /// The file's tensors, in order of name.
    pub(crate) fn tensors(&self) -> &[(String, Tensor)] {
        &self.tensors
    }

    /// The values of one of the file's tensors, row by row.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn read(&self, tensor: &Tensor) -> Result<Vec<u8>, ConvertError> {
        let (view, width) = (&tensor.view, tensor.width());
        let len = tensor.num_bytes();
        if len == 0 {
            return Ok(Vec::new());
        }
        let span = span(view).unwrap_or(0) * width;
        let stored = read(&self.file, tensor.start + (view.offset * width) as u64, span)
            .map_err(|error| ConvertError::io(&self.path, error))?;
        if is_row_by_row(view) {
            return Ok(stored);
        }
        let mut rows = Vec::with_capacity(len);
        let mut index = vec![0; view.shape.len()];
        while rows.len() < len {
            let at: usize = index.iter().zip(&view.strides).map(|(index, stride)| index * stride).sum();
            rows.extend_from_slice(&stored[at * width..(at + 1) * width]);
            for (index, &size) in index.iter_mut().zip(&view.shape).rev() {
                *index += 1;
                if *index < size {
                    break;
                }
                *index = 0;
            }
        }
        Ok(rows)
    }
}

/// The byte range of an archive's file.
#[derive(Clone, Copy)]
struct Member {
    start: u64,
    len: u64,
}

impl Member {
    fn is(self, file: &File, text: &[u8]) -> bool {
        self.len == text.len() as u64 && read(file, self.start, text.len()).is_ok_and(|found| found == text)
    }
}

fn member(archive: &mut ZipArchive<File>, name: &str) -> Result<Member, String> {
    let entry = archive.by_name(name).map_err(|error| format!("`{name}`: {error}"))?;
    if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
        return Err(format!("`{name}` is compressed or encrypted, which PyTorch never does"));
    }
    let start = entry.data_start().ok_or_else(|| format!("`{name}` has no place in the archive"))?;
    Ok(Member { start, len: entry.size() })
}

fn read(mut file: &File, start: u64, len: usize) -> std::io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    // No memory is reserved for bytes that a header promises but the file does not have.
    match file.take(len as u64).read_to_end(&mut bytes)? == len {
        true => Ok(bytes),
        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn dtype(storage: &str) -> Result<Option<Dtype>, String> {
    match storage.strip_prefix("torch.").and_then(|kind| kind.strip_suffix("Storage")).unwrap_or(storage) {
        "Double" => Ok(Some(Dtype::F64)),
        "Float" => Ok(Some(Dtype::F32)),
        "Half" => Ok(Some(Dtype::F16)),
        "BFloat16" => Ok(Some(Dtype::BF16)),
        "Long" | "Int" | "Short" | "Char" | "Byte" | "Bool" => Ok(None),
        _ => Err(format!("values of `{storage}` are not read")),
    }
}

/// Checks that a tensor lies within the values of its storage.
fn check(view: &TensorView, values: u64) -> Result<(), String> {
    let TensorView { storage, offset, shape, strides } = view;
    if storage.len as u64 > values {
        return Err(format!("{values} values are there, expected {}; the file is cut off", storage.len));
    }
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    let end = span(view).and_then(|span| span.checked_add(*offset));
    match (count, end) {
        // A view may repeat values, but a view of more values than the storage has is no weight.
        (Some(count), Some(end)) if count <= storage.len && end <= storage.len => Ok(()),
        _ => Err(format!(
            "shape {shape:?} with strides {strides:?} from value {offset} reaches beyond the {} values of its storage",
            storage.len
        )),
    }
}

/// The distance from a tensor's first value to behind its last, in values; 0 for an empty tensor.
fn span(view: &TensorView) -> Option<usize> {
    if view.shape.contains(&0) {
        return Some(0);
    }
    let last =
        |last: usize, (&size, &stride): (&usize, &usize)| last.checked_add((size - 1).checked_mul(stride)?);
    view.shape.iter().zip(&view.strides).try_fold(0, last)?.checked_add(1)
}

fn is_row_by_row(view: &TensorView) -> bool {
    let mut expected = 1;
    view.shape.iter().zip(&view.strides).rev().all(|(&size, &stride)| {
        let fits = size == 1 || stride == expected;
        expected *= size;
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "gpt_neox.layers.0.attention.dense.weight";

    fn golden(kind: &str) -> (TorchFile, Tensor) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/pytorch");
        let file = TorchFile::open(&directory.join(kind).join("pytorch_model.bin")).unwrap();
        let tensor = file.tensors().iter().find(|(name, _)| name == NAME).unwrap().1.clone();
        (file, tensor)
    }

    #[test]
    fn views_are_read_row_by_row() {
        let (whole, matrix) = golden("whole");
        let (transposed, turned) = golden("transposed");
        let (rows, columns) = (whole.read(&matrix).unwrap(), transposed.read(&turned).unwrap());
        let &[height, width] = matrix.shape() else { panic!("{:?}", matrix.shape()) };
        assert_eq!((turned.shape(), turned.dtype), (&[width, height][..], matrix.dtype));
        assert!(!is_row_by_row(&turned.view) && rows != columns);
        let value = |bytes: &[u8], at: usize| [bytes[2 * at], bytes[2 * at + 1]];
        for row in 0..height {
            for column in 0..width {
                assert_eq!(value(&rows, row * width + column), value(&columns, column * height + row));
            }
        }
    }

    #[test]
    fn tensors_lie_in_their_storages() {
        let check = |offset, shape: &[usize], strides: &[usize]| {
            let storage =
                Rc::new(pickle::Storage { kind: "torch.FloatStorage".into(), key: "0".into(), len: 12 });
            let view = TensorView { storage, offset, shape: shape.to_vec(), strides: strides.to_vec() };
            check(&view, 12)
        };
        for (offset, shape, strides) in [
            (0, &[3, 4][..], &[4, 1][..]),
            (0, &[4, 3], &[1, 4]),
            (11, &[1], &[7]),
            (12, &[0, 9], &[9, 1]),
            (0, &[], &[]),
        ] {
            check(offset, shape, strides).unwrap();
        }
        let most = usize::MAX;
        for (offset, shape, strides) in [
            (1, &[3, 4][..], &[4, 1][..]),
            (0, &[3, 4], &[5, 1]),
            (0, &[13], &[0]),
            (most, &[1], &[1]),
            (0, &[most, most], &[0, 0]),
            (0, &[2], &[most]),
        ] {
            assert!(check(offset, shape, strides).unwrap_err().contains("reaches beyond"));
        }
    }
}
