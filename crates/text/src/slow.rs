//! Makes tokenizers of model directories without a `tokenizer.json`, from the files that it would have been made of.
//!
//! Each set of files is written as the `tokenizer.json` that transformers makes of it (`convert_slow_tokenizer.py`)
//! and read as such, so that the same checks apply. `tests/reference/slow_tokenizers.py` compares both.

mod byte_pairs;
mod protobuf;
mod sentencepiece;

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{ExtraToken, TextError, Tokenizer};

/// The tokenizer files that models have instead of, or beside, a `tokenizer.json`.
///
/// # Examples
/// ```
/// # use std::path::Path;
/// #
/// use moi_text::{SlowFiles, SlowTokenizer};
/// use serde_json::json;
///
/// // The bytes of `a`, `b` and `ab` are in base64.
/// let tekken = json!({
///     "config": {"pattern": "[a-z]+"}, "special_tokens": [{"rank": 0, "token_str": "<s>"}],
///     "vocab": [{"token_bytes": "YQ=="}, {"token_bytes": "Yg=="}, {"token_bytes": "YWI="}],
/// });
/// let (tekken, config, path) = (tekken.to_string(), json!({}), Path::new("tekken.json"));
/// let files = SlowFiles::Tekken(tekken.as_bytes());
/// let slow = SlowTokenizer { files, config: &config, model_type: None, extra: &[], path };
/// assert_eq!(slow.into_tokenizer()?.encode("ab", false)?, [3]);
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub enum SlowFiles<'a> {
    /// `tokenizer.model`: a SentencePiece model, BPE or Unigram.
    SentencePiece(&'a [u8]),
    /// Byte-level BPE, as GPT-2 has it.
    BytePairs {
        /// `vocab.json`: ids by token.
        vocab: &'a [u8],
        /// `merges.txt`: pairs of tokens, best first.
        merges: &'a [u8],
    },
    /// `tekken.json`: Mistral's byte-level BPE by ranks.
    Tekken(&'a [u8]),
}

/// A tokenizer whose files have not been converted to a `tokenizer.json` yet.
///
/// # Examples
/// ```
/// use std::path::Path;
///
/// use moi_text::{SlowFiles, SlowTokenizer};
///
/// let vocab = br#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}"#;
/// let files = SlowFiles::BytePairs { vocab, merges: b"a b\n" };
/// let config = serde_json::json!({"tokenizer_class": "GPT2Tokenizer"});
/// let path = Path::new("vocab.json");
/// let slow = SlowTokenizer { files, config: &config, model_type: None, extra: &[], path };
/// assert_eq!(slow.into_tokenizer()?.encode("ab", false)?, [2]);
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct SlowTokenizer<'a> {
    /// The files it is made of.
    pub files: SlowFiles<'a>,
    /// The contents of tokenizer_config.json; null if there is none.
    pub config: &'a Value,
    /// `model_type` in config.json, which decides the pre-tokenizer if there is no tokenizer_config.json.
    pub model_type: Option<&'a str>,
    /// Tokens that the files lack, in the order of their ids.
    pub extra: &'a [ExtraToken],
    /// The file that errors name.
    pub path: &'a Path,
}

/// A `tokenizer.json`, and what it does not hold.
struct Written {
    json: Value,
    /// The token before a prompt, if there is one.
    bos: Option<String>,
    /// Control tokens that the tokenizer's class in transformers adds even if the configuration does not list them.
    special: Vec<String>,
    /// Whether tokens that the file lacks are searched in the text before normalisation, whatever their flags say.
    /// The library would put a space before each token that it searches in the normalised text, too.
    finds_unnormalised: bool,
}

impl SlowTokenizer<'_> {
    /// Makes the tokenizer.
    ///
    /// # Errors
    /// If the files are broken or of a kind that is not converted.
    pub fn into_tokenizer(self) -> Result<Tokenizer, TextError> {
        let written = match self.files {
            SlowFiles::SentencePiece(model) => sentencepiece::written(model, self.config),
            SlowFiles::BytePairs { vocab, merges } => {
                byte_pairs::written(vocab, merges, &self.class(), self.config)
            }
            SlowFiles::Tekken(file) => byte_pairs::written_by_ranks(file, self.config),
        };
        let in_file = |error: TextError| error.in_file(self.path);
        let written = written.map_err(|what| in_file(TextError::Vocabulary(what)))?;
        let mut extra = self.extra.to_vec();
        let listed = special_tokens(self.config).chain(written.special.into_iter().map(ExtraToken::control));
        for token in listed {
            if !token.content.is_empty() && extra.iter().all(|known| known.content != token.content) {
                extra.push(token);
            }
        }
        if written.finds_unnormalised {
            extra.iter_mut().for_each(|token| token.normalized = Some(false));
        }
        let json = written.json.to_string();
        let tokenizer = Tokenizer::from_json_with(json.as_bytes(), &extra).map_err(in_file)?;
        Ok(tokenizer.converted(written.bos.as_deref(), self.path))
    }

    /// The class of transformers that reads these files, without the suffix `Fast`.
    fn class(&self) -> String {
        let class = self.config.get("tokenizer_class").and_then(Value::as_str);
        let class = class.map(|class| class.strip_suffix("Fast").unwrap_or(class));
        let by_model = match self.model_type.unwrap_or_default() {
            "gpt2" | "gpt_neo" | "gptj" | "gpt_bigcode" | "opt" => "GPT2Tokenizer",
            "codegen" | "phi" => "CodeGenTokenizer",
            "gpt_neox" => "GPTNeoXTokenizer",
            "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" => "Qwen2Tokenizer",
            _ => "",
        };
        match class {
            Some(class) if !class.is_empty() && class != "PreTrainedTokenizer" => class.to_owned(),
            _ => by_model.to_owned(),
        }
    }
}

