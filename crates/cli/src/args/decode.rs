//! How a continuation is made: rule, sampling, grammar and end.

use std::{path::PathBuf, str::FromStr};

use moi_engine::{SamplingStep, Scope, Support};

use super::KnobArgs;

/// What the model is fed after each token.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Input rule")]
pub(crate) struct RuleArgs {
    /// What the model is fed after each sampled token: token, moi, direct, gate, soft-thinking, k-sample, swir or
    /// selar; with knobs as in moi:beta=0.5:support=20
    ///
    /// `moi rules` lists the rules and their knobs.
    #[arg(long, value_name = "NAME[:KNOB=VALUE]...", default_value = "moi")]
    pub(crate) rule: String,
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
    #[command(flatten)]
    pub(crate) scope: ScopeArgs,
}

/// Which tokens rules apply to.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Input rule")]
pub(crate) struct ScopeArgs {
    /// Which generated tokens the rule applies to: all, thinking (between the model's think markers) or N..M
    /// [default: thinking for soft-thinking, k-sample, swir and selar where the model has markers, else all]
    #[arg(long, value_name = "all|thinking|N..M")]
    pub(crate) mix_scope: Option<Scope>,
    /// The largest share of an input's weight, gate times probability, that may go to the mean of all embeddings in the
    /// place of the least likely tokens' own: what is left out of a sum over the whole vocabulary; 0 leaves out nothing.
    /// auto: 1e-5 where the embedding is in float32, 2^-10 where weights are rounded to 16 bits or fewer,
    /// 0 for a vocabulary of at most 4,096 tokens
    /// [default: auto]
    #[arg(long, value_name = "auto|F", allow_negative_numbers = true)]
    pub(crate) mix_tolerance: Option<Tolerance>,
    /// The token that begins the model's thinking, where it is not found by itself
    #[arg(long, value_name = "TOKEN", requires = "think_close", allow_hyphen_values = true)]
    pub(crate) think_open: Option<String>,
    /// The token that ends the model's thinking
    #[arg(long, value_name = "TOKEN", requires = "think_open", allow_hyphen_values = true)]
    pub(crate) think_close: Option<String>,
}

/// A tolerance of mixtures; none is the one that belongs to the model.
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
    /// Added to the logit of a token, by its id or its text; may be repeated
    #[arg(long, value_name = "TOKEN=F", allow_hyphen_values = true)]
    pub(crate) logit_bias: Vec<String>,
    /// A token that is never sampled, by its id or its text; may be repeated
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    pub(crate) ban: Vec<String>,
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help = samplers_help())]
    pub(crate) samplers: Option<Vec<SamplingStep>>,
    /// The same seed gives the same tokens; drawn where not given, or -1 (--stats and json show it)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) seed: Option<OrMinusOne<u64>>,
}

fn samplers_help() -> String {
    let names: Vec<&str> = SamplingStep::ALL.iter().map(|step| step.name()).collect();
    format!("The samplers in their order; what is left out is not done [default: {}]", names.join(","))
}

/// A whole number, or -1: with that, llama.cpp, vLLM and transformers mean "off", "drawn" or "without end", which is none
/// here.
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

/// What an answer follows.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Constraints")]
#[group(multiple = true)]
pub(crate) struct GrammarArgs {
    /// The answer is JSON that follows this schema: a file, or the schema itself
    #[arg(long, value_name = "FILE|JSON", conflicts_with_all = ["json", "regex", "grammar"])]
    pub(crate) json_schema: Option<String>,
    /// The answer is a JSON object
    #[arg(long, conflicts_with_all = ["regex", "grammar"])]
    pub(crate) json: bool,
    /// The answer matches this regular expression as a whole
    #[arg(long, value_name = "REGEX", conflicts_with = "grammar", allow_hyphen_values = true)]
    pub(crate) regex: Option<String>,
    /// The answer follows this grammar (llguidance's Lark)
    #[arg(long, value_name = "FILE")]
    pub(crate) grammar: Option<PathBuf>,
    /// Mix what the constraint leaves of the distribution, not the raw one
    #[arg(long)]
    pub(crate) mix_constrained: bool,
}

/// When to end.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "End")]
pub(crate) struct StopArgs {
    /// End after this many tokens; without it, or with -1, at an end token or a full context
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_tokens: Option<OrMinusOne<usize>>,
    /// Do not end before this many tokens
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) min_tokens: usize,
    /// End where the answer comes to this text, which is left out; may be repeated. A control token, such as
    /// <|im_end|>, ends it too
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// Go on past the model's end tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl StopArgs {
    /// Tokens at most, if there is a limit.
    pub(crate) fn limit(&self) -> Option<usize> {
        self.max_tokens.and_then(|OrMinusOne(max)| max)
    }
}
