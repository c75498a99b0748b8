//! Opens a GGUF file, which holds a complete model.

use std::{collections::HashMap, path::Path};

use moi_checkpoint::gguf::{Gguf, Metadata, Value};
use moi_models::Architecture;
use moi_text::{
    ChatTemplate, DEFAULT_PRE_TOKENIZER, TemplateTokens, TextError, TokenKind, Vocabulary, VocabularyKind,
    adds_begin_token,
};

use crate::{
    AdvisedSampling, LazyTokenizer, Pretrained, PretrainedError,
    end_tokens::{end_tokens, fill_in_ends, is_control, is_looked_up},
};

const TOKENS: &str = "tokenizer.ggml.tokens";
const PRE: &str = "tokenizer.ggml.pre";
const MERGES: &str = "tokenizer.ggml.merges";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

pub(crate) fn open(path: &Path) -> Result<Pretrained, PretrainedError> {
    let file = Gguf::open(path)?;
    if let Some(what) = other_kind(&file.metadata) {
        return Err(PretrainedError::NotAModel { path: path.to_owned(), what: what.to_owned() });
    }
    let architecture = Architecture::from_config(&file.config()?)
        .map_err(|error| PretrainedError::Model { path: path.to_owned(), error })?;
    let meta = &file.metadata;
    let mut vocabulary = vocabulary(meta).map_err(|what| TextError::Vocabulary(what).in_file(path));
    let dropped = match &mut vocabulary {
        Ok(Some(vocabulary)) => vocabulary.drop_unusable_merges(),
        Ok(None) | Err(_) => 0,
    };
    let listed = vocabulary.as_ref().ok().and_then(Option::as_ref);
    let template = meta.str(CHAT_TEMPLATE);
    let chat_template =
        template.map(|source| ChatTemplate::in_file(path, source, template_tokens(meta, listed)));
    let eos = ends(meta, listed);
    let odd = unknown_kinds(meta).into_iter().chain(unusable_merges(dropped));
    let notes = missing_pre(meta).into_iter().chain(not_utf8(meta)).chain(odd).collect();
    let rows = architecture.config.vocab_size;
    let (architecture, checkpoint) = crate::fitted(architecture, file.checkpoint()?)?;
    let at = path.to_owned();
    let tokenizer = LazyTokenizer::new(move || {
        let tokenizer = vocabulary.and_then(|vocabulary| {
            vocabulary.map(Vocabulary::into_tokenizer).transpose().map_err(|error| error.in_file(&at))
        });
        crate::within_rows(tokenizer, rows, &at)
    });
    Ok(Pretrained {
        path: path.to_owned(),
        architecture,
        checkpoint,
        chat_template: chat_template.transpose(),
        tokenizer,
        eos,
        sampling: AdvisedSampling::of_gguf(meta).map(|advice| advice.within(rows)).map_err(|what| {
            PretrainedError::File { path: path.to_owned(), what: format!("general.sampling: {what}") }
        }),
        notes,
    })
}

/// The message for a GGUF file that is no language model, because other things are stored as GGUF, too.
fn other_kind(meta: &Metadata) -> Option<&'static str> {
    match (meta.str("general.type"), meta.str("general.architecture")) {
        (Some("adapter"), _) => Some(
            "it holds an adapter, no whole model; merge it into its base model first (llama-export-lora)",
        ),
        (Some("mmproj"), _) | (_, Some("clip")) => {
            Some("it holds the projector of a model for images; name the .gguf file of the language model")
        }
        (Some("imatrix"), _) => Some("it holds an importance matrix, no model"),
        _ => None,
    }
}

/// A note, as llama.cpp gives it, if a byte-level vocabulary does not name its pre-tokenizer.
fn missing_pre(meta: &Metadata) -> Option<String> {
    let is_missing =
        meta.str("tokenizer.ggml.model") == Some("gpt2") && meta.str(PRE).is_none_or(str::is_empty);
    is_missing.then(|| {
        "the file lacks tokenizer.ggml.pre, so text is cut in a default way that the model may not have been trained \
         with, and answers may be worse; convert the model again, with a current converter"
            .to_owned()
    })
}

/// A note on tokens of a kind that ggml does not define. They count as text, as in llama.cpp.
fn unknown_kinds(meta: &Metadata) -> Option<String> {
    let Some(Value::Array(kinds)) = meta.get(TOKEN_TYPE) else { return None };
    let is_unknown = |kind: &&Value| kind.as_usize().and_then(TokenKind::from_ggml).is_none();
    match kinds.iter().filter(is_unknown).count() {
        0 => None,
        count => Some(format!("{count} of its tokens are of an unknown kind and are taken for text")),
    }
}

