//! Flags that decide how text is generated: input rule, sampling, constraints and stop conditions.

use std::{path::PathBuf, str::FromStr};

use moi_engine::{DrafterChoice, SamplingStep, Scope, Speculation, Support, Verify};

use super::KnobArgs;
use crate::draft_model::Speculate;

/// Which input rule the model runs with.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Input rule")]
pub(crate) struct RuleArgs {
    /// Input rule: token, moi, direct, gate, soft-thinking, k-sample, swir or selar
    ///
    /// The rule decides what the model is fed after each sampled token. Knobs follow the name, as in
    /// moi:beta=0.5:support=20. `moi rules` lists the rules and their knobs.
    #[arg(long, value_name = "NAME[:KNOB=VALUE]...", default_value = "moi")]
    pub(crate) rule: String,
    /// moi: Weight of the sampled token, above -1; a larger value mixes less [default: 1]
    ///
    /// The paper searches 0.25 to 8.
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) beta: Option<f64>,
    /// moi, direct, gate: Tokens to mix: the whole vocabulary, or the K most likely [default: full]
    ///
    /// The paper defines the rule over the whole vocabulary; its released code uses the 20 most likely tokens. A
    /// small K mixes about four times as strongly.
    #[arg(long, value_name = "full|K")]
    pub(crate) support: Option<Support>,
    /// gate: Share by which every input moves towards the mean embedding, 0 to 1
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) gate: Option<f64>,
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
}

/// Which generated tokens the input rule applies to, and how exactly mixtures are computed.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Input rule")]
pub(crate) struct ScopeArgs {
    /// Generated tokens that the rule applies to: all, thinking, or N..M [default: depends on the rule]
    ///
    /// `thinking` is the text between the model's think markers. It is the default of soft-thinking, k-sample, swir
    /// and selar if the model has such markers; otherwise the default is `all`.
    #[arg(long, value_name = "all|thinking|N..M")]
    pub(crate) mix_scope: Option<Scope>,
    /// Largest share of an input's weight that the mean of all embeddings may stand for, 0 to 1 [default: auto]
    ///
    /// A mean over the whole vocabulary reads only the embeddings of the most likely tokens. The mean of all
    /// embeddings stands for the rest. This limit is on the weight (gate times probability) of that rest; 0 reads
    /// every embedding.
    ///
    /// `auto` is 1e-5 if the embedding is in float32, 2^-10 if the weights are rounded to 16 bits or fewer, and 0 for
    /// a vocabulary of at most 4,096 tokens.
    #[arg(long, value_name = "auto|F", allow_negative_numbers = true)]
    pub(crate) mix_tolerance: Option<Tolerance>,
    /// Token that opens the model's thinking, if moi does not find it; needs --think-close
    #[arg(long, value_name = "TOKEN", requires = "think_close", allow_hyphen_values = true)]
    pub(crate) think_open: Option<String>,
    /// Token that closes the model's thinking; needs --think-open
    #[arg(long, value_name = "TOKEN", requires = "think_open", allow_hyphen_values = true)]
    pub(crate) think_close: Option<String>,
}

/// The tolerance of `--mix-tolerance`; `None` means the default of the model's embedding table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Tolerance(pub(crate) Option<f32>);

impl FromStr for Tolerance {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<f32>() {
            _ if text == "auto" => Ok(Self(None)),
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self(Some(share))),
            _ => Err("expected auto or a number from 0 to 1"),
        }
    }
}

/// How tokens are sampled.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling (the model's advised values where not given)")]
pub(crate) struct SamplingArgs {
    #[command(flatten)]
    pub(crate) knobs: KnobArgs,
    /// Add F to the logit of a token, given by its id or its text; may be repeated
    #[arg(long, value_name = "TOKEN=F", allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<String>,
    /// Never sample this token, given by its id or its text; may be repeated
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    pub(crate) ban: Vec<String>,
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help = samplers_help())]
    pub(crate) samplers: Option<Vec<SamplingStep>>,
    /// Seed of the random numbers; the same seed gives the same tokens [default: random]
    ///
    /// -1 is random, too. --stats and --format json show the seed that was used.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<OrMinusOne<u64>>,
    #[command(flatten)]
    pub(crate) speculation: SpeculationArgs,
}

