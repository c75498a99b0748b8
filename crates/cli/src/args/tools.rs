//! The flags of the commands that do not generate text: models, devices and tools.

use std::path::PathBuf;

use clap::{ValueEnum, builder::PossibleValue};
use moi_backends::{DeviceRequest, FloatType};
use moi_convert::BlockFormat;
use moi_hub::DEFAULT_MODEL;

use super::{Format, ModelArgs};

/// Write the logits of a prompt to a safetensors file
///
/// The file has one float32 tensor, `logits` [tokens, vocab], to compare with any other engine.
#[derive(Debug, clap::Args)]
pub(crate) struct LogitsArgs {
    /// Prompt as token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true)]
    pub(crate) tokens: Vec<u32>,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Describe a model and what it needs, without loading it
///
/// Prints the architecture, parameters, layers, context, vocabulary, types and sizes of the tensors, tokenizer, chat
/// template, and the memory needed by context length and number type.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Model, as for --model of other commands, or a config.json alone
    #[arg(value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Commit, tag or branch of a hub repository
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// List every tensor with its shape (JSON always lists them)
    #[arg(long)]
    pub(crate) tensors: bool,
    /// Format of the output: a table, or one JSON object
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Convert a model to safetensors, burnpack or GGUF
///
/// Writes a new directory with weights, config, tokenizer, chat template and licence. moi converts one tensor at a
/// time, and gives the directory its name only when it is complete. Run the same command again if a conversion was
/// killed.
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    /// Model, as for --model of other commands, or a directory with pytorch_model*.bin
    #[arg(value_name = "NAME|PATH")]
    pub(crate) source: String,
    /// Directory to create
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Format of the weights
    #[arg(long, value_enum, default_value_t = Target::Safetensors)]
    pub(crate) to: Target,
    /// Number type of the floats [default: as stored]
    ///
    /// Without this flag, quantised blocks stay quantised in GGUF and become f32 elsewhere.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<StoredType>,
    /// Quantise the matrices (gguf only)
    #[arg(long, value_enum, conflicts_with = "dtype")]
    pub(crate) quantize: Option<Blocks>,
    /// Read the result back and compare it with the source, by tensors and by logits
    #[arg(long)]
    pub(crate) verify: bool,
    /// Largest size of a safetensors file, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_shard_size: u32,
    /// Commit, tag or branch of a hub repository
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
}

/// A file format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Read by transformers and most other tools
    Safetensors,
    /// burn's own format
    Burnpack,
    /// Read by llama.cpp, in one file
    Gguf,
}

/// A float type to store.
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

/// A block format to quantise values to.
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
    /// Format of the output: a list, or a JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Show the settings of a command, and whether each comes from flag, environment, file or default
///
/// A setting comes from the first of these that has it: the command line, the environment (MOI_TOP_K for --top-k), a
/// preset of the configuration file, the defaults of that file, the built-in default. The configuration file is
/// --config, MOI_CONFIG, moi.toml in this directory, or moi.toml in the user's configuration directory.
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
    /// Command whose settings to show
    #[arg(default_value = "generate")]
    pub(crate) command: String,
    /// Flags of that command, after `--`
    #[arg(last = true, value_name = "FLAGS", allow_hyphen_values = true)]
    pub(crate) flags: Vec<String>,
    /// Format of the output: a table, or one JSON object
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// List the models that moi knows by name and where they are stored, or remove one
///
/// Models of the catalogue are in models/NAME of the cache. The cache is the directory in MOI_CACHE, or `moi` in the
/// user's cache directory. If another tool has already downloaded a model to the hub's own cache (HF_HUB_CACHE, or
/// `hub` in HF_HOME), moi uses it from there. moi keeps all other hub repositories in the hub's cache. A new attempt
/// continues an unfinished download.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelsArgs {
    /// Remove a catalogue model and its unfinished downloads from the cache
    #[arg(long, value_name = "NAME")]
    pub(crate) remove: Option<String>,
    /// Format of the output: a table, or a JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Check that devices compute correctly, with a small built-in model of known logits
///
/// Runs the model at once, with a cache and against the CPU, in every number type that the device supports. Prints
/// the findings and what to do. The exit code is 1 if a device computes wrong results.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Device to check [default: all that this build can use on this machine]
    #[arg(long, value_name = "NAME", default_value_t = DeviceRequest::Auto, hide_default_value = true)]
    pub(crate) device: DeviceRequest,
    /// Format of the output: a report, or one JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Compile the GPU kernels that a model needs, and keep them for later starts
///
/// Loads the model, runs prompts of several lengths and some steps under every rule, and prints the time to the first
/// token before and after. The kernels are kept in MOI_CACHE, or in the user's cache directory.
#[derive(Debug, clap::Args)]
pub(crate) struct WarmupArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// List the devices that this build supports, and those that this machine has
#[derive(Debug, clap::Args)]
pub(crate) struct DevicesArgs {
    /// Format of the output: a table, or a JSON array
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}
