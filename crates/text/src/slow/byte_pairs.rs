//! Converts byte-level BPE files to a `tokenizer.json`.

use std::collections::HashMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use moi_files::brief;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Written, added, bpe, check_parts, document, flag, named};
use crate::{
    cuts::pre_tokenizer,
    tokenizer::{MAX_ADDED_TOKENS, MAX_TOKEN_BYTES},
};

/// The begin and end token of most of these tokenizers, if the configuration does not name one.
const END_OF_TEXT: &str = "<|endoftext|>";

/// Makes the `tokenizer.json` of `vocab.json` and `merges.txt`. The pre-tokenizer stands in neither file, because it
/// belongs to the tokenizer's class.
pub(super) fn written(vocab: &[u8], merges: &[u8], class: &str, config: &Value) -> Result<Written, String> {
    // GPT-2's class has these three control tokens; Qwen's class has no begin token.
    let (cut, special): (&str, &[&str]) = match class {
        "GPT2Tokenizer" | "CodeGenTokenizer" | "GPTNeoXTokenizer" => {
            ("gpt-2", &["bos_token", "eos_token", "unk_token"])
        }
        "Qwen2Tokenizer" => ("qwen2", &["eos_token", "unk_token", "pad_token"]),
        "" => return Err("no tokenizer_config.json says of which class the tokenizer is".to_owned()),
        other => return Err(format!("its class is {}, which is not converted", brief(other))),
    };
    let what = |error: serde_json::Error| format!("vocab.json: {}", brief(&error.to_string()));
    let vocab: Map<String, Value> = moi_files::json(vocab).map_err(what)?;
    let adds_space = flag(config, "add_prefix_space").unwrap_or(false);
    let cut = pre_tokenizer(cut).map_err(|error| error.to_string())?;
    let mut steps = serde_json::to_value(&cut.steps).map_err(what)?;
    if let Some(last) = steps.as_array_mut().and_then(|steps| steps.last_mut()) {
        last["add_prefix_space"] = adds_space.into();
    }
    let composes = cut.composes || class == "GPTNeoXTokenizer";
    let steps = [
        if composes { json!({ "type": "NFC" }) } else { Value::Null },
        json!({ "type": "Sequence", "pretokenizers": steps }),
        Value::Null,
        byte_level(),
    ];
    let unnamed = special.iter().filter(|key| config.get(**key).is_none_or(Value::is_null));
    let special = unnamed.map(|_| END_OF_TEXT.to_owned()).collect();
    let begins = flag(config, "add_bos_token") == Some(true);
    let bos = named(config, "bos_token").unwrap_or(END_OF_TEXT).to_owned();
    Ok(Written {
        json: document(bpe(vocab, listed(merges)?, None), Vec::new(), steps),
        bos: begins.then_some(bos),
        special,
        finds_unnormalised: false,
    })
}

fn byte_level() -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true })
}

/// Reads the pairs of a `merges.txt`.
fn listed(merges: &[u8]) -> Result<Vec<Value>, String> {
    let text: String = moi_files::text(merges.to_vec()).map_err(|error| format!("merges.txt: {error}"))?;
    let mut pairs: Vec<Value> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.is_empty() || (index == 0 && line.starts_with("#version")) {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                pairs.push(json!([left, right]));
            }
            _ => return Err(format!("merges.txt: line {} is no pair: `{}`", index + 1, brief(line))),
        }
    }
    Ok(pairs)
}

#[derive(Deserialize)]
struct Tekken {
    config: TekkenConfig,
    vocab: Vec<TekkenToken>,
    special_tokens: Option<Vec<TekkenSpecial>>,
}

