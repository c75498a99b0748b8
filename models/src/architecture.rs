//! Finds the page of a checkpoint's `model_type`.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;

use crate::{DecoderConfig, ExpertStacks, ModelError, TensorSource, fields::Fields, pages::PAGES};

/// The `model_type`s that have a page.
///
/// # Examples
/// ```
/// let types: Vec<&str> = moi_models::supported_model_types().collect();
/// assert!(types.contains(&"llama") && types.contains(&"qwen3_moe"));
/// ```
pub fn supported_model_types() -> impl Iterator<Item = &'static str> {
    PAGES.iter().map(|(model_type, _)| *model_type)
}

/// A checkpoint's architecture: which model to build, and where its parameters are.
///
/// # Examples
/// ```
/// use moi_models::Architecture;
///
/// let config = serde_json::json!({
///     "model_type": "gpt2", "vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_head": 2, "n_layer": 1,
/// });
/// let gpt2 = Architecture::from_config(&config)?;
/// assert_eq!(gpt2.config.hidden_size, 16);
/// // Queries are a third of a tensor that is stored as `[in, out]`.
/// let source = gpt2.source("model.layers.0.self_attn.q_proj.weight");
/// assert_eq!(source.name, "transformer.h.0.attn.c_attn.weight");
/// assert_eq!(gpt2.checkpoint_tensors()[&source.name], [16, 48]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The model to build.
    pub config: DecoderConfig,
    /// The names of its parameters in checkpoints.
    pub names: Names,
}

/// The names of the decoder's parameters in checkpoints of an architecture.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, ExpertStacks};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// let llama = Architecture::from_config(&config)?;
/// let names = llama.names;
/// assert_eq!((names.respelled)("norm.weight"), "model.norm.weight");
/// assert!((names.ignored)(&llama.config, "model.layers.0.self_attn.rotary_emb.inv_freq"));
/// assert_eq!(names.stacks, ExpertStacks::ByOutput);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The tensor of a decoder parameter in a checkpoint of text alone.
    pub source: fn(&DecoderConfig, &str) -> TensorSource,
    /// The name, as `source` gives it, of a tensor that some checkpoints name differently.
    pub respelled: fn(&str) -> Cow<'_, str>,
    /// Whether a checkpoint may have a tensor of this name that is not read.
    pub ignored: fn(&DecoderConfig, &str) -> bool,
    /// The layout of experts in checkpoints that store all experts of a layer in one tensor.
    pub stacks: ExpertStacks,
    /// The names of the text model's tensors in multimodal checkpoints.
    pub multimodal: Option<Multimodal>,
}

/// The names of the text model's tensors in a checkpoint that also has encoders for images and sounds.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, Multimodal};
///
/// let config = serde_json::json!({ "model_type": "mistral3", "text_config": { "num_hidden_layers": 1 } });
/// let architecture = Architecture::from_config(&config)?;
/// let body = architecture.names.multimodal.map(|names: Multimodal| names.body);
/// assert_eq!(body, Some("language_model.model."));
/// assert_eq!(architecture.source("model.norm.weight").name, "language_model.model.norm.weight");
/// assert!(architecture.ignores("vision_tower.patch_conv.weight"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Multimodal {
    /// The prefix of the text model's tensors, in place of `model.`.
    pub body: &'static str,
    /// The prefix of the LM head's tensors, in place of `lm_head.`.
    pub head: &'static str,
    /// The prefixes of all other tensors.
    pub ignored: &'static [&'static str],
}

impl Names {
    /// The decoder's own names, which are Llama's.
    pub(crate) const LLAMA: Self = Self {
        source: |_, name| TensorSource::whole(name),
        respelled: |name| with_prefix("model.", name),
        ignored: ignored_by_llama,
        stacks: ExpertStacks::ByOutput,
        multimodal: None,
    };
}

impl Multimodal {
    /// The prefix `language_model.`, beside a vision tower and a projector, as checkpoints of Gemma 3 and Mistral 3
    /// were published. Newer ones use `model.language_model.` and `lm_head.`.
    pub(crate) const UNDER_LANGUAGE_MODEL: Self = Self {
        body: "language_model.model.",
        head: "language_model.lm_head.",
        ignored: &[
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ],
    };

