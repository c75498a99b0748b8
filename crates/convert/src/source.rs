//! What is converted.

use std::path::{Path, PathBuf};

use moi_checkpoint::{CONFIG_BYTES, INDEX_FILE, SINGLE_FILE, gguf::Gguf, parse_json, read_file};
use moi_pretrained::Pretrained;
use serde_json::Value;

use crate::{ConvertError, pytorch, report::Reporter};

/// An opened model and what its files say.
pub(crate) struct Source {
    pub(crate) pretrained: Pretrained,
    /// Its `config.json`, or what a GGUF file's metadata make of one.
    pub(crate) config: Value,
    pub(crate) files: Files,
}

/// Where the model's other files are.
pub(crate) enum Files {
    /// In a directory.
    Directory(PathBuf),
    /// In the file itself.
    Gguf(Gguf),
}

impl Source {
    /// Opens a model; PyTorch's weights are first written as safetensors into the new directory `scratch`.
    pub(crate) fn open(path: &Path, scratch: &Path, reporter: &Reporter) -> Result<Self, ConvertError> {
        if pytorch::is_needed(path) {
            pytorch::to_safetensors(path, scratch, reporter)?;
            let mut source = Self::of_directory(scratch).map_err(|error| pytorch::in_file(path, error))?;
            source.files = Files::Directory(path.to_owned());
            return Ok(source);
        }
        let pretrained = Pretrained::open(path)?;
        pretrained.parameters()?;
        // A directory that holds a GGUF file and no config is that file.
        match pretrained.path.is_dir() {
            true => Self::of_directory(path),
            false => {
                let file = Gguf::open(&pretrained.path)?;
                Ok(Self { config: file.config()?, pretrained, files: Files::Gguf(file) })
            }
        }
    }

    fn of_directory(path: &Path) -> Result<Self, ConvertError> {
        let pretrained = Pretrained::open(path)?;
        pretrained.parameters()?;
        let file = path.join("config.json");
        let bytes = read_file(&file, CONFIG_BYTES)?;
        let config = parse_json(&bytes).map_err(|what| ConvertError::file(&file, what))?;
        Ok(Self { pretrained, config, files: Files::Directory(path.to_owned()) })
    }
}

/// Whether a file holds weights, of any form: it is not carried along.
pub(crate) fn is_weights(name: &str) -> bool {
    const KINDS: &[&str] =
        &[".safetensors", ".bin", ".pt", ".pth", ".bpk", ".gguf", ".h5", ".msgpack", ".onnx"];
    KINDS.iter().any(|kind| name.ends_with(kind))
        || name.ends_with(".index.json")
        || name == SINGLE_FILE
        || name == INDEX_FILE
}
