//! Turns the fields of a request into generations.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use moi::RuleError;
use moi_engine::{
    DrafterChoice, Grammar, InputRule, LogitBias, SamplingStep, Speculation, StopRules, Verify,
};
use serde_json::{Value, json};

use crate::{
    constraint::grammar,
    error::ApiError,
    job::{Job, JobPrompt},
    knobs::Knobs,
    model::Loaded,
    wire::generation::{Generation, Moi},
};

/// Limits on what a request may ask for.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 8 << 10;
const MAX_LISTED: usize = 512;
pub(crate) const MAX_LOGPROBS: usize = 20;
const MAX_TRACE: u32 = 64;
const MAX_RULES: usize = 8;
/// The most generations of a request, and the most bytes of what an answer lists about its tokens.
const MAX_CHOICES: usize = 1024;
const MAX_LISTED_BYTES: usize = 512 << 20;

/// How the generations of a request are made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The name under which the model answers.
    pub(crate) model: String,
    /// The job of each generation, without its prompt, rule and seed.
    base: Job,
    /// The input rules. Each prompt has `n` generations for each of them.
    rules: Vec<InputRule>,
    /// Number of generations of each prompt for each rule.
    n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) tokens_as_ids: bool,
    /// Whether each token is reported with its mixture.
    pub(crate) traces: bool,
    /// The field that constrains the answer.
    pub(crate) constrained_by: Option<&'static str>,
}

impl Plan {
    /// The plan of a request. `default_max` is the number of tokens if the request does not say one.
    ///
    /// # Errors
    /// If a value is not allowed.
    pub(crate) fn new(
        generation: &Generation,
        knobs: &Knobs,
        loaded: &Loaded,
        default_max: Option<usize>,
    ) -> Result<Self, ApiError> {
        let model = &loaded.model;
        let (name, suffix) = loaded.named(generation.model.as_deref())?;
        let moi = generation.moi.clone().unwrap_or_default();
        let rules = rules(&moi, suffix, model.rule)?;
        let n = generation.n.unwrap_or(1) as usize;
        if n == 0 || n > model.max_n {
            return Err(ApiError::value("n", format!("n is {n}, and must be 1 to {}", model.max_n)));
        }
        if rules.len() > 1 && n > 1 {
            return Err(ApiError::value("n", "`moi.rules` has one choice for each rule, so `n` must be 1"));
        }
        if generation.best_of.is_some_and(|best| best as usize != n) {
            return Err(ApiError::unsupported("best_of", "`best_of` is not supported, unless it is `n`"));
        }
        let mut sampling = model.sampling.clone();
        knobs.apply(&mut sampling)?;
        if let Some(bias) = &generation.logit_bias {
            sampling.logit_bias = LogitBias(logit_bias(bias)?);
        }
        if let Some(samplers) = &generation.samplers {
            let step = |name: &String| {
                name.parse::<SamplingStep>().map_err(|error| ApiError::value("samplers", error.to_string()))
            };
            sampling.samplers = samplers.iter().map(step).collect::<Result<_, _>>()?;
        }
        let trace = moi.trace.unwrap_or(0);
        if trace > MAX_TRACE {
            return Err(ApiError::value(
                "moi.trace",
                format!("`moi.trace` is {trace}, and at most {MAX_TRACE}"),
            ));
        }
        let scope = match &moi.mix_scope {
            Some(text) => Some(
                text.parse()
                    .map_err(|error: RuleError| ApiError::value("moi.mix_scope", error.to_string()))?,
            ),
            None => model.scope,
        };
        let speculation = speculation(&moi, &model.speculation)?;
        let constraint = grammar(generation)?;
        let constrained_by = constraint.as_ref().map(|(field, _)| *field);
        let stream_options = generation.stream_options.unwrap_or_default();
        let base = Job {
            prompt: JobPrompt::Ids(Vec::new()),
            rule: model.rule,
            scope,
            sampling,
            grammar: constraint.map(|(_, grammar)| Arc::new(grammar)),
            mix_constrained: moi.mix_constrained.unwrap_or(false),
            stop: stop(generation, model.max_tokens, default_max)?,
            seed: generation.seed.map_or_else(|| RandomState::new().hash_one(0) >> 32, |seed| seed as u64),
            salt: generation.cache_salt.clone().unwrap_or_default(),
            priority: priority(generation, model.priorities)?,
            top: trace as usize,
            logprobs: 0,
            prompt_logprobs: None,
            forced: listed("moi.force", moi.force.unwrap_or_default(), model.context_length)?,
            allowed: generation.allowed_token_ids.as_ref().map(|ids| Arc::new(ids.iter().copied().collect())),
            bad_words: bad_words(generation, loaded)?,
            shown: Vec::new(),
            speculation,
        };
        Ok(Self {
            model: name,
            base,
            rules,
            n,
            stream: generation.stream.unwrap_or(false),
            include_usage: stream_options.include_usage.unwrap_or(false),
            continuous_usage: stream_options.continuous_usage_stats.unwrap_or(false),
            return_token_ids: generation.return_token_ids.unwrap_or(false),
            tokens_as_ids: generation.return_tokens_as_token_ids.unwrap_or(false),
            traces: moi.trace.is_some(),
            constrained_by,
        })
    }

