//! Reads a `config.json`: its fields, and the parts that most architectures share.
//!
//! Like transformers, this distinguishes a field that is absent (then the config class's default is used) from one
//! that is null (which usually means none).

use std::sync::LazyLock;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Activation, ModelError};

/// The fields of one config.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    pub(crate) model_type: &'static str,
    fields: &'a Map<String, Value>,
}

/// The model types whose pages read `per_layer_config`.
const READ_BY_LAYER: &[&str] = &["gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"];

/// The names of the two kinds of attention layers in `layer_types`.
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

impl<'a> Fields<'a> {
    /// The fields of `config`. Options that no architecture here supports are refused.
    pub(crate) fn new(config: &'a Value, model_type: &'static str) -> Result<Self, ModelError> {
        let fields = config
            .as_object()
            .ok_or_else(|| ModelError::Config { model_type, what: "it is no object of fields".into() })?;
        let fields = Self { model_type, fields };
        fields.supports(
            "quantization_config",
            &[],
            "float32, float16 and bfloat16 weights, or a GGUF file",
        )?;
        fields.supports("is_encoder_decoder", &[false.into()], "false")?;
        fields.supports("add_cross_attention", &[false.into()], "false")?;
        // This option is about images, which are not read; text stays causal.
        fields.supports("use_bidirectional_attention", &[false.into(), "vision".into()], "false, vision")?;
        fields.supports("is_causal", &[true.into()], "true")?;
        if !READ_BY_LAYER.contains(&model_type) {
            fields.supports("per_layer_config", &[], "null")?;
        }
        Ok(fields)
    }

