//! From a checkpoint's `model_type` to its page.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Value;

use crate::{DecoderConfig, ExpertStacks, ModelError, TensorSource, fields::Fields, pages::PAGES};

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
    /// Where a parameter stands in a checkpoint of text alone.
    pub source: fn(&DecoderConfig, &str) -> TensorSource,
    /// The name that `source` gives for a tensor that some checkpoints call otherwise.
    pub respelled: fn(&str) -> Cow<'_, str>,
    /// Whether a tensor of this name may stand in a checkpoint without being read.
    pub ignored: fn(&DecoderConfig, &str) -> bool,
    /// How experts stand in checkpoints that have those of a layer in one tensor.
    pub stacks: ExpertStacks,
    /// Where the text stands in a checkpoint of more than text.
    pub multimodal: Option<Multimodal>,
}

/// Where the text stands in a checkpoint that holds towers for images and sounds, too.
#[derive(Clone, Copy, Debug)]
pub struct Multimodal {
    /// What names of the text's tensors begin with, in the place of `model.`.
    pub body: &'static str,
    /// What names of the head's begin with, in the place of `lm_head.`.
    pub head: &'static str,
    /// What names of all else begin with.
    pub ignored: &'static [&'static str],
}

impl Names {
    /// The decoder's own names: Llama's.
    pub(crate) const LLAMA: Self = Self {
        source: |_, name| TensorSource::whole(name),
        respelled: |name| with_prefix("model.", name),
        ignored: ignored_by_llama,
        stacks: ExpertStacks::ByOutput,
        multimodal: None,
    };
}

impl Multimodal {
    /// Under `language_model.`, beside a tower and a projector, as checkpoints of Gemma 3 and Mistral 3 were published. Newer
    /// ones say `model.language_model.` and `lm_head.`.
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

    /// Whether a tensor is none of the text's.
    fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|start| name.starts_with(start))
    }

    /// The name of a tensor in a checkpoint of text alone, whatever its checkpoint prefixes it with.
    fn plain<'a>(&self, name: &'a str) -> Cow<'a, str> {
        // The longer ones first: where the text has no prefix of its own, `model.` begins them, too.
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

    /// The name here of a tensor of the text.
    fn prefixed(&self, plain: &str) -> String {
        match (plain.strip_prefix("model."), plain.strip_prefix("lm_head.")) {
            (Some(rest), _) => format!("{}{rest}", self.body),
            (None, Some(rest)) => format!("{}{rest}", self.head),
            (None, None) => plain.to_owned(),
        }
    }
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

/// The same, and layers behind the last one, which predict several tokens at once.
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

    /// A config, once its numbers fit together.
    pub(crate) fn new(config: DecoderConfig, names: Names) -> Result<Self, ModelError> {
        Ok(Self { config: config.validated()?, names })
    }

    /// Where a parameter of the decoder stands in a checkpoint.
    pub fn source(&self, parameter: &str) -> TensorSource {
        let source = (self.names.source)(&self.config, parameter);
        match self.names.multimodal {
            Some(multimodal) => TensorSource { name: multimodal.prefixed(&source.name), ..source },
            None => source,
        }
    }

    /// The name that [`Self::source`] gives for a tensor that some checkpoints call otherwise.
    pub fn respelled(&self, name: &str) -> String {
        match self.names.multimodal {
            Some(multimodal) if multimodal.ignores(name) => name.to_owned(),
            Some(multimodal) => multimodal.prefixed(&(self.names.respelled)(&multimodal.plain(name))),
            None => (self.names.respelled)(name).into_owned(),
        }
    }

    /// The name of a tensor in a checkpoint of text alone.
    pub fn plain(&self, name: &str) -> String {
        self.names
            .multimodal
            .map_or_else(|| name.to_owned(), |multimodal| multimodal.plain(name).into_owned())
    }

    /// Whether a tensor of this name may stand in a checkpoint without being read.
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
