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

use crate::{
    AdvisedSampling, Pretrained, PretrainedError,
    contents::{ADAPTER_CONFIG, Contents},
    end_tokens::end_tokens,
    extra_heads, quantised,
    tokenizer_files::{TOKENIZER_CONFIG, read_tokenizer},
};

pub(crate) const CONFIG: &str = "config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const GENERATION_CONFIG: &str = "generation_config.json";
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

/// `special_tokens_map.json`.
#[derive(Default, Deserialize)]
struct Special {
    eos_token: Option<Token>,
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
    fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Full { content: text } => text,
        }
    }

    fn into_text(self) -> String {
        match self {
            Self::Plain(text) | Self::Full { content: text } => text,
        }
    }
}

pub(crate) fn open(directory: &Path) -> Result<Pretrained, PretrainedError> {
    let path = directory.join(CONFIG);
    let config: Value = read(&path).map_err(|what| wrong(&path, what))?;
    if let Some(what) = quantised::by_config(&config) {
        return Err(wrong(&path, what));
    }
    let architecture = Architecture::from_config(&config)
        .map_err(|error| PretrainedError::Model { path: path.clone(), error })?;
    let generation_path = directory.join(GENERATION_CONFIG);
    let generation: Value =
        read_if_there(&generation_path).map_err(|what| wrong(&generation_path, what))?.unwrap_or_default();
    let tokenizer = read_tokenizer(directory);
    let text_config = tokenizer_config(directory);
    let usable = tokenizer.as_ref().ok().and_then(Option::as_ref);
    // transformers takes it from there where tokenizer_config.json does not name it.
    let special: Special = read_if_there(&directory.join(SPECIAL_TOKENS)).ok().flatten().unwrap_or_default();
    let of_config = text_config.as_ref().ok().and_then(|config| config.eos_token.as_ref());
    let eos_text = of_config.or(special.eos_token.as_ref()).map(Token::text);
    let listed = token_ids(&generation).map_err(|what| wrong(&generation_path, what))?;
    let in_config = token_ids(&config).map_err(|what| wrong(&path, what))?;
    let eos = ends(listed, in_config, eos_text, usable);
    let rows = architecture.config.vocab_size;
    let (architecture, checkpoint) = crate::fitted(architecture, weights(directory)?)?;
    let mut notes: Vec<String> = checkpoint.notes().to_vec();
    notes.extend(extra_heads::left_out(&checkpoint));
    if let Err(error) = &text_config {
        notes.push(format!("an end token that it names is not known: {error}"));
    }
    if is_there(&directory.join(ADAPTER_CONFIG)) {
        notes.push(format!("{ADAPTER_CONFIG} stands beside the weights; that adapter is not applied"));
    }
    let sampling = AdvisedSampling::of_generation_config(&generation, &eos);
    Ok(Pretrained {
        path: directory.to_owned(),
        architecture,
        checkpoint,
        tokenizer,
        chat_template: chat_template(directory, text_config),
        eos,
        sampling: sampling.map(|advice| advice.within(rows)).map_err(|what| wrong(&generation_path, what)),
        notes,
    })
}

/// safetensors go before the others: they are what most files beside them were made of.
fn weights(directory: &Path) -> Result<Checkpoint, PretrainedError> {
    let has = |file: &str| is_there(&directory.join(file));
    if !has(SINGLE_FILE) && !has(INDEX_FILE) {
        if has(BURNPACK_FILE) {
            return Ok(open_burnpack(&directory.join(BURNPACK_FILE))?);
        }
        let contents = Contents::of(directory)?;
        if !contents.has_weights() {
            return Err(PretrainedError::NotAModel { path: directory.to_owned(), what: contents.refusal() });
        }
    }
    open_safetensors(directory).map_err(|error| {
        // What a quantised tensor is stored as is no type that is read.
        let is_of_type =
            matches!(&error, CheckpointError::Format { what, .. } if what.contains("is not supported"));
        match quantised::by_files(directory).filter(|_| is_of_type) {
            Some(what) => wrong(directory, what),
            None => error.into(),
        }
    })
}

/// The end tokens: those of `generation_config.json`, of `config.json` and of `tokenizer_config.json`, and known ones. Where
/// `generation_config.json` names some, one of `config.json` that is an ordinary token of text is a default that nobody
/// has changed.
fn ends(
    listed: Vec<u32>,
    in_config: Vec<u32>,
    eos_text: Option<&str>,
    tokenizer: Option<&Tokenizer>,
) -> Vec<u32> {
    let id = |text: &str| tokenizer?.id(text);
    let counts = |id: &u32| listed.is_empty() || tokenizer.is_none_or(|tokenizer| tokenizer.is_added(*id));
    let in_config: Vec<u32> = in_config.into_iter().filter(counts).collect();
    end_tokens(listed.into_iter().chain(in_config).chain(eos_text.and_then(id)), id)
}

/// `eos_token_id`: absent, null, one or a list.
fn token_ids(config: &Value) -> Result<Vec<u32>, String> {
    let nested = config.get("text_config").and_then(|text| text.get("eos_token_id"));
    // Of a multimodal model the text's own.
    let ids = config.get("eos_token_id").filter(|ids| !ids.is_null()).or(nested).cloned().unwrap_or_default();
    let wrong = || format!("eos_token_id is {ids}, expected a token id or a list of them");
    let listed: Vec<&Value> = match &ids {
        Value::Array(ids) => ids.iter().collect(),
        one => vec![one],
    };
    let mut found = Vec::new();
    for id in listed {
        match id.as_f64() {
            // None, in a list or alone; transformers writes -1 for it, too.
            None if id.is_null() => {}
            Some(id) if id < 0.0 => {}
            Some(id) if id.fract() == 0.0 && id <= f64::from(u32::MAX) => found.push(id as u32),
            _ => return Err(wrong()),
        }
    }
    Ok(found)
}

fn tokenizer_config(directory: &Path) -> Result<TokenizerConfig, TextError> {
    let path = directory.join(TOKENIZER_CONFIG);
    let config = read_if_there(&path).map_err(|what| TextError::File { path, what })?;
    Ok(config.unwrap_or_default())
}

fn chat_template(
    directory: &Path,
    config: Result<TokenizerConfig, TextError>,
) -> Result<Option<ChatTemplate>, TextError> {
    let unreadable = |path: &Path, what: String| TextError::File { path: path.to_owned(), what };
    let path = directory.join(TOKENIZER_CONFIG);
    let config = config?;
    let own_file = directory.join(CHAT_TEMPLATE);
    let mut stands_in = &path;
    let source = if is_there(&own_file) {
        stands_in = &own_file;
        let text =
            small_file(&own_file).and_then(|bytes| moi_files::text(bytes).map_err(|error| error.to_string()));
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
        others: Vec::new(),
    };
    source.map(|source| ChatTemplate::in_file(stands_in, &source, tokens)).transpose()
}

pub(crate) fn read_if_there<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, String> {
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
