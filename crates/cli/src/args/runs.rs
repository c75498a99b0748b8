//! The flags of `moi compare`, `moi trace` and `moi score`.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Format, GrammarArgs, ModelArgs, PromptArgs, SamplingArgs, ScopeArgs, StopArgs};

/// The flags that `moi compare` and `moi trace` share.
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

/// Compare the answers of several rules to one prompt, side by side
///
/// All rules run in one batch with the same seed and sampling, for up to 256 tokens unless --max-tokens is given. A
/// mark shows where an answer begins to differ from that of the first rule.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// Rules to run, separated by commas; the others are compared with the first
    #[arg(long, value_name = "RULES", default_value = "token,moi", help_heading = "Input rule")]
    pub(crate) rules: Vec<String>,
    #[command(flatten)]
    pub(crate) runs: RunsArgs,
    /// Format of the comparison [default: by the file extension of --output, else table]
    #[arg(long, value_enum, help_heading = "Output")]
    pub(crate) format: Option<CompareFormat>,
    /// File to write; moi creates it only when the content is complete
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
}

/// How a comparison is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompareFormat {
    /// The texts side by side, and a table of figures
    Table,
    /// Every step of every rule
    Json,
    /// An HTML page like that of `moi trace`
    Html,
}

/// Show what the model is fed at each step, as a page for any browser
///
/// The page shades each token by entropy and underlines it by gate. Click a token to see the largest weights of the
/// next input and the next-token distribution. The page is one file that loads nothing from elsewhere. The trace has
/// up to 256 tokens unless --max-tokens is given.
#[derive(Debug, clap::Args)]
pub(crate) struct TraceArgs {
    /// Rule, or several rules to show side by side, separated by commas
    #[arg(long, value_name = "RULES", default_value = "moi", alias = "rule", help_heading = "Input rule")]
    pub(crate) rules: Vec<String>,
    #[command(flatten)]
    pub(crate) runs: RunsArgs,
    /// Format of the trace [default: by the file extension of --output, else html]
    #[arg(long, value_enum, help_heading = "Output")]
    pub(crate) format: Option<TraceFormat>,
    /// File to write; moi creates it only when the content is complete
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// Number of mixture weights and of most likely tokens to list per step
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Output")]
    pub(crate) top: usize,
}

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceFormat {
    /// A page for a browser
    Html,
    /// Every step
    Json,
    /// One line per step
    Csv,
    /// A chart of entropy and gate (needs the cargo feature `plots`)
    Svg,
}

/// Score a text: perplexity, and the log-probability of every token
///
/// moi reads a long text in overlapping windows, so that each token has at least the overlap as its context.
#[derive(Debug, clap::Args)]
pub(crate) struct ScoreArgs {
    /// Text file; `-` reads stdin
    pub(crate) file: String,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Tokens in a window [default: 2048, or the model's context if it is smaller]
    #[arg(long, value_name = "N")]
    pub(crate) window: Option<usize>,
    /// Tokens that two windows share, 1 or more [default: half of the window]
    #[arg(long, value_name = "N")]
    pub(crate) overlap: Option<usize>,
    /// json: Number of the most likely tokens to list beside each token
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) logprobs: usize,
    /// Format of the output: one line, or one JSON object with every token
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}
