//! Checks a `tokenizer.json` before the library reads it: it must be valid JSON, of sizes that real files have.

use std::{collections::HashSet, fmt};

use base64::{Engine, prelude::BASE64_STANDARD};
use moi_files::brief;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::{
    expansion_limit::Expansion,
    tokenizer::{MAX_ADDED_BYTES, MAX_ADDED_TOKEN_BYTES, MAX_ADDED_TOKENS, MAX_TOKEN_BYTES},
};

/// The largest id in a vocabulary; real ones have up to a million tokens. The limit is needed because the library
/// lists all ids that are missing below the largest.
const MAX_ID: u64 = 1 << 22;
/// Most bytes of strings in one of the parts that change a text (SentencePiece's normalisation map has some 300,000).
const MAX_PART_BYTES: usize = 4 << 20;
const MAX_PART_VALUES: usize = 50_000;
/// Most characters of a word that WordPiece cuts, which takes time cubic in them; 100 is usual.
const MAX_WORD: u64 = 1000;
/// Most bytes of the prefix or suffix that all tokens inside or at the end of a word have.
const MAX_AFFIX: usize = 64;

/// Checks that the library can read the file. Returns how many times as long normalising can make a text, or what is
/// wrong with the file.
pub(crate) fn check(bytes: &[u8]) -> Result<usize, String> {
    let what = |error: serde_json::Error| match error.is_eof() {
        _ if bytes.starts_with(b"version https://git-lfs") => {
            "it is a pointer of Git LFS, not the file; fetch the file itself".to_owned()
        }
        true => format!("it is cut off ({error}); fetch it again"),
        false => format!("it is no tokenizer: {}", brief(&error.to_string())),
    };
    let Document { whole, parts } = serde_json::from_slice(bytes).map_err(what)?;
    let bounds = [
        ("bytes in a token", whole.longest_listed, MAX_TOKEN_BYTES),
        ("bytes in an added token", whole.longest_content, MAX_ADDED_TOKEN_BYTES),
        ("added_tokens", whole.added, MAX_ADDED_TOKENS),
        ("bytes of texts in a part that changes texts", parts.bytes, MAX_PART_BYTES),
        ("values in a part that changes texts", parts.values, MAX_PART_VALUES),
    ];
    if let Some((what, found, most)) = bounds.into_iter().find(|(_, found, most)| found > most) {
        return Err(format!("it has {found} {what}, expected {most} at most"));
    }
    if whole.largest_id >= MAX_ID {
        return Err(format!(
            "a token of its vocab has the id {}, expected less than {MAX_ID}",
            whole.largest_id
        ));
    }
    if let Some(id) = whole.repeated_id {
        return Err(format!("two tokens of its vocab have the id {id}"));
    }
    if whole.cut_charsmap {
        return Err("its precompiled_charsmap is cut off: fetch the file again".to_owned());
    }
    // The file has passed the size limits, so its steps can now be held in memory.
    let steps: Steps = serde_json::from_slice(bytes).map_err(what)?;
    steps.check()
}

