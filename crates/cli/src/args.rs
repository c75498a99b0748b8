//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use moi_backends::{FloatType as DeviceFloat, Request};
use moi_engine::Support;
use moi_hub::DEFAULT_MODEL;
use moi_models::{Activations, PackedForm};
use moi_pretrained::WeightForm;

use crate::bench::BenchArgs;

/// Text generation beyond discrete tokens: feeds a language model a mixture of its own next-token
/// distribution instead of one sampled token (Mixture of Inputs).
#[derive(Debug, Parser)]
#[command(
    name = "moi",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  moi generate \"Explain why the sky is blue.\"
  moi generate --rule token \"The same, decoded the standard way.\"
  moi generate --model ./Llama-3.2-1B --beta 0.5 --format json \"Hello\"
  moi models"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Generate(Box<GenerateArgs>),
    Logits(LogitsArgs),
    Inspect(InspectArgs),
    Convert(ConvertArgs),
    Models(ModelsArgs),
    Devices(DevicesArgs),
    Doctor(DoctorArgs),
    Warmup(WarmupArgs),
    Bench(Box<BenchArgs>),
    /// Print a completion script for a shell
    ///
    /// For bash: moi completions bash > ~/.local/share/bash-completion/completions/moi
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Which model, and where it runs.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Catalogue name (see `moi models`), GGUF file, directory in Hugging Face layout, or hub repository
    ///
    /// A catalogue name is fetched at its first use and verified by its sha256. A hub repository is
    /// OWNER/NAME, or OWNER/NAME/FILE.gguf for one of several GGUF files; safetensors are preferred. For gated
    /// ones set HF_TOKEN.
    #[arg(short, long, value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Commit, tag or branch of a hub repository
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// Where to compute: auto, cpu, ndarray (a slow portable reference), cuda, metal, vulkan or wgpu; vulkan:1 for
    /// the second of several
    ///
    /// `auto` takes the best GPU that this build can use, else the CPU, and says which. `moi devices` lists what
    /// there is.
    #[arg(long, value_name = "NAME", default_value_t = Request::Auto)]
    pub(crate) device: Request,
    /// Type of weights, activations and cache: auto, f32, f16 or bf16
    ///
    /// `auto` is f32 on the CPU, bf16 by CUDA, and on other GPUs f16 where they compute in it, else f32. Norms,
    /// softmax, entropies, mixtures and sampling are in f32 always.
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = float_type)]
    pub(crate) dtype: AskedType,
    /// Hold the weights quantised in memory: a quarter to a seventh of the bytes, and faster on the CPU
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) quantize: Option<Quantize>,
    /// What activations are rounded to for products with quantised weights; int8 on the CPU where not given
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) activations: Option<AskedActivations>,
    /// CPU threads; all cores where not given
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// What activations are rounded to for products with quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AskedActivations {
    /// Nothing: exact
    F32,
    /// 8 bits and a scale for 32 values: fast
    Int8,
}

/// A type of floats, or the best for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskedType(pub(crate) Option<DeviceFloat>);

/// The type of this name.
pub(crate) fn float_type(text: &str) -> Result<AskedType, String> {
    match text {
        "auto" => Ok(AskedType(None)),
        _ => text.parse().map(|asked| AskedType(Some(asked))).map_err(|error| format!("{error}, nor auto")),
    }
}

impl From<AskedActivations> for Activations {
    fn from(asked: AskedActivations) -> Self {
        match asked {
            AskedActivations::F32 => Self::F32,
            AskedActivations::Int8 => Self::Int8,
        }
    }
}

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types, reason = "the values' own names")]
pub(crate) enum Quantize {
    /// As a GGUF file has them: any of Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K; else float32
    File,
    /// 8 bits and a scale for 32 values
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits and a scale for 32 values
    #[value(name = "q4_0")]
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 values
    #[value(name = "q4_1")]
    Q4_1,
}

impl Quantize {
    /// How the weights are to be held.
    pub(crate) fn weight_form(self) -> WeightForm {
        match self {
            Self::File => WeightForm::Stored,
            Self::Q8_0 => WeightForm::Packed(PackedForm::Q8_0),
            Self::Q4_0 => WeightForm::Packed(PackedForm::Q4_0),
            Self::Q4_1 => WeightForm::Packed(PackedForm::Q4_1),
        }
    }
}

