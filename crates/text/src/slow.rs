//! Tokenizers of model directories without a `tokenizer.json`, from the files that it would have been made of.
//!
//! Each is written as the `tokenizer.json` that transformers makes of it (`convert_slow_tokenizer.py`), and read as such:
//! what is checked there is checked here, too. `tests/reference/slow_tokenizers.py` compares both.

mod byte_pairs;
mod protobuf;
mod sentencepiece;

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{ExtraToken, TextError, Tokenizer};

/// The files of a tokenizer, as models were published before `tokenizer.json`, or beside it.
#[derive(Clone, Copy, Debug)]
pub enum SlowFiles<'a> {
    /// `tokenizer.model`: a model of SentencePiece, of pairs or of words (Unigram).
    SentencePiece(&'a [u8]),
    /// Byte-level BPE, as GPT-2 has it.
    BytePairs {
        /// `vocab.json`: ids by token.
        vocab: &'a [u8],
        /// `merges.txt`: pairs, best first.
        merges: &'a [u8],
    },
    /// `tekken.json`: Mistral's byte-level BPE by ranks.
    Tekken(&'a [u8]),
}

/// A tokenizer that is not yet a `tokenizer.json`.
#[derive(Clone, Copy, Debug)]
pub struct SlowTokenizer<'a> {
    /// What it is made of.
    pub files: SlowFiles<'a>,
    /// What tokenizer_config.json says; null if there is none.
    pub config: &'a Value,
    /// `model_type` in config.json: without a tokenizer_config.json, it tells how text is cut.
    pub model_type: Option<&'a str>,
    /// Tokens that the files lack, in the order of their ids.
    pub extra: &'a [ExtraToken],
    /// The file that errors name.
    pub path: &'a Path,
}

/// A `tokenizer.json`, and what does not stand in it.
struct Written {
    json: Value,
    /// The token before a prompt, if there is to be one.
    bos: Option<String>,
    /// Control tokens that the library adds without being told.
    special: Vec<String>,
    /// Whether tokens that the file lacks are looked for in the text as it is written, whatever is said of them: the
    /// library would put a space before one that it looks for in the normalised text, too.
    finds_unnormalised: bool,
}

impl SlowTokenizer<'_> {
    /// Makes the tokenizer.
    ///
    /// # Errors
    /// If the files are broken, or of a kind that is not converted.
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

    /// The class of transformers that reads these files, without the suffix of its fast form.
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

/// The control tokens that a configuration names.
fn special_tokens(config: &Value) -> impl Iterator<Item = ExtraToken> + '_ {
    let single = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
    let lists = ["additional_special_tokens", "extra_special_tokens"];
    let listed = lists.into_iter().filter_map(move |key| config.get(key)?.as_array()).flatten();
    single.into_iter().filter_map(move |key| config.get(key)).chain(listed).filter_map(ExtraToken::named)
}

/// The text of a token that a configuration names.
fn named<'a>(config: &'a Value, key: &str) -> Option<&'a str> {
    let token = config.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn flag(config: &Value, key: &str) -> Option<bool> {
    config.get(key).and_then(Value::as_bool)
}

/// An entry of `added_tokens`.
fn added(id: usize, content: &str, special: bool, normalized: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special, "normalized": normalized,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

/// The parts of a `tokenizer.json`.
fn document(model: Value, added: Vec<Value>, steps: [Value; 4]) -> Value {
    let [normalizer, pre_tokenizer, post_processor, decoder] = steps;
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor,
        "decoder": decoder, "model": model,
    })
}

/// A BPE model.
fn bpe(vocab: Map<String, Value>, merges: Vec<Value>, unknown: Option<&str>) -> Value {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges,
    })
}

/// Refuses tokens of these lengths in bytes that would take long to look for in one another: each token is cut in two at
/// each place, and both parts are looked up.
fn check_parts(lengths: impl Iterator<Item = usize>) -> Result<(), String> {
    /// Real vocabularies come to a tenth of it: 262,144 tokens of 32 bytes each would reach it.
    const MOST_BYTES: u64 = 1 << 28;
    let bytes: u64 = lengths.map(|length| (length as u64).pow(2)).fold(0, u64::saturating_add);
    match bytes > MOST_BYTES {
        true => Err(format!(
            "its tokens are too many and too long to be looked for in one another: the squares of their lengths \
             come to {bytes} bytes, expected {MOST_BYTES} at most"
        )),
        false => Ok(()),
    }
}

/// The tokens around a prompt, where one stands behind it: the library's step for both.
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

    /// A text as editors and shells write it: as UTF-8, with a byte order mark, and as UTF-16 in both orders.
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
        // As many tokens as real vocabularies have, some of them runs of spaces.
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