    /// Whether a tensor does not belong to the text model.
    fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|start| name.starts_with(start))
    }

    /// The name of a tensor in a checkpoint of text alone, without the prefix of its own checkpoint.
    fn plain<'a>(&self, name: &'a str) -> Cow<'a, str> {
        // Longer prefixes come first, because where the text model has no prefix of its own, they begin with
        // `model.`, too.
        let spellings = [
            ("model.language_model.", "model."),
            ("language_model.model.", "model."),
            ("language_model.lm_head.", "lm_head."),
            (self.body, "model."),
            (self.head, "lm_head."),
        ];
        let found = spellings.iter().find_map(|(start, plain)| Some((name.strip_prefix(start)?, plain)));
        match found {
            Some((rest, plain)) => format!("{plain}{rest}").into(),
            None => name.into(),
        }
    }

    /// The name of a text model's tensor in this checkpoint.
    fn prefixed(&self, plain: &str) -> String {
        match (plain.strip_prefix("model."), plain.strip_prefix("lm_head.")) {
            (Some(rest), _) => format!("{}{rest}", self.body),
            (None, Some(rest)) => format!("{}{rest}", self.head),
            (None, None) => plain.to_owned(),
        }
    }
}

/// Adds the prefix that files saved without the LM head leave out.
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

/// Whether a Llama checkpoint may have this tensor without its being read: old ones store rotary frequencies and a
/// number for masks, and some with tied embeddings store the table twice.
pub(crate) fn ignored_by_llama(config: &DecoderConfig, name: &str) -> bool {
    let suffixes =
        [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached", ".masked_bias"];
    suffixes.iter().any(|suffix| name.ends_with(suffix))
        || (config.tie_word_embeddings && name == "lm_head.weight")
}

/// Like [`ignored_by_llama`], and layers past the last one, which predict several tokens at once.
pub(crate) fn ignored_with_predictors(config: &DecoderConfig, name: &str) -> bool {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let is_behind = layer.and_then(|(layer, _)| layer.parse::<usize>().ok());
    is_behind.is_some_and(|layer| layer >= config.layers.len()) || ignored_by_llama(config, name)
}

impl Architecture {
    /// Reads a `config.json`, given as its JSON value.
    ///
    /// # Errors
    /// If its `model_type` has no page, a field is missing or wrong, or an option is not implemented.
    pub fn from_config(config: &Value) -> Result<Self, ModelError> {
        let model_type = config.get("model_type").and_then(Value::as_str).ok_or(ModelError::NoModelType)?;
        match PAGES.iter().find(|(name, _)| *name == model_type) {
            Some((model_type, page)) => page(&Fields::new(config, model_type)?),
            None => Err(ModelError::UnsupportedModelType(model_type.to_owned())),
        }
    }

    /// Checks that the numbers of a config fit together.
    pub(crate) fn new(config: DecoderConfig, names: Names) -> Result<Self, ModelError> {
        Ok(Self { config: config.validated()?, names })
    }

    /// The checkpoint tensor of a decoder parameter.
    pub fn source(&self, parameter: &str) -> TensorSource {
        let source = (self.names.source)(&self.config, parameter);
        match self.names.multimodal {
            Some(multimodal) => TensorSource { name: multimodal.prefixed(&source.name), ..source },
            None => source,
        }
    }

    /// The name, as [`Self::source`] gives it, of a tensor that some checkpoints name differently.
    pub fn respelled(&self, name: &str) -> String {
        match self.names.multimodal {
            Some(multimodal) if multimodal.ignores(name) => name.to_owned(),
            Some(multimodal) => multimodal.prefixed(&(self.names.respelled)(&multimodal.plain(name))),
            None => (self.names.respelled)(name).into_owned(),
        }
    }

    /// The name that a tensor would have in a checkpoint of text alone.
    pub fn plain(&self, name: &str) -> String {
        self.names
            .multimodal
            .map_or_else(|| name.to_owned(), |multimodal| multimodal.plain(name).into_owned())
    }

    /// Whether a checkpoint may have a tensor of this name that is not read.
    pub fn ignores(&self, name: &str) -> bool {
        match self.names.multimodal {
            Some(multimodal) => {
                multimodal.ignores(name) || (self.names.ignored)(&self.config, &multimodal.plain(name))
            }
            None => (self.names.ignored)(&self.config, name),
        }
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
