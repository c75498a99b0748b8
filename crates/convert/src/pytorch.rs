//! Converts PyTorch weights, `pytorch_model.bin` or its shards, to safetensors.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use moi_checkpoint::{
    CONFIG_BYTES, CheckpointError, INDEX_BYTES, INDEX_FILE, is_there, parse_json, read_file, shown,
};
use moi_models::Architecture;
use moi_pretrained::PretrainedError;
use serde::Deserialize;

use crate::{
    ConvertError,
    report::Reporter,
    source::{PYTORCH_FILE as SINGLE, PYTORCH_INDEX as INDEX},
    torch_file::{Tensor, TorchFile},
    write::{Lazy, write_file},
};

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Writes the weights as safetensors into the new directory `to`, with each file as one shard, and the config.
pub(crate) fn to_safetensors(from: &Path, to: &Path, reporter: &Reporter) -> Result<(), ConvertError> {
    fs::create_dir(to).map_err(|error| ConvertError::io(to, error))?;
    // The weights of an unsupported model are not read.
    let config = from.join("config.json");
    let bytes = read_file(&config, CONFIG_BYTES)?;
    let fields = parse_json(&bytes).map_err(|what| ConvertError::file(&config, what))?;
    Architecture::from_config(&fields).map_err(|error| ConvertError::file(&config, error))?;
    let copy = to.join("config.json");
    fs::write(&copy, bytes).map_err(|error| ConvertError::io(&copy, error))?;
    let mut map = BTreeMap::new();
    for file in &files(from)? {
        // The original file name is kept, for messages about its tensors.
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tensors = tensors(TorchFile::open(file)?, reporter);
        reporter.begin(tensors.iter().map(|(_, tensor)| tensor.num_bytes()).sum());
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
        write_file(&to.join(&name), tensors, None)?;
    }
    let index = to.join(INDEX_FILE);
    let text = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(&index, text).map_err(|error| ConvertError::io(&index, error))?;
    Ok(())
}

/// Changes an error about the written safetensors to name the PyTorch file that they were written from.
pub(crate) fn in_file(from: &Path, error: ConvertError) -> ConvertError {
    let (ConvertError::Checkpoint(mut error) | ConvertError::Model(PretrainedError::Checkpoint(mut error))) =
        error
    else {
        return error;
    };
    if let CheckpointError::Format { path, .. } | CheckpointError::Tensors { path, .. } = &mut error {
        *path = match path.file_name() {
            Some(name) if name != INDEX_FILE => from.join(name),
            _ => from.join(if is_there(&from.join(SINGLE)) { SINGLE } else { INDEX }),
        };
    }
    ConvertError::Checkpoint(error)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, ConvertError> {
    let index = directory.join(INDEX);
    if is_there(&directory.join(SINGLE)) || !is_there(&index) {
        return Ok(vec![directory.join(SINGLE)]);
    }
    let bytes = read_file(&index, INDEX_BYTES)?;
    let Index { weight_map } = parse_json(&bytes).map_err(|what| ConvertError::file(&index, what))?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    let plain = |name: &String| {
        let one = Path::new(name).components().collect::<Vec<_>>();
        let file = directory.join(name);
        // Only a regular file is accepted, because reading a pipe could block.
        match matches!(one[..], [std::path::Component::Normal(_)]) && file.is_file() {
            true => Ok(file),
            false => {
                let name = shown(name);
                Err(ConvertError::file(&index, format!("shard `{name}` is no file of the same directory")))
            }
        }
    };
    names.iter().map(plain).collect()
}

fn tensors(file: TorchFile, reporter: &Reporter) -> Vec<(String, Lazy)> {
    let file = Rc::new(file);
    let lazy = |(name, tensor): &(String, Tensor)| {
        let (file, tensor) = (file.clone(), tensor.clone());
        let (place, reporter) = (name.clone(), reporter.clone());
        let (dtype, shape, len) = (tensor.dtype, tensor.shape().to_vec(), tensor.num_bytes());
        let read = move || {
            reporter.tensor(&place, len);
            file.read(&tensor)
        };
        (name.clone(), Lazy::new(dtype, shape, len, read))
    };
    file.tensors().iter().map(lazy).collect()
}
