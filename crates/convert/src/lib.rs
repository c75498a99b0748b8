//! Converts checkpoints between formats.
//!
//! [`convert`] takes a directory in Hugging Face layout (safetensors or burnpack weights; PyTorch's with the feature
//! `pytorch`) or a GGUF file. It writes a directory with safetensors, burnpack or GGUF weights, in float32, float16,
//! bfloat16 or, for GGUF, the block formats. Tensors are read, changed and written one at a time, in pieces. The
//! result gets its final name only when it is complete and was opened again, so an interrupted conversion never
//! leaves a file that looks finished but is not.

mod companions;
mod compare;
mod encode;
mod error;
mod gguf;
#[cfg(feature = "pytorch")]
mod pickle;
#[cfg(feature = "pytorch")]
mod pytorch;
mod report;
mod source;
mod tokenizer;
#[cfg(feature = "pytorch")]
mod torch_file;
mod verify;
mod write;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use burn::tensor::backend::Backend;
pub use error::ConvertError;
use moi_checkpoint::{NotFinite, shown};
pub use moi_formats::{BlockFormat, FloatType};
use moi_pretrained::Pretrained;
pub use verify::Verified;

use report::Reporter;
use source::Source;

/// A format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `model.safetensors`, or shards with an index, beside `config.json`.
    Safetensors,
    /// `model.bpk`, beside `config.json`.
    Burnpack,
    /// One file `model.gguf` that holds everything.
    Gguf,
}

/// What to convert to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format.
    pub to: Target,
    /// Type of the floats; if `None`, types are kept (but blocks become float32, or stay blocks in GGUF).
    pub dtype: Option<FloatType>,
    /// Block format of the matrices; only for GGUF.
    pub quantize: Option<BlockFormat>,
    /// Most bytes of a safetensors shard.
    pub max_shard_bytes: usize,
    /// The name of the source to write into the file's metadata.
    pub source_name: String,
}

/// The progress of a conversion.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The name of the tensor that is being written.
    pub tensor: &'a str,
    /// Bytes written so far, of all tensors.
    pub bytes: usize,
    /// Bytes of all tensors in the result.
    pub total_bytes: usize,
}

/// The result of a conversion.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The path of the result, which `--model` takes.
    pub path: PathBuf,
    /// The number of tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: usize,
    /// The result of the comparison with the source, if one was requested.
    pub verified: Option<Verified>,
    /// Notes on what could not be carried over.
    pub notes: Vec<String>,
}

/// Converts `source` into the new directory `output`. With `verify`, compares the result with the source tensor by
/// tensor, and by logits computed on that device.
///
/// # Errors
/// If the source is no supported model, the target cannot hold it, `output` exists, or something cannot be read or
/// written. After an error, `output` does not exist.
pub fn convert<B: Backend>(
    source: &Path,
    output: &Path,
    options: &Options,
    verify: Option<&B::Device>,
    progress: impl FnMut(Progress<'_>) + 'static,
) -> Result<Converted, ConvertError> {
    if options.quantize.is_some() && options.to != Target::Gguf {
        return Err(ConvertError::Refused(
            "block formats are written to GGUF files alone (--to gguf)".into(),
        ));
    }
    if options.quantize.is_some() && options.dtype.is_some() {
        let what = "give a float type or a block format, not both: what is no matrix stays float32";
        return Err(ConvertError::Refused(what.into()));
    }
    if output.exists() {
        let what = format!("{} exists; remove it or name another directory", output.display());
        return Err(ConvertError::Refused(what));
    }
    let work = Workplace::new(output)?;
    let reporter = Reporter::new(progress);
    let source = Source::open(source, &work.path.join(PYTORCH), &reporter)?;
    let result = work.path.join(RESULT);
    fs::create_dir(&result).map_err(|error| ConvertError::io(&result, error))?;

    let mut notes = companions::write(&source, &result, options)?;
    let written = match options.to {
        Target::Safetensors => write::safetensors(&source, &result, options, &reporter)?,
        Target::Burnpack => write::burnpack(&source, &result, options, &reporter)?,
        Target::Gguf => gguf::write(&source, &result, options, &reporter, &mut notes)?,
    };
    // The written result must open, fit, and be the same model.
    let cannot =
        |what: String| ConvertError::Refused(format!("{} cannot hold this model: {what}", options.to.name()));
    let made = Pretrained::open(&result).map_err(|error| cannot(error.to_string()))?;
    compare::same_config(&source.pretrained.architecture.config, &made.architecture.config)
        .map_err(cannot)?;
    made.parameters().map_err(|error| cannot(error.to_string()))?;
    let verified = verify.map(|device| verify::verify::<B>(&source, &made, device)).transpose()?;
    notes.extend(not_finite(&made));
    drop(made);
    sync(&result)?;
    fs::rename(&result, output).map_err(|error| ConvertError::io(output, error))?;
    Ok(Converted { path: output.to_owned(), tensors: written.tensors, bytes: written.bytes, verified, notes })
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Burnpack => "burnpack",
            Self::Gguf => "GGUF",
        }
    }
}

