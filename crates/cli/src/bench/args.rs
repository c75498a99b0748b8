//! The flags of `moi bench`.

use std::{path::PathBuf, str::FromStr};

use anyhow::Result;
use clap::ValueEnum;
use moi_backends::{DeviceRequest, FloatType};
use moi_engine::{DrafterChoice, InputRule, Verify};

use super::merge::MergeArgs;
use crate::{
    args::{AskedActivations, AskedType, Quantize, float_type, value_name},
    draft_model::Speculate,
};

/// Measure the speed of prompts (pp512), of generation (tg128), and the cost of input rules
///
/// Most flags take a list, and moi bench measures every combination. Each model, device, number type and thread count
/// runs in its own process. Every run uses the same tokens and ignores end-of-sequence tokens. A row is the mean and
/// the standard deviation of several repetitions, after one warm-up run that is not counted. The rows take turns.
///
/// GB/s is the speed at which the best repetition reads weights. It is compared with a memory copy on the same device
/// (bytes read plus bytes written), measured in the same run. The exit code is 1 if something could not be measured.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(super) command: Option<BenchCommand>,
    /// Models to measure, as for --model of other commands [default without --shape: the default model]
    #[arg(short, long, value_name = "NAME|PATH", value_delimiter = ',')]
    pub(super) model: Vec<String>,
    /// Known model sizes with random weights, such as llama-8b or qwen2-32b; nothing is downloaded
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) shape: Vec<String>,
    /// Devices to measure, as for --device of other commands
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "auto")]
    pub(super) device: Vec<DeviceRequest>,
    /// Measure all devices and number types of this build on this machine, with their accuracy
    ///
    /// Accuracy is the KL divergence from float32 on the CPU, and the first token that differs.
    #[arg(long, conflicts_with_all = ["device", "dtype"])]
    pub(super) compare_devices: bool,
    /// Number types of weights, activations and cache: auto, f32, f16 or bf16
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "auto", value_parser = float_type)]
    pub(super) dtype: Vec<AskedType>,
    /// Quantisations of the weights, or `none`
    #[arg(long, value_name = "FORM", value_delimiter = ',', default_value = "none", value_parser = asked_form)]
    pub(super) quantize: Vec<AskedForm>,
    /// Rounding of activations in products with quantised weights
    #[arg(long, value_enum, value_name = "TYPE", value_delimiter = ',')]
    pub(super) activations: Vec<AskedActivations>,
    /// Numbers of CPU threads [default: all cores]
    #[arg(short, long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Vec<u16>,

    /// Prompt lengths in tokens, each read at once; 0 for none
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "512")]
    pub(super) prompt: Vec<usize>,
    /// Generation lengths in tokens; 0 for none
    #[arg(short = 'n', long = "gen", value_name = "N", value_delimiter = ',', default_value = "128")]
    pub(super) decode: Vec<usize>,
    /// Prompt and generation lengths to measure together, such as 512+128
    #[arg(long, value_name = "N+N", value_delimiter = ',')]
    pub(super) pg: Vec<Pair>,
    /// Positions in the cache before the measurement begins
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "0")]
    pub(super) depth: Vec<usize>,
    /// Sequences that run at the same time; the speed counts the tokens of all
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) batch: Vec<u16>,
    /// Input rules with their knobs, such as token,moi,moi:support=20 or moi:beta=0.5:support=20
    #[arg(long, value_name = "RULES", default_value = "token,moi")]
    pub(super) rules: Vec<String>,
    /// Drafters to measure generations with, as for --speculate of other commands; `none` is a row without
    ///
    /// The table then says how many tokens a pass gave, and how often a draft of each depth was accepted; where drafts
    /// are drawn (--verify), also how often the best possible verifier would have accepted one. Drafts of random tokens
    /// mean little: name a --text.
    #[arg(long, value_name = "DRAFTERS", value_parser = drafters, default_value = "none")]
    pub(super) speculate: Drafters,
    /// model, layers: How tokens are decided: match, rejection, k-seq or greedy
    #[arg(long, value_name = "HOW", default_value_t = Verify::Match)]
    pub(super) verify: Verify,
    /// Temperature of generations; the seed is the same in every run
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    pub(super) temperature: f64,
    /// Text file that generations continue, in place of random tokens; each begins behind the whole text
    #[arg(long, value_name = "FILE", conflicts_with_all = ["depth", "shape", "pg"])]
    pub(super) text: Option<PathBuf>,
    /// Measurements per row
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) repetitions: u16,

    /// Count the GPU kernel launches per token, which lowers the speed slightly
    #[arg(long)]
    pub(super) launches: bool,

    /// Format of the rows
    #[arg(long, value_enum, default_value_t = TableFormat::Md)]
    pub(super) format: TableFormat,
    /// File to write the rows to; moi creates it only when the content is complete
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Earlier result (json or jsonl); each row gets its ratio to the earlier one
    #[arg(long, value_name = "FILE")]
    pub(super) compare: Option<PathBuf>,
    /// HTML page to write, with a table and charts; it works from a local disk
    #[arg(long, value_name = "FILE")]
    pub(super) page: Option<PathBuf>,
    /// SVG chart to write: tokens per second by batch, depth and device (needs the cargo feature `plots`)
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,

    /// The group of rows that this child process measures, as JSON
    #[arg(long, value_name = "JSON", hide = true)]
    pub(super) group: Option<String>,
}