    /// Sets how many of the most likely tokens are reported for each token.
    pub(crate) fn with_logprobs(mut self, logprobs: usize) -> Self {
        self.base.logprobs = logprobs;
        self
    }

    /// Checks that there is one answer and no trace, for APIs that support nothing else.
    ///
    /// # Errors
    /// If the request asks for several answers, or for a trace.
    pub(crate) fn single(self) -> Result<Self, ApiError> {
        let only = "is for /v1/chat/completions";
        match (self.per_prompt() > 1, self.traces) {
            (true, _) => Err(ApiError::unsupported("n", format!("more than one answer {only}"))),
            (_, true) => Err(ApiError::unsupported("moi.trace", format!("`moi.trace` {only}"))),
            (false, false) => Ok(self),
        }
    }

    /// The grammar that the answer must match.
    pub(crate) fn grammar(&self) -> Option<&Grammar> {
        self.base.grammar.as_deref()
    }

    /// Constrains the answer by a grammar that `field` asks for.
    pub(crate) fn following(mut self, field: &'static str, grammar: Grammar) -> Self {
        self.base.grammar = Some(Arc::new(grammar));
        self.constrained_by = Some(field);
        self
    }

    /// For requests that only score prompts: the engine generates one token behind each, which is not part of the
    /// answer.
    pub(crate) fn for_prompts(mut self) -> Self {
        self.base.stop.max_tokens = Some(1);
        self.base.stop.min_tokens = 0;
        self
    }

    /// Includes the texts of control tokens, by which the parts of the answer are told apart.
    pub(crate) fn showing(mut self, shown: Vec<u32>) -> Self {
        self.base.shown = shown;
        self
    }

    /// The most tokens that are generated.
    pub(crate) fn max_tokens(&self) -> Option<usize> {
        self.base.stop.max_tokens
    }

    /// Number of generations of each prompt.
    pub(crate) fn per_prompt(&self) -> usize {
        self.n * self.rules.len()
    }

    /// The generations of prompts, those of the first prompt first. If prompts are scored, only the first generation
    /// of each prompt does it.
    ///
    /// # Errors
    /// If there are too many, or the lists of their tokens would take too much memory.
    pub(crate) fn jobs(
        &self,
        prompts: Vec<JobPrompt>,
        prompt_logprobs: Option<usize>,
        context: usize,
    ) -> Result<Vec<Job>, ApiError> {
        let per_prompt = self.per_prompt();
        let all = prompts.len().saturating_mul(per_prompt);
        if all > MAX_CHOICES {
            let message =
                format!("the request is of {all} generations, and at most {MAX_CHOICES} go together");
            return Err(ApiError::value("n", message));
        }
        // Approximate bytes of JSON.
        let (of_token, of_listed, of_weight) = (64, 64, 48);
        let generated = |prompt: &JobPrompt| {
            let room = context.saturating_sub(prompt.len());
            self.base.stop.max_tokens.map_or(room, |max| max.min(room)) * per_prompt
        };
        let own = of_token + self.base.logprobs * of_listed + self.base.top * of_weight;
        let echoed = prompt_logprobs.map_or(0, |listed| (of_token + listed * of_listed) * per_prompt);
        let bytes: usize = prompts.iter().map(|prompt| generated(prompt) * own + prompt.len() * echoed).sum();
        if bytes > MAX_LISTED_BYTES {
            let message = format!(
                "the requested token lists (logprobs, moi.trace) could take {} MB, and at most {} MB are allowed; lower max_tokens, n, \
                 logprobs or moi.trace",
                bytes >> 20,
                MAX_LISTED_BYTES >> 20
            );
            return Err(ApiError::value("max_tokens", message));
        }
        let mut jobs = Vec::with_capacity(prompts.len() * per_prompt);
        for prompt in prompts {
            for sample in 0..per_prompt {
                let (rule, seed) = match self.rules.len() {
                    1 => (self.rules[0], self.base.seed.wrapping_add(sample as u64)),
                    // Rules are compared under the same seed.
                    _ => (self.rules[sample], self.base.seed),
                };
                let prompt_logprobs = prompt_logprobs.filter(|_| sample == 0);
                jobs.push(Job { prompt: prompt.clone(), rule, seed, prompt_logprobs, ..self.base.clone() });
            }
        }
        Ok(jobs)
    }
}

