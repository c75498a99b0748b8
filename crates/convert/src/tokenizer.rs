//! Converts tokenizers between `tokenizer.json` and the lists of a GGUF file.

use std::{fs, path::Path};

use moi_checkpoint::gguf::{Gguf, Value};
use moi_pretrained::{AdvisedSampling, Pretrained};
use moi_text::{NEVER_MERGED, TokenKind, Vocabulary, VocabularyKind};
use serde_json::json;

use crate::{
    ConvertError,
    companions::write_json,
    source::{Files, Source},
};

/// Writes a GGUF file's tokenizer, chat template and end tokens in the files that transformers reads; returns a note
/// on what could not be written.
pub(crate) fn from_gguf(source: &Source, file: &Gguf, to: &Path) -> Result<Option<String>, ConvertError> {
    let write = |name: &str, text: &str| {
        let path = to.join(name);
        fs::write(&path, text).map_err(|error| ConvertError::io(&path, error))
    };
    let pretrained = &source.pretrained;
    let mut note = None;
    let token = |name: &str| {
        let id = file.metadata.usize(&format!("tokenizer.ggml.{name}_token_id"))?;
        file.metadata.list("tokenizer.ggml.tokens", Value::as_str)?.get(id).map(|&text| text.to_owned())
    };
    match &*pretrained.tokenizer {
        Ok(None) => {}
        Err(error) => note = Some(error.to_string()),
        Ok(Some(tokenizer)) => {
            let json = tokenizer.to_json().map_err(|error| ConvertError::file(file.path(), error))?;
            write("tokenizer.json", &json)?;
            let mut config = json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": pretrained.architecture.config.context_length,
            });
            for (field, name) in [
                ("bos_token", "bos"),
                ("eos_token", "eos"),
                ("pad_token", "padding"),
                ("unk_token", "unknown"),
            ] {
                if let Some(text) = token(name) {
                    config[field] = json!(text);
                }
            }
            write_json(&to.join("tokenizer_config.json"), &config)?;
        }
    }
    if let Ok(Some(template)) = &pretrained.chat_template {
        write("chat_template.jinja", template.source())?;
    }
    if !pretrained.eos.is_empty() {
        write_json(&to.join("generation_config.json"), &json!({ "eos_token_id": pretrained.eos }))?;
    }
    Ok(note)
}

/// The tokenizer's GGUF metadata; adds notes on what the metadata cannot hold.
pub(crate) fn to_gguf(
    source: &Source,
    architecture: &str,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Value)>, ConvertError> {
    let kept = |key: &str| key.starts_with("tokenizer.");
    let directory = match &source.files {
        Files::Gguf(file) => {
            let metadata = file.metadata.iter().filter(|(key, _)| kept(key));
            return Ok(metadata.map(|(key, value)| (key.to_owned(), value.clone())).collect());
        }
        Files::Directory(directory) => directory,
    };
    let pretrained = &source.pretrained;
    let mut metadata = Vec::new();
    let mut set = |key: &str, value: Value| metadata.push((format!("tokenizer.{key}"), value));
    let vocabulary = match &*pretrained.tokenizer {
        Ok(None) => None,
        Ok(Some(tokenizer)) => {
            let path = directory.join("tokenizer.json");
            // The file lacks the tokens that tokenizer_config.json adds.
            let json = if tokenizer.is_extended() {
                tokenizer.to_json().map(String::into_bytes)
            } else {
                Ok(fs::read(&path).map_err(|error| ConvertError::io(&path, error))?)
            };
            let listed = json.and_then(|json| {
                notes.extend(leading_spaces(&json));
                Vocabulary::from_tokenizer_json(&json, tokenizer.bos(), architecture == "gemma4")
            });
            Some(listed.map_err(|error| error.to_string()))
        }
        Err(error) => Some(Err(error.to_string())),
    };
    let vocabulary = match vocabulary.transpose() {
        Ok(Some(vocabulary)) => vocabulary,
        without => {
            notes.extend(without.err().map(|error| format!("the tokenizer is not in the file: {error}")));
            set("ggml.model", Value::String("none".into()));
            return Ok(metadata);
        }
    };
    notes.extend(differs(&vocabulary, pretrained));
    let bos = vocabulary.bos;
    let vocabulary = with_rows(vocabulary, pretrained.architecture.config.vocab_size, notes);
    let strings = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    match vocabulary.kind {
        VocabularyKind::ByteLevel { pre, merges } => {
            set("ggml.model", Value::String("gpt2".into()));
            set("ggml.pre", Value::String(pre));
            set("ggml.merges", strings(merges));
        }
        VocabularyKind::SentencePiece { scores, add_space_prefix } => {
            set("ggml.model", Value::String("llama".into()));
            set("ggml.pre", Value::String("default".into()));
            set(
                "ggml.scores",
                Value::Array(scores.into_iter().map(|score| Value::Float(score.into())).collect()),
            );
            set("ggml.add_space_prefix", Value::Bool(add_space_prefix));
        }
        VocabularyKind::Spaced { merges } => {
            set("ggml.model", Value::String("gemma4".into()));
            set("ggml.add_space_prefix", Value::Bool(false));
            // All scores are equal, as the format requires.
            let scores = vec![Value::Float(0.0); vocabulary.tokens.len()];
            set("ggml.scores", Value::Array(scores));
            set("ggml.merges", strings(merges));
        }
    }
    set("ggml.tokens", strings(vocabulary.tokens));
    let kinds = vocabulary.kinds.into_iter().map(|kind| Value::Signed(kind.to_ggml() as i64));
    set("ggml.token_type", Value::Array(kinds.collect()));
    metadata.extend(special_ids(source, bos, notes));
    match &pretrained.chat_template {
        Ok(Some(template)) => {
            let template = Value::String(template.source().to_owned());
            metadata.push(("tokenizer.chat_template".to_owned(), template));
        }
        Ok(None) => {}
        Err(error) => notes.push(format!("the chat template is not in the file: {error}")),
    }
    Ok(metadata)
}

