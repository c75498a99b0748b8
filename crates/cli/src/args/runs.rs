//! One prompt under several rules, and the score of a text.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Format, GrammarArgs, ModelArgs, PromptArgs, SamplingArgs, ScopeArgs, StopArgs};

/// What runs under several rules.
#[derive(Debug, clap::Args)]
pub(crate) struct RunsArgs {
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) grammar: GrammarArgs,
    #[command(flatten)]
    pub(crate) stop: StopArgs,
}

/// Show what one prompt becomes under several rules, side by side
///
/// All rules run in one batch, with the same seed and sampling, up to 256 tokens unless --max-tokens says otherwise. A
/// mark shows where a text parts from the first rule's.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// The rules; the others are compared with the first
    #[arg(long, value_name = "RULES", default_value = "token,moi", help_heading = "Input rule")]
    pub(crate) rules: Vec<String>,
    #[command(flatten)]
    pub(crate) runs: RunsArgs,
    /// How it is shown; by the name of --output where not given, else as a table
    #[arg(long, value_enum, help_heading = "Output")]
    pub(crate) format: Option<CompareFormat>,
    /// The file to write; it appears when it is whole
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
}

/// How a comparison is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompareFormat {
    /// Texts side by side, and a table of figures
    Table,
    /// Every step of every rule
    Json,
    /// A page, as of `moi trace`
    Html,
}

/// Show what is mixed, step by step: a page that opens in any browser
///
/// Each token is shaded by entropy and underlined by gate; a click shows the largest weights of what is fed next, and the
/// distribution. The page is one file and loads nothing. Up to 256 tokens unless --max-tokens says otherwise.
#[derive(Debug, clap::Args)]
pub(crate) struct TraceArgs {
    /// The rule, or several to lay side by side
    #[arg(long, value_name = "RULES", default_value = "moi", alias = "rule", help_heading = "Input rule")]
    pub(crate) rules: Vec<String>,
    #[command(flatten)]
    pub(crate) runs: RunsArgs,
    /// How it is written; by the name of --output where not given, else as a page
    #[arg(long, value_enum, help_heading = "Output")]
    pub(crate) format: Option<TraceFormat>,
    /// The file to write; it appears when it is whole
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// Weights and likeliest tokens per step
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Output")]
    pub(crate) top: usize,
}

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceFormat {
    /// A page to look at
    Html,
    /// Every step
    Json,
    /// A line per step
    Csv,
    /// A chart of entropy and gate
    Svg,
}

/// Say how likely a model finds a text: perplexity, and every token's log-probability
///
/// A long text is read in windows that overlap, so that each token has at least the overlap before it.
#[derive(Debug, clap::Args)]
pub(crate) struct ScoreArgs {
    /// A text file; stdin if it is `-`
    pub(crate) file: String,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Tokens of a window [default: 2048, or the model's context]
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Tokens by which windows overlap, 1 or more [default: half of the window]
    #[arg(long, value_name = "N")]
    pub(crate) overlap: Option<usize>,
    /// json: how many of the likeliest tokens to list beside each
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) logprobs: usize,
    /// A line, or one JSON object with every token
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}
