//! Models, devices and the rest that generates nothing.

use std::path::PathBuf;

use clap::{ValueEnum, builder::PossibleValue};
use moi_backends::{FloatType, Request};
use moi_convert::BlockFormat;
use moi_hub::DEFAULT_MODEL;

use super::{Format, ModelArgs};

/// Write the logits of a prompt to a safetensors file
///
/// The tensor `logits` [tokens, vocab] in float32: to compare with any other engine.
#[derive(Debug, clap::Args)]
pub(crate) struct LogitsArgs {
    /// Token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    pub(crate) tokens: Vec<u32>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Print what a model is and what it needs, without loading it
///
/// Architecture, parameters, layers, context, vocabulary, types and sizes of the tensors, tokenizer, chat
/// template, and the memory it takes by context length and number type.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// What --model takes elsewhere, or a config.json alone
    #[arg(value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Commit, tag or branch of a hub repository
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// List every tensor with its shape (JSON always does)
    #[arg(long)]
    pub(crate) tensors: bool,
    /// A table, or one JSON object
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Convert a model into another form: safetensors, burnpack or GGUF
///
/// Writes a new directory: weights, config, tokenizer, chat template and licence. Tensors are converted one at a
/// time; nothing has the directory's name before it is whole. A conversion that was killed is begun again by the
/// same command.
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// What --model takes elsewhere, or a directory with pytorch_model*.bin
    #[arg(value_name = "NAME|PATH")]
    pub(crate) source: String,
    /// The directory to make
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// The form of the weights
    #[arg(long, value_enum, default_value_t = Target::Safetensors)]
    pub(crate) to: Target,
    /// The type of the floats; as they are stored where not given (blocks stay blocks in GGUF, else become f32)
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<StoredType>,
    /// Quantise the matrices (gguf only)
    #[arg(long, value_enum, conflicts_with = "dtype")]
    pub(crate) quantize: Option<Blocks>,
    /// Read the result back and compare it with the source, tensor by tensor and by logits
    #[arg(long)]
    pub(crate) verify: bool,
    /// Megabytes of a safetensors file at most
    #[arg(long, value_name = "MB", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_shard_size: u32,
    /// Commit, tag or branch of a hub repository
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
}

/// A form of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// What transformers and most others read
    Safetensors,
    /// burn's own
    Burnpack,
    /// What llama.cpp reads, in one file
    Gguf,
}

/// A type of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredType(pub(crate) FloatType);

impl ValueEnum for StoredType {
    fn value_variants<'a>() -> &'a [Self] {
        &const { [Self(FloatType::F32), Self(FloatType::F16), Self(FloatType::BF16)] }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(self.0.help()))
    }
}

/// A format of blocks that values can be quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks(pub(crate) BlockFormat);

impl Blocks {
    pub(crate) const ALL: [Self; 3] =
        [Self(BlockFormat::Q8_0), Self(BlockFormat::Q4_0), Self(BlockFormat::Q4_1)];
}

impl ValueEnum for Blocks {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.0.name().to_lowercase());
        Some(match self.0.help() {
            Some(help) => value.help(help),
            None => value,
        })
    }
}

/// List the input rules and their knobs
#[derive(Debug, clap::Args)]
pub(crate) struct RulesArgs {
    /// A list, or a JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Show what applies to a command, and from where: flag, environment, file or default
///
/// Flags get their values from the command line, else from the environment (MOI_TOP_K for --top-k), else from a preset
/// of the file, else from the file's defaults, else they have their own. The file is --config, MOI_CONFIG, moi.toml in
/// this directory, or moi.toml in the user's configuration directory.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
A file:
  [defaults]
  model = \"smollm2-135m-instruct\"
  temperature = 0.7

  [presets.qwq]                  # by --preset qwq, and by itself for these models
  models = [\"Qwen/QwQ-32B\"]
  temperature = 0.6
  top-p = 0.95
  rule = \"moi:beta=1\"")]
pub(crate) struct ConfigArgs {
    /// The command
    #[arg(default_value = "generate")]
    pub(crate) command: String,
    /// Flags of it, behind --
    #[arg(last = true, value_name = "FLAGS", allow_hyphen_values = true)]
    pub(crate) flags: Vec<String>,
    /// A table, or one JSON object
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// List the catalogue: models that are fetched by name, and where they lie; or remove one
///
/// They are kept in models/NAME of the cache: the directory in MOI_CACHE, or moi in the user's cache directory. What another
/// tool has fetched into the hub's own cache (HF_HUB_CACHE, or hub in HF_HOME) is used from there, and other hub
/// repositories are kept in it. An unfinished download goes on where it stopped.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelsArgs {
    /// Remove a model of the catalogue from the cache, and what an unfinished download of it has left
    #[arg(long, value_name = "NAME")]
    pub(crate) remove: Option<String>,
    /// A table, or a JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Check that devices compute what they should: a small built-in model with known logits
///
/// At once, with a cache and against the CPU, in every type that the device computes in, with the driver that it
/// has. Says what was found and what to do; exit code 1 if a device is wrong.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// The device to check; all that this build can use and this machine has where none is named
    #[arg(long, value_name = "NAME", default_value_t = Request::Auto, hide_default_value = true)]
    pub(crate) device: Request,
    /// A report, or one JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Compile the kernels that a model needs on a GPU, and keep them for later starts
///
/// Loads the model, runs prompts of several lengths and some steps under every rule, and says how long the first
/// token takes now and took before. Kernels are kept in the user's cache directory, or below MOI_CACHE.
#[derive(Debug, clap::Args)]
pub(crate) struct WarmupArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// List the devices that this build supports and that this machine has
#[derive(Debug, clap::Args)]
pub(crate) struct DevicesArgs {
    /// A table, or a JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}
