//! Opens a directory in Hugging Face layout.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use moi_checkpoint::{
    BURNPACK_FILE, CONFIG_BYTES, Checkpoint, CheckpointError, INDEX_FILE, Quantisation, SINGLE_FILE,
    is_there, open_burnpack, open_quantised_safetensors, open_safetensors, parse_json, read_file,
};
use moi_models::Architecture;
use moi_text::{ChatTemplate, TemplateTokens, TextError, Tokenizer, brief};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    AdvisedSampling, Pretrained, PretrainedError,
    contents::{ADAPTER_CONFIG, Contents},
    end_tokens::end_tokens,
    extra_heads, quantised,
    special_tokens::{end_of_map, named, with_special_tokens},
    tokenizer_files::{TOKENIZER_CONFIG, read_tokenizer},
};

pub(crate) const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The directory of named chat templates, each in a file of its own.
const CHAT_TEMPLATES: &str = "additional_chat_templates";

/// The fields of tokenizer_config.json that are used here.
#[derive(Default)]
struct TokenizerConfig {
    chat_template: Templates,
    /// The control tokens, by name.
    tokens: Vec<(String, String)>,
}

impl TokenizerConfig {
    fn token(&self, name: &str) -> Option<&str> {
        self.tokens.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }
}

#[derive(Default, Deserialize)]
#[serde(untagged, expecting = "expected one value of its kind or a list of them")]
enum Templates {
    One(String),
    Listed(Vec<Template>),
    ByName(BTreeMap<String, String>),
    #[default]
    None,
}

#[derive(Deserialize)]
struct Template {
    name: String,
    template: String,
}

pub(crate) fn open(directory: &Path) -> Result<Pretrained, PretrainedError> {
    let path = directory.join(CONFIG);
    let config: Value = read(&path).map_err(|what| wrong(&path, what))?;
    let how = quantised::by_config(&config).map_err(|what| wrong(&path, what))?;
    let architecture = Architecture::from_config(&quantised::without_quantisation(&config))
        .map_err(|error| PretrainedError::Model { path: path.clone(), error })?;
    let generation_path = directory.join(GENERATION_CONFIG);
    let generation: Value =
        read_if_there(&generation_path).map_err(|what| wrong(&generation_path, what))?.unwrap_or_default();
    let tokenizer = read_tokenizer(directory);
    let text_config = tokenizer_config(directory);
    let usable = tokenizer.as_ref().ok().and_then(Option::as_ref);
    let of_map: Option<String> = end_of_map(directory);
    let of_config = text_config.as_ref().ok().and_then(|config| config.token("eos_token"));
    let eos_text: Option<&str> = of_config.or(of_map.as_deref());
    let listed = token_ids(&generation).map_err(|what| wrong(&generation_path, what))?;
    let in_config = token_ids(&config).map_err(|what| wrong(&path, what))?;
    let eos = ends(listed, in_config, eos_text, usable);
    let rows = architecture.config.vocab_size;
    let (architecture, checkpoint) = crate::fitted(architecture, weights(directory, how)?)?;
    let mut notes: Vec<String> = checkpoint.notes().to_vec();
    notes.extend(extra_heads::left_out(&checkpoint));
    if text_config.is_err() {
        notes.push(format!("{TOKENIZER_CONFIG} cannot be read, so an end token that it names is not known"));
    }
    if is_there(&directory.join(ADAPTER_CONFIG)) {
        notes.push(format!("{ADAPTER_CONFIG} stands beside the weights; that adapter is not applied"));
    }
    let sampling = AdvisedSampling::of_generation_config(&generation, &eos);
    Ok(Pretrained {
        path: directory.to_owned(),
        architecture,
        checkpoint,
        tokenizer: crate::within_rows(tokenizer, rows, directory).into(),
        chat_template: chat_template(directory, text_config),
        eos,
        sampling: sampling.map(|advice| advice.within(rows)).map_err(|what| wrong(&generation_path, what)),
        notes,
    })
}

/// Opens the weights. safetensors take precedence over other formats, because files beside them are usually made from
/// them.
fn weights(directory: &Path, how: Option<Quantisation>) -> Result<Checkpoint, PretrainedError> {
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
    if let Some(how) = how {
        return Ok(open_quantised_safetensors(directory, &how)?);
    }
    open_safetensors(directory).or_else(|error| {
        // Quantised tensors are stored in types that are not supported by themselves.
        let is_of_type =
            matches!(&error, CheckpointError::Format { what, .. } if what.contains("is not supported"));
        if !is_of_type {
            return Err(error.into());
        }
        match quantised::by_files(directory) {
            Ok(Some(how)) => Ok(open_quantised_safetensors(directory, &how)?),
            Ok(None) => Err(error.into()),
            Err(what) => Err(wrong(directory, what)),
        }
    })
}

