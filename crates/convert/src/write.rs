//! Writes safetensors and burnpack files.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    rc::Rc,
};

use burn::{
    module::ParamId,
    tensor::{Bytes, DType, TensorData},
};
use burn_store::{BurnpackWriter, TensorSnapshot, TensorSnapshotError};
use moi_checkpoint::{BURNPACK_FILE, INDEX_FILE, LazyTensor, SINGLE_FILE, Storage};
use safetensors::{Dtype, View};

use crate::{
    ConvertError, Options,
    encode::{encode, storage_of},
    report::Reporter,
    source::Source,
};

/// The number of tensors and bytes that were written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    pub(crate) tensors: usize,
    pub(crate) bytes: usize,
}

type Read = Box<dyn Fn() -> Result<Vec<u8>, ConvertError>>;

/// A tensor whose bytes are made when the library writes them. The library's interface cannot return an error, so the
/// first error is kept in `error`.
pub(crate) struct Lazy {
    dtype: Dtype,
    shape: Vec<usize>,
    len: usize,
    read: Read,
    error: Rc<RefCell<Option<ConvertError>>>,
}

impl Lazy {
    pub(crate) fn new(
        dtype: Dtype,
        shape: Vec<usize>,
        len: usize,
        read: impl Fn() -> Result<Vec<u8>, ConvertError> + 'static,
    ) -> Self {
        Self { dtype, shape, len, read: Box::new(read), error: Rc::default() }
    }

    #[cfg(feature = "pytorch")]
    pub(crate) fn num_bytes(&self) -> usize {
        self.len
    }
}

impl View for Lazy {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // After an error the file is discarded, so no more bytes are made.
        if self.error.borrow().is_some() {
            return Cow::Owned(Vec::new());
        }
        let bytes = (self.read)().and_then(|bytes| match bytes.len() == self.len {
            true => Ok(bytes),
            false => Err(ConvertError::Refused(format!("{} bytes read, {} expected", bytes.len(), self.len))),
        });
        Cow::Owned(bytes.unwrap_or_else(|error| {
            *self.error.borrow_mut() = Some(error);
            Vec::new()
        }))
    }

    fn data_len(&self) -> usize {
        self.len
    }
}

/// Writes one safetensors file, tensor by tensor.
pub(crate) fn write_file(
    path: &Path,
    mut tensors: Vec<(String, Lazy)>,
    metadata: Option<HashMap<String, String>>,
) -> Result<(), ConvertError> {
    let error = Rc::default();
    tensors.iter_mut().for_each(|(_, tensor)| tensor.error = Rc::clone(&error));
    let written = safetensors::serialize_to_file(tensors, metadata, path);
    if let Some(error) = error.take() {
        return Err(error);
    }
    written.map_err(|error| ConvertError::file(path, error))
}

/// The storage of a tensor in formats without blocks.
fn storage(tensor: &LazyTensor, options: &Options) -> Storage {
    match (options.dtype, tensor.storage()) {
        (Some(dtype), _) => storage_of(dtype),
        (None, kept @ (Storage::F32 | Storage::F16 | Storage::BF16)) => kept,
        (None, _) => Storage::F32,
    }
}

fn num_bytes(tensor: &LazyTensor, storage: Storage) -> usize {
    tensor.shape().iter().product::<usize>() * storage.block().1
}

