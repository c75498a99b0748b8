//! The output of a generation: text, JSON and statistics.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use moi_backends::FloatType;
use moi_engine::{InputRule, Sampling, Scope, SpeculationReport, TokenEvent, Verify};
use moi_pretrained::WeightForm;
use moi_text::Tokenizer;
use serde::{Serialize, Serializer};

use crate::{
    decoding::Decoding,
    likely::{Likely, decoded, likely},
    memory::peak_memory,
};

/// Times and token counts of a generation.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Timing {
    pub(crate) load_s: f64,
    pub(crate) prefill_tokens: usize,
    /// Positions of the prompt that were already cached.
    pub(crate) reused_positions: usize,
    /// Seconds until the first token.
    pub(crate) prefill_s: f64,
    /// Number of tokens after the first.
    pub(crate) decode_tokens: usize,
    pub(crate) decode_s: f64,
    /// The peak memory of the process so far, if the system says so.
    pub(crate) peak_memory_bytes: Option<u64>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    Engine(moi_engine::StopReason),
    /// Ctrl-C ended it.
    #[serde(serialize_with = "interrupted")]
    Interrupted,
    /// An error ended it; the error itself is reported separately.
    #[serde(serialize_with = "failed")]
    Failed,
}

fn failed<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("failed")
}

fn interrupted<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("interrupted")
}

impl StopReason {
    /// The reason in the last step; `early` if that step has none.
    pub(crate) fn of(steps: &[TokenEvent], early: Self) -> Self {
        steps.last().and_then(|step| step.stop).map_or(early, Self::Engine)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Engine(reason) => format!("{reason:?}"),
            Self::Interrupted => "interrupted".to_owned(),
            Self::Failed => "failed".to_owned(),
        };
        f.write_str(&name.to_lowercase())
    }
}

/// The JSON object of `--format json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    model: &'a str,
    device: &'a str,
    dtype: &'a str,
    rule: InputRule,
    mix_tolerance: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    sampling: &'a Sampling,
    prompt_tokens: &'a [u32],
    #[serde(flatten)]
    answers: Answers<'a>,
    timing: Timing,
}

/// In JSON, a single answer is part of the object, and several are a list in it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answers<'a> {
    One(Box<Answer<'a>>),
    Several { samples: Vec<Answer<'a>> },
}

/// One answer.
#[derive(Debug, Serialize)]
pub(crate) struct Answer<'a> {
    seed: u64,
    tokens: Vec<u32>,
    text: String,
    stop_reason: StopReason,
    /// What speculation did, if the answer came to its end with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    speculation: Option<&'a SpeculationReport>,
    steps: Vec<ReportStep<'a>>,
}

/// The device, the number type and the settings of the computation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    pub(crate) model: &'a str,
    pub(crate) device: &'a str,
    pub(crate) dtype: &'static str,
    /// The tolerance of `--mix-tolerance`.
    pub(crate) mix_tolerance: f32,
}

/// The number type of the computation, as in `--dtype`.
pub(crate) fn dtype_name(form: WeightForm) -> &'static str {
    let named = FloatType::ALL.into_iter().find(|kind| kind.dtype() == form.dtype());
    named.map_or("f32", FloatType::name)
}

#[derive(Debug, Serialize)]
struct ReportStep<'a> {
    token: u32,
    text: &'a str,
    logprob: f64,
    entropy: f32,
    gate: f32,
    top: Vec<Weight>,
    /// Whether the token was drafted for its place, if the answer speculates.
    #[serde(skip_serializing_if = "Option::is_none")]
    drafted: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Likely>,
}

#[derive(Debug, Serialize)]
struct Weight {
    token: u32,
    weight: f32,
}

/// What speculation did for an answer that came to its end.
pub(crate) fn speculation(steps: &[TokenEvent]) -> Option<&SpeculationReport> {
    steps.last()?.speculated.as_ref()?.report.as_deref()
}

/// The line of `--stats` about speculation.
pub(crate) fn speculation_line(report: &SpeculationReport) -> String {
    let SpeculationReport { drafter, verify, rounds, tokens, drafted, accepted, inexact, worst, .. } = report;
    let verified = if *verify == Verify::Match { String::new() } else { format!(", verified by {verify}") };
    let off =
        if *inexact == 0 { String::new() } else { format!("; {inexact} inputs off by up to {worst:.1e}") };
    let by_depth: Vec<String> =
        report.by_depth.iter().map(|depth| format!("{}/{}", depth.accepted, depth.reached)).collect();
    format!(
        "speculation by {drafter}{verified}: {tokens} tokens in {rounds} passes ({:.2} a pass); {accepted} of {drafted} drafts \
         accepted (by depth {}){off}; drafting {:.3} s, passes {:.2} s",
        report.tokens_per_round(),
        if by_depth.is_empty() { "none".to_owned() } else { by_depth.join(", ") },
        report.draft_time.as_secs_f64(),
        report.verify_time.as_secs_f64(),
    )
}

