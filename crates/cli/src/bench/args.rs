//! The flags of `moi bench`.

use std::{path::PathBuf, str::FromStr};

use anyhow::Result;
use clap::ValueEnum;
use moi_backends::{FloatType, Request};
use moi_engine::InputRule;

use crate::args::{AskedActivations, AskedType, Quantize, float_type, value_name};

/// Measure speed: prompts (pp512), generation (tg128) and both, and what a rule adds to a step
///
/// Every value may be a list, and every combination is measured; models, devices, types and thread counts each in
/// a process of their own. Tokens are the same in every run and end tokens are ignored. A row is the mean and the
/// deviation of some repetitions, in which rows take turns, after one that does not count.
///
/// GB/s are of weights read per token, by the best repetition; they are compared with what a memory copy on the
/// device, measured in the same run, reads and writes. Exit code 1 if something could not be measured.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Models: what --model takes elsewhere; the default model where neither --model nor --shape is given
    #[arg(short, long, value_name = "NAME|PATH", value_delimiter = ',')]
    pub(super) model: Vec<String>,
    /// Sizes of known models, such as llama-8b or qwen2-32b, with random weights: nothing is fetched
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) shape: Vec<String>,
    /// Where to compute, as elsewhere
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "auto")]
    pub(super) device: Vec<Request>,
    /// Types of weights, activations and cache: auto, f32, f16 or bf16
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "auto", value_parser = float_type)]
    pub(super) dtype: Vec<AskedType>,
    /// Quantisations of the weights, `none` among them
    #[arg(long, value_name = "FORM", value_delimiter = ',', default_value = "none", value_parser = asked_form)]
    pub(super) quantize: Vec<AskedForm>,
    /// What activations are rounded to for products with quantised weights
    #[arg(long, value_enum, value_name = "TYPE", value_delimiter = ',')]
    pub(super) activations: Vec<AskedActivations>,
    /// CPU threads; all cores where not given
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Vec<u16>,

    /// Prompts of so many tokens, read at once; 0 for none
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub(super) prompt: Vec<usize>,
    /// Generations of so many tokens; 0 for none
    #[arg(short = 'n', long = "gen", value_name = "N", value_delimiter = ',', default_value = "128")]
    pub(super) decode: Vec<usize>,
    /// Prompts and the generations behind them in one measurement, such as 512+128
    #[arg(long, value_name = "N+N", value_delimiter = ',')]
    pub(super) pg: Vec<Pair>,
    /// Positions that are in the cache before, unmeasured
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub(super) depth: Vec<usize>,
    /// Sequences side by side; tokens of all count
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) batch: Vec<u16>,
    /// Input rules with their knobs, such as token,moi,moi:support=20 or moi:beta=0.5:support=20
    #[arg(long, value_name = "RULES", default_value = "token,moi")]
    pub(super) rules: Vec<String>,
    /// How often each row is measured
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) repetitions: u16,

    /// Count the kernels that a GPU is given for a token; speeds are then a little lower
    #[arg(long)]
    pub(super) launches: bool,

    /// How the rows are written
    #[arg(long, value_enum, default_value_t = TableFormat::Md)]
    pub(super) format: TableFormat,
    /// The file to write them to; it appears when it is whole
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// An earlier run, json or jsonl: each row gets its ratio to that run's
    #[arg(long, value_name = "FILE")]
    pub(super) compare: Option<PathBuf>,
    /// Draw tokens per second by batch, depth and device, as SVG
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,

    /// What a process of its own is to measure, as JSON
    #[arg(long, value_name = "JSON", hide = true)]
    pub(super) group: Option<String>,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// A Markdown table of what varies
    Md,
    /// Every field, comma-separated
    Csv,
    /// Every field, one array
    Json,
    /// Every field, one object per line
    Jsonl,
}

/// How weights are held: as floats without a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskedForm(Option<Quantize>);

const NO_FORM: &str = "none";

fn asked_form(text: &str) -> Result<AskedForm, String> {
    match text {
        NO_FORM => Ok(AskedForm(None)),
        _ => match <Quantize as ValueEnum>::from_str(text, false) {
            Ok(form) => Ok(AskedForm(Some(form))),
            Err(_) => Err(format!(
                "`{text}` is none of {NO_FORM}, {}",
                Quantize::value_variants().iter().map(value_name).collect::<Vec<_>>().join(", ")
            )),
        },
    }
}

/// A prompt and the generation behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(super) prompt: usize,
    pub(super) decode: usize,
}

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let count = |text: &str| text.parse().ok().filter(|&count| count > 0);
        let pair = text.split_once('+').and_then(|(prompt, decode)| count(prompt).zip(count(decode)));
        match pair {
            Some((prompt, decode)) => Ok(Self { prompt, decode }),
            None => Err(format!("`{text}` is no pair of lengths such as 512+128")),
        }
    }
}

