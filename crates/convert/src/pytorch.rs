//! PyTorch weights, `pytorch_model.bin` or its shards, read by burn-store: a pickle is interpreted, never run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::DType;
use burn_store::{TensorSnapshot, pytorch::PytorchReader};
use moi_checkpoint::{INDEX_FILE, SINGLE_FILE};
use moi_models::Architecture;
use safetensors::Dtype;
use serde::Deserialize;

use crate::{
    ConvertError,
    report::Reporter,
    strides,
    write::{Lazy, write_file},
};

const SINGLE: &str = "pytorch_model.bin";
const INDEX: &str = "pytorch_model.bin.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether a directory has PyTorch's weights alone.
pub(crate) fn is_needed(path: &Path) -> bool {
    let has = |name: &str| path.join(name).is_file();
    !has(SINGLE_FILE) && !has(INDEX_FILE) && (has(SINGLE) || has(INDEX))
}

/// Writes the weights as safetensors into the new directory `to`, each file as one shard, with the config.
pub(crate) fn to_safetensors(from: &Path, to: &Path, reporter: &Reporter) -> Result<(), ConvertError> {
    fs::create_dir(to).map_err(|error| ConvertError::io(to, error))?;
    // A model that is not supported is not read.
    let config = from.join("config.json");
    fs::copy(&config, to.join("config.json")).map_err(|error| ConvertError::io(&config, error))?;
    let bytes = fs::read(&config).map_err(|error| ConvertError::io(&config, error))?;
    let fields = serde_json::from_slice(&bytes).map_err(|error| ConvertError::file(&config, error))?;
    Architecture::from_config(&fields).map_err(|error| ConvertError::file(&config, error))?;
    let mut map = BTreeMap::new();
    let files = files(from)?;
    for (number, file) in files.iter().enumerate() {
        let reader = PytorchReader::new(file).map_err(|error| ConvertError::file(file, error))?;
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, files.len());
        strides::check(file)?;
        let tensors = tensors(file, reader, reporter)?;
        reporter.begin(tensors.iter().map(|(_, tensor)| tensor.num_bytes()).sum());
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
        write_file(&to.join(&name), tensors, None)?;
    }
    let index = to.join(INDEX_FILE);
    let text = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(&index, text).map_err(|error| ConvertError::io(&index, error))?;
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, ConvertError> {
    let index = directory.join(INDEX);
    if directory.join(SINGLE).is_file() || !index.is_file() {
        return Ok(vec![directory.join(SINGLE)]);
    }
    let bytes = fs::read(&index).map_err(|error| ConvertError::io(&index, error))?;
    let Index { weight_map } =
        serde_json::from_slice(&bytes).map_err(|error| ConvertError::file(&index, error))?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    let plain = |name: &String| {
        let one = Path::new(name).components().collect::<Vec<_>>();
        match matches!(one[..], [std::path::Component::Normal(_)]) {
            true => Ok(directory.join(name)),
            false => {
                Err(ConvertError::file(&index, format!("shard `{name}` is no file of the same directory")))
            }
        }
    };
    names.iter().map(plain).collect()
}

fn tensors(
    file: &Path,
    reader: PytorchReader,
    reporter: &Reporter,
) -> Result<Vec<(String, Lazy)>, ConvertError> {
    let tensor = |(name, snapshot): (String, TensorSnapshot)| {
        let dtype = match snapshot.dtype {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            // Masks.
            _ => return Ok(None),
        };
        let (shape, len) = (snapshot.shape.to_vec(), snapshot.data_len());
        let at = file.to_owned();
        let place = name.clone();
        let reporter = reporter.clone();
        let read = move || {
            reporter.tensor(&place, len);
            let data = snapshot.to_data();
            let data =
                data.map_err(|error| ConvertError::file(&at, format!("tensor `{place}`: {error:?}")))?;
            Ok(data.bytes.to_vec())
        };
        Ok(Some((name, Lazy::new(dtype, shape, len, read))))
    };
    reader.into_tensors().into_iter().filter_map(|entry| tensor(entry).transpose()).collect()
}
