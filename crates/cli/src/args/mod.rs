//! The flags of the command line.

mod decode;
mod eval;
mod knobs;
mod runs;
#[cfg(feature = "serve")]
mod serve;
mod tools;

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum, builder::PossibleValue};
use moi_backends::{DeviceRequest, FloatType};
use moi_hub::DEFAULT_MODEL;
use moi_models::{Activations, PackedForm};
use moi_pretrained::WeightForm;

#[cfg(feature = "serve")]
pub(crate) use self::serve::{AccessArgs, Defaults, LogFormat, ServeArgs, ThoughtField};
pub(crate) use self::{
    decode::{GrammarArgs, OrMinusOne, RuleArgs, SamplingArgs, ScopeArgs, StopArgs, Tolerance},
    eval::EvalArgs,
    knobs::KnobArgs,
    runs::{CompareArgs, CompareFormat, RunsArgs, ScoreArgs, TraceArgs, TraceFormat},
    tools::{
        Blocks, ConfigArgs, ConvertArgs, DevicesArgs, DoctorArgs, InspectArgs, LogitsArgs, ModelsArgs,
        RulesArgs, Target, WarmupArgs,
    },
};
use crate::bench::BenchArgs;

/// Text generation beyond discrete tokens
///
/// After each token, moi feeds the language model a mixture of its own next-token distribution instead of the
/// embedding of one sampled token (Mixture of Inputs).
#[derive(Debug, Parser)]
#[command(
    name = "moi",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  moi generate \"Explain why the sky is blue.\"
  moi generate --rule token \"The same, decoded the standard way.\"
  moi generate --rule soft-thinking:max_topk=5 \"The same, by another rule.\"
  moi generate --model ./Llama-3.2-1B --beta 0.5 --format json \"Hello\"
  moi models
  moi --version --verbose    what this build is, for a report of a fault"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
}

/// The command line as clap sees it. Flags that take a value accept negative numbers, so that an error about such a
/// value says what the flag takes.
pub(crate) fn command() -> clap::Command {
    let values = |arg: clap::Arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    Args::command().mut_subcommands(|command| command.mut_args(values))
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct GlobalArgs {
    /// Print only the answer and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Print more details
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Configuration file with defaults and presets [default: moi.toml here, else the user's own]
    ///
    /// `moi config` shows the values that apply and where they come from.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<String>,
    /// Use a preset of the configuration file
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) preset: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Generate(Box<GenerateArgs>),
    Chat(Box<ChatArgs>),
    Compare(Box<CompareArgs>),
    Trace(Box<TraceArgs>),
    Score(ScoreArgs),
    Eval(Box<EvalArgs>),
    Logits(LogitsArgs),
    Inspect(InspectArgs),
    Convert(ConvertArgs),
    Models(ModelsArgs),
    Devices(DevicesArgs),
    Doctor(DoctorArgs),
    Warmup(WarmupArgs),
    Bench(Box<BenchArgs>),
    #[cfg(feature = "serve")]
    Serve(Box<ServeArgs>),
    Rules(RulesArgs),
    Config(ConfigArgs),
    /// Print a completion script for a shell
    ///
    /// For bash: moi completions bash > ~/.local/share/bash-completion/completions/moi
    Completions {
        /// Shell to print the script for
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one per command
    ///
    /// For example: moi man ~/.local/share/man/man1
    Man {
        /// Directory to write to; it is created if it does not exist
        directory: PathBuf,
    },
}

/// Which model to run, and on which device.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Catalogue name (see `moi models`), GGUF file, Hugging Face directory, or hub repository
    ///
    /// moi downloads a catalogue model at its first use and verifies its sha256.
    ///
    /// A hub repository is OWNER/NAME or the address of its page. OWNER/NAME:Q4_K_M or OWNER/NAME/FILE.gguf selects
    /// one of several GGUF files; otherwise moi prefers safetensors. Set HF_TOKEN for gated repositories and
    /// HF_ENDPOINT for a mirror.
    #[arg(short, long, value_name = "NAME|PATH", default_value = DEFAULT_MODEL)]
    pub(crate) model: String,
    /// Commit, tag or branch of a hub repository
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// Device: auto, cpu, ndarray, cuda, metal, vulkan or wgpu; vulkan:1 is the second Vulkan device
    ///
    /// `auto` takes the best GPU that this build can use, else the CPU, and prints which one. `ndarray` is a slow
    /// portable reference. `moi devices` lists the devices of this machine.
    #[arg(long, value_name = "NAME", default_value_t = DeviceRequest::Auto)]
    pub(crate) device: DeviceRequest,
    /// Number type of weights, activations and cache: auto, f32, f16 or bf16
    ///
    /// `auto` is f32 on the CPU, bf16 on CUDA, f16 on other GPUs that compute in it, else f32. Norms, softmax,
    /// entropies, mixtures and sampling always use f32.
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = float_type)]
    pub(crate) dtype: AskedType,
    /// Keep the weights quantised in memory
    ///
    /// The weights then take a quarter to a seventh of the bytes, and the CPU is faster.
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) quantize: Option<Quantize>,
    /// Rounding of activations in products with quantised weights [default on the CPU: mixed]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) activations: Option<AskedActivations>,
    /// Number of CPU threads [default: all cores]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// How activations are rounded for products with quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AskedActivations {
    /// No rounding: exact
    F32,
    /// 8 bits in the gate and up projections, 16 bits (twice 8) elsewhere: the default
    Mixed,
    /// 8 bits with a scale per 32 values: fastest for prompts, but several times less exact
    Int8,
    /// 16 bits (twice 8): almost exact
    Int16,
}

