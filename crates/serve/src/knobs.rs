//! Request fields of samplers: one for each of their knobs, so that a new sampler gets its fields by itself.

use std::fmt;

use moi_engine::{KnobKind, Sampling, SamplingKnob};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Value, json};

use crate::error::ApiError;

/// Other names of knobs that clients use.
const ALIASES: &[(&str, &str)] =
    &[("repeat_penalty", "repetition_penalty"), ("repeat_last_n", "penalty_window")];

/// The knobs that have fields of their own.
pub(crate) fn knobs() -> impl Iterator<Item = SamplingKnob> {
    Sampling::knobs().into_iter().filter(|knob| knob.kind != KnobKind::ByToken)
}

/// The knobs that a request body sets.
#[derive(Debug, Default)]
pub(crate) struct Knobs {
    /// The field, the knob's key and the value.
    given: Vec<(String, &'static str, Value)>,
}

impl Knobs {
    /// The names of the fields that were read.
    pub(crate) fn fields(&self) -> impl Iterator<Item = String> {
        self.given.iter().map(|(field, ..)| field.clone())
    }

    /// Sets the given knobs.
    ///
    /// # Errors
    /// If a value is not of its knob's type, or not allowed.
    pub(crate) fn apply(&self, sampling: &mut Sampling) -> Result<(), ApiError> {
        for (field, key, value) in self.given.iter().filter(|(.., value)| !value.is_null()) {
            let texts = texts(value).ok_or_else(|| {
                let message = format!("{field}: expected a number, or texts, got {value}");
                ApiError::invalid("invalid_type", message).of(field)
            })?;
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let set = sampling.set(key, &texts).and_then(|()| sampling.check());
            set.map_err(|error| ApiError::value(field, format!("{field}: {error}")))?;
        }
        Ok(())
    }

    /// The schemas of the knobs' fields.
    pub(crate) fn properties() -> impl Iterator<Item = (String, Value)> {
        let property = |knob: SamplingKnob| {
            let mut schema = match knob.kind {
                KnobKind::Number => json!({"type": ["number", "null"]}),
                KnobKind::Count | KnobKind::Integer | KnobKind::ByToken => {
                    json!({"type": ["integer", "null"], "minimum": -1})
                }
                KnobKind::Texts => json!({"type": ["array", "null"], "items": {"type": "string"}}),
            };
            schema["description"] = knob.help.into();
            (knob.key.to_owned(), schema)
        };
        knobs().map(property)
    }
}

/// A value as the texts that a command line would give.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        // In counts, -1 has been replaced by 0 already: vLLM and llama.cpp use it for "off". Other knobs read -1
        // themselves.
        Value::Number(number) => Some(vec![number.to_string()]),
        Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Object(_) => None,
    }
}

impl<'de> Deserialize<'de> for Knobs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Knobs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Knobs, A::Error> {
                let known: Vec<SamplingKnob> = knobs().collect();
                let mut given = Vec::new();
                while let Some(field) = map.next_key::<String>()? {
                    let alias = ALIASES.iter().find(|(alias, _)| *alias == field);
                    let key = alias.map_or(field.as_str(), |(_, key)| key);
                    let Some(knob) = known.iter().find(|knob| knob.key == key) else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let value = match map.next_value::<Value>()? {
                        value if knob.kind == KnobKind::Count && value == json!(-1) => json!(0),
                        value => value,
                    };
                    given.push((field, knob.key, value));
                }
                Ok(Knobs { given })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}