/// What drafts tokens: as the request says, else as the server does. What the server does is left out where it can
/// gain nothing.
fn speculation(moi: &Moi, default: &Speculation) -> Result<Speculation, ApiError> {
    let mut settings = Speculation { optional: true, ..default.clone() };
    if let Some(name) = &moi.speculate {
        settings.drafter = name.parse().map_err(|error: String| ApiError::value("moi.speculate", error))?;
        settings.optional = moi.rules.is_some();
    }
    settings.draft_tokens = moi.draft_tokens.map_or(settings.draft_tokens, |tokens| tokens as usize);
    settings.draft_budget = moi.draft_budget.map_or(settings.draft_budget, |budget| budget as usize);
    settings.draft_min_p = moi.draft_min_p.unwrap_or(settings.draft_min_p);
    match &moi.verify {
        Some(name) => {
            settings.verify = name.parse().map_err(|error: String| ApiError::value("moi.verify", error))?;
        }
        // The server's way may be meant for a model that drafts.
        None if moi.speculate.is_some() && settings.drafter != DrafterChoice::Model => {
            settings.verify = Verify::Match;
        }
        None => {}
    }
    settings.tolerance = moi.speculate_tolerance.or(settings.tolerance);
    settings.window = moi.speculate_window.map_or(settings.window, |window| window as usize);
    Ok(settings)
}

/// The rules of a request; otherwise the one appended to the model's name in the request; otherwise the server's.
fn rules(moi: &Moi, suffix: Option<&str>, default: InputRule) -> Result<Vec<InputRule>, ApiError> {
    let rule = |value: &Value, param: &str| -> Result<InputRule, ApiError> {
        let wrong = |what: String| ApiError::value(param, format!("{param}: {what}"));
        match value {
            Value::String(text) => text.parse().map_err(|error: RuleError| wrong(error.to_string())),
            value => serde_json::from_value(value.clone()).map_err(|error| wrong(error.to_string())),
        }
    };
    if let Some(rules) = &moi.rules {
        if moi.rule.values().any(|value| !value.is_null()) {
            return Err(ApiError::value("moi.rules", "`moi.rules` and `moi.rule` do not go together"));
        }
        if rules.is_empty() || rules.len() > MAX_RULES {
            let message = format!("`moi.rules` has {} rules, and must have 1 to {MAX_RULES}", rules.len());
            return Err(ApiError::value("moi.rules", message));
        }
        return rules
            .iter()
            .enumerate()
            .map(|(at, value)| rule(value, &format!("moi.rules[{at}]")))
            .collect();
    }
    let one = match (moi.rule.get("rule"), suffix) {
        // The name of a rule with knobs; more knobs may be given beside it.
        (Some(Value::String(text)), _) => {
            let mut one = rule(&json!(text), "moi.rule")?;
            for (knob, value) in moi.rule.iter().filter(|(knob, value)| *knob != "rule" && !value.is_null()) {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                one.set(knob, &text)
                    .map_err(|error| ApiError::value(format!("moi.{knob}"), error.to_string()))?;
            }
            one.validated().map_err(|error| ApiError::value("moi", error.to_string()))?
        }
        (Some(value), _) if !value.is_null() => {
            let message = format!("moi.rule: expected a string, got {value}");
            return Err(ApiError::invalid("invalid_type", message).of("moi.rule"));
        }
        _ if moi.rule.values().any(|value| !value.is_null()) => {
            let knobs: Vec<&str> = moi.rule.keys().map(String::as_str).collect();
            let message = format!("`moi` has {} and no `rule` that it belongs to", knobs.join(", "));
            return Err(ApiError::value("moi", message));
        }
        (_, Some(text)) => rule(&json!(text), "model")?,
        _ => default,
    };
    Ok(vec![one])
}