/// A float type; `None` is the best one for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskedType(pub(crate) Option<FloatType>);

/// Parses `auto` or the name of a float type.
pub(crate) fn float_type(text: &str) -> Result<AskedType, String> {
    match text {
        "auto" => Ok(AskedType(None)),
        _ => text.parse().map(|asked| AskedType(Some(asked))).map_err(|error| format!("{error}, nor auto")),
    }
}

/// The name of a value, as written on the command line.
pub(crate) fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl From<AskedActivations> for Activations {
    fn from(asked: AskedActivations) -> Self {
        match asked {
            AskedActivations::F32 => Self::F32,
            AskedActivations::Mixed => Self::Mixed,
            AskedActivations::Int8 => Self::Int8,
            AskedActivations::Int16 => Self::Int16,
        }
    }
}

/// How weights are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantize(pub(crate) WeightForm);

impl ValueEnum for Quantize {
    fn value_variants<'a>() -> &'a [Self] {
        &const {
            [
                Self(WeightForm::Stored),
                Self(WeightForm::Packed(PackedForm::Q8_0)),
                Self(WeightForm::Packed(PackedForm::Q4_0)),
                Self(WeightForm::Packed(PackedForm::Q4_1)),
            ]
        }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self.0 {
            WeightForm::Stored => {
                let all = PackedForm::ALL.map(PackedForm::name).join(", ");
                let help = format!("As a GGUF file has them: any of {all}; else float32");
                Some(PossibleValue::new("file").help(help))
            }
            WeightForm::Packed(form) => Blocks(form.format()).to_possible_value(),
            WeightForm::Float(_) => None,
        }
    }
}

/// Continue a prompt or answer a question
///
/// With --format text, stdout gets only the answer; everything else goes to stderr.
///
/// The prompt goes through the model's chat template, if the model has one. If it has none, or with --raw, the text
/// of a control token in the prompt becomes that control token.
///
/// Ctrl-C stops the generation and keeps the text so far (exit code 130; stop_reason `interrupted` in JSON). Logits
/// that are NaN or infinite stop it, too (exit code 1; stop_reason `failed`); the error says where they occur.
#[derive(Debug, clap::Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) rule: RuleArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Chat with a model in the terminal
///
/// Earlier turns stay in the cache, so that each turn costs only its new tokens. With a rule that mixes, the cache
/// holds the mixtures that the model was fed, not the embeddings of the tokens. /retry and /undo keep the cache
/// before the question. After /system, /clear or /load, and for turns that the chat template rewrites, moi reads
/// earlier answers again as plain tokens, which can change later answers.
///
/// The lines may come from a pipe. In that case an unknown command or a refused turn ends the chat with an error.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "In the conversation /help lists the commands; Ctrl-C ends an answer, Ctrl-D the conversation."
)]
pub(crate) struct ChatArgs {
    /// System prompt of the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Continue a conversation that was saved with /save
    #[arg(long, value_name = "FILE")]
    pub(crate) load: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) rule: RuleArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
}

/// The prompt to continue.
#[derive(Debug, clap::Args)]
pub(crate) struct PromptArgs {
    /// Prompt; read from stdin if absent or `-`
    ///
    /// Put `--` before a prompt that begins with a hyphen.
    #[arg(conflicts_with = "tokens")]
    pub(crate) prompt: Option<String>,
    /// Prompt as token ids, separated by commas; fed to the model unchanged
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "system")]
    pub(crate) tokens: Option<Vec<u32>>,
    /// System prompt of the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Send the prompt without the chat template
    ///
    /// The text of a control token in the prompt, such as <|im_start|>, then becomes that control token.
    #[arg(long)]
    pub(crate) raw: bool,
}

/// What is printed.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Format of the output: the answer while it is generated, or one JSON object at the end
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Print a line of statistics to stderr: tokens, seconds, tokens per second, GB/s
    #[arg(long)]
    pub(crate) stats: bool,
    /// json: Number of the largest mixture weights to list per step
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) top: usize,
    /// json: Number of the most likely tokens to list per step, with their log-probabilities
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) logprobs: usize,
    /// Samples to generate for the prompt, in one batch; each uses the previous seed plus 1
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) n: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for people
    Text,
    /// JSON for programs
    Json,
}
