//! The flags of `moi eval`.

use std::path::PathBuf;

use moi_eval::Shard;

use super::{Format, ModelArgs, SamplingArgs, ScopeArgs};

/// Compare input rules by the number of problems they solve
///
/// TASK is `countdown` (generated problems that always have a solution), or a JSONL file with one JSON object per
/// line. Every rule gets the same problems with the same seeds.
///
/// Each answer is appended to the output file as soon as it ends, as one JSON object per line. Run the same command
/// again to continue an interrupted run. If all answers are there, it prints the report again.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Lines of a task:
  {\"question\": ..., \"answer\": 42}                        a number, or a text such as -\\frac{1}{2} (GSM8K and AIME as they are)
  {\"question\": ..., \"choices\": [...], \"answer\": \"B\"}    multiple choice (MMLU, MMLU-Pro and ARC as they are; GPQA: order the choices first)
  {\"numbers\": [3, 8, 3, 8], \"target\": 24}                CountDown, checked with exact arithmetic
A number is the first #### N, else the last \\boxed{} or a \"final answer is N\" behind it, else \"Answer: N\", else the last
number; a box that is no single number is wrong. An exclamation mark is a factorial in boxes and formulas only.
A choice is the last box with a letter or \"Answer: B\", else the last \"B is correct\", \"I choose B\" or \"So B.\", else the
last letter that stands alone.
Thoughts are not judged.
An id is optional; --template makes the prompt of any other fields.")]
pub(crate) struct EvalArgs {
    /// `countdown`, or a JSONL file with one problem per line
    #[arg(required_unless_present = "merge", default_value = "", hide_default_value = true)]
    pub(crate) task: String,
    /// Run shard I of N: every N-th problem from the I-th on
    ///
    /// For example, run --shard 1/4 to --shard 4/4 on four machines, each with an output file of its own. --merge
    /// combines the files.
    #[arg(long, value_name = "I/N", help_heading = "Task")]
    pub(crate) shard: Option<Shard>,
    /// Combine the files of all shards into --output and report them, without running a model
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["shard", "task"], requires = "output", help_heading = "Task")]
    pub(crate) merge: Vec<PathBuf>,
    /// Input rules to run, separated by commas; the first is the baseline of the comparison
    #[arg(long, value_name = "RULES", default_value = "token,moi", help_heading = "Input rule")]
    pub(crate) rules: Vec<String>,
    /// Allow rules with different numbers of configurations, such as three moi betas beside one token
    #[arg(long, help_heading = "Input rule")]
    pub(crate) unequal_budgets: bool,
    /// Samples per problem and rule, each with its own seed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Task")]
    pub(crate) seeds: u16,
    /// Use the first N problems only [default: all of a file, 100 of countdown]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Task")]
    pub(crate) problems: Option<u32>,
    /// countdown: Numbers in a problem
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=6), help_heading = "Task")]
    pub(crate) numbers: u8,
    /// countdown: Seed that generates the problems
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Task")]
    pub(crate) task_seed: u64,
    /// File with a Jinja template that makes the prompt from the fields of a line
    #[arg(long, value_name = "FILE", help_heading = "Task")]
    pub(crate) template: Option<PathBuf>,
    /// System prompt before each problem
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "raw",
        allow_hyphen_values = true,
        help_heading = "Task"
    )]
    pub(crate) system: Option<String>,
    /// Send the prompts without the chat template
    #[arg(long, help_heading = "Task")]
    pub(crate) raw: bool,
    /// Largest number of tokens in an answer
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Task")]
    pub(crate) max_tokens: usize,
    /// Answers to generate at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Task")]
    pub(crate) batch: u16,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// File that the samples are appended to [default: moi-eval-TASK.jsonl]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// File to write the report to, as an HTML page
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) report: Option<PathBuf>,
    /// Format of the report on stdout
    #[arg(long, value_enum, default_value_t = Format::Text, help_heading = "Output")]
    pub(crate) format: Format,
}
