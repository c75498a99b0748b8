//! From a checkpoint's `model_type` to its page.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;

use crate::{DecoderConfig, ModelError, TensorSource};

/// A page: reads a config.
type Page = fn(&Value) -> Result<Architecture, ModelError>;

/// All pages, by `model_type`. A new architecture gets its line here.
const PAGES: &[(&str, Page)] = &[
    (crate::llama::MODEL_TYPE, crate::llama::architecture),
    (crate::qwen2::MODEL_TYPE, crate::qwen2::architecture),
    (crate::nemotron_nas::MODEL_TYPE, crate::nemotron_nas::architecture),
    (crate::gemma3::MODEL_TYPE, crate::gemma3::architecture),
    (crate::gemma3::MULTIMODAL_TYPE, crate::gemma3::multimodal),
    (crate::mistral::MODEL_TYPE, crate::mistral::architecture),
    (crate::qwen3::MODEL_TYPE, crate::qwen3::architecture),
    (crate::qwen3_moe::MODEL_TYPE, crate::qwen3_moe::architecture),
    (crate::mixtral::MODEL_TYPE, crate::mixtral::architecture),
    (crate::gemma::MODEL_TYPE, crate::gemma::architecture),
    (crate::gemma2::MODEL_TYPE, crate::gemma2::architecture),
    (crate::phi3::MODEL_TYPE, crate::phi3::architecture),
    (crate::olmo2::MODEL_TYPE, crate::olmo2::architecture),
    (crate::smollm3::MODEL_TYPE, crate::smollm3::architecture),
    (crate::granite::MODEL_TYPE, crate::granite::architecture),
    (crate::gpt2::MODEL_TYPE, crate::gpt2::architecture),
    (crate::gpt_neox::MODEL_TYPE, crate::gpt_neox::architecture),
];

/// The `model_type`s that have a page.
pub fn supported_model_types() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|(model_type, _)| *model_type)
}

/// A checkpoint's architecture: what to build and where its parameters stand.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// What to build.
    pub config: DecoderConfig,
    /// How its checkpoints spell it.
    pub names: Names,
}

/// How checkpoints of an architecture name the decoder's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Where a parameter stands.
    pub source: fn(&DecoderConfig, &str) -> TensorSource,
    /// The name that `source` gives for a tensor that some checkpoints call otherwise.
    pub respelled: fn(&str) -> Cow<'_, str>,
    /// Whether a tensor of this name may stand in a checkpoint without being read.
    pub ignored: fn(&DecoderConfig, &str) -> bool,
}

impl Names {
    /// The decoder's own names: Llama's.
    pub(crate) const LLAMA: Self = Self {
        source: |_, name| TensorSource::whole(name),
        respelled: |name| with_prefix("model.", name),
        ignored: ignored_by_llama,
    };
}

/// The name with the prefix that files saved without the head leave out.
pub(crate) fn with_prefix<'a>(prefix: &str, name: &'a str) -> Cow<'a, str> {
    const BARE: &[&str] = &[
        "layers.",
        "embed_tokens.",
        "norm.",
        "h.",
        "wte.",
        "wpe.",
        "ln_f.",
        "embed_in.",
        "final_layer_norm.",
    ];
    match BARE.iter().any(|start| name.starts_with(start)) {
        true => format!("{prefix}{name}").into(),
        false => name.into(),
    }
}

/// Old checkpoints store the rotary frequencies and a number for masks; some tied ones store the table twice.
pub(crate) fn ignored_by_llama(config: &DecoderConfig, name: &str) -> bool {
    let suffixes =
        [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias"];
    suffixes.iter().any(|suffix| name.ends_with(suffix))
        || (config.tie_word_embeddings && name == "lm_head.weight")
}

impl Architecture {
    /// Reads a `config.json`, given as its JSON value.
    ///
    /// # Errors
    /// If its `model_type` has no page, a field is missing or wrong, or an option is not implemented.
    pub fn from_config(config: &Value) -> Result<Self, ModelError> {
        let model_type = config.get("model_type").and_then(Value::as_str).ok_or(ModelError::NoModelType)?;
        match PAGES.iter().find(|(name, _)| *name == model_type) {
            Some((_, page)) => page(config),
            None => Err(ModelError::UnsupportedModelType(model_type.to_owned())),
        }
    }

    /// A config, once its numbers fit together.
    pub(crate) fn new(config: DecoderConfig, names: Names) -> Result<Self, ModelError> {
        Ok(Self { config: config.validated()?, names })
    }

    /// Where a parameter of the decoder stands in a checkpoint.
    pub fn source(&self, parameter: &str) -> TensorSource {
        (self.names.source)(&self.config, parameter)
    }

    /// Name and shape of every tensor of a checkpoint in Hugging Face layout.
    pub fn checkpoint_tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let stored = |(name, shape): (String, Vec<usize>)| {
            let source = self.source(&name);
            let shape = source.stored_shape(&shape);
            (source.name, shape)
        };
        self.config.parameters().into_iter().map(stored).collect()
    }
}
