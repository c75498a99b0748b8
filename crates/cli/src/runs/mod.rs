//! Runs one prompt under several rules, for `moi compare` and `moi trace`.

#[cfg(feature = "plots")]
mod chart;
mod csv;
mod page;
mod table;

use anyhow::Result;
use burn::tensor::backend::Backend;
use moi_engine::{
    Grammar, InputRule, Request, Sampling, Scope, Speculated, StopRules, TokenEvent, speculation::DraftTree,
};
use moi_pretrained::Pretrained;
use moi_text::Tokenizer;
use serde::Serialize;
use serde_json::Value;

#[cfg(feature = "plots")]
pub(crate) use self::chart::svg;
pub(crate) use self::{
    csv::csv,
    page::page,
    table::{table, wrapped},
};
use crate::{
    args::RunsArgs,
    backend::{Device, Job},
    bench::split_rules,
    decoding::Decoding,
    generate::{note_kernels, note_unknown},
    interrupt::Interrupt,
    likely::{Likely, likely},
    model,
    output::{StopReason, dtype_name},
    prompt, runner,
};

/// Number of tokens per run, if none is given.
const DEFAULT_MAX_TOKENS: usize = 256;

/// The runs of a prompt, as written to JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Runs {
    pub(crate) model: String,
    pub(crate) device: String,
    pub(crate) dtype: &'static str,
    /// The text of the prompt.
    pub(crate) prompt: String,
    pub(crate) prompt_tokens: Vec<u32>,
    pub(crate) sampling: Sampling,
    /// The sampling as text.
    pub(crate) sampled: String,
    pub(crate) scope: Option<Scope>,
    pub(crate) mix_tolerance: f32,
    pub(crate) grammar: Option<Grammar>,
    pub(crate) stop: StopRules,
    pub(crate) seed: u64,
    pub(crate) runs: Vec<Run>,
    /// Seconds until the first tokens.
    pub(crate) prefill_s: f64,
    pub(crate) decode_s: f64,
    #[serde(skip)]
    pub(crate) interrupted: bool,
    /// The errors of runs that failed.
    #[serde(skip)]
    pub(crate) failed: Option<anyhow::Error>,
}

/// The run of one rule.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) rule: InputRule,
    /// The rule, as written on the command line.
    pub(crate) spec: String,
    pub(crate) text: String,
    pub(crate) stop_reason: StopReason,
    pub(crate) mean_entropy: f64,
    pub(crate) mean_gate: f64,
    /// The index of the first token that differs from the first run's, if there is one.
    pub(crate) parts_at: Option<usize>,
    /// The share of tokens that equal the first run's at the same position, relative to the longer run; `None` for
    /// the first run.
    pub(crate) agreement: Option<f64>,
    pub(crate) steps: Vec<RunStep>,
}

/// One step of a run.
#[derive(Debug, Serialize)]
pub(crate) struct RunStep {
    pub(crate) token: u32,
    /// The text that is certain once this token is known.
    pub(crate) text: String,
    /// The text of this token alone.
    pub(crate) piece: String,
    pub(crate) logprob: f64,
    pub(crate) entropy: f32,
    pub(crate) gate: f32,
    /// The largest weights of the next input.
    pub(crate) top: Vec<Weight>,
    /// The most likely tokens.
    pub(crate) likeliest: Vec<Likely>,
    /// How it came out of its pass, if the run speculates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drafted: Option<Drafted>,
}

/// How a token came out of a pass that ran drafts.
#[derive(Debug, Serialize)]
pub(crate) struct Drafted {
    /// Index of the pass.
    round: usize,
    /// Number of tokens that the same pass had given before.
    depth: usize,
    /// Whether the token was drafted for its place.
    accepted: bool,
    /// With the first token of a pass, the drafts: each behind the one at index `parent` of this list, or behind the
    /// last token before the pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tree: Vec<DraftedNode>,
}