/// The control tokens that a configuration lists.
fn special_tokens(config: &Value) -> impl Iterator<Item = ExtraToken> + '_ {
    let single = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
    let lists = ["additional_special_tokens", "extra_special_tokens"];
    let listed = lists.into_iter().filter_map(move |key| config.get(key)?.as_array()).flatten();
    single.into_iter().filter_map(move |key| config.get(key)).chain(listed).filter_map(ExtraToken::named)
}

/// The text of the token that a configuration has under this key.
fn named<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    let token = config.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn flag(config: &Value, key: &str) -> Option<bool> {
    config.get(key).and_then(Value::as_bool)
}

/// Makes an entry of `added_tokens`.
fn added(id: usize, content: &str, special: bool, normalized: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special, "normalized": normalized,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// Makes a `tokenizer.json` of its parts.
fn document(model: Value, added: Vec<Value>, steps: [Value; 4]) -> Value {
    let [normalizer, pre_tokenizer, post_processor, decoder] = steps;
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor,
        "decoder": decoder, "model": model,
    })
}

/// Makes a BPE model.
fn bpe(vocab: Map<String, Value>, merges: Vec<Value>, unknown: Option<&str>) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    })
}

/// Refuses tokens, given by their lengths in bytes, that would take long to split into merges: each token is cut in
/// two at each place, and both parts are looked up.
fn check_parts(lengths: impl Iterator<Item = usize>) -> Result<(), String> {
    /// Real vocabularies come to a tenth of it, and 262,144 tokens of 32 bytes each would reach it.
    const MAX_BYTES: u64 = 1 << 28;
    let bytes: u64 = lengths.map(|length| (length as u64).pow(2)).fold(0, u64::saturating_add);
    match bytes > MAX_BYTES {
        true => Err(format!(
            "its tokens are too many and too long to be looked for in one another: the squares of their lengths \
             come to {bytes} bytes, expected {MAX_BYTES} at most"
        )),
        false => Ok(()),
    }
}

/// The post-processor for tokens before and behind a prompt, needed if there is an end token: the library has one
/// step for both.
fn around(bos: Option<(&str, usize)>, eos: (&str, usize)) -> Value {
    let piece = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let mut single: Vec<Value> = bos.iter().map(|&(token, _)| piece(token)).collect();
    single.push(text);
    single.push(piece(eos.0));
    let mut tokens = Map::new();
    for (token, id) in bos.into_iter().chain([eos]) {
        tokens.insert(token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    }
    json!({ "type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    /// The same text in all encodings that editors and shells write: UTF-8, UTF-8 with a byte order mark, and UTF-16
    /// in both byte orders.
    fn written_by_all(text: &str) -> [Vec<u8>; 4] {
        let marked = format!("\u{feff}{text}");
        let utf16 =
            |order: fn(u16) -> [u8; 2]| -> Vec<u8> { marked.encode_utf16().flat_map(order).collect() };
        [
            text.as_bytes().to_vec(),
            marked.clone().into_bytes(),
            utf16(u16::to_le_bytes),
            utf16(u16::to_be_bytes),
        ]
    }

    #[test]
    fn only_real_vocabularies_are_looked_through() {
        // This is the number of tokens that real vocabularies have, including some runs of spaces.
        let real = std::iter::repeat_n(10, 262_144).chain(std::iter::repeat_n(128, 2000));
        assert_eq!(check_parts(real), Ok(()));
        let long = check_parts(std::iter::repeat_n(2048, 100_000)).unwrap_err();
        assert!(long.contains("too many and too long"), "{long}");
    }

    fn made_of(files: SlowFiles<'_>) -> Tokenizer {
        let config = json!({ "tokenizer_class": "GPT2Tokenizer" });
        let path = Path::new("file");
        SlowTokenizer { files, config: &config, model_type: None, extra: &[], path }.into_tokenizer().unwrap()
    }

    #[test]
    fn files_are_read_whatever_wrote_them() {
        const VOCAB: &str = r#"{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}"#;
        const MERGES: &str = "a b\n";
        let tekken = json!({
            "config": { "pattern": "[a-z]+" },
            "special_tokens": [{ "rank": 0, "token_str": "<s>" }, { "rank": 1, "token_str": "</s>" }],
            "vocab": [{ "token_bytes": "YQ==" }, { "token_bytes": "Yg==" }, { "token_bytes": "YWI=" }],
        });
        for vocab in written_by_all(VOCAB) {
            for merges in written_by_all(MERGES) {
                let tokenizer = made_of(SlowFiles::BytePairs { vocab: &vocab, merges: &merges });
                assert_eq!(tokenizer.encode("ab", false).unwrap(), [2], "{vocab:?} {merges:?}");
            }
        }
        for file in written_by_all(&tekken.to_string()) {
            let tokenizer = made_of(SlowFiles::Tekken(&file));
            assert_eq!(tokenizer.encode("ab", false).unwrap().last(), Some(&4), "{file:?}");
        }
        let pairs = SlowFiles::BytePairs { vocab: VOCAB.as_bytes(), merges: MERGES.as_bytes() };
        for file in written_by_all(&made_of(pairs).to_json().unwrap()) {
            assert_eq!(Tokenizer::from_json(&file).unwrap().encode("ab", false).unwrap(), [2]);
        }
    }
}