#[derive(Deserialize)]
struct TekkenConfig {
    pattern: String,
    default_vocab_size: Option<usize>,
    default_num_special_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct TekkenToken {
    token_bytes: String,
}

#[derive(Deserialize)]
struct TekkenSpecial {
    rank: usize,
    token_str: String,
}

/// The control tokens of `tekken.json` files that do not list theirs.
const TEKKEN_SPECIAL: &[&str] = &[
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Makes the `tokenizer.json` of a `tekken.json`. Tekken merges the pair whose merged token has the lowest rank, so
/// each way to make a token of two others is a merge, ranked by the merged token.
pub(super) fn written_by_ranks(file: &[u8], config: &Value) -> Result<Written, String> {
    let what = |error: serde_json::Error| format!("it is no tekken.json: {}", brief(&error.to_string()));
    let tekken: Tekken = moi_files::json(file).map_err(what)?;
    let special = tekken.special()?;
    // Tokens beyond this number are padding.
    let most = tekken.config.default_vocab_size.map_or(usize::MAX, |all| all.saturating_sub(special.len()));
    let mut tokens: Vec<Vec<u8>> = Vec::new();
    for (rank, token) in tekken.vocab.iter().take(most).enumerate() {
        let bytes = BASE64_STANDARD.decode(&token.token_bytes);
        let bytes = bytes.map_err(|_| format!("the bytes of token {rank} are no base64"))?;
        if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES {
            return Err(format!("token {rank} has {} bytes, expected 1 to {MAX_TOKEN_BYTES}", bytes.len()));
        }
        tokens.push(bytes);
    }
    let characters = characters();
    let spelled = |bytes: &[u8]| bytes.iter().map(|&byte| characters[usize::from(byte)]).collect::<String>();
    let mut vocab = Map::new();
    for (id, text) in special.iter().enumerate() {
        vocab.insert(text.clone(), id.into());
    }
    for (rank, bytes) in tokens.iter().enumerate() {
        let text = spelled(bytes);
        if vocab.insert(text.clone(), (special.len() + rank).into()).is_some() {
            return Err(format!("two of its tokens are `{}`", brief(&text)));
        }
    }
    let merges = merges_by_ranks(&tokens)?;
    let merges = merges.iter().map(|&(left, right)| json!([spelled(left), spelled(right)])).collect();
    let mut model = bpe(vocab, merges, None);
    model["ignore_merges"] = true.into();
    let split = json!({
        "type": "Split", "pattern": { "Regex": tekken.config.pattern }, "behavior": "Isolated", "invert": false,
    });
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let cut = json!({ "type": "Sequence", "pretokenizers": [split, bytes] });
    let listed = special.iter().enumerate().map(|(id, text)| added(id, text, true, false)).collect();
    let json = document(model, listed, [Value::Null, cut, Value::Null, byte_level()]);
    let begins = flag(config, "add_bos_token") != Some(false);
    let bos = named(config, "bos_token").unwrap_or("<s>").to_owned();
    Ok(Written { json, bos: begins.then_some(bos), special: Vec::new(), finds_unnormalised: false })
}

impl Tekken {
    /// The control tokens, which have the first ids: the listed ones, then fillers.
    fn special(&self) -> Result<Vec<String>, String> {
        let mut texts: Vec<String> = match &self.special_tokens {
            None => TEKKEN_SPECIAL.iter().map(|&text| text.to_owned()).collect(),
            Some(listed) => {
                let mut by_rank: Vec<&TekkenSpecial> = listed.iter().collect();
                by_rank.sort_by_key(|token| token.rank);
                if by_rank.iter().enumerate().any(|(place, token)| token.rank != place) {
                    return Err("the ranks of its special tokens have gaps".to_owned());
                }
                by_rank.into_iter().map(|token| token.token_str.clone()).collect()
            }
        };
        let number = self.config.default_num_special_tokens.unwrap_or(texts.len());
        if number > MAX_ADDED_TOKENS || texts.len() > number {
            return Err(format!("it has {} special tokens, and says {number}", texts.len()));
        }
        texts.extend((texts.len()..number).map(|id| format!("<SPECIAL_{id}>")));
        Ok(texts)
    }
}

/// The two tokens of a merge, in bytes.
type BytePair<'a> = (&'a [u8], &'a [u8]);

/// Every way to make a token of two others, in order of the merged token's rank.
fn merges_by_ranks(tokens: &[Vec<u8>]) -> Result<Vec<BytePair<'_>>, String> {
    /// Most bytes of all merges; those of 131,072 tokens come to some 10 MB.
    const MAX_BYTES: usize = 64 << 20;
    check_parts(tokens.iter().map(Vec::len))?;
    let ranks: HashMap<&[u8], usize> =
        tokens.iter().enumerate().map(|(rank, token)| (token.as_slice(), rank)).collect();
    let mut merges: Vec<(&[u8], &[u8])> = Vec::new();
    let mut bytes = 0;
    for token in tokens {
        let mut ways: Vec<(usize, usize, usize)> = Vec::new();
        for at in 1..token.len() {
            let (left, right) = token.split_at(at);
            if let (Some(&left), Some(&right)) = (ranks.get(left), ranks.get(right)) {
                ways.push((left, right, at));
            }
        }
        ways.sort_unstable();
        bytes += ways.len() * token.len();
        if bytes > MAX_BYTES {
            return Err("its tokens are made of one another in too many ways".to_owned());
        }
        merges.extend(ways.into_iter().map(|(.., at)| token.split_at(at)));
    }
    Ok(merges)
}

/// The characters that a byte-level vocabulary writes bytes as (GPT-2's `bytes_to_unicode`): printable bytes are
/// written as themselves, the others as the characters from U+0100 on, in order.
fn characters() -> Vec<char> {
    let mut others = '\u{100}'..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => others.next().unwrap_or_default(),
    };
    (0..=255).map(character).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn merges_are_pairs() {
        let pairs = listed("#version: 0.2\na b\r\n\n# c\n".as_bytes()).unwrap();
        assert_eq!(pairs, [json!(["a", "b"]), json!(["#", "c"])]);
        for wrong in ["a", "a b c", " b", "a  b"] {
            assert!(listed(wrong.as_bytes()).unwrap_err().contains("line 1 is no pair"), "{wrong}");
        }
    }

    #[test]
    fn ranks_make_merges() {
        let tokens: Vec<Vec<u8>> =
            ["a", "b", "c", "bc", "ab", "abc"].iter().map(|token| token.as_bytes().to_vec()).collect();
        let merges = merges_by_ranks(&tokens).unwrap();
        let texts: Vec<String> = merges
            .iter()
            .map(|(left, right)| {
                format!("{} {}", String::from_utf8_lossy(left), String::from_utf8_lossy(right))
            })
            .collect();
        assert_eq!(texts, ["b c", "a b", "a bc", "ab c"]);
    }

    #[test]
    fn many_long_tokens_are_refused() {
        let tokens: Vec<Vec<u8>> = (0..100).map(|byte| vec![byte; MAX_TOKEN_BYTES]).collect();
        let error = merges_by_ranks(&tokens).unwrap_err();
        assert!(error.contains("too many and too long"), "{error}");
    }

    #[test]
    fn classes_are_told_apart() {
        let of = |class: &str| written(b"{}", b"", class, &Value::Null).err();
        assert_eq!((of("GPT2Tokenizer"), of("Qwen2Tokenizer")), (None, None));
        assert_eq!(of("CLIPTokenizer").unwrap(), "its class is CLIPTokenizer, which is not converted");
        assert!(of("").unwrap().contains("no tokenizer_config.json"));
    }
}
