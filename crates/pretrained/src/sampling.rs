//! The sampling settings that a model's makers recommend, in `generation_config.json` or in `general.sampling.*` of
//! GGUF files.

use moi_checkpoint::gguf::Metadata;
use serde_json::Value;

/// The recommended sampling settings; `None` where there is no recommendation.
///
/// # Examples
/// ```no_run
/// use moi_pretrained::Pretrained;
///
/// let advice = Pretrained::open("./Llama-3.2-1B-Instruct".as_ref())?.sampling?;
/// let temperature = advice.temperature.unwrap_or(0.0); // greedy without a recommendation
/// println!("temperature {temperature}, top-p {:?}", advice.top_p);
/// for setting in &advice.left_out {
///     eprintln!("not followed: {setting}");
/// }
/// # Ok::<(), moi_pretrained::PretrainedError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdvisedSampling {
    /// Sampling temperature; 0 is greedy decoding.
    pub temperature: Option<f64>,
    /// Number of most likely tokens that are kept; 0 keeps all.
    pub top_k: Option<usize>,
    /// Cumulative probability of the tokens that are kept (nucleus sampling); 1 keeps all.
    pub top_p: Option<f64>,
    /// Least probability of kept tokens relative to the most likely one; 0 keeps all.
    pub min_p: Option<f64>,
    /// Cumulative probability of locally typical sampling; 1 keeps all.
    pub typical_p: Option<f64>,
    /// XTC's probability; 0 turns XTC off.
    pub xtc_probability: Option<f64>,
    /// XTC's threshold.
    pub xtc_threshold: Option<f64>,
    /// Divisor of logits of tokens that occurred before; 1 has no effect.
    pub repetition_penalty: Option<f64>,
    /// Number subtracted from logits of tokens that occurred before; 0 has no effect.
    pub presence_penalty: Option<f64>,
    /// Number subtracted from logits for each earlier occurrence; 0 has no effect.
    pub frequency_penalty: Option<f64>,
    /// The number of last tokens that penalties look at; 0 means all tokens.
    pub penalty_window: Option<usize>,
    /// Length of n-grams that must not be repeated; 0 turns this off.
    pub no_repeat_ngram: Option<usize>,
    /// Tokens that are never sampled.
    pub banned: Vec<u32>,
    /// Recommendations that are not supported, each as name and value.
    pub left_out: Vec<String>,
}

/// Lowest temperature: below it, sampling is practically greedy, and dividing logits by it could overflow.
const COLDEST: f64 = 1e-4;

/// Fields of transformers' `GenerationConfig` that change sampling and are not supported here, each with the value
/// that turns it off (besides null).
const NOT_FOLLOWED: &[(&str, &str)] = &[
    ("num_beams", "1"),
    ("num_beam_groups", "1"),
    ("diversity_penalty", "0"),
    ("penalty_alpha", "0"),
    ("dola_layers", "null"),
    ("epsilon_cutoff", "0"),
    ("eta_cutoff", "0"),
    ("top_h", "null"),
    ("encoder_repetition_penalty", "1"),
    ("encoder_no_repeat_ngram_size", "0"),
    ("guidance_scale", "1"),
    ("sequence_bias", "null"),
    ("constraints", "null"),
    ("force_words_ids", "null"),
    ("forced_bos_token_id", "null"),
    ("forced_eos_token_id", "null"),
    ("begin_suppress_tokens", "null"),
    ("exponential_decay_length_penalty", "null"),
    ("min_length", "0"),
    ("min_new_tokens", "0"),
    ("stop_strings", "null"),
    ("watermarking_config", "null"),
    ("xtc_probability", "0"),
    ("mirostat_mode", "0"),
];

impl AdvisedSampling {
    /// Removes banned tokens that are beyond a vocabulary of this many rows.
    pub(crate) fn within(mut self, rows: usize) -> Self {
        self.banned.retain(|&token| (token as usize) < rows);
        self
    }

