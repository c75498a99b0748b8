//! Turns the arguments into the parameters of a generation.

use std::{
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::backend::Backend;
use moi_engine::{
    Engine, Grammar, InputRule, LogitBias, Markers, Noise, Prompt, Request, Sampling, SamplingStep, Scope,
    Speculation, StopRules,
};
use moi_models::Decoder;
use moi_pretrained::{AdvisedSampling, Pretrained};
use moi_text::Tokenizer;

use crate::{
    args::{GrammarArgs, ModelArgs, OrMinusOne, RuleArgs, SamplingArgs, ScopeArgs, StopArgs, Tolerance},
    backend::Device,
    draft_model::{Speculate, with_draft_model},
    draft_table::with_table,
    file,
    pass_costs::with_costs,
    ui,
};

/// The parameters of a generation, except the rule.
#[derive(Clone, Debug)]
pub(crate) struct Decoding {
    pub(crate) scope: Option<Scope>,
    /// Think markers to use instead of those that the tokenizer has.
    pub(crate) markers: Option<Markers>,
    /// Tolerance of mixtures to use instead of the model's default.
    pub(crate) mix_tolerance: Option<f32>,
    pub(crate) sampling: Sampling,
    pub(crate) grammar: Option<Grammar>,
    pub(crate) mix_constrained: bool,
    pub(crate) stop: StopRules,
    pub(crate) seed: u64,
    pub(crate) speculation: Speculation,
    /// The model that drafts, if there is one.
    pub(crate) speculate: Speculate,
    /// The file that keeps what recycling drafts from.
    pub(crate) draft_table: Option<PathBuf>,
}

/// Bytes of cached keys and values that are kept for prompts with a common beginning.
const PREFIX_BYTES: usize = 256 << 20;

impl Decoding {
    /// # Errors
    /// If a value is not allowed, a token is unknown, or a file cannot be read.
    pub(crate) fn new(
        pretrained: &Pretrained,
        scope: &ScopeArgs,
        sampling: &SamplingArgs,
        grammar: Option<&GrammarArgs>,
        stop: &StopArgs,
    ) -> Result<Self> {
        let tokenizer = pretrained.tokenizer.as_ref().ok().and_then(Option::as_ref);
        let markers = match (&scope.think_open, &scope.think_close) {
            (Some(open), Some(close)) => {
                Some(Markers::new(token(open, tokenizer)?, token(close, tokenizer)?))
            }
            _ => None,
        };
        let advised = match &pretrained.sampling {
            Ok(advised) => advised.clone(),
            // With an explicit temperature, the advice of the model's makers is not needed.
            Err(_) if sampling.knobs.has("temperature") => AdvisedSampling::default(),
            Err(error) => bail!("{error}; set --temperature to ignore that file"),
        };
        if !advised.left_out.is_empty() {
            ui::note(&format!(
                "the model's makers also advise {}, which moi does not support and ignores",
                advised.left_out.join(", ")
            ));
        }
        note_stops(&stop.stop, tokenizer);
        Ok(Self {
            scope: scope.mix_scope,
            markers,
            mix_tolerance: scope.mix_tolerance.and_then(|Tolerance(share)| share),
            sampling: self::sampling(sampling, advised, tokenizer)?,
            grammar: grammar.map(self::grammar).transpose()?.flatten(),
            mix_constrained: grammar.is_some_and(|grammar| grammar.mix_constrained),
            stop: StopRules {
                max_tokens: stop.limit(),
                min_tokens: stop.min_tokens,
                strings: stop.stop.clone(),
                ignore_eos: stop.ignore_eos,
                ..StopRules::default()
            },
            seed: (sampling.seed.and_then(|OrMinusOne(seed)| seed))
                .unwrap_or_else(|| RandomState::new().hash_one(0) >> 32),
            speculation: sampling.speculation.settings(),
            speculate: sampling.speculation.speculate.clone(),
            draft_table: sampling.speculation.draft_table.clone(),
        })
    }

    /// Configures an engine with the given think markers and tolerance of mixtures, with a prefix cache, and with what
    /// drafts need.
    ///
    /// # Errors
    /// If the draft model cannot be used.
    pub(crate) fn engine<B: Backend>(
        &self,
        engine: Engine<B, Decoder<B>>,
        model: &ModelArgs,
        device: Device,
    ) -> Result<Engine<B, Decoder<B>>> {
        let engine = with_draft_model(engine, &self.speculate, model, device)?;
        let engine = with_table(engine, self.draft_table.as_deref(), &self.speculation)?;
        let mut engine = with_costs(engine, &self.speculation).with_prefix_cache(PREFIX_BYTES);
        if let Some(tolerance) = self.mix_tolerance {
            engine = engine.with_mix_tolerance(tolerance);
        }
        Ok(match self.markers {
            Some(markers) => engine.with_markers(Some(markers)),
            None => engine,
        })
    }

    /// The request for a prompt and a rule; sample `n` uses the seed plus `n`.
    pub(crate) fn request<B: Backend>(&self, prompt: &[u32], rule: InputRule, sample: usize) -> Request<B> {
        Request {
            rule,
            scope: self.scope,
            sampling: self.sampling.clone(),
            grammar: self.grammar.clone(),
            mix_constrained: self.mix_constrained,
            stop: self.stop.clone(),
            seed: self.seed.wrapping_add(sample as u64),
            speculation: self.speculation.clone(),
            ..Request::new(Prompt::Ids(prompt.to_vec()))
        }
    }

    /// Prints a note if a rule, or a second sample, has no effect with these parameters.
    pub(crate) fn note_idle(&self, rules: &[InputRule], samples: usize) {
        let names = |is: &dyn Fn(&InputRule) -> bool| {
            let mut names: Vec<&str> = rules.iter().filter(|rule| is(rule)).map(InputRule::name).collect();
            names.dedup();
            names.join(" and ")
        };
        let idle = names(&|rule| ["k-sample", "selar"].contains(&rule.name()));
        if self.sampling.temperature.0 == 0.0 && !idle.is_empty() {
            ui::note(&format!(
                "{idle}: this rule mixes the sampling distribution, and greedy sampling has only one token; add --temperature, \
                 for example 0.6"
            ));
        }
        let alike = names(&|rule| {
            matches!(rule, InputRule::SoftThinking(rule) if rule.noise == Noise::None)
                || self.sampling.temperature.0 == 0.0 && rule.gated().is_some()
        });
        if samples > 1 && !alike.is_empty() {
            ui::note(&format!(
                "{alike}: nothing is random, so samples are alike; add --temperature, or noise=gumbel to \
                 soft-thinking"
            ));
        }
    }
}

/// The rule of the arguments.
///
/// # Errors
/// If there is no rule of this name, or it has no such knob, or the knob does not allow the value.
pub(crate) fn rule(args: &RuleArgs) -> Result<InputRule> {
    let name = args.rule.split([':', ',']).next().unwrap_or_default().trim();
    let known: Vec<&str> = InputRule::named(name)?.knobs().iter().map(|knob| knob.name).collect();
    let given = [
        ("beta", args.beta.map(|beta| beta.to_string())),
        ("gate", args.gate.map(|gate| gate.to_string())),
        ("support", args.support.map(|support| support.to_string())),
    ];
    // A knob's own flag overrides the text of --rule, which may come from a preset.
    let own = given.iter().filter_map(|(knob, value)| Some((*knob, value.as_ref()?)));
    let mut text = args.rule.clone();
    for (knob, value) in own {
        if !known.contains(&knob) {
            bail!("--{knob} has no meaning for the rule `{name}`");
        }
        let others = text.split([':', ',']).skip(1);
        let others = others.filter(|part| part.split('=').next().map(str::trim) != Some(knob));
        text = [name].into_iter().chain(others).collect::<Vec<_>>().join(":") + &format!(":{knob}={value}");
    }
    if name == "gate" && !text.contains("gate=") {
        bail!("the rule `gate` needs --gate F, 0 to 1");
    }
    Ok(text.parse()?)
}

/// The requested sampling, else the advice of the model's makers, else greedy without filters.
fn sampling(
    args: &SamplingArgs,
    advised: AdvisedSampling,
    tokenizer: Option<&Tokenizer>,
) -> Result<Sampling> {
    let bias = |text: &String| {
        let wrong = || anyhow!("--logit-bias takes TOKEN=F, got `{text}`");
        let (name, by) = text.rsplit_once('=').ok_or_else(wrong)?;
        Ok((token(name, tokenizer)?, by.parse::<f64>().map_err(|_| wrong())?))
    };
    let mut asked = Sampling::default();
    args.knobs.apply(&mut asked)?;
    let mut sampling = advised_sampling(&advised, asked.mirostat.version != 0);
    args.knobs.apply(&mut sampling)?;
    sampling.logit_bias = LogitBias(args.logit_bias.iter().map(bias).collect::<Result<_>>()?);
    sampling.banned = (args.ban.iter().map(|text| token(text, tokenizer)))
        .chain(advised.banned.into_iter().map(Ok))
        .collect::<Result<_>>()?;
    if let Some(samplers) = &args.samplers {
        sampling.samplers.clone_from(samplers);
    }
    sampling.check()?;
    // A flag whose sampler is missing from --samplers would have no effect.
    if let Some((flag, step)) = args.knobs.idle(&sampling.samplers) {
        bail!("--{flag} does nothing, as --samplers leaves out `{step}`");
    }
    if !args.logit_bias.is_empty() && !sampling.samplers.contains(&SamplingStep::LogitBias) {
        bail!("--logit-bias does nothing, as --samplers leaves out `{}`", SamplingStep::LogitBias);
    }
    Ok(sampling)
}

/// The sampling that a model's makers advise, else greedy without filters. With Mirostat, their filters are left out.
fn advised_sampling(advised: &AdvisedSampling, without_filters: bool) -> Sampling {
    let mut sampling = Sampling::default();
    let set = |knob: &mut f64, value: Option<f64>| *knob = value.unwrap_or(*knob);
    set(&mut sampling.temperature.0, advised.temperature);
    set(&mut sampling.repetition.0, advised.repetition_penalty);
    set(&mut sampling.presence.0, advised.presence_penalty);
    set(&mut sampling.frequency.0, advised.frequency_penalty);
    sampling.penalty_window = advised.penalty_window.unwrap_or_default().into();
    sampling.no_repeat_ngram = advised.no_repeat_ngram.unwrap_or_default().into();
    if without_filters {
        return sampling;
    }
    sampling.top_k = advised.top_k.unwrap_or_default().into();
    set(&mut sampling.top_p.0, advised.top_p);
    set(&mut sampling.min_p.0, advised.min_p);
    set(&mut sampling.typical.0, advised.typical_p);
    set(&mut sampling.xtc.probability, advised.xtc_probability);
    set(&mut sampling.xtc.threshold, advised.xtc_threshold);
    sampling
}

/// Prints a note for a stop string that hardly ever matches. Stop strings are searched in the printed text, and
/// control tokens print nothing.
fn note_stops(strings: &[String], tokenizer: Option<&Tokenizer>) {
    let Some(tokenizer) = tokenizer else { return };
    for text in strings {
        if let Some(control) = tokenizer.control_token_in(text).filter(|control| control != text) {
            ui::note(&format!(
                "--stop `{text}` holds the control token `{control}`, which prints nothing: it matches only where the \
                 model spells it out; --stop '{control}' ends at the token"
            ));
        }
    }
}

/// A token, given by its id, by its own text, or by text that is a single token.
fn token(text: &str, tokenizer: Option<&Tokenizer>) -> Result<u32> {
    if let Ok(id) = text.parse() {
        // The engine checks the id against the vocabulary.
        return Ok(id);
    }
    let Some(tokenizer) = tokenizer else {
        bail!("`{text}` is no token id, and the model has no tokenizer to look it up with");
    };
    if let Some(id) = tokenizer.id(text) {
        return Ok(id);
    }
    match tokenizer.encode(text, false)?.as_slice() {
        [id] => Ok(*id),
        ids => bail!("`{text}` is not one token of the model, but {}: {ids:?}", ids.len()),
    }
}

fn grammar(args: &GrammarArgs) -> Result<Option<Grammar>> {
    let read = |path: &Path| {
        file::read_text(path).with_context(|| format!("the grammar {} cannot be read", path.display()))
    };
    if let Some(schema) = &args.json_schema {
        // A schema that the shell inserts from a file may begin with a byte order mark.
        let schema = schema.strip_prefix('\u{feff}').unwrap_or(schema);
        if schema.trim().is_empty() {
            bail!("--json-schema is empty; give a schema, or the name of a file that has one");
        }
        // `true` and `false` are valid schemas.
        let is_schema = schema.trim_start().starts_with('{') || ["true", "false"].contains(&schema.trim());
        let text = if is_schema { schema.to_owned() } else { read(schema.as_ref())? };
        let schema = moi_files::json(text.as_bytes()).context("--json-schema is not valid JSON")?;
        return Ok(Some(Grammar::JsonSchema(schema)));
    }
    Ok(match (args.json, &args.regex, &args.grammar) {
        (true, ..) => Some(Grammar::JsonSchema(serde_json::json!({"type": "object"}))),
        (_, Some(regex), _) => Some(Grammar::Regex(regex.clone())),
        (.., Some(path)) => Some(Grammar::Lark(read(path)?)),
        _ if args.mix_constrained => bail!("--mix-constrained needs a constraint, such as --json"),
        _ => None,
    })
}