/// The parts of the file that change texts, and the other settings that cost time.
#[derive(serde::Deserialize)]
struct Steps {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    model: Model,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Added {
    content: AnyValue,
    normalized: AnyValue,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Model {
    max_input_chars_per_word: AnyValue,
    continuing_subword_prefix: AnyValue,
    end_of_word_suffix: AnyValue,
}

impl Steps {
    fn check(&self) -> Result<usize, String> {
        let normalized = Expansion::default().then(&self.normalizer);
        let encoded = normalized.clone().then(&self.pre_tokenizer).then(&self.post_processor);
        encoded.check().map_err(|what| format!("normalizer, pre_tokenizer and post_processor {what}"))?;
        let decoded = Expansion::default().then(&self.decoder);
        decoded.check().map_err(|what| format!("the steps of its decoder {what}"))?;
        let added = self.added_tokens.iter().map(|token| match token.normalized.number {
            Some(1) => normalized.of(token.content.text),
            _ => token.content.text,
        });
        let added = added.fold(0, usize::saturating_add);
        if added > MAX_ADDED_BYTES {
            return Err(format!(
                "its added_tokens have {added} bytes, normalised, expected {MAX_ADDED_BYTES} at most"
            ));
        }
        let word = self.model.max_input_chars_per_word.number.unwrap_or(0);
        if word > MAX_WORD {
            return Err(format!("max_input_chars_per_word is {word}, expected {MAX_WORD} at most"));
        }
        let affix = self.model.continuing_subword_prefix.text.max(self.model.end_of_word_suffix.text);
        match affix > MAX_AFFIX {
            true => Err(format!(
                "a prefix or suffix of its tokens has {affix} bytes, expected {MAX_AFFIX} at most"
            )),
            false => Ok(normalized.times()),
        }
    }
}

/// The sizes of the whole file, and the largest of each size among the parts that change texts.
struct Document {
    whole: AnyValue,
    parts: AnyValue,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, with the fields of a tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Document, A::Error> {
                let (mut whole, mut parts) = (AnyValue::default(), AnyValue::default());
                while let Some((name, value)) = fields.next_entry::<String, AnyValue>()? {
                    if ["normalizer", "pre_tokenizer", "post_processor", "decoder"].contains(&name.as_str()) {
                        parts.bytes = parts.bytes.max(value.bytes);
                        parts.values = parts.values.max(value.values);
                    }
                    whole.add_field(&name, value);
                }
                Ok(Document { whole, parts })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// The sizes of any JSON value, whose strings are decoded and dropped.
#[derive(Clone, Copy, Debug, Default)]
struct AnyValue {
    /// Bytes of the string, if the value is one.
    text: usize,
    /// The number, if the value is one; 0 or 1 for a boolean.
    number: Option<u64>,
    /// Entries, if the value is a list.
    entries: usize,
    /// Values inside the value.
    values: usize,
    /// Bytes of all strings in the value, including field names.
    bytes: usize,
    /// Bytes of the longest string that is an entry of a list in the value.
    longest_listed: usize,
    /// If the value is a string, bytes of the longest part between spaces. If the value is a list, the largest such
    /// number among its entries, where a string in a nested list counts whole.
    longest_word: usize,
    /// Bytes of the longest string in a field `content` inside the value.
    longest_content: usize,
    /// Entries of the longest list in a field `added_tokens` inside the value.
    added: usize,
    /// A number that two fields have, if the value is an object.
    repeated: Option<u64>,
    /// The largest number that a field has, if the value is an object.
    largest: u64,
    /// `repeated` of a field `vocab` inside the value: an id that two tokens have.
    repeated_id: Option<u64>,
    largest_id: u64,
    /// The first four bytes as a little-endian number, if the value is a string in base64.
    head: Option<u32>,
    /// Whether a field `precompiled_charsmap` claims more bytes than it has; the library would reserve that much
    /// memory.
    cut_charsmap: bool,
}

impl AnyValue {
    fn add(&mut self, part: Self) {
        self.values += 1 + part.values;
        self.bytes += part.text + part.bytes;
        self.longest_listed = self.longest_listed.max(part.longest_listed);
        self.longest_content = self.longest_content.max(part.longest_content);
        self.added = self.added.max(part.added);
        self.repeated_id = self.repeated_id.or(part.repeated_id);
        self.largest_id = self.largest_id.max(part.largest_id);
        self.cut_charsmap |= part.cut_charsmap;
    }

    fn add_field(&mut self, name: &str, mut value: Self) {
        if name == "merges" {
            // In old files, each merge is a string of two tokens with a space between them.
            value.longest_listed = value.longest_word;
        }
        self.add(value);
        self.bytes += name.len();
        match name {
            "content" => self.longest_content = self.longest_content.max(value.text),
            "added_tokens" => self.added = self.added.max(value.entries),
            "vocab" => {
                self.repeated_id = self.repeated_id.or(value.repeated);
                self.largest_id = self.largest_id.max(value.largest);
            }
            "precompiled_charsmap" => {
                self.cut_charsmap |=
                    value.head.is_some_and(|claimed| claimed as usize + 4 > value.text / 4 * 3);
            }
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for AnyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue::default())
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self, E> {
        Ok(Self { number: Some(value.into()), ..self })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self, E> {
        Ok(Self { number: Some(number), ..self })
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self, E> {
        let longest_word = text.split(' ').map(str::len).max().unwrap_or(0);
        Ok(Self { text: text.len(), longest_word, head: head(text), ..self })
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(entry) = list.next_element::<Self>()? {
            let word = if entry.text > 0 { entry.longest_word } else { entry.longest_listed };
            self.longest_word = self.longest_word.max(word);
            self.add(Self { longest_listed: entry.longest_listed.max(entry.text), ..entry });
            self.entries += 1;
        }
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Self, A::Error> {
        let mut numbers = HashSet::new();
        while let Some((name, value)) = fields.next_entry::<String, Self>()? {
            self.largest = self.largest.max(value.number.unwrap_or(0));
            self.repeated = value.number.filter(|&number| !numbers.insert(number)).or(self.repeated);
            self.add_field(&name, value);
        }
        Ok(self)
    }
}

/// The first four bytes of a base64 string as a little-endian number.
fn head(text: &str) -> Option<u32> {
    let bytes = BASE64_STANDARD.decode(text.get(..8)?).ok()?;
    bytes.first_chunk().copied().map(u32::from_le_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn a_charsmap_is_as_long_as_it_says() {
        assert_eq!(
            (head("CAAAAP//AA=="), head("/////w=="), head("CAAA"), head("C!AAAAAA")),
            (Some(8), Some(u32::MAX), None, None)
        );
        let cut = |text: &str| {
            let json =
                format!(r#"{{"normalizer": {{"normalizers": [{{"precompiled_charsmap": "{text}"}}]}}}}"#);
            check(json.as_bytes()).is_err_and(|what| what.contains("charsmap"))
        };
        assert!(cut("/////w==") && cut("CQAAAAAAAAA=") && !cut("BAAAAAAAAAA=") && !cut(""));
    }

    #[test]
    fn what_the_library_takes_as_it_comes_is_refused() {
        let refused = |json: String| check(json.as_bytes()).unwrap_err();
        let twice = refused(r#"{"model": {"vocab": {"a": 1, "b": 2, "c": 1}}}"#.to_owned());
        assert_eq!(twice, "two tokens of its vocab have the id 1");
        let far = refused(r#"{"model": {"vocab": {"a": 1, "b": 4194304}}}"#.to_owned());
        assert_eq!(far, "a token of its vocab has the id 4194304, expected less than 4194304");
        check(br#"{"added_tokens": [{"id": 1, "other": 1}], "model": {"vocab": {"a": 1, "b": 2}}}"#).unwrap();
        let long = refused(format!(r#"{{"model": {{"merges": ["{}"]}}}}"#, "a".repeat(3000)));
        assert_eq!(long, "it has 3000 bytes in a token, expected 2048 at most");
        let token = "a".repeat(2048);
        check(
            format!(r#"{{"model": {{"merges": ["{token} {token}", ["{token}", "{token}"]]}}}}"#).as_bytes(),
        )
        .unwrap();
        let long = refused(format!(r#"{{"model": {{"merges": [["a", "{token}a"]]}}}}"#));
        assert_eq!(long, "it has 2049 bytes in a token, expected 2048 at most");
        let long = refused(format!(r#"{{"model": {{"merges": ["{token}a a"]}}}}"#));
        assert_eq!(long, "it has 2049 bytes in a token, expected 2048 at most");
        let long = refused(format!(r#"{{"model": {{"vocab": [["{token} a", 0]]}}}}"#));
        assert_eq!(long, "it has 2050 bytes in a token, expected 2048 at most");
        let long = refused(format!(r#"{{"added_tokens": [{{"content": "{}"}}]}}"#, "a".repeat(600)));
        assert_eq!(long, "it has 600 bytes in an added token, expected 512 at most");
        let many = refused(format!(r#"{{"added_tokens": [{}0]}}"#, "0,".repeat(MAX_ADDED_TOKENS)));
        assert_eq!(many, "it has 80001 added_tokens, expected 80000 at most");
        let word = refused(r#"{"model": {"max_input_chars_per_word": 9999}}"#.to_owned());
        assert_eq!(word, "max_input_chars_per_word is 9999, expected 1000 at most");
        let affix = refused(format!(r#"{{"model": {{"end_of_word_suffix": "{}"}}}}"#, "w".repeat(99)));
        assert_eq!(affix, "a prefix or suffix of its tokens has 99 bytes, expected 64 at most");
        let values = refused(format!(r#"{{"normalizer": [{}0]}}"#, "0,".repeat(MAX_PART_VALUES)));
        assert_eq!(values, "it has 50001 values in a part that changes texts, expected 50000 at most");
        let texts = refused(format!(r#"{{"decoder": {{"{}": 0}}}}"#, "a".repeat(MAX_PART_BYTES + 1)));
        assert!(texts.contains("bytes of texts in a part that changes texts"), "{texts}");
    }

    #[test]
    fn what_steps_come_to_is_counted_together() {
        let twice = r#"{"pattern": {"Regex": "."}, "content": "aa"}"#;
        let document = |normalizer: usize, rest: &str, tokens: usize, normalized: bool| {
            let steps = vec![twice; normalizer].join(",");
            let token = format!(r#"{{"content": "{}", "normalized": {normalized}}}"#, "a".repeat(500));
            let added = vec![token; tokens].join(",");
            check(format!(r#"{{"normalizer": [{steps}], {rest}, "added_tokens": [{added}]}}"#).as_bytes())
        };
        assert_eq!(document(8, r#""decoder": []"#, 0, false), Ok(256));
        let grows = document(8, &format!(r#""pre_tokenizer": {twice}"#), 0, false).unwrap_err();
        assert!(grows.contains("and post_processor can make a text 512 times as long"), "{grows}");
        let grows = document(0, &format!(r#""decoder": [{}]"#, [twice; 9].join(",")), 0, false).unwrap_err();
        assert_eq!(grows, "the steps of its decoder can make a text 512 times as long, expected at most 256");
        assert_eq!(document(8, r#""decoder": []"#, 40, false), Ok(256));
        let added = document(8, r#""decoder": []"#, 40, true).unwrap_err();
        assert!(added.contains("added_tokens have 5120000 bytes, normalised"), "{added}");
    }

    #[test]
    fn what_is_no_tokenizer_is_named() {
        for no_object in ["[]", "1", "{\"model\": nul}"] {
            assert!(
                check(no_object.as_bytes()).unwrap_err().starts_with("it is no tokenizer: "),
                "{no_object}"
            );
        }
        let cut = check(b"{\"model\": {").unwrap_err();
        assert!(cut.starts_with("it is cut off (EOF") && cut.ends_with("fetch it again"), "{cut}");
    }
}