/// A note on merges that were left out.
fn unusable_merges(dropped: usize) -> Option<String> {
    (dropped > 0).then(|| {
        format!(
            "{dropped} of its merges are no pair of tokens that make a third one and are left out: text may be cut into \
             other tokens"
        )
    })
}

/// Notes on strings that are used but not UTF-8. llama.cpp uses their bytes unchanged; here each invalid sequence
/// becomes U+FFFD.
fn not_utf8(meta: &Metadata) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let mut add = |key: &str, what: &str, effect: &str| match meta.num_replaced(key) {
        0 => {}
        count => notes.push(format!("{count} of its {what} are not UTF-8{effect}")),
    };
    add(TOKENS, "tokens", ": no text is cut into them, and they are printed as U+FFFD");
    add(MERGES, "merges", " and are left out: text may be cut into other tokens");
    if meta.num_replaced(CHAT_TEMPLATE) > 0 {
        notes.push("its chat template is not UTF-8: U+FFFD stands for the bytes that are none".to_owned());
    }
    notes
}

fn token_id(meta: &Metadata, name: &str) -> Option<u32> {
    u32::try_from(meta.usize(&format!("tokenizer.ggml.{name}_token_id"))?).ok()
}

fn vocabulary(meta: &Metadata) -> Result<Option<Vocabulary>, String> {
    check_types(meta)?;
    let model = match meta.str("tokenizer.ggml.model") {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(model) => model,
    };
    let strings = |key: &str| listed(meta, key, "a text", |value| value.as_str().map(str::to_owned));
    let merges = || -> Result<Vec<String>, String> {
        let mut merges = strings("merges")?;
        if meta.num_replaced(MERGES) > 0 {
            // The merged text would be invalid, too, so no token of the vocabulary has it.
            merges.retain(|merge| !merge.contains(char::REPLACEMENT_CHARACTER));
        }
        Ok(merges)
    };
    // llama.cpp treats an empty name as a missing one.
    let pre = meta.str(PRE).filter(|pre| !pre.is_empty()).unwrap_or(DEFAULT_PRE_TOKENIZER);
    let kind = match model {
        "gpt2" => VocabularyKind::ByteLevel { pre: pre.to_owned(), merges: merges()? },
        "llama" => VocabularyKind::SentencePiece {
            scores: listed(meta, "scores", "a finite number", |value| {
                value.as_f64().map(|score| score as f32).filter(|score| score.is_finite())
            })?,
            add_space_prefix: meta.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true),
        },
        "gemma4" => VocabularyKind::Spaced { merges: merges()? },
        other => {
            return Err(format!(
                "tokenizer model `{other}` is not supported (supported: gpt2, llama, gemma4)"
            ));
        }
    };
    let kinds = match meta.get(TOKEN_TYPE) {
        None => Vec::new(),
        Some(_) => listed(meta, "token_type", "a whole number", |value| match value {
            // A token of an unknown kind is ordinary text, as in llama.cpp.
            Value::Unsigned(_) | Value::Signed(_) => {
                Some(value.as_usize().and_then(TokenKind::from_ggml).unwrap_or(TokenKind::Normal))
            }
            _ => None,
        })?,
    };
    // These models also get a begin token in llama.cpp if the file does not say.
    let adds_bos = match model {
        // llama.cpp adds the begin token of this model whatever the file says.
        "gemma4" => token_id(meta, "bos").is_some(),
        model => {
            let usual = model == "llama" || adds_begin_token(pre);
            meta.bool("tokenizer.ggml.add_bos_token").unwrap_or(usual)
        }
    };
    let tokens = strings("tokens")?;
    // llama.cpp's default ids if the file names no begin token.
    let usual = (if model == "llama" { 1 } else { 11 } as usize).min(tokens.len().saturating_sub(1)) as u32;
    let bos = adds_bos.then(|| token_id(meta, "bos").unwrap_or(usual));
    let adds_eos = meta.bool("tokenizer.ggml.add_eos_token").unwrap_or(false);
    let eos = token_id(meta, "eos").filter(|_| adds_eos);
    let kinds = with_known_ends(&tokens, kinds);
    let rstrip = phi3_rstrip(meta, &tokens, &kinds);
    Ok(Some(Vocabulary { kind, tokens, kinds, bos, eos, rstrip }))
}