/// Whether tokens are drafted, so that a pass through the model can give several.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Speculation (faster; the same tokens for a seed, unless set otherwise)")]
pub(crate) struct SpeculationArgs {
    /// Draft tokens, and keep those that the model chooses by itself: none, auto, lookup, recycling, model or layers
    ///
    /// `lookup` drafts what followed an earlier occurrence of the last tokens. `recycling` drafts the tokens that the
    /// model found likeliest when it last saw a token. `auto` does both. `model:PATH` drafts the likeliest tokens of
    /// another model of the same vocabulary (a name or path as for --model), and `layers:0-9,20-29` those of some
    /// layers of the model itself. As many drafts run as pay on this device, by what was accepted so far. The tokens
    /// are those of `none`, unless --verify says otherwise. Under a rule that feeds a mixture behind every token, such
    /// as moi, inputs are guessed, too, and guessed again from what a pass gave, which pays only where passes over
    /// several positions cost little more than one; `auto` drafts nothing there. With moi:floor=F drafts gain where
    /// gates are below F.
    #[arg(long, value_name = "DRAFTER", default_value_t = Speculate::Drafter(DrafterChoice::None))]
    pub(crate) speculate: Speculate,
    /// Draft at most N tokens behind each other
    #[arg(long, value_name = "N", default_value_t = Speculation::default().draft_tokens)]
    pub(crate) draft_tokens: usize,
    /// Draft at most N tokens for a pass, alternatives included
    #[arg(long, value_name = "N", default_value_t = Speculation::default().draft_budget)]
    pub(crate) draft_budget: usize,
    /// model, layers: Draft nothing behind a token that the drafter finds less likely than F, 0 to 1; not with --verify
    /// k-seq or greedy
    #[arg(long, value_name = "F", default_value_t = Speculation::default().draft_min_p)]
    pub(crate) draft_min_p: f64,
    /// recycling, auto: Begin with the table of successors in FILE, and write it there at the end
    #[arg(long, value_name = "FILE")]
    pub(crate) draft_table: Option<PathBuf>,
    /// model, layers: How tokens are decided: match, rejection, k-seq or greedy
    ///
    /// `match` gives the tokens that the seed gives without drafts. The others draw drafts from the drafter and accept
    /// or reject them, which gives other tokens of the same distribution: `rejection` one after the other, `k-seq` two
    /// independent chains, `greedy` the drafter's likeliest token and one that is drawn.
    #[arg(long, value_name = "HOW", default_value_t = Verify::Match)]
    pub(crate) verify: Verify,
    /// Rules that mix: let an input stay that is off by F of its norm at most [default: 1e-6 for moi and gate without a
    /// floor, else 0]
    ///
    /// 1e-6 is exact up to rounding. With 1e-3 to 1e-2 guesses are right sooner, and results are approximate: --stats
    /// and --format json tell how many inputs were off, and by how much.
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    pub(crate) speculate_tolerance: Option<f64>,
    /// Rules that mix: run at most N positions in a pass, kept guesses included
    #[arg(long, value_name = "N", default_value_t = Speculation::default().window)]
    pub(crate) speculate_window: usize,
}

impl SpeculationArgs {
    /// The settings of the engine.
    pub(crate) fn settings(&self) -> Speculation {
        Speculation {
            drafter: self.speculate.drafter(),
            draft_tokens: self.draft_tokens,
            draft_budget: self.draft_budget,
            draft_min_p: self.draft_min_p,
            verify: self.verify,
            tolerance: self.speculate_tolerance,
            window: self.speculate_window,
            optimum: false,
            optional: false,
        }
    }
}

fn samplers_help() -> String {
    let names: Vec<&str> = SamplingStep::ALL.iter().map(|step| step.name()).collect();
    format!("The samplers in their order; what is left out is not done [default: {}]", names.join(","))
}

/// A whole number, or -1. llama.cpp, vLLM and transformers use -1 for "off", "random" or "no limit"; moi stores that
/// as `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OrMinusOne<T>(pub(crate) Option<T>);

impl<T: FromStr> FromStr for OrMinusOne<T> {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "-1" => Ok(Self(None)),
            _ => text
                .parse()
                .map(|number| Self(Some(number)))
                .map_err(|_| "expected a whole number from 0 on, or -1"),
        }
    }
}

/// Which constraints the answer must follow.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Constraints")]
#[group(multiple = true)]
pub(crate) struct GrammarArgs {
    /// Make the answer JSON that follows this schema; give a file or the schema itself
    #[arg(long, value_name = "FILE|JSON", conflicts_with_all = ["json", "regex", "grammar"])]
    pub(crate) json_schema: Option<String>,
    /// Make the answer a JSON object
    #[arg(long, conflicts_with_all = ["regex", "grammar"])]
    pub(crate) json: bool,
    /// Make the whole answer match this regular expression
    #[arg(long, value_name = "REGEX", conflicts_with = "grammar", allow_hyphen_values = true)]
    pub(crate) regex: Option<String>,
    /// Make the answer follow the grammar in this file (llguidance's Lark format)
    #[arg(long, value_name = "FILE")]
    pub(crate) grammar: Option<PathBuf>,
    /// Mix the distribution that the constraint leaves, instead of the raw distribution
    #[arg(long)]
    pub(crate) mix_constrained: bool,
}

/// When generation stops.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Stop conditions")]
pub(crate) struct StopArgs {
    /// Stop after N tokens [default: no limit; 256 for compare and trace]
    ///
    /// -1 is the default, too. An answer also ends at an end-of-sequence token, and when the context is full.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_tokens: Option<OrMinusOne<usize>>,
    /// Do not stop before N tokens [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) min_tokens: usize,
    /// Stop before this text, which is not printed; may be repeated
    ///
    /// A control token, such as <|im_end|>, works as well.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Continue after the model's end-of-sequence tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl StopArgs {
    /// The largest number of tokens, if there is a limit.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.max_tokens.and_then(|OrMinusOne(max)| max)
    }
}