/// The subcommands of `moi bench`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum BenchCommand {
    Merge(MergeArgs),
}

/// The format of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    /// A Markdown table of the columns that vary
    Md,
    /// Every field, separated by commas
    Csv,
    /// Every field, in one array
    Json,
    /// Every field, one object per line
    Jsonl,
}

/// A quantisation of the weights; `None` keeps them as floats.
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

/// A list of drafters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drafters(pub(super) Vec<Speculate>);

/// Splits a list of drafters at commas. A piece that begins with a digit is more of the layers before it.
fn drafters(text: &str) -> Result<Drafters, String> {
    let mut pieces: Vec<String> = Vec::new();
    for piece in text.split(',').map(str::trim) {
        match pieces.last_mut().filter(|_| piece.starts_with(|first: char| first.is_ascii_digit())) {
            Some(layers) => *layers += &format!(",{piece}"),
            None => pieces.push(piece.to_owned()),
        }
    }
    let all = pieces.iter().map(|piece| piece.parse()).collect::<Result<Vec<Speculate>, String>>()?;
    let models = all.iter().filter(|drafter| drafter.drafter() == DrafterChoice::Model).count();
    if models > 1 {
        return Err("one draft model at a time: name one of model:PATH and layers:SPEC, once".to_owned());
    }
    Ok(Drafters(all))
}

/// The lengths of a prompt and of the generation after it.
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
    /// The number types, as written on the command line.
    pub(super) fn dtypes(&self) -> Vec<String> {
        let name = |&AskedType(asked): &AskedType| asked.map_or("auto", FloatType::name).to_owned();
        self.dtype.iter().map(name).collect()
    }

    /// The quantisations, as written on the command line.
    pub(super) fn forms(&self) -> Vec<Option<String>> {
        self.quantize.iter().map(|AskedForm(form)| form.as_ref().map(value_name)).collect()
    }

    /// The roundings of activations, as written on the command line; a single `None` if the flag is absent.
    pub(super) fn activations(&self) -> Vec<Option<String>> {
        or_open(self.activations.iter().map(|asked| Some(value_name(asked))).collect())
    }

    /// The drafters, as written on the command line; `None` for a row without drafts.
    pub(super) fn speculate(&self) -> Vec<Option<String>> {
        let none = Speculate::Drafter(DrafterChoice::None);
        self.speculate.0.iter().map(|drafter| (*drafter != none).then(|| drafter.to_string())).collect()
    }

    /// The thread counts; a single `None` if the flag is absent.
    pub(super) fn threads(&self) -> Vec<Option<u16>> {
        or_open(self.threads.iter().copied().map(Some).collect())
    }
}

fn or_open<T>(asked: Vec<Option<T>>) -> Vec<Option<T>> {
    if asked.is_empty() { vec![None] } else { asked }
}

/// Splits lists of rules at commas. A piece KEY=VALUE that is not the name of a rule is a knob of the rule before it.
///
/// # Errors
/// If a piece is not a rule; the error names the piece.
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
        refused(&["--speculate", "none,guess"], "`guess` drafts nothing");
        refused(&["--speculate", "layers:0-3,model:a"], "one draft model at a time");
        refused(&["--text", "a", "--depth", "8"], "cannot be used with");
    }

    #[test]
    fn drafters_are_split() {
        assert_eq!(parsed(&[]).unwrap().speculate(), [None]);
        let args = parsed(&["--speculate", "none,lookup, layers:0-3,7,auto"]).unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(args.speculate(), [None, some("lookup"), some("layers:0-3,7"), some("auto")]);
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