#[derive(Debug, Serialize)]
struct DraftedNode {
    token: u32,
    text: String,
    parent: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Weight {
    token: u32,
    text: String,
    weight: f32,
}

/// Runs a prompt under a list of rules, in one batch.
pub(crate) fn run(args: &RunsArgs, rules: &[String], top: usize) -> Result<Runs> {
    let rules = split_rules(rules)?;
    let pretrained = model::open(&args.model)?;
    let text = args.prompt.text()?;
    let prompt = prompt::ids_of(&args.prompt, text.as_deref(), &args.model.model, &pretrained)?;
    let mut decoding =
        Decoding::new(&pretrained, &args.scope, &args.sampling, Some(&args.grammar), &args.stop)?;
    if args.stop.max_tokens.is_none() {
        decoding.stop.max_tokens = Some(DEFAULT_MAX_TOKENS.max(decoding.stop.min_tokens));
    }
    // Some of several rules may gain nothing by drafts.
    decoding.speculation.optional = rules.len() > 1;
    decoding.note_idle(&rules, 1);
    let device = Device::chosen(args.model.device);
    let given = text.unwrap_or_else(|| format!("{prompt:?}"));
    device.run(Compare { args, device, pretrained, given, prompt, rules, decoding, top })
}

struct Compare<'a> {
    args: &'a RunsArgs,
    device: Device,
    pretrained: Pretrained,
    given: String,
    prompt: Vec<u32>,
    rules: Vec<InputRule>,
    decoding: Decoding,
    top: usize,
}

impl Job for Compare<'_> {
    type Output = Runs;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Runs> {
        let Self { args, device: name, pretrained, given, prompt, rules, decoding, top } = self;
        let interrupt = Interrupt::install()?;
        let positions = model::positions(&pretrained, prompt.len(), decoding.stop.max_tokens) * rules.len();
        let (engine, form) = model::engine::<B>(pretrained, &args.model, (name, device), positions)?;
        let engine = decoding.engine(engine, &args.model, name)?.with_progress(runner::prefill_bar()?);
        let request =
            |&rule: &InputRule| Request { top, logprobs: top, ..decoding.request::<B>(&prompt, rule, 0) };
        interrupt.begin();
        let mut ran = runner::together(&engine, rules.iter().map(request).collect(), &interrupt)?;
        note_kernels();
        let tokenizer = engine.tokenizer();
        note_unknown(ran.rows.iter().flatten().map(|step| step.token), tokenizer);
        let first: Vec<u32> = ran.rows.first().into_iter().flatten().map(|step| step.token).collect();
        let early: Vec<StopReason> = (0..rules.len()).map(|row| ran.early(row)).collect();
        let rows = std::mem::take(&mut ran.rows).into_iter().zip(early).zip(&rules).enumerate();
        Ok(Runs {
            model: args.model.model.clone(),
            device: name.to_string(),
            dtype: dtype_name(form),
            prompt: given,
            prompt_tokens: prompt.clone(),
            sampled: in_words(&decoding),
            sampling: decoding.sampling,
            scope: decoding.scope,
            mix_tolerance: engine.mix_tolerance(),
            grammar: decoding.grammar,
            stop: decoding.stop,
            seed: decoding.seed,
            runs: rows
                .map(|(at, ((steps, early), &rule))| {
                    Run::new(rule, steps, early, (at > 0).then_some(&first), tokenizer)
                })
                .collect(),
            prefill_s: ran.prefill.as_secs_f64(),
            decode_s: ran.decode.as_secs_f64(),
            interrupted: ran.interrupted,
            failed: ran.error(|row| format!("the run by `{}`", rules[row].spec())),
        })
    }
}

