//! The command line.

mod decode;
mod eval;
mod knobs;
mod runs;
#[cfg(feature = "serve")]
mod serve;
mod tools;

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum, builder::PossibleValue};
use moi_backends::{FloatType, Request};
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

/// The command line. A negative number behind a flag is its value, so that the error names what the flag takes.
pub(crate) fn command() -> clap::Command {
    let values = |arg: clap::Arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    Args::command().mut_subcommands(|command| command.mut_args(values))
}

/// What every command takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct GlobalArgs {
    /// Say nothing beside the answer and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more about what is done
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// A file of defaults and presets, see `moi config` [default: moi.toml here, or the user's own]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<String>,
    /// A preset of that file
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
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command
    ///
    /// For example: moi man ~/.local/share/man/man1
    Man {
        /// The directory, made if need be
        directory: PathBuf,
    },
}

/// Which model, and where it runs.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Catalogue name (see `moi models`), GGUF file, directory in Hugging Face layout, or hub repository
    ///
    /// A catalogue name is fetched at its first use and verified by its sha256. A hub repository is
    /// OWNER/NAME or the address of its page, and OWNER/NAME:Q4_K_M or OWNER/NAME/FILE.gguf for one of several GGUF
    /// files; safetensors are preferred. For gated ones set HF_TOKEN, for a mirror HF_ENDPOINT.
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
    /// What activations are rounded to for products with quantised weights; mixed on the CPU where not given
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
    /// 8 bits in the gate and up projections, twice 8 bits elsewhere: the default
    Mixed,
    /// 8 bits and a scale for 32 values: the fastest for prompts, several times as inexact
    Int8,
    /// Twice 8 bits: near to exact
    Int16,
}

/// A type of floats, or the best for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskedType(pub(crate) Option<FloatType>);

/// The type of this name.
pub(crate) fn float_type(text: &str) -> Result<AskedType, String> {
    match text {
        "auto" => Ok(AskedType(None)),
        _ => text.parse().map(|asked| AskedType(Some(asked))).map_err(|error| format!("{error}, nor auto")),
    }
}

/// The name of a value, as on the command line.
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

/// How weights are held in memory.
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
/// Text mode writes the answer alone to stdout and everything else to stderr. The prompt goes through the
/// model's chat template where it has one; without one, or with --raw, control tokens written in it are control tokens.
///
/// Ctrl-C ends it with what was generated (exit code 130; in JSON, stop_reason is then `interrupted`), and so do logits
/// that are no finite numbers (exit code 1, `failed`; the error says where they break).
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

/// Talk with a model
///
/// Turns stay in the cache, so a long conversation costs no more than its new turn. With a rule that mixes, the positions of
/// earlier answers hold the mixtures that the model was fed, not the tokens alone. They serve as long as the conversation
/// goes on: /retry and /undo keep what comes before the question; after /system, /clear or /load, and for the part that a
/// template rewrites, earlier answers are read anew as plain tokens, which may change what follows.
///
/// Lines may come from a pipe; a wrong command, or a turn that the model refuses, ends it then.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "In the conversation /help lists the commands; Ctrl-C ends an answer, Ctrl-D the conversation."
)]
pub(crate) struct ChatArgs {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Go on with a conversation that was kept by /save
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

/// What is continued.
#[derive(Debug, clap::Args)]
pub(crate) struct PromptArgs {
    /// The prompt; read from stdin if it is absent or `-`. Behind `--` it may begin with a hyphen
    #[arg(conflicts_with = "tokens")]
    pub(crate) prompt: Option<String>,
    /// The prompt as token ids, fed as they stand
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with = "system")]
    pub(crate) tokens: Option<Vec<u32>>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "raw", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
    /// Send the prompt without the chat template; control tokens that are written in it, such as <|im_start|>, are
    /// control tokens
    #[arg(long)]
    pub(crate) raw: bool,
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
    /// json: how many of the likeliest tokens to list per step, with their log-probabilities
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) logprobs: usize,
    /// Samples of the prompt, in one batch; each has the seed of the one before plus 1
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) n: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}