impl BenchArgs {
    /// The types, as on the command line.
    pub(super) fn dtypes(&self) -> Vec<String> {
        let name = |&AskedType(asked): &AskedType| asked.map_or("auto", FloatType::name).to_owned();
        self.dtype.iter().map(name).collect()
    }

    /// The quantisations, as on the command line.
    pub(super) fn forms(&self) -> Vec<Option<String>> {
        self.quantize.iter().map(|AskedForm(form)| form.as_ref().map(value_name)).collect()
    }

    /// The types of activations, as on the command line; one that is left open where none is given.
    pub(super) fn activations(&self) -> Vec<Option<String>> {
        or_open(self.activations.iter().map(|asked| Some(value_name(asked))).collect())
    }

    /// Thread counts; likewise.
    pub(super) fn threads(&self) -> Vec<Option<u16>> {
        or_open(self.threads.iter().copied().map(Some).collect())
    }
}

fn or_open<T>(asked: Vec<Option<T>>) -> Vec<Option<T>> {
    if asked.is_empty() { vec![None] } else { asked }
}

/// The rules of a list. What is KEY=VALUE and no rule's name belongs to the rule before it.
///
/// # Errors
/// If one of them is no rule; it says which.
pub(crate) fn split_rules(lists: &[String]) -> Result<Vec<InputRule>> {
    let mut texts: Vec<String> = Vec::new();
    for piece in lists.iter().flat_map(|list| list.split(',')).map(str::trim) {
        let is_pair = piece.split(':').next().is_some_and(|start| start.contains('='));
        match texts.last_mut().filter(|_| is_pair) {
            Some(rule) => *rule += &format!(":{piece}"),
            None => texts.push(piece.to_owned()),
        }
    }
    texts.iter().map(|text| Ok(text.parse::<InputRule>()?)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use moi_engine::Support;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parsed(args: &[&str]) -> Result<BenchArgs, String> {
        let line = Line::try_parse_from([&["bench"], args].concat());
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_are_split() {
        let defaults = parsed(&[]).unwrap();
        assert_eq!((defaults.prompt, defaults.decode, defaults.batch), (vec![512], vec![128], vec![1]));
        assert_eq!((defaults.dtype, defaults.pg, defaults.threads), (vec![AskedType(None)], vec![], vec![]));
        let line = ["--prompt=8,16", "--gen", "4", "--pg", "8+4,16+2", "--dtype", "f32,auto", "--quantize"];
        let args =
            parsed(&[&line[..], &["none,q8_0", "-t", "1,2", "--device", "cpu,vulkan:1"]].concat()).unwrap();
        assert_eq!(args.prompt, [8, 16]);
        assert_eq!(args.pg, [Pair { prompt: 8, decode: 4 }, Pair { prompt: 16, decode: 2 }]);
        assert_eq!(args.dtypes(), ["f32", "auto"]);
        assert_eq!(args.forms(), [None, Some("q8_0".to_owned())]);
        assert_eq!(args.threads(), [Some(1), Some(2)]);
        assert_eq!(args.activations(), [None::<String>]);
        assert_eq!(args.device.iter().map(ToString::to_string).collect::<Vec<_>>(), ["cpu", "vulkan:1"]);
    }

    #[test]
    fn what_is_no_list_is_named() {
        let refused = |args: &[&str], part: &str| {
            let said = parsed(args).unwrap_err();
            assert!(said.contains(part), "{said}");
        };
        refused(&["--quantize", "q9"], "`q9` is none of none, file, q8_0");
        refused(&["--pg", "512+0"], "`512+0` is no pair");
        refused(&["--pg", "512"], "`512` is no pair");
        refused(&["--batch", "0"], "0 is not in");
        refused(&["--repetitions", "0"], "0 is not in");
        refused(&["--prompt", "8,x"], "'x'");
    }

    #[test]
    fn rules_are_split() {
        let split = |text: &str| split_rules(&[text.to_owned()]);
        let moi = |beta, support| InputRule::moi(beta, support).unwrap();
        assert_eq!(split("token").unwrap(), [InputRule::TOKEN]);
        let gate = InputRule::gate(0.3, Support::Full).unwrap();
        assert_eq!(
            split("token,moi:beta=0.5,support=20,gate:gate=0.3").unwrap(),
            [InputRule::TOKEN, moi(0.5, Support::TopK(20)), gate]
        );
        assert_eq!(split("moi,support=8:beta=2").unwrap(), [moi(2.0, Support::TopK(8))]);
        assert!(split("support=8").unwrap_err().to_string().contains("`support=8`"));
        assert!(split("token,mio").unwrap_err().to_string().contains("`mio`"));
    }
}