/// Describes how the sampling differs from plain greedy sampling.
fn in_words(decoding: &Decoding) -> String {
    let (Ok(sampling), Ok(none)) =
        (serde_json::to_value(&decoding.sampling), serde_json::to_value(Sampling::default()))
    else {
        return String::new();
    };
    let told = |(name, value): (&String, &Value)| {
        let told = match value {
            Value::Array(_) | Value::Object(_) => String::new(),
            value => format!(" {value}"),
        };
        format!("{}{told}", name.replace('_', "-"))
    };
    let fields = sampling.as_object().into_iter().flatten();
    let mut words: Vec<String> = fields.filter(|(name, value)| none[name] != **value).map(told).collect();
    if decoding.sampling.temperature.0 == 0.0 {
        words.insert(0, "greedy".to_owned());
    }
    if decoding.grammar.is_some() {
        words.push("constrained".to_owned());
    }
    if let Some(scope) = decoding.scope {
        words.push(format!("scope {scope}"));
    }
    words.join(", ")
}

impl Run {
    fn new(
        rule: InputRule,
        steps: Vec<TokenEvent>,
        early: StopReason,
        first: Option<&Vec<u32>>,
        tokenizer: Option<&Tokenizer>,
    ) -> Self {
        let tokens: Vec<u32> = steps.iter().map(|step| step.token).collect();
        let mean = |of: fn(&TokenEvent) -> f32| {
            steps.iter().map(|step| f64::from(of(step))).sum::<f64>() / steps.len().max(1) as f64
        };
        let compared = first.map(|first| compare(first, &tokens));
        Self {
            rule,
            spec: rule.spec(),
            text: steps.iter().map(|step| step.text.as_str()).collect(),
            stop_reason: StopReason::of(&steps, early),
            mean_entropy: mean(|step| step.entropy),
            mean_gate: mean(|step| step.gate),
            parts_at: compared.and_then(|(parts_at, _)| parts_at),
            agreement: compared.map(|(_, agreement)| agreement),
            steps: steps.into_iter().map(|step| RunStep::new(step, tokenizer)).collect(),
        }
    }
}

/// The index of the first difference between two token lists, if there is one, and the share of equal tokens at the
/// same position.
fn compare(first: &[u32], tokens: &[u32]) -> (Option<usize>, f64) {
    let longest = first.len().max(tokens.len());
    let is_same = |at: &usize| first.get(*at) == tokens.get(*at);
    let same = (0..longest).filter(is_same).count();
    ((0..longest).find(|at| !is_same(at)), if longest == 0 { 1.0 } else { same as f64 / longest as f64 })
}

impl RunStep {
    fn new(step: TokenEvent, tokenizer: Option<&Tokenizer>) -> Self {
        let text = |token: u32| match tokenizer {
            Some(tokenizer) => {
                let special = tokenizer.special_text(token).map(str::to_owned);
                special.or_else(|| tokenizer.decode(&[token]).ok()).unwrap_or_default()
            }
            None => format!("[{token}]"),
        };
        let weight = |(token, weight)| Weight { token, text: text(token), weight };
        let drafted = step.speculated.map(|Speculated { round, depth, accepted, tree, .. }| {
            let node = |tree: &DraftTree, node: usize| {
                let token = tree.token(node)?;
                let parent = tree.parent(node).and_then(|parent| parent.checked_sub(1));
                Some(DraftedNode { token, text: text(token), parent })
            };
            let nodes = tree.iter().flat_map(|tree| (1..tree.len()).filter_map(|at| node(tree, at)));
            Drafted { round, depth, accepted, tree: nodes.collect() }
        });
        Self {
            token: step.token,
            piece: text(step.token),
            text: if tokenizer.is_some() { step.text } else { format!("[{}]", step.token) },
            logprob: step.logprob,
            entropy: step.entropy,
            gate: step.gate,
            top: step.top.into_iter().map(weight).collect(),
            likeliest: likely(&step.likeliest, text),
            drafted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn tokens_part_where_they_first_differ() {
        assert_eq!(compare(&[1, 2, 3], &[1, 2, 3]), (None, 1.0));
        assert_eq!(compare(&[1, 2, 3, 4], &[1, 9, 3, 4]), (Some(1), 0.75));
        assert_eq!(compare(&[1, 2], &[1, 2, 3, 4]), (Some(2), 0.5));
        assert_eq!(compare(&[], &[]), (None, 1.0));
    }
}
