//! A directory in Hugging Face layout.

use std::path::Path;

use moi_checkpoint::open_safetensors;
use moi_models::Architecture;
use moi_text::{ChatTemplate, TemplateTokens, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

use crate::{AdvisedSampling, Pretrained, PretrainedError};

pub(crate) const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

#[derive(Default, Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    eos_token_id: OneOrMany<u32>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    chat_template: OneOrMany<Template>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
    unk_token: Option<Token>,
}

#[derive(Default, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
    #[default]
    None,
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::Many(many) => many,
            Self::One(one) => vec![one],
            Self::None => Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Template {
    Plain(String),
    Named { name: String, template: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Plain(String),
    Full { content: String },
}

impl Token {
    fn into_text(self) -> String {
        match self {
            Self::Plain(text) | Self::Full { content: text } => text,
        }
    }
}

pub(crate) fn open(directory: &Path) -> Result<Pretrained, PretrainedError> {
    let path = directory.join(CONFIG);
    let config: Value = read(&path)?;
    let architecture =
        Architecture::from_config(&config).map_err(|error| PretrainedError::Model { path, error })?;
    let tokenizer = directory.join(TOKENIZER);
    let tokenizer = tokenizer.is_file().then(|| Tokenizer::from_file(&tokenizer)).transpose()?;
    let generation: Option<GenerationConfig> = read_if_there(&directory.join(GENERATION_CONFIG))?;
    let generation = generation.unwrap_or_default();
    let eos = match generation.eos_token_id.into_vec() {
        ids if !ids.is_empty() => ids,
        // transformers takes them from here where generation_config.json does not give them.
        _ => config
            .get("eos_token_id")
            .map(|ids| {
                OneOrMany::deserialize(ids)
                    .map_err(|e| wrong(&directory.join(CONFIG), format!("eos_token_id: {e}")))
            })
            .transpose()?
            .unwrap_or_default()
            .into_vec(),
    };
    let advised = generation.do_sample.unwrap_or(false);
    let sampling = AdvisedSampling {
        temperature: advised.then_some(generation.temperature.unwrap_or(1.0)),
        top_k: generation.top_k.filter(|_| advised),
        top_p: generation.top_p.filter(|_| advised),
        min_p: generation.min_p.filter(|_| advised),
    };
    Ok(Pretrained {
        path: directory.to_owned(),
        architecture,
        checkpoint: open_safetensors(directory)?,
        tokenizer,
        chat_template: chat_template(directory)?,
        eos,
        sampling,
    })
}

fn chat_template(directory: &Path) -> Result<Option<ChatTemplate>, PretrainedError> {
    let config: TokenizerConfig = read_if_there(&directory.join(TOKENIZER_CONFIG))?.unwrap_or_default();
    let own_file = directory.join(CHAT_TEMPLATE);
    let source = if own_file.is_file() {
        Some(std::fs::read_to_string(&own_file).map_err(|error| wrong(&own_file, error.to_string()))?)
    } else {
        // Of several templates, the one named `default` is for a plain conversation.
        config.chat_template.into_vec().into_iter().find_map(|template| match template {
            Template::Plain(source) => Some(source),
            Template::Named { name, template } => (name == "default").then_some(template),
        })
    };
    let text = |token: Option<Token>| token.map(Token::into_text);
    let tokens = TemplateTokens {
        bos: text(config.bos_token),
        eos: text(config.eos_token),
        pad: text(config.pad_token),
        unk: text(config.unk_token),
    };
    Ok(source.map(|source| ChatTemplate::new(&source, tokens)).transpose()?)
}

fn read_if_there<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, PretrainedError> {
    path.is_file().then(|| read(path)).transpose()
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, PretrainedError> {
    let bytes = std::fs::read(path).map_err(|error| wrong(path, error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(path, error.to_string()))
}

fn wrong(path: &Path, what: String) -> PretrainedError {
    PretrainedError::File { path: path.to_owned(), what }
}