/// The end tokens: those that `generation_config.json`, `config.json` and `tokenizer_config.json` name, and those
/// known by their texts. If `generation_config.json` names some, an end token of `config.json` that is an ordinary
/// text token is ignored, because it is then an unchanged default.
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
    // A multimodal model has the field in the config of its text model.
    let ids = config.get("eos_token_id").filter(|ids| !ids.is_null()).or(nested).cloned().unwrap_or_default();
    let wrong = || format!("eos_token_id is {ids}, expected a token id or a list of them");
    let listed: Vec<&Value> = match &ids {
        Value::Array(ids) => ids.iter().collect(),
        one => vec![one],
    };
    let mut found = Vec::new();
    for id in listed {
        match id.as_f64() {
            // The value is null, alone or in a list; transformers also writes -1 for it.
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
    let unreadable = |what: String| TextError::File { path: path.clone(), what };
    let config: Option<Map<String, Value>> = read_if_there(&path).map_err(unreadable)?;
    let mut config: Map<String, Value> = config.unwrap_or_default();
    let template = config.remove("chat_template").unwrap_or_default();
    let chat_template = Templates::deserialize(template)
        .map_err(|error| unreadable(format!("chat_template: {}", brief(&error.to_string()))))?;
    let config = with_special_tokens(directory, Value::Object(config));
    let tokens = named(&config).map_err(unreadable)?;
    let tokens = tokens.into_iter().map(|(name, token)| (name, token.content)).collect();
    Ok(TokenizerConfig { chat_template, tokens })
}

fn chat_template(
    directory: &Path,
    config: Result<TokenizerConfig, TextError>,
) -> Result<Option<ChatTemplate>, TextError> {
    let config = config?;
    let Some((path, source)) = template_source(directory, config.chat_template)? else { return Ok(None) };
    let mut tokens = TemplateTokens::default();
    for (name, text) in config.tokens {
        match name.as_str() {
            "bos_token" => tokens.bos = Some(text),
            "eos_token" => tokens.eos = Some(text),
            "pad_token" => tokens.pad = Some(text),
            "unk_token" => tokens.unk = Some(text),
            _ => tokens.others.push((name, text)),
        }
    }
    ChatTemplate::in_file(&path, &source, tokens).map(Some)
}

/// The chat template for a plain conversation, and the file that it comes from. If there are several templates, it is
/// the one named `default`. Templates in files of their own take precedence over those in tokenizer_config.json.
fn template_source(directory: &Path, listed: Templates) -> Result<Option<(PathBuf, String)>, TextError> {
    const DEFAULT: &str = "default";
    let folder = directory.join(CHAT_TEMPLATES);
    let own_files = [folder.join("default.jinja"), directory.join(CHAT_TEMPLATE)];
    if let Some(path) = own_files.into_iter().find(|path| is_there(path)) {
        let text =
            small_file(&path).and_then(|bytes| moi_files::text(bytes).map_err(|error| error.to_string()));
        return match text {
            Ok(text) => Ok(Some((path, text))),
            Err(what) => Err(TextError::File { path, what }),
        };
    }
    let no_default = |path: PathBuf, names: Vec<String>| {
        let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
        let what = format!("there are templates named {}, and none named `{DEFAULT}`", names.join(", "));
        TextError::Template { path: Some(path), what: brief(&what) }
    };
    let in_folder = names_in(&folder);
    if !in_folder.is_empty() {
        return Err(no_default(folder, in_folder));
    }
    let path = directory.join(TOKENIZER_CONFIG);
    let mut by_name: BTreeMap<String, String> = match listed {
        Templates::None => return Ok(None),
        Templates::One(source) => return Ok(Some((path, source))),
        Templates::Listed(listed) => {
            listed.into_iter().map(|template| (template.name, template.template)).collect()
        }
        Templates::ByName(by_name) => by_name,
    };
    match by_name.remove(DEFAULT) {
        Some(source) => Ok(Some((path, source))),
        None if by_name.is_empty() => Ok(None),
        None => Err(no_default(path, by_name.into_keys().collect())),
    }
}

/// The names of the templates in a folder, in order; empty if there is no such folder.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        files.filter_map(|file| file.strip_suffix(".jinja").map(str::to_owned)).collect();
    names.sort();
    names
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    /// The rendered template of a directory with these files, in which each template consists of plain text.
    fn rendered(name: &str, files: &[(&str, &str)]) -> Result<Option<String>, String> {
        let directory = std::env::temp_dir().join(format!("moi-templates-{name}-{}", std::process::id()));
        fs::create_dir_all(directory.join(CHAT_TEMPLATES)).unwrap();
        for (file, content) in files {
            fs::write(directory.join(file), content).unwrap();
        }
        let template = chat_template(&directory, tokenizer_config(&directory));
        fs::remove_dir_all(&directory).unwrap();
        let template = template.map_err(|error| error.to_string())?;
        Ok(template.map(|template| template.render(&[], true).unwrap()))
    }

    #[test]
    fn the_default_of_several_templates_is_rendered() {
        let own = ("chat_template.jinja", "own");
        let by_name =
            r#"{"chat_template": {"tool_use": "tools", "default": "{{ bos_token }}"}, "bos_token": "<s>"}"#;
        let listed =
            r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]}"#;
        let config = |text: &'static str| ("tokenizer_config.json", text);
        let map = ("special_tokens_map.json", r#"{"bos_token": "<b>"}"#);
        let default = ("additional_chat_templates/default.jinja", "default");
        let rag = ("additional_chat_templates/rag.jinja", "rag");
        let found = |text: &str| -> Result<Option<String>, String> { Ok(Some(text.to_owned())) };
        assert_eq!(rendered("object", &[config(by_name)]), found("<s>"));
        assert_eq!(rendered("map", &[config(by_name), map]), found("<b>"));
        assert_eq!(rendered("folder", &[config(by_name), own, default, rag]), found("default"));
        assert_eq!(rendered("own", &[config(by_name), own, rag]), found("own"));
        assert_eq!(rendered("none", &[]), Ok(None));
        assert_eq!(rendered("empty", &[config(r#"{"chat_template": []}"#)]), Ok(None));
        let several = rendered("several", &[config(listed)]).unwrap_err();
        assert!(several.contains("named `rag`, `tool_use`, and none named `default`"), "{several}");
        let several = rendered("rag", &[config(by_name), rag]).unwrap_err();
        assert!(several.contains("named `rag`, and none named `default`"), "{several}");
    }
}