/// The ids of special tokens; ids without a row in the embedding are left out.
fn special_ids(source: &Source, bos: Option<u32>, notes: &mut Vec<String>) -> Vec<(String, Value)> {
    let pretrained = &source.pretrained;
    let rows = pretrained.architecture.config.vocab_size as u64;
    let config = |field: &str| source.config.get(field).and_then(serde_json::Value::as_u64);
    let bos = bos.map(u64::from).filter(|&id| id < rows);
    let eos: Vec<u64> = pretrained.eos.iter().map(|&id| id.into()).filter(|&id| id < rows).collect();
    if eos.len() > 3 {
        notes.push(format!("of the end tokens {eos:?} the file names the first three"));
    }
    let ends = ["eos", "eot", "eom"].into_iter().zip(eos);
    let one = |name, id: Option<u64>| id.map(|id| (name, id));
    let others = [one("bos", bos.or(config("bos_token_id"))), one("padding", config("pad_token_id"))];
    let named = others.into_iter().flatten().chain(ends).filter(|&(_, id)| id < rows);
    let mut metadata: Vec<(String, Value)> =
        named.map(|(name, id)| (format!("tokenizer.ggml.{name}_token_id"), Value::Unsigned(id))).collect();
    metadata.push(("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(bos.is_some())));
    if let Ok(advice) = &pretrained.sampling {
        metadata.extend(advised(advice, notes));
    }
    metadata
}

/// The recommended sampling settings, under the keys that llama.cpp reads. A note lists the settings that have no
/// key.
fn advised(advice: &AdvisedSampling, notes: &mut Vec<String>) -> Vec<(String, Value)> {
    let AdvisedSampling { temperature, top_k, top_p, min_p, repetition_penalty, penalty_window, .. } =
        *advice;
    let held = AdvisedSampling {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        penalty_window,
        ..AdvisedSampling::default()
    };
    if *advice != held {
        notes.push("of how to sample, as generation_config.json advises, not all is in the file".to_owned());
    }
    // A penalty without a window covers all tokens (-1), where llama.cpp's default covers 64.
    let window = repetition_penalty.map(|_| penalty_window.filter(|&n| n > 0).map_or(-1, |n| n as i64));
    let float = |name, value: Option<f64>| value.map(|value| (name, Value::Float(value)));
    let fields = [
        top_k.map(|k| ("top_k", Value::Signed(k as i64))),
        float("top_p", top_p),
        float("min_p", min_p),
        float("temp", temperature),
        window.map(|n| ("penalty_last_n", Value::Signed(n))),
        float("penalty_repeat", repetition_penalty),
    ];
    fields.into_iter().flatten().map(|(name, value)| (format!("general.sampling.{name}"), value)).collect()
}

/// A note if a `tokenizer.json` puts its space prefix otherwise than llama.cpp, which puts a space before every piece
/// of text. Metaspace puts none if the text begins with a space, and with the scheme `first` none behind a control
/// token.
fn leading_spaces(json: &[u8]) -> Option<String> {
    let file: serde_json::Value = serde_json::from_slice(json).ok()?;
    let normalizer = file.get("normalizer").map(ToString::to_string).unwrap_or_default();
    let cutter = file.get("pre_tokenizer")?;
    let steps: Vec<&serde_json::Value> =
        match cutter.get("pretokenizers").and_then(serde_json::Value::as_array) {
            Some(steps) => steps.iter().collect(),
            None => vec![cutter],
        };
    let text = |step: &serde_json::Value, name: &str| Some(step.get(name)?.as_str()?.to_owned());
    let metaspace = steps.into_iter().find(|step| text(step, "type").as_deref() == Some("Metaspace"))?;
    let scheme = text(metaspace, "prepend_scheme");
    let never = metaspace.get("add_prefix_space").and_then(serde_json::Value::as_bool) == Some(false);
    let place = match scheme.as_deref() {
        Some("first") => "at the start of a text, or text behind a control token,",
        Some("never") => return None,
        None if never => return None,
        _ => "at the start of a text",
    };
    (!normalizer.contains("Prepend")).then(|| {
        format!(
            "spaces {place} may become other tokens than with the original tokenizer: GGUF cannot say that the \
             tokenizer puts no prefix there"
        )
    })
}

/// The vocabulary with exactly one token for each row of the embedding, as llama.cpp requires.
fn with_rows(mut vocabulary: Vocabulary, rows: usize, notes: &mut Vec<String>) -> Vocabulary {
    let padding = |id: usize| format!("[PAD{id}]");
    let tokens = vocabulary.tokens.len();
    // Tokens that only fill gaps between ids do not count as left out.
    let behind = vocabulary.tokens.iter().enumerate().skip(rows).filter(|(id, text)| **text != padding(*id));
    let left_out = behind.count();
    if left_out > 0 {
        notes.push(format!(
            "{left_out} tokens from {rows} on have no row in the embedding: they are left out"
        ));
    }
    vocabulary.tokens.truncate(rows);
    vocabulary.tokens.extend((tokens..rows).map(padding));
    vocabulary.kinds.resize(rows, TokenKind::Unused);
    if let VocabularyKind::SentencePiece { scores, .. } = &mut vocabulary.kind {
        scores.resize(rows, NEVER_MERGED);
    }
    vocabulary
}

/// A note if the tokenizer rebuilt from the file differs: a GGUF file cannot say how a tokenizer normalises text, or
/// that a control token swallows the spaces beside it.
fn differs(vocabulary: &Vocabulary, pretrained: &Pretrained) -> Option<String> {
    const TEXTS: &[&str] = &[
        "The quick brown fox, 1234567 times; it's DON'T\u{2019}t.",
        "  two  spaces\n\n\tand tabs \n",
        "na\u{ef}ve nai\u{308}ve \u{fb01}ne \u{4e2d}\u{6587} \u{1f600}",
        "fn main() { println!(\"{}\", x_1 + 2.5e-3); }",
    ];
    let original = pretrained.tokenizer.as_ref().ok()?.as_ref()?;
    let rebuilt = match vocabulary.clone().into_tokenizer() {
        Ok(rebuilt) => rebuilt,
        Err(error) => return Some(format!("the tokenizer in the file cannot be used: {error}")),
    };
    let other = TEXTS.iter().find(|text| match (original.encode(text, false), rebuilt.encode(text, false)) {
        (Ok(a), Ok(b)) => a != b,
        _ => true,
    });
    let strips = original.strips_spaces().then_some("its control tokens swallow spaces");
    let what = other.map(|text| format!("it cuts {text:?} otherwise")).or(strips.map(str::to_owned))?;
    Some(format!("the tokenizer in the file is not quite the original one: {what}"))
}