/// Refuses settings of a wrong type, as llama.cpp does, because they would otherwise count as absent.
fn check_types(meta: &Metadata) -> Result<(), String> {
    const NUMBERS: &[&str] = &["bos", "eos", "eot", "eom", "padding", "unknown"];
    const FLAGS: &[&str] = &["add_bos_token", "add_eos_token", "add_space_prefix"];
    let ids = NUMBERS.iter().map(|name| (format!("{name}_token_id"), "a token id"));
    let flags = FLAGS.iter().map(|name| ((*name).to_owned(), "true or false"));
    let texts = ["model", "pre"].map(|name| (name.to_owned(), "a text"));
    for (name, expected) in ids.chain(flags).chain(texts) {
        let key = format!("tokenizer.ggml.{name}");
        let is_right = match (meta.get(&key), expected) {
            (None, _) | (Some(Value::Bool(_)), "true or false") | (Some(Value::String(_)), "a text") => true,
            // -1 and the largest number stand for no token.
            (Some(Value::Unsigned(_) | Value::Signed(_)), "a token id") => true,
            _ => false,
        };
        if !is_right {
            return Err(format!("{key} is not {expected}"));
        }
    }
    Ok(())
}

/// The entries of a list about tokens, converted by `read`.
fn listed<T>(
    meta: &Metadata,
    key: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, String> {
    let key = format!("tokenizer.ggml.{key}");
    match meta.get(&key) {
        Some(Value::Array(values)) => {
            let entry = |(at, value)| read(value).ok_or_else(|| format!("{key}[{at}] is not {expected}"));
            values.iter().enumerate().map(entry).collect()
        }
        Some(_) => Err(format!("{key} is no list")),
        None => Err(format!("{key} is missing")),
    }
}

/// The control tokens of Phi-3, which swallow the spaces behind them. Files do not state this; llama.cpp also
/// recognises them by the model's name.
fn phi3_rstrip(meta: &Metadata, tokens: &[String], kinds: &[TokenKind]) -> Vec<String> {
    const KEPT: &[&str] = &["<unk>", "<s>", "<|endoftext|>"];
    let name = meta.str("general.name").unwrap_or_default().to_lowercase();
    if !name.contains("phi-3") && !name.contains("phi3") {
        return Vec::new();
    }
    let control = tokens.iter().zip(kinds).filter(|(_, kind)| **kind == TokenKind::Control);
    control.map(|(text, _)| text.clone()).filter(|text| !KEPT.contains(&text.as_str())).collect()
}

fn template_tokens(meta: &Metadata, vocabulary: Option<&Vocabulary>) -> TemplateTokens {
    let text = |name| vocabulary?.tokens.get(token_id(meta, name)? as usize).cloned();
    TemplateTokens {
        bos: text("bos"),
        eos: text("eos"),
        pad: text("padding"),
        unk: text("unknown"),
        others: Vec::new(),
    }
}

fn ends(meta: &Metadata, vocabulary: Option<&Vocabulary>) -> Vec<u32> {
    let ids = vocabulary.map(|vocabulary| ids(&vocabulary.tokens)).unwrap_or_default();
    let id = |text: &str| ids.get(text).copied();
    let declared = ["eos", "eot", "eom"].iter().filter_map(|name| token_id(meta, name));
    end_tokens(declared.chain(fill_in_ends(id)), id)
}

/// The ids of the texts that decide about end tokens; if several tokens have the same text, the first one counts.
fn ids(tokens: &[String]) -> HashMap<&str, u32> {
    let mut ids = HashMap::new();
    for (id, token) in (0..).zip(tokens).filter(|(_, token)| is_looked_up(token)) {
        ids.entry(token.as_str()).or_insert(id);
    }
    ids
}

/// Makes known end tokens and markers of fill-in-the-middle prompts control tokens, whatever kind the file states,
/// because some converters list them as text.
fn with_known_ends(tokens: &[String], mut kinds: Vec<TokenKind>) -> Vec<TokenKind> {
    let ids = ids(tokens);
    let id = |text: &str| ids.get(text).copied();
    // A list of another length is refused later, with the vocabulary.
    if kinds.is_empty() {
        kinds.resize(tokens.len(), TokenKind::Normal);
    }
    for (text, kind) in tokens.iter().zip(&mut kinds) {
        if is_looked_up(text) && is_control(text, id) {
            *kind = TokenKind::Control;
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// llama.cpp's decisions about a small vocabulary.
    #[derive(Deserialize)]
    struct Row {
        texts: Vec<String>,
        kind: usize,
        eos: u64,
        ends: Vec<u32>,
        control: Vec<u32>,
        /// The decisions expected here, if they differ.
        ours: Option<Vec<u32>>,
    }

    #[derive(Deserialize)]
    struct Table {
        letters: usize,
        rows: Vec<Row>,
    }

    fn metadata(letters: usize, row: &Row) -> Metadata {
        let letters = (0..letters).map(|at| char::from(33 + at as u8).to_string());
        let texts = letters.clone().chain(row.texts.iter().cloned()).chain(["<stop>".to_owned()]);
        let kinds = letters.map(|_| 1).chain(row.texts.iter().map(|_| row.kind)).chain([3]);
        let pairs = [
            ("model", Value::String("gpt2".into())),
            ("pre", Value::String("gpt-2".into())),
            ("tokens", Value::Array(texts.map(Value::String).collect())),
            ("merges", Value::Array(Vec::new())),
            ("token_type", Value::Array(kinds.map(|kind| Value::Signed(kind as i64)).collect())),
            ("eos_token_id", Value::Unsigned(row.eos)),
        ];
        pairs.into_iter().map(|(name, value)| (format!("tokenizer.ggml.{name}"), value)).collect()
    }

    #[test]
    fn ends_are_those_of_llama_cpp() {
        let table: Table = serde_json::from_str(include_str!("end_tokens.json")).unwrap();
        let mut wrong = Vec::new();
        for row in &table.rows {
            let meta = metadata(table.letters, row);
            let vocabulary = vocabulary(&meta).unwrap().unwrap();
            let mut found = ends(&meta, Some(&vocabulary));
            found.sort_unstable();
            let of_kind = |kind| (0u32..).zip(&vocabulary.kinds).filter(move |(_, k)| **k == kind);
            let control: Vec<u32> = of_kind(TokenKind::Control).map(|(id, _)| id).collect();
            // A token that the file itself marks as control stays a control token.
            let is_kept = row.control.iter().all(|id| control.contains(id) || row.ours.is_some())
                && (row.kind == 3 || control.iter().all(|id| row.control.contains(id) || row.ours.is_some()));
            if found != *row.ours.as_ref().unwrap_or(&row.ends) || !is_kept {
                wrong.push(format!(
                    "{:?} of kind {}: ends {found:?}, control {control:?}",
                    row.texts, row.kind
                ));
            }
        }
        assert!(table.rows.len() > 300 && wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn unknown_kinds_of_tokens_are_text() {
        let row = |kind: usize| Row {
            texts: vec!["x".to_owned()],
            kind,
            eos: 0,
            ends: Vec::new(),
            control: Vec::new(),
            ours: None,
        };
        let meta = metadata(2, &row(7));
        assert_eq!(vocabulary(&meta).unwrap().unwrap().kinds[2], TokenKind::Normal);
        assert!(unknown_kinds(&meta).unwrap().starts_with("1 of its tokens"));
        assert_eq!(unknown_kinds(&metadata(2, &row(4))), None);
    }

    #[test]
    fn llama_cpps_sampling_is_read() {
        let read = |pairs: &[(&str, Value)]| {
            let pairs =
                pairs.iter().cloned().map(|(name, value)| (format!("general.sampling.{name}"), value));
            AdvisedSampling::of_gguf(&pairs.collect())
        };
        assert_eq!(read(&[]), Ok(AdvisedSampling::default()));
        let found = read(&[
            ("temp", Value::Float(0.6)),
            ("top_k", Value::Signed(20)),
            ("top_p", Value::Float(0.95)),
            ("min_p", Value::Float(0.05)),
            ("penalty_repeat", Value::Float(1.05)),
            ("mirostat", Value::Signed(2)),
            ("xtc_probability", Value::Float(0.0)),
            ("sequence", Value::String("kpt".into())),
        ]);
        let expected = AdvisedSampling {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            min_p: Some(0.05),
            repetition_penalty: Some(1.05),
            penalty_window: Some(64),
            left_out: vec!["mirostat 2".to_owned(), "sequence \"kpt\"".to_owned()],
            ..AdvisedSampling::default()
        };
        assert_eq!(found, Ok(expected));
        let window =
            |last| read(&[("penalty_repeat", Value::Float(1.1)), ("penalty_last_n", Value::Signed(last))]);
        assert_eq!(window(-1).unwrap().penalty_window, Some(0));
        assert_eq!(window(0).unwrap(), AdvisedSampling::default());
        assert_eq!(window(5).unwrap().penalty_window, Some(5));
        let odd = read(&[
            ("temp", Value::Float(-1.0)),
            ("top_p", Value::Float(1.5)),
            ("min_p", Value::Float(-1.0)),
        ]);
        let odd = odd.unwrap();
        assert_eq!((odd.temperature, odd.top_p, odd.min_p), (Some(0.0), Some(1.0), Some(0.0)));
        assert!(read(&[("penalty_repeat", Value::Float(0.0))]).unwrap_err().contains("a number above 0"));
    }
}
