//! Checkpoints from one form into another.
//!
//! [`convert`] takes a directory in Hugging Face layout (safetensors, PyTorch or burnpack weights) or a GGUF file and
//! writes a directory with safetensors, burnpack or GGUF weights, in float32, float16, bfloat16 or, for GGUF, the
//! block formats. Tensors are read, changed and written one at a time, in pieces. The result stands beside its
//! place until it is whole and was opened again; so whatever ends a conversion, no file that looks finished is not.

mod companions;
mod compare;
mod encode;
mod error;
mod gguf;
mod pickle;
mod pytorch;
mod report;
mod source;
mod tokenizer;
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

/// A form of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// `model.safetensors`, or shards with an index, beside `config.json`.
    Safetensors,
    /// `model.bpk`, beside `config.json`.
    Burnpack,
    /// One file `model.gguf` that holds everything.
    Gguf,
}

/// What to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// The form.
    pub to: Target,
    /// Type of the floats; as they are stored where none is given (blocks become float32, or stay blocks in GGUF).
    pub dtype: Option<FloatType>,
    /// Block format of the matrices; GGUF only.
    pub quantize: Option<BlockFormat>,
    /// Bytes of a safetensors shard at most.
    pub max_shard_bytes: usize,
    /// What to write into the file's metadata as its source.
    pub source_name: String,
}

/// How far a conversion has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor at hand.
    pub tensor: &'a str,
    /// Bytes written of all tensors.
    pub bytes: usize,
    /// Bytes of all tensors in the result.
    pub total_bytes: usize,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Where it is: what `--model` takes.
    pub path: PathBuf,
    /// How many tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: usize,
    /// What was found when it was compared with the source, if that was asked for.
    pub verified: Option<Verified>,
    /// What could not be carried along.
    pub notes: Vec<String>,
}

/// Converts `source` into the new directory `output`; with `verify`, compares the result with the source tensor by
/// tensor and by logits that that device computes.
///
/// # Errors
/// If the source is no model that is supported, the target cannot hold it, `output` exists, or something cannot be
/// read or written. There is no `output` then.
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
    // Whatever was written must open, fit, and be the same model.
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

/// What is to be said of weights that are no finite numbers: they are carried along as they are.
fn not_finite(made: &Pretrained) -> Vec<String> {
    /// A broken file can have hundreds.
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

/// Where the result is made, in the workplace.
const RESULT: &str = "result";
/// Where PyTorch's weights stand as safetensors while they are converted.
const PYTORCH: &str = "pytorch";
const LOCK: &str = "lock";

/// A directory beside the output, of this process alone. What a killed conversion left there is removed.
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
        // What cannot be removed is removed by the next conversion into the same place.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Everything is on the disk before it gets its name.
fn sync(directory: &Path) -> Result<(), ConvertError> {
    let io = |error| ConvertError::io(directory, error);
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let file = File::open(&path).map_err(|error| ConvertError::io(&path, error))?;
        file.sync_all().map_err(|error| ConvertError::io(&path, error))?;
    }
    Ok(())
}
