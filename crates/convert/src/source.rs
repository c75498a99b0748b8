//! Opens the source of a conversion.

use std::path::{Path, PathBuf};

use moi_checkpoint::{CONFIG_BYTES, INDEX_FILE, SINGLE_FILE, gguf::Gguf, is_there, parse_json, read_file};
use moi_pretrained::Pretrained;
use serde_json::Value;

#[cfg(feature = "pytorch")]
use crate::pytorch;
use crate::{ConvertError, report::Reporter};

/// The file of weights that PyTorch writes.
pub(crate) const PYTORCH_FILE: &str = "pytorch_model.bin";
/// The index that says which of several PyTorch files has which tensor.
pub(crate) const PYTORCH_INDEX: &str = "pytorch_model.bin.index.json";

/// An open model and the contents of its files.
pub(crate) struct Source {
    pub(crate) pretrained: Pretrained,
    /// The model's `config.json`, or the config made from a GGUF file's metadata.
    pub(crate) config: Value,
    pub(crate) files: Files,
}

/// The place of the model's other files.
pub(crate) enum Files {
    /// In a directory.
    Directory(PathBuf),
    /// In the GGUF file itself.
    Gguf(Gguf),
}

/// Whether a directory has weights only in PyTorch's format.
fn has_pytorch_alone(path: &Path) -> bool {
    let has = |name: &str| is_there(&path.join(name));
    !has(SINGLE_FILE) && !has(INDEX_FILE) && (has(PYTORCH_FILE) || has(PYTORCH_INDEX))
}

impl Source {
    #[cfg(feature = "pytorch")]
    fn open_pytorch(path: &Path, scratch: &Path, reporter: &Reporter) -> Result<Self, ConvertError> {
        pytorch::to_safetensors(path, scratch, reporter)?;
        let mut source = Self::of_directory(scratch).map_err(|error| pytorch::in_file(path, error))?;
        source.files = Files::Directory(path.to_owned());
        Ok(source)
    }

    #[cfg(not(feature = "pytorch"))]
    fn open_pytorch(path: &Path, _: &Path, _: &Reporter) -> Result<Self, ConvertError> {
        Err(ConvertError::Refused(format!(
            "{} has PyTorch's weights alone, which this build does not read: build it with the feature `pytorch`",
            path.display()
        )))
    }

    /// Opens a model. PyTorch's weights are first written as safetensors into the new directory `scratch`.
    pub(crate) fn open(path: &Path, scratch: &Path, reporter: &Reporter) -> Result<Self, ConvertError> {
        if has_pytorch_alone(path) {
            return Self::open_pytorch(path, scratch, reporter);
        }
        let pretrained = Pretrained::open(path)?;
        pretrained.parameters()?;
        // A directory that holds a GGUF file and no config stands for that file.
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

/// Whether a file holds weights of any format, so that it is not copied.
pub(crate) fn is_weights(name: &str) -> bool {
    const KINDS: &[&str] =
        &[".safetensors", ".bin", ".pt", ".pth", ".bpk", ".gguf", ".h5", ".msgpack", ".onnx"];
    KINDS.iter().any(|kind| name.ends_with(kind))
        || name.ends_with(".index.json")
        || name == SINGLE_FILE
        || name == INDEX_FILE
}