/// Continue a prompt or answer a question
///
/// Text mode writes the answer alone to stdout and everything else to stderr. The prompt goes through the
/// model's chat template where it has one; --raw sends it as it stands.
///
/// Ctrl-C ends it with what was generated (exit code 130; in JSON, stop_reason is then `interrupted`).
#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    /// The prompt; read from stdin if it is absent or `-`. Behind `--` it may begin with a hyphen
    #[arg(conflicts_with = "tokens")]
    pub(crate) prompt: Option<String>,
    /// The prompt as token ids, fed as they stand
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "system")]
    pub(crate) tokens: Option<Vec<u32>>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Send the prompt without the chat template
    #[arg(long)]
    pub(crate) raw: bool,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) rule: RuleArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What the model is fed after each token.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Input rule")]
pub(crate) struct RuleArgs {
    /// What the model is fed after each sampled token
    #[arg(long, value_enum, default_value_t = RuleName::Moi)]
    pub(crate) rule: RuleName,
    /// moi: weight of the sampled token, above -1; more means less mixing. The paper searches 0.25 to 8
    /// [default: 1]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) beta: Option<f64>,
    /// moi, direct, gate: which tokens are mixed: the whole vocabulary, as the paper defines it, or the K
    /// most likely, as its released code does with 20. A small K mixes about four times as strongly
    /// [default: full]
    #[arg(long, value_name = "full|K")]
    pub(crate) support: Option<Support>,
    /// gate: how far every input moves towards the mean embedding, 0 to 1
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) gate: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuleName {
    /// The sampled token's embedding: standard decoding
    Token,
    /// The token's embedding moved towards the distribution's mean, further where entropy is high
    Moi,
    /// The distribution's mean embedding (Direct Mixture)
    Direct,
    /// The token's embedding moved towards the mean by a constant
    Gate,
}

/// How tokens are sampled.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling (in this order; the model's advised values where not given)")]
pub(crate) struct SamplingArgs {
    /// Divides the logits; 0 always takes the most likely token (greedy)
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
    /// Keep the N most likely tokens; 0 keeps all
    #[arg(long, value_name = "N")]
    pub(crate) top_k: Option<usize>,
    /// Keep the fewest tokens whose probabilities reach this sum; 1 keeps all
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f64>,
    /// Keep tokens at least this probable relative to the most likely; 0 keeps all
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f64>,
    /// The same seed gives the same tokens; drawn where not given (--stats and json show it)
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// When to end.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "End")]
pub(crate) struct StopArgs {
    /// End after this many tokens; without it, at an end token or a full context
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// End where the answer comes to this text, which is left out; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Go on past the model's end tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

/// What is printed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// The answer as it comes, or one JSON object with every step at the end
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Add a line of figures on stderr: tokens, seconds, tokens per second, GB/s
    #[arg(long)]
    pub(crate) stats: bool,
    /// json: how many of the largest mixture weights to list per step
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) top: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

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
    pub(crate) dtype: Option<FloatType>,
    /// Quantise the matrices (gguf only)
    #[arg(long, value_enum, conflicts_with = "dtype")]
    pub(crate) quantize: Option<BlockFormat>,
    /// Read the result back and compare it with the source, tensor by tensor and by logits
    #[arg(long)]
    pub(crate) verify: bool,
    /// Megabytes of a safetensors file at most
    #[arg(long, value_name = "MB", default_value_t = 5000)]
    pub(crate) max_shard_size: usize,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloatType {
    /// Single precision
    F32,
    /// Half precision
    F16,
    /// The upper half of a single
    Bf16,
}

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(non_camel_case_types, reason = "the values' own names")]
pub(crate) enum BlockFormat {
    /// 8 bits and a scale for 32 values
    #[value(name = "q8_0")]
    Q8_0,
    /// 4 bits and a scale for 32 values
    #[value(name = "q4_0")]
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 values
    #[value(name = "q4_1")]
    Q4_1,
}

/// List the catalogue: models that are fetched by name
#[derive(Debug, clap::Args)]
pub(crate) struct ModelsArgs {
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
