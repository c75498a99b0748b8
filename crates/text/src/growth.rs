//! How much longer than a text a `tokenizer.json` can make it: its steps follow one another, so forty that double each
//! of them make a terabyte of a letter, inside a library that cannot be stopped.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

/// Steps of one part; real ones have up to a few dozen.
const MOST_STEPS: usize = 256;
/// How many times as long a text can become in one part. SentencePiece's own normalisation makes 33 bytes of some
/// characters, and a space is often made three bytes.
const MOST_GROWTH: usize = 1024;
/// Bytes or tokens that a part adds, whatever the text.
const MOST_ADDED: usize = 1 << 16;

/// What the steps of one part of the file (normalizer, pre-tokenizer, post-processor or decoder) come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Growth {
    steps: usize,
    times: usize,
    added: usize,
}

/// Whether a text stays of a size with this part of the file; what is wrong, if not.
pub(crate) fn check(part: &Value) -> Result<(), String> {
    let Growth { steps, times, added } = growth(part);
    let bounds = [
        (steps, MOST_STEPS, "has {} steps"),
        (times, MOST_GROWTH, "can make a text {} times as long"),
        (added, MOST_ADDED, "adds {} bytes or tokens to a text"),
    ];
    match bounds.into_iter().find(|(found, most, _)| found > most) {
        Some((found, most, what)) => {
            // Products end where numbers do.
            let found = if found == usize::MAX { "countless".to_owned() } else { found.to_string() };
            Err(format!("{}, expected at most {most}", what.replace("{}", &found)))
        }
        None => Ok(()),
    }
}

/// Whatever a step is called: files of old versions do not name their steps, which are then told by their fields.
fn growth(part: &Value) -> Growth {
    let together = |a: Growth, b: Growth| Growth {
        steps: a.steps.saturating_add(b.steps),
        times: a.times.saturating_mul(b.times),
        added: a.added.saturating_add(b.added),
    };
    match part {
        Value::Array(parts) => {
            parts.iter().map(growth).fold(Growth { steps: 0, times: 1, added: 0 }, together)
        }
        Value::Object(fields) => {
            // What is replaced and what a template lists are no steps.
            let inner = fields
                .iter()
                .filter(|(name, _)| !["pattern", "single", "pair", "special_tokens"].contains(&&***name));
            let own = Growth { steps: 1, times: times(fields), added: added(fields) };
            inner.map(|(_, value)| growth(value)).fold(own, together)
        }
        _ => Growth { steps: 0, times: 1, added: 0 },
    }
}

fn times(step: &Map<String, Value>) -> usize {
    let text = |name: &str| step.get(name).and_then(Value::as_str);
    let is_byte_level = text("type") == Some("ByteLevel") || step.contains_key("trim_offsets");
    let replaced = match (step.get("pattern"), text("content")) {
        (Some(pattern), Some(content)) => match shortest_match(pattern) {
            // It is put between all characters.
            0 => content.len().saturating_add(1),
            shortest => content.len().div_ceil(shortest),
        },
        _ => 1,
    };
    let mapped = text("precompiled_charsmap").map_or(1, longest_mapped);
    let space = text("replacement").map_or(1, str::len);
    let pieces = step.get("single").map_or(1, |pieces| pieces_of(pieces).saturating_mul(most_ids(step)));
    let factors = [if is_byte_level { 2 } else { 1 }, replaced, mapped, space, pieces];
    factors.into_iter().fold(1, |product, factor| product.saturating_mul(factor.max(1)))
}

fn added(step: &Map<String, Value>) -> usize {
    ["prepend", "prefix", "suffix"].iter().filter_map(|name| step.get(*name)?.as_str()).map(str::len).sum()
}

/// Bytes that a pattern of `Replace` matches at least; none if that cannot be said, as of patterns that look around.
fn shortest_match(pattern: &Value) -> usize {
    let of = |kind: &str| pattern.get(kind).and_then(Value::as_str);
    match (of("Regex"), of("String").or(pattern.as_str())) {
        (Some(regex), _) => {
            let parsed = regex_syntax::parse(regex).ok();
            parsed.and_then(|parsed| parsed.properties().minimum_len()).unwrap_or(0)
        }
        (None, Some(text)) => text.len(),
        (None, None) => 0,
    }
}