    /// Reads `generation_config.json`; null values and values that mean "off" are left out. As in transformers,
    /// penalties also apply to greedy decoding, and the other fields only with `do_sample`. Bad words that are end
    /// tokens are not banned.
    ///
    /// # Errors
    /// The message about a value that cannot be sampled with.
    pub(crate) fn of_generation_config(generation: &Value, eos: &[u32]) -> Result<Self, String> {
        let fields = Fields { get: |name: &str| generation.get(name).cloned() };
        let mut advice = Self {
            repetition_penalty: fields.penalty("repetition_penalty")?,
            presence_penalty: fields.number("presence_penalty", -100.0, 100.0)?.filter(|&by| by != 0.0),
            frequency_penalty: fields.number("frequency_penalty", -100.0, 100.0)?.filter(|&by| by != 0.0),
            no_repeat_ngram: fields.count("no_repeat_ngram_size")?.filter(|&size| size > 0),
            banned: fields.tokens("suppress_tokens")?,
            ..Self::default()
        };
        if let Some(Value::Array(words)) = fields.value("bad_words_ids") {
            for word in words {
                match word.as_array().map(Vec::as_slice) {
                    Some([id]) => {
                        let id = token(id, "bad_words_ids")?;
                        advice.banned.extend(Some(id).filter(|id| !eos.contains(id)));
                    }
                    Some(ids) => advice.left_out.push(format!("bad_words_ids of {} tokens", ids.len())),
                    None => return Err(format!("bad_words_ids has {word}, expected a list of token ids")),
                }
            }
        }
        for (name, off) in NOT_FOLLOWED {
            let is_off = |value: &Value| match value {
                Value::Number(number) => off.parse() == Ok(number.as_f64().unwrap_or(f64::NAN)),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                _ => false,
            };
            if let Some(value) = fields.value(name).filter(|value| !is_off(value)) {
                advice.left_out.push(named(name, &value));
            }
        }
        if generation.get("do_sample").and_then(Value::as_bool) == Some(true) {
            advice.temperature = Some(fields.temperature("temperature")?.unwrap_or(1.0));
            advice.top_k = fields.count("top_k")?;
            // transformers keeps at least one token.
            advice.top_p = fields.number("top_p", 0.0, 1.0)?.map(|share| share.max(f64::MIN_POSITIVE));
            advice.min_p = fields.number("min_p", 0.0, 1.0)?;
            let typical = fields.number("typical_p", 0.0, 1.0)?;
            advice.typical_p = typical.map(|share| share.max(f64::MIN_POSITIVE)).filter(|&share| share < 1.0);
        }
        Ok(advice)
    }

    /// Reads `general.sampling.*` of a GGUF file, as llama.cpp does.
    ///
    /// # Errors
    /// The message about a value that cannot be sampled with.
    pub(crate) fn of_gguf(meta: &Metadata) -> Result<Self, String> {
        /// llama.cpp's default of `penalty_last_n`, used if a file only gives a penalty.
        const WINDOW: usize = 64;
        let fields = Fields {
            get: |name: &str| {
                let key = format!("general.sampling.{name}");
                let text = || meta.str(&key).map(Value::from);
                meta.f64(&key).map(Value::from).or_else(text)
            },
        };
        let mut advice = Self {
            // As in llama.cpp, a temperature below 0 is greedy, and a `top_p` of 1 or more is off.
            temperature: fields
                .number("temp", f64::MIN, 1000.0)?
                .map(|temp| if temp < COLDEST { 0.0 } else { temp }),
            top_k: fields.count("top_k")?,
            top_p: fields
                .number("top_p", f64::MIN, f64::MAX)?
                .map(|share| share.clamp(f64::MIN_POSITIVE, 1.0)),
            min_p: fields.number("min_p", f64::MIN, 1.0)?.map(|share| share.max(0.0)),
            xtc_probability: fields.number("xtc_probability", 0.0, 1.0)?.filter(|&p| p > 0.0),
            xtc_threshold: fields.number("xtc_threshold", 0.0, 1.0)?,
            repetition_penalty: fields.penalty("penalty_repeat")?,
            ..Self::default()
        };
        if advice.repetition_penalty.is_some() {
            match fields.value("penalty_last_n").and_then(|last| last.as_f64()) {
                None => advice.penalty_window = Some(WINDOW),
                Some(0.0) => advice.repetition_penalty = None,
                // The window is the whole context, which is 0 here.
                Some(last) if last < 0.0 => advice.penalty_window = Some(0),
                Some(_) => advice.penalty_window = fields.count("penalty_last_n")?,
            }
        }
        for name in ["mirostat", "sequence"] {
            let is_off = |value: &Value| value.as_f64() == Some(0.0) || value.as_str() == Some("");
            if let Some(value) = fields.value(name).filter(|value| !is_off(value)) {
                advice.left_out.push(named(name, &value));
            }
        }
        Ok(advice)
    }
}

/// A field and its value in the form in which a message shows them.
fn named(name: &str, value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => name.to_owned(),
        // Numbers of GGUF files are floats here, whatever type they had.
        value => match value.as_f64() {
            Some(number) => format!("{name} {number}"),
            None => format!("{name} {value}"),
        },
    }
}

fn token(value: &Value, name: &str) -> Result<u32, String> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| format!("{name} has {value}, expected a token id"))
}

/// A source of values by name.
struct Fields<G> {
    get: G,
}