/// The priority among waiting requests.
fn priority(generation: &Generation, are_taken: bool) -> Result<i64, ApiError> {
    match generation.priority {
        Some(priority) if priority != 0 && !are_taken => {
            let message = "`priority` is not taken by this server: it was started without --priority";
            Err(ApiError::unsupported("priority", message))
        }
        priority => Ok(priority.unwrap_or(0)),
    }
}

fn logit_bias(bias: &BTreeMap<String, Option<f64>>) -> Result<BTreeMap<u32, f64>, ApiError> {
    let wrong = |message: String| ApiError::value("logit_bias", message);
    if bias.len() > MAX_LISTED {
        return Err(wrong(format!("`logit_bias` has {} tokens, and at most {MAX_LISTED}", bias.len())));
    }
    let given = bias.iter().filter_map(|(token, by)| Some((token, (*by)?)));
    let one = |(token, by): (&String, f64)| {
        let id = token.parse().map_err(|_| wrong(format!("`logit_bias`: `{token}` is no token id")))?;
        match (-100.0..=100.0).contains(&by) {
            true => Ok((id, by)),
            false => Err(wrong(format!("`logit_bias` of {token} is {by}, and must be -100 to 100"))),
        }
    };
    given.map(one).collect()
}

/// Checks that a list is not too long.
fn listed(param: &str, tokens: Vec<u32>, most: usize) -> Result<Vec<u32>, ApiError> {
    match tokens.len() > most {
        true => {
            Err(ApiError::value(param, format!("`{param}` has {} tokens, and at most {most}", tokens.len())))
        }
        false => Ok(tokens),
    }
}

fn stop(
    generation: &Generation,
    limit: Option<usize>,
    default_max: Option<usize>,
) -> Result<StopRules, ApiError> {
    let strings = generation.stop.clone().unwrap_or_default().0;
    let bytes: usize = strings.iter().map(String::len).sum();
    if strings.len() > MAX_STOPS || bytes > MAX_STOP_BYTES {
        let message = format!(
            "`stop` has {} texts of {bytes} bytes, and at most {MAX_STOPS} of {MAX_STOP_BYTES}",
            strings.len()
        );
        return Err(ApiError::value("stop", message));
    }
    if strings.iter().any(String::is_empty) {
        return Err(ApiError::value(
            "stop",
            "`stop` has an empty text, which would stop every answer at once",
        ));
    }
    let asked = generation.max_completion_tokens.or(generation.max_tokens);
    let asked = asked.map(|asked| usize::try_from(asked).unwrap_or(usize::MAX)).or(default_max);
    let tokens = generation.stop_token_ids.clone().unwrap_or_default();
    Ok(StopRules {
        max_tokens: asked.map_or(limit, |asked| Some(limit.map_or(asked, |limit| asked.min(limit)))),
        min_tokens: generation.min_tokens.unwrap_or(0) as usize,
        strings,
        tokens: listed("stop_token_ids", tokens, MAX_LISTED)?,
        includes_string: generation.include_stop_str_in_output.unwrap_or(false),
        spares_thoughts: !generation.stop_in_thoughts.unwrap_or(false),
        ignore_eos: generation.ignore_eos.unwrap_or(false),
    })
}

/// The token sequences of `bad_words`, each as at the beginning of a text and as behind a space.
fn bad_words(generation: &Generation, loaded: &Loaded) -> Result<Vec<Vec<u32>>, ApiError> {
    let words = generation.bad_words.as_deref().unwrap_or_default();
    if words.len() > MAX_LISTED {
        let message = format!("`bad_words` has {} texts, and at most {MAX_LISTED}", words.len());
        return Err(ApiError::value("bad_words", message));
    }
    loaded.check_bytes(words.iter().map(String::len).sum(), "bad_words")?;
    let mut all = Vec::new();
    for word in words {
        for text in [word.clone(), format!(" {word}")] {
            let ids = loaded.model.tokenizer.encode(&text, false)?;
            if word.is_empty() || ids.is_empty() {
                return Err(ApiError::value("bad_words", "`bad_words` has an empty text"));
            }
            all.push(ids);
        }
    }
    all.sort();
    all.dedup();
    Ok(all)
}
