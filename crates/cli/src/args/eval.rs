//! `moi eval`.

use std::path::PathBuf;

use moi_eval::Shard;

use super::{Format, ModelArgs, SamplingArgs, ScopeArgs};

/// Compare input rules by the problems that they solve
///
/// TASK is `countdown` (made here, solvable by construction), or a JSONL file with an object per line. Every rule gets the
/// same problems with the same seeds. Samples are added to a file as they come, one JSON object a line: the same command
/// goes on where an earlier one has ended, however that was, and when all are there it reports them again.
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
    /// `countdown`, or a JSONL file
    #[arg(required_unless_present = "merge", default_value = "", hide_default_value = true)]
    pub(crate) task: String,
    /// Every N-th problem alone, from the I-th: `--shard 1/4` to `4/4` on four machines, each with a file of its own
    #[arg(long, value_name = "I/N", help_heading = "Task")]
    pub(crate) shard: Option<Shard>,
    /// Put the files of all shards together into --output, and report them; no model is run
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["shard", "task"], requires = "output", help_heading = "Task")]
    pub(crate) merge: Vec<PathBuf>,
    /// The rules; the others are compared with the first
    #[arg(long, value_name = "RULES", default_value = "token,moi", help_heading = "Input rule")]
    pub(crate) rules: Vec<String>,
    /// Let rules have different numbers of configurations, such as moi with three betas beside one token
    #[arg(long, help_heading = "Input rule")]
    pub(crate) unequal_budgets: bool,
    /// Samples of each problem by each rule, each with a seed of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Task")]
    pub(crate) seeds: u16,
    /// The first N problems; countdown makes 100 where not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Task")]
    pub(crate) problems: Option<u32>,
    /// countdown: numbers of a problem
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=6), help_heading = "Task")]
    pub(crate) numbers: u8,
    /// countdown: the seed that problems are made with
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Task")]
    pub(crate) task_seed: u64,
    /// The prompt, as a Jinja template over a line's fields: a file
    #[arg(long, value_name = "FILE", help_heading = "Task")]
    pub(crate) template: Option<PathBuf>,
    /// What the model is told before each problem
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "raw",
        allow_hyphen_values = true,
        help_heading = "Task"
    )]
    pub(crate) system: Option<String>,
    /// Send prompts without the chat template
    #[arg(long, help_heading = "Task")]
    pub(crate) raw: bool,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Task")]
    pub(crate) max_tokens: usize,
    /// Answers that are generated together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Task")]
    pub(crate) batch: u16,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// The file of samples [default: moi-eval-TASK.jsonl]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// A page with the report
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) report: Option<PathBuf>,
    /// The report as tables, or as one JSON object
    #[arg(long, value_enum, default_value_t = Format::Text, help_heading = "Output")]
    pub(crate) format: Format,
}