impl<G: Fn(&str) -> Option<Value>> Fields<G> {
    fn value(&self, name: &str) -> Option<Value> {
        (self.get)(name).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str, least: f64, most: f64) -> Result<Option<f64>, String> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let wrong = || format!("{name} is {value}, expected a number from {least} to {most}");
        value.as_f64().filter(|number| (least..=most).contains(number)).map(Some).ok_or_else(wrong)
    }

    fn temperature(&self, name: &str) -> Result<Option<f64>, String> {
        let temperature = self.number(name, 0.0, 1000.0)?;
        Ok(temperature.map(|temperature| if temperature < COLDEST { 0.0 } else { temperature }))
    }

    /// A divisor of logits; `None` if it is 1 and has no effect.
    fn penalty(&self, name: &str) -> Result<Option<f64>, String> {
        match self
            .value(name)
            .map(|value| value.as_f64().filter(|by| *by > 0.0 && *by <= 1000.0).ok_or(value))
        {
            None => Ok(None),
            Some(Ok(by)) => Ok(Some(by).filter(|&by| by != 1.0)),
            Some(Err(value)) => Err(format!("{name} is {value}, expected a number above 0 and up to 1000")),
        }
    }

    /// A non-negative integer; a negative number means "off", as in vLLM.
    fn count(&self, name: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number < 0.0 => Ok(None),
            Some(number) if number.fract() == 0.0 && number < 2f64.powi(53) => Ok(Some(number as usize)),
            _ => Err(format!("{name} is {value}, expected a whole number")),
        }
    }

    fn tokens(&self, name: &str) -> Result<Vec<u32>, String> {
        match self.value(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(|id| token(id, name)).collect(),
            Some(other) => Err(format!("{name} is {other}, expected a list of token ids")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Map, json};

    use super::*;

    /// The logits processors that transformers makes of a `generation_config.json`, by class, with their parameters.
    #[derive(Deserialize)]
    struct Row {
        config: Value,
        processors: Map<String, Value>,
    }

    #[derive(Deserialize)]
    struct Table {
        rows: Vec<Row>,
    }

    /// The same settings as transformers' processors, and the number of settings that are left out.
    fn processors(advice: &AdvisedSampling) -> (Map<String, Value>, usize) {
        let mut made = Map::new();
        let mut add =
            |class: &str, value: Option<Value>| value.map(|value| made.insert(class.to_owned(), value));
        add("RepetitionPenaltyLogitsProcessor", advice.repetition_penalty.map(Value::from));
        add("NoRepeatNGramLogitsProcessor", advice.no_repeat_ngram.map(Value::from));
        add("TemperatureLogitsWarper", advice.temperature.filter(|&t| t != 0.0 && t != 1.0).map(Value::from));
        add("TopKLogitsWarper", advice.top_k.filter(|&k| k > 0).map(Value::from));
        add("TopPLogitsWarper", advice.top_p.filter(|&p| p < 1.0).map(Value::from));
        add("MinPLogitsWarper", advice.min_p.filter(|&p| p > 0.0).map(Value::from));
        add("TypicalLogitsWarper", advice.typical_p.map(Value::from));
        (made, advice.left_out.len())
    }

    #[test]
    fn advice_is_followed_or_named() {
        let table: Table = serde_json::from_str(include_str!("sampling.json")).unwrap();
        let mut wrong = Vec::new();
        for Row { config, mut processors } in table.rows {
            let eos = config.get("eos_token_id").and_then(Value::as_u64).map(|id| id as u32);
            let advice = AdvisedSampling::of_generation_config(&config, eos.as_slice()).unwrap();
            let (found, left_out) = self::processors(&advice);
            let mut named = 0;
            let mut banned = Vec::new();
            processors.retain(|class, value| match class.as_str() {
                // This is transformers' default and no recommendation.
                "TopKLogitsWarper" => config.get("top_k").is_some(),
                "SuppressTokensLogitsProcessor" => {
                    banned.extend(value.as_array().into_iter().flatten().cloned());
                    false
                }
                "NoBadWordsLogitsProcessor" => {
                    for word in value.as_array().into_iter().flatten().filter_map(Value::as_array) {
                        match &word[..] {
                            [id] => banned.push(id.clone()),
                            _ => named += 1,
                        }
                    }
                    false
                }
                _ if value.is_null() => {
                    named += 1;
                    false
                }
                _ => true,
            });
            if found != processors || left_out != named || json!(advice.banned) != Value::Array(banned) {
                wrong.push(format!("{config}: {advice:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn advice_that_cannot_be_followed_is_an_error() {
        for (config, part) in [
            (
                json!({"do_sample": true, "temperature": -1}),
                "temperature is -1, expected a number from 0 to 1000",
            ),
            (json!({"do_sample": true, "top_k": 1.5}), "top_k is 1.5, expected a whole number"),
            (json!({"repetition_penalty": "NaN"}), "repetition_penalty is \"NaN\", expected a number"),
            (json!({"suppress_tokens": [-1]}), "suppress_tokens has -1, expected a token id"),
            (json!({"suppress_tokens": 5}), "suppress_tokens is 5, expected a list"),
            (json!({"bad_words_ids": [5]}), "bad_words_ids has 5, expected a list"),
        ] {
            let error = AdvisedSampling::of_generation_config(&config, &[]).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let odd = json!({"do_sample": true, "temperature": 1e-6, "top_k": -1, "num_beams": 4, "no_repeat_ngram_size": null});
        let advice = AdvisedSampling::of_generation_config(&odd, &[]).unwrap();
        assert_eq!((advice.temperature, advice.top_k), (Some(0.0), None));
        assert_eq!(advice.left_out, ["num_beams 4"]);
    }
}