impl<'a> Answer<'a> {
    pub(crate) fn new(
        seed: u64,
        steps: &'a [TokenEvent],
        early: StopReason,
        tokenizer: Option<&Tokenizer>,
    ) -> Self {
        let step = |step: &'a TokenEvent| ReportStep {
            token: step.token,
            text: &step.text,
            logprob: step.logprob,
            entropy: step.entropy,
            gate: step.gate,
            top: step.top.iter().map(|&(token, weight)| Weight { token, weight }).collect(),
            drafted: step.speculated.as_ref().map(|speculated| speculated.accepted),
            logprobs: likely(&step.likeliest, |token| decoded(tokenizer, token)),
        };
        Self {
            seed,
            tokens: steps.iter().map(|step| step.token).collect(),
            text: steps.iter().map(|step| step.text.as_str()).collect(),
            stop_reason: StopReason::of(steps, early),
            speculation: speculation(steps),
            steps: steps.iter().map(step).collect(),
        }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        names: Names<'a>,
        rule: InputRule,
        decoding: &'a Decoding,
        prompt_tokens: &'a [u32],
        mut answers: Vec<Answer<'a>>,
        timing: Timing,
    ) -> Self {
        let Names { model, device, dtype, mix_tolerance } = names;
        let answers = match (answers.len(), answers.pop()) {
            (1, Some(answer)) => Answers::One(Box::new(answer)),
            (_, last) => Answers::Several { samples: answers.into_iter().chain(last).collect() },
        };
        let Decoding { scope, sampling, .. } = decoding;
        Self {
            model,
            device,
            dtype,
            rule,
            mix_tolerance,
            scope: *scope,
            sampling,
            prompt_tokens,
            answers,
            timing,
        }
    }

    pub(crate) fn print(&self) -> Result<()> {
        print_json(self)
    }
}

impl Timing {
    /// Statistics of sequences that ran together; the first token of each counts as prefill.
    pub(crate) fn new(
        load: Duration,
        [prefill_tokens, reused_positions]: [usize; 2],
        prefill: Duration,
        rows: &[Vec<TokenEvent>],
        decode: Duration,
    ) -> Self {
        Self {
            load_s: load.as_secs_f64(),
            prefill_tokens,
            reused_positions,
            prefill_s: prefill.as_secs_f64(),
            decode_tokens: rows.iter().map(|steps| steps.len().saturating_sub(1)).sum(),
            decode_s: decode.as_secs_f64(),
            peak_memory_bytes: peak_memory(),
        }
    }

    /// The line that `--stats` prints.
    pub(crate) fn line(
        &self,
        rule: &InputRule,
        seed: u64,
        stop_reason: StopReason,
        bytes_per_token: usize,
    ) -> String {
        let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let decode = rate(self.decode_tokens, self.decode_s);
        let memory =
            self.peak_memory_bytes.map(|bytes| format!("; {:.2} GB of memory at most", bytes as f64 / 1e9));
        let memory = memory.unwrap_or_default();
        format!(
            "{rule}, seed {seed}, ended by {}: load {:.2} s; prefill {} tokens in {:.2} s ({:.1} tokens/s); \
             decode {} tokens in {:.2} s ({decode:.1} tokens/s; {:.0} MB of weights per token, {:.1} GB/s){memory}",
            stop_reason,
            self.load_s,
            self.prefill_tokens,
            self.prefill_s,
            rate(self.prefill_tokens, self.prefill_s),
            self.decode_tokens,
            self.decode_s,
            bytes_per_token as f64 / 1e6,
            bytes_per_token as f64 * decode / 1e9,
        )
    }
}

/// Writes a piece of the answer, without buffering.
pub(crate) fn stream(text: &str) -> Result<()> {
    if !text.is_empty() {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")?;
    }
    Ok(())
}

/// Ends the last line of the answer on a terminal. A file or pipe gets the answer only.
pub(crate) fn finish_stream(steps: &[TokenEvent]) -> Result<()> {
    let ends_a_line =
        steps.iter().rev().find(|step| !step.text.is_empty()).is_some_and(|s| s.text.ends_with('\n'));
    if io::stdout().is_terminal() && !ends_a_line {
        print_bytes(b"\n")?;
    }
    Ok(())
}

pub(crate) fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to stdout")
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    print_bytes(&text)
}

/// Whether the error is that the reader has closed the output.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}
