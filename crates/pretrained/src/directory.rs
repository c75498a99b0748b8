//! A directory in Hugging Face layout.

use std::path::Path;

use moi_checkpoint::{
    BURNPACK_FILE, CONFIG_BYTES, Checkpoint, CheckpointError, INDEX_FILE, SINGLE_FILE, is_there,
    open_burnpack, open_safetensors, parse_json, read_file,
};
use moi_models::Architecture;
use moi_text::{ChatTemplate, TemplateTokens, TextError, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

use crate::{AdvisedSampling, Pretrained, PretrainedError};

pub(crate) const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

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
#[serde(untagged, expecting = "expected one value of its kind or a list of them")]
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
#[serde(untagged, expecting = "expected a template's text, or its name and text")]
enum Template {
    Plain(String),
    Named { name: String, template: String },
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a token's text, or an object with its `content`")]
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
    let config: Value = read(&path).map_err(|what| wrong(&path, what))?;
    let architecture = Architecture::from_config(&config)
        .map_err(|error| PretrainedError::Model { path: path.clone(), error })?;
    let tokenizer = directory.join(TOKENIZER);
    let generation_path = directory.join(GENERATION_CONFIG);
    let generation: Value =
        read_if_there(&generation_path).map_err(|what| wrong(&generation_path, what))?.unwrap_or_default();
    let mut eos = token_ids(&generation).map_err(|what| wrong(&generation_path, what))?;
    if eos.is_empty() {
        // transformers takes them from here where generation_config.json does not give them.
        eos = token_ids(&config).map_err(|what| wrong(&path, what))?;
    }
    let (architecture, checkpoint) = crate::fitted(architecture, weights(directory)?)?;
    Ok(Pretrained {
        path: directory.to_owned(),
        architecture,
        checkpoint,
        tokenizer: is_there(&tokenizer).then(|| Tokenizer::from_file(&tokenizer)).transpose(),
        chat_template: chat_template(directory),
        eos,
        sampling: sampling(&generation).map_err(|what| wrong(&generation_path, what)),
    })
}

/// safetensors go before the others: they are what most files beside them were made of.
fn weights(directory: &Path) -> Result<Checkpoint, PretrainedError> {
    let has = |file: &str| is_there(&directory.join(file));
    if !has(SINGLE_FILE) && !has(INDEX_FILE) {
        if has(BURNPACK_FILE) {
            return Ok(open_burnpack(&directory.join(BURNPACK_FILE))?);
        }
        if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
            return Err(PretrainedError::NotAModel {
                path: directory.to_owned(),
                what: "its weights are PyTorch files; convert them first (moi convert)".to_owned(),
            });
        }
    }
    Ok(open_safetensors(directory)?)
}

/// `eos_token_id`: absent, null, one or a list.
fn token_ids(config: &Value) -> Result<Vec<u32>, String> {
    let ids = config.get("eos_token_id").cloned().unwrap_or_default();
    OneOrMany::deserialize(&ids)
        .map(OneOrMany::into_vec)
        .map_err(|_| format!("eos_token_id is {ids}, expected a token id or a list of them"))
}

/// Hints: what is null, or means "off", is left out; what nothing can be sampled with is an error.
fn sampling(generation: &Value) -> Result<AdvisedSampling, String> {
    /// Temperatures below are greedy in all but name, and divide logits by next to nothing.
    const COLDEST: f64 = 1e-4;
    if generation.get("do_sample").and_then(Value::as_bool) != Some(true) {
        return Ok(AdvisedSampling::default());
    }
    let given = |name: &str| generation.get(name).filter(|value| !value.is_null());
    let number = |name: &str, most: f64| {
        let wrong = |value: &Value| format!("{name} is {value}, expected a number from 0 to {most}");
        let read = |value: &Value| {
            value.as_f64().filter(|number| (0.0..=most).contains(number)).ok_or_else(|| wrong(value))
        };
        given(name).map(read).transpose()
    };
    let top_k = match given("top_k") {
        None => None,
        Some(value) => match value.as_f64() {
            // "Off", as vLLM has it.
            Some(number) if number < 0.0 => None,
            Some(number) if number.fract() == 0.0 && number < 2f64.powi(53) => Some(number as usize),
            _ => return Err(format!("top_k is {value}, expected a whole number")),
        },
    };
    let temperature = number("temperature", 1000.0)?.unwrap_or(1.0);
    Ok(AdvisedSampling {
        temperature: Some(if temperature < COLDEST { 0.0 } else { temperature }),
        top_k,
        // transformers keeps one token at least.
        top_p: number("top_p", 1.0)?.map(|share| share.max(f64::MIN_POSITIVE)),
        min_p: number("min_p", 1.0)?,
    })
}

fn chat_template(directory: &Path) -> Result<Option<ChatTemplate>, TextError> {
    let unreadable = |path: &Path, what: String| TextError::File { path: path.to_owned(), what };
    let path = directory.join(TOKENIZER_CONFIG);
    let config = read_if_there(&path).map_err(|what| unreadable(&path, what))?;
    let config: TokenizerConfig = config.unwrap_or_default();
    let own_file = directory.join(CHAT_TEMPLATE);
    let mut stands_in = &path;
    let source = if is_there(&own_file) {
        stands_in = &own_file;
        let text =
            small_file(&own_file).and_then(|bytes| String::from_utf8(bytes).map_err(|e| e.to_string()));
        Some(text.map_err(|what| unreadable(&own_file, what))?)
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
    source.map(|source| ChatTemplate::in_file(stands_in, &source, tokens)).transpose()
}

fn read_if_there<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, String> {
    is_there(path).then(|| read(path)).transpose()
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, String> {
    parse_json(&small_file(path)?)
}

fn small_file(path: &Path) -> Result<Vec<u8>, String> {
    read_file(path, CONFIG_BYTES).map_err(|error| match error {
        CheckpointError::Io { error, .. } => error.to_string(),
        CheckpointError::Format { what, .. } => what,
        other => other.to_string(),
    })
}

fn wrong(path: &Path, what: String) -> PretrainedError {
    PretrainedError::File { path: path.to_owned(), what }
}