    /// The fields of a config inside this one; no fields if it is absent.
    pub(crate) fn nested(&self, name: &str) -> Result<Fields<'a>, ModelError> {
        static NOTHING: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));
        Self::new(self.value(name).unwrap_or(&NOTHING), self.model_type)
    }

    /// A copy of the fields, with default rotary parameters where the config has none.
    pub(crate) fn with_rope(&self, default: Value) -> Value {
        let mut fields = self.fields.clone();
        if self.value("rope_parameters").is_none() && self.value("rope_scaling").is_none() {
            fields.insert("rope_parameters".to_owned(), default);
        }
        Value::Object(fields)
    }

    /// A copy of the fields, some of them renamed.
    pub(crate) fn renamed(&self, names: &[(&str, &str)]) -> Value {
        let mut fields = self.fields.clone();
        for (own, common) in names {
            if let Some(value) = fields.remove(*own) {
                fields.insert((*common).to_owned(), value);
            }
        }
        Value::Object(fields)
    }

    /// Which layers keep a state: those that `layer_types` lists under one of these names, or else by a rule. All
    /// others have attention over all positions.
    pub(crate) fn layers_with_states(
        &self,
        num_layers: usize,
        names: &[&str],
        rule: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        let Some(listed) = self.get::<Vec<String>>("layer_types")? else {
            return Ok((0..num_layers).map(rule).collect());
        };
        self.one_for_each_layer("layer_types", listed.len(), num_layers)?;
        let has_state = |kind: &String| match kind.as_str() {
            // The second name is that of transformers 4 in models with both kinds.
            FULL | "attention" => Ok(false),
            own if names.contains(&own) => Ok(true),
            other => {
                let what = format!("`layer_types` has {other:?}, expected {FULL} or {}", names.join(" or "));
                Err(self.wrong(what))
            }
        };
        listed.iter().map(has_state).collect()
    }

    /// Which layers have experts: by a list of `dense` and `sparse`, or else by a rule.
    pub(crate) fn sparse_layers(
        &self,
        num_layers: usize,
        rule: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        let Some(listed) = self.get::<Vec<String>>("mlp_layer_types")? else {
            return Ok((0..num_layers).map(rule).collect());
        };
        self.one_for_each_layer("mlp_layer_types", listed.len(), num_layers)?;
        let is_sparse = |kind: &String| match kind.as_str() {
            "dense" => Ok(false),
            "sparse" => Ok(true),
            other => Err(self.unsupported("mlp_layer_types", &other.into(), "dense, sparse")),
        };
        listed.iter().map(is_sparse).collect()
    }

    /// Minimum and maximum of a step size of Mamba 2, `time_step_limit`. JSON has no infinity, so transformers writes
    /// an object in its place.
    pub(crate) fn step_limits(&self) -> Result<[f64; 2], ModelError> {
        const NAME: &str = "time_step_limit";
        let Some(value) = self.value(NAME) else { return Ok([0.0, f64::INFINITY]) };
        let number = |value: &Value| match value.get("__float__").unwrap_or(value).as_str() {
            Some("Infinity") => Some(f64::INFINITY),
            _ => value.as_f64(),
        };
        let numbers = value.as_array().map(|list| list.iter().map(number).collect::<Vec<_>>());
        match numbers.as_deref() {
            Some(&[Some(least), Some(most)]) => Ok([least, most]),
            _ => Err(self.wrong(format!("field `{NAME}` is {value}, expected two numbers"))),
        }
    }

    /// Refuses a list whose length is not the number of layers.
    pub(crate) fn one_for_each_layer(
        &self,
        name: &str,
        listed: usize,
        num_layers: usize,
    ) -> Result<(), ModelError> {
        match listed == num_layers {
            true => Ok(()),
            false => Err(self.wrong(format!("`{name}` lists {listed} layers, the model has {num_layers}"))),
        }
    }

    /// A field's value; null counts as absent.
    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// A field of type `T`, or `None` if it is absent or null.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ModelError> {
        self.value(name).map(|value| self.parse(name, value)).transpose()
    }

    /// A field, or the class's default where it is absent or null.
    pub(crate) fn or<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T, ModelError> {
        Ok(self.get(name)?.unwrap_or(default))
    }

    /// A field with two names, of which the first one has precedence, or the class's default if both are absent or
    /// null.
    pub(crate) fn either<T: DeserializeOwned>(
        &self,
        first: &str,
        second: &str,
        default: T,
    ) -> Result<T, ModelError> {
        match self.get(first)? {
            Some(value) => Ok(value),
            None => self.or(second, default),
        }
    }

    /// A field, or the class's default if it is absent; `None` if it is null.
    pub(crate) fn nullable<T: DeserializeOwned>(
        &self,
        name: &str,
        default: Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.fields.contains_key(name) {
            true => self.get(name),
            false => Ok(default),
        }
    }

    fn parse<T: DeserializeOwned>(&self, name: &str, value: &Value) -> Result<T, ModelError> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { name.to_owned() } else { format!("{name}.{path}") };
            self.wrong(format!("field `{place}`: {}", error.into_inner()))
        })
    }

    /// An error about the values of the fields.
    pub(crate) fn wrong(&self, what: String) -> ModelError {
        ModelError::Config { model_type: self.model_type, what }
    }

    /// Refuses a field that has a value other than these.
    pub(crate) fn supports(
        &self,
        field: &'static str,
        values: &[Value],
        supported: &'static str,
    ) -> Result<(), ModelError> {
        match self.value(field) {
            Some(value) if !values.contains(value) => Err(self.unsupported(field, value, supported)),
            _ => Ok(()),
        }
    }

    pub(crate) fn unsupported(
        &self,
        field: &'static str,
        value: &Value,
        supported: &'static str,
    ) -> ModelError {
        const MAX_LENGTH: usize = 60;
        let mut value = value.to_string();
        if value.chars().count() > MAX_LENGTH {
            value = value.chars().take(MAX_LENGTH).chain("...".chars()).collect();
        }
        ModelError::UnsupportedOption { model_type: self.model_type, field, value, supported }
    }

    /// An activation function, by transformers' names.
    pub(crate) fn activation(&self, field: &'static str, default: &str) -> Result<Activation, ModelError> {
        let name: String = self.or(field, default.to_owned())?;
        Ok(match name.as_str() {
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => {
                Activation::GeluTanh
            }
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "relu2" => Activation::ReluSquared,
            "xielu" => Activation::Xielu,
            _ => {
                let supported =
                    "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, relu2, xielu";
                return Err(self.unsupported(field, &name.into(), supported));
            }
        })
    }

    /// Number of layers, which is limited because a list of that length will be allocated.
    pub(crate) fn num_layers(&self, name: &'static str, default: usize) -> Result<usize, ModelError> {
        const MAX_COUNT: usize = 1 << 12;
        match self.or(name, default)? {
            layers @ 1..=MAX_COUNT => Ok(layers),
            other => Err(ModelError::Inconsistent {
                model_type: self.model_type,
                what: format!("{name} is {other}, expected 1 to {MAX_COUNT}"),
            }),
        }
    }

    /// Which layers have a sliding window: by the list `layer_types`, or else by the architecture's rule.
    pub(crate) fn sliding_layers(
        &self,
        num_layers: usize,
        rule: impl Fn(usize) -> bool,
    ) -> Result<Vec<bool>, ModelError> {
        let Some(listed) = self.get::<Vec<String>>("layer_types")? else {
            return Ok((0..num_layers).map(rule).collect());
        };
        self.one_for_each_layer("layer_types", listed.len(), num_layers)?;
        let is_sliding = |kind: &String| match kind.as_str() {
            FULL => Ok(false),
            SLIDING => Ok(true),
            other => Err(self.unsupported("layer_types", &other.into(), "full_attention, sliding_attention")),
        };
        listed.iter().map(is_sliding).collect()
    }
}