/// Bytes of the longest text that a SentencePiece map has for anything: behind the length and bytes of its trie are the
/// texts, each ended by a zero.
fn longest_mapped(charsmap: &str) -> usize {
    let map = BASE64_STANDARD.decode(charsmap).unwrap_or_default();
    let texts =
        map.split_first_chunk::<4>().and_then(|(trie, rest)| rest.get(u32::from_le_bytes(*trie) as usize..));
    texts.unwrap_or_default().split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0)
}

/// A template is a list, or a text of words.
fn pieces_of(template: &Value) -> usize {
    match template {
        Value::Array(pieces) => pieces.len(),
        Value::String(text) => text.split_whitespace().count(),
        _ => 1,
    }
}

fn most_ids(step: &Map<String, Value>) -> usize {
    let tokens = step.get("special_tokens").and_then(Value::as_object).into_iter().flat_map(Map::values);
    let ids = tokens.filter_map(|token| token.get("ids")?.as_array()).map(Vec::len);
    ids.max().unwrap_or(1).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(pattern: Value, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": pattern, "content": content })
    }

    #[test]
    fn steps_multiply_what_they_lengthen() {
        let times = |step: &Value| growth(step).times;
        let regex = |pattern: &str, content: &str| times(&replace(json!({ "Regex": pattern }), content));
        // One to one, one to three, two or more to three, none to one, behind a letter, something or nothing.
        assert_eq!(times(&replace(json!({ "String": "-" }), "+")), 1);
        assert_eq!(times(&replace(json!({ "String": " " }), "\u{2581}")), 3);
        assert_eq!((regex(" {2,}", "\u{2581}"), regex("", "+"), regex("(?<=a)b", "+")), (2, 2, 2));
        assert_eq!((regex("a?", "++"), regex("[\u{e4}\u{f6}]", "++"), regex(".", "")), (3, 1, 1));
        let space = json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first" });
        assert_eq!(times(&space), 3);
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        assert_eq!(times(&json!({ "type": "Sequence", "pretokenizers": [bytes, bytes, [bytes]] })), 8);
        let template = json!({ "type": "TemplateProcessing", "single": ["[CLS]", "$A", "$A"],
            "special_tokens": { "[CLS]": { "id": "[CLS]", "ids": [1, 2], "tokens": ["[CLS]", "[CLS]"] } } });
        assert_eq!(growth(&template), Growth { steps: 1, times: 6, added: 0 });
    }

    #[test]
    fn a_charsmap_lengthens_as_its_longest_text_does() {
        let map = [&8u32.to_le_bytes()[..], &[1; 8], b"abc\0\0defgh\0i\0"].concat();
        let step = json!({ "type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(map) });
        assert_eq!(growth(&step), Growth { steps: 1, times: 5, added: 0 });
        let broken = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA!" });
        assert_eq!(growth(&broken).times, 1);
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let sequence =
            |step: Value, count: usize| json!({ "type": "Sequence", "normalizers": vec![step; count] });
        let doubled = sequence(replace(json!({ "Regex": "." }), "aa"), 40);
        let error = check(&doubled).unwrap_err();
        assert_eq!(error, "can make a text 1099511627776 times as long, expected at most 1024");
        let error =
            check(&sequence(json!({ "pattern": { "String": "a" }, "content": "aa" }), 99)).unwrap_err();
        assert!(error.contains("can make a text countless times"), "{error}");
        let error =
            check(&sequence(json!({ "type": "Prepend", "prepend": "a".repeat(10_000) }), 9)).unwrap_err();
        assert!(error.contains("adds 90000 bytes"), "{error}");
        let error = check(&sequence(json!({ "type": "NFC" }), 300)).unwrap_err();
        assert!(error.contains("has 301 steps"), "{error}");
        assert!(check(&sequence(json!({ "type": "NFC" }), 200)).is_ok() && check(&Value::Null).is_ok());
    }
}