/// Warnings about weights that are NaN or infinite; they are carried over unchanged.
fn not_finite(made: &Pretrained) -> Vec<String> {
    /// A broken file can have hundreds of such tensors.
    const NAMED: usize = 5;
    let tensors = made.checkpoint.tensors().iter();
    let broken: Vec<NotFinite> = tensors.filter_map(|(name, tensor)| NotFinite::of(name, tensor)).collect();
    let named = broken.iter().take(NAMED).map(|NotFinite { tensor, nan, infinite, .. }| {
        format!(
            "warning: tensor `{}` has {nan} NaN and {infinite} infinite values, here as in the source: what the model \
             computes may be broken",
            shown(tensor)
        )
    });
    let more = broken.len().saturating_sub(NAMED);
    let rest = (more > 0).then(|| format!("warning: {more} more tensors have values that are not finite"));
    named.chain(rest).collect()
}

/// The name of the directory inside the workplace in which the result is made.
const RESULT: &str = "result";
/// The name of the directory inside the workplace that holds PyTorch's weights as safetensors during the conversion.
const PYTORCH: &str = "pytorch";
const LOCK: &str = "lock";

/// A temporary directory beside the output that only this process uses. What a killed conversion left there is
/// removed.
struct Workplace {
    path: PathBuf,
    _lock: File,
}

impl Workplace {
    fn new(output: &Path) -> Result<Self, ConvertError> {
        let name = output.file_name().ok_or_else(|| {
            ConvertError::Refused(format!("{} is no name for a new directory", output.display()))
        })?;
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !parent.is_dir() {
            let what =
                format!("cannot write {}: there is no directory {}", output.display(), parent.display());
            return Err(ConvertError::Refused(what));
        }
        let path = parent.join(format!(".{}.partial", name.to_string_lossy()));
        let io = |error| ConvertError::io(&path, error);
        fs::create_dir_all(&path).map_err(io)?;
        let lock = File::create(path.join(LOCK)).map_err(io)?;
        if lock.try_lock().is_err() {
            let what = format!("another conversion into {} is under way", output.display());
            return Err(ConvertError::Refused(what));
        }
        for left in [RESULT, PYTORCH] {
            match fs::remove_dir_all(path.join(left)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
                _ => {}
            }
        }
        Ok(Self { path, _lock: lock })
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // If removal fails here, the next conversion to the same output removes the directory.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Writes everything to disk before the result is renamed to its final name.
fn sync(directory: &Path) -> Result<(), ConvertError> {
    let io = |error| ConvertError::io(directory, error);
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let file = File::open(&path).map_err(|error| ConvertError::io(&path, error))?;
        file.sync_all().map_err(|error| ConvertError::io(&path, error))?;
    }
    Ok(())
}