/// Metadata about the origin of a file.
pub(crate) fn record(options: &Options) -> [(&'static str, String); 2] {
    let kind = match (options.quantize, options.dtype) {
        (Some(kind), _) => kind.name(),
        (None, Some(dtype)) => storage_of(dtype).name(),
        (None, None) => "types kept",
    };
    let how = format!("moi-convert {} to {}, {kind}", env!("CARGO_PKG_VERSION"), options.to.name());
    [("moi.source", options.source_name.clone()), ("moi.conversion", how)]
}

/// Writes `model.safetensors`, or shards and their index.
pub(crate) fn safetensors(
    source: &Source,
    directory: &Path,
    options: &Options,
    reporter: &Reporter,
) -> Result<Written, ConvertError> {
    let all = source.pretrained.published_tensors()?;
    let size = |tensor: &LazyTensor| num_bytes(tensor, storage(tensor, options));
    let total_bytes: usize = all.values().map(size).sum();
    let mut shards: Vec<Vec<(&String, &LazyTensor)>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, tensor) in &all {
        if filled > 0 && filled + size(tensor) > options.max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size(tensor);
        shards.last_mut().into_iter().for_each(|shard| shard.push((name, tensor)));
    }
    let mut metadata: HashMap<String, String> = HashMap::from([("format".into(), "pt".into())]);
    metadata.extend(record(options).map(|(key, value)| (key.to_owned(), value)));
    let count = shards.len();
    let mut map = BTreeMap::new();
    reporter.begin(total_bytes);
    for (number, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        map.extend(shard.iter().map(|(name, _)| ((*name).clone(), file.clone())));
        let lazy = |(name, tensor): (&String, _)| (name.clone(), lazy(name, tensor, options, reporter));
        let tensors = shard.into_iter().map(lazy);
        write_file(&directory.join(&file), tensors.collect(), Some(metadata.clone()))?;
    }
    if count > 1 {
        let index = serde_json::json!({ "metadata": { "total_size": total_bytes }, "weight_map": map });
        let path = directory.join(INDEX_FILE);
        fs::write(&path, format!("{index:#}\n")).map_err(|error| ConvertError::io(&path, error))?;
    }
    Ok(Written { tensors: all.len(), bytes: total_bytes })
}

fn lazy(name: &str, tensor: &LazyTensor, options: &Options, reporter: &Reporter) -> Lazy {
    let storage = storage(tensor, options);
    let dtype = match storage {
        Storage::F16 => Dtype::F16,
        Storage::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let (name, shape, tensor) = (name.to_owned(), tensor.shape().to_vec(), tensor.clone());
    let len = num_bytes(&tensor, storage);
    let reporter = reporter.clone();
    Lazy::new(dtype, shape, len, move || {
        reporter.tensor(&name, len);
        whole(&name, &tensor, storage, len)
    })
}

fn whole(name: &str, tensor: &LazyTensor, storage: Storage, len: usize) -> Result<Vec<u8>, ConvertError> {
    let mut bytes = Vec::with_capacity(len);
    encode(name, tensor, storage, |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// Writes `model.bpk` with burn-store's writer.
pub(crate) fn burnpack(
    source: &Source,
    directory: &Path,
    options: &Options,
    reporter: &Reporter,
) -> Result<Written, ConvertError> {
    let all = source.pretrained.published_tensors()?;
    let total_bytes: usize = all.values().map(|tensor| num_bytes(tensor, storage(tensor, options))).sum();
    reporter.begin(total_bytes);
    let failed = Rc::new(RefCell::new(None));
    let snapshot = |(name, tensor): (&String, _)| snapshot(name, tensor, options, &failed, reporter);
    let snapshots = all.iter().map(snapshot).collect();
    let mut writer = BurnpackWriter::new(snapshots).with_metadata("format", "burnpack");
    for (key, value) in record(options) {
        writer = writer.with_metadata(key, &value);
    }
    let path = directory.join(BURNPACK_FILE);
    let written = writer.write_to_file(&path);
    if let Some(error) = failed.take() {
        return Err(error);
    }
    written.map_err(|error| ConvertError::file(&path, error))?;
    Ok(Written { tensors: all.len(), bytes: total_bytes })
}

fn snapshot(
    name: &str,
    tensor: &LazyTensor,
    options: &Options,
    failed: &Rc<RefCell<Option<ConvertError>>>,
    reporter: &Reporter,
) -> TensorSnapshot {
    let storage = storage(tensor, options);
    let dtype = match storage {
        Storage::F16 => DType::F16,
        Storage::BF16 => DType::BF16,
        _ => DType::F32,
    };
    let shape = tensor.shape().to_vec();
    let path = name.split('.').map(str::to_owned).collect();
    let (name, tensor, sizes) = (name.to_owned(), tensor.clone(), shape.clone());
    let (failed, reporter) = (Rc::clone(failed), reporter.clone());
    let read = move || {
        let len = num_bytes(&tensor, storage);
        reporter.tensor(&name, len);
        let bytes = whole(&name, &tensor, storage, len).map_err(|error| {
            let text = error.to_string();
            *failed.borrow_mut() = Some(error);
            TensorSnapshotError::DataError(text)
        })?;
        Ok(TensorData::from_bytes(Bytes::from_bytes_vec(bytes), sizes.clone(), dtype))
    };
    TensorSnapshot::from_closure(Rc::new(read), dtype, shape.into(), path, Vec::new(), ParamId::new())
}
