//! What a `tokenizer.json` must be before the library reads it: JSON all through, its texts and lists of sizes that
//! real ones have.

use std::{collections::HashSet, fmt};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::{
    error::brief,
    growth,
    tokenizer::{LONGEST_ADDED_TOKEN, LONGEST_TOKEN},
};

/// Tokens beside a vocabulary; codecs of speech list 65,536. The library's time grows with their square: twenty
/// thousand take a second, if they are normalised.
const MOST_ADDED_TOKENS: usize = 80_000;

/// The largest id in a vocabulary; real ones have up to a quarter of a million tokens. The library lists all that are
/// missing below the largest.
const MOST_IDS: u64 = 1 << 22;

/// Whether the library can read it; what is wrong, if not.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    let Document { whole, growth } = serde_json::from_slice(bytes).map_err(|error| match error.is_eof() {
        true => format!("it is cut off ({error}); fetch it again"),
        false => format!("it is no tokenizer: {}", brief(&error.to_string())),
    })?;
    growth?;
    for (bytes, most) in [(whole.longest_listed, LONGEST_TOKEN), (whole.longest_content, LONGEST_ADDED_TOKEN)]
    {
        if bytes > most {
            return Err(format!("a token has {bytes} bytes, expected {most} at most"));
        }
    }
    if whole.added > MOST_ADDED_TOKENS {
        return Err(format!("it has {} added_tokens, expected {MOST_ADDED_TOKENS} at most", whole.added));
    }
    if whole.largest_id >= MOST_IDS {
        return Err(format!(
            "a token of its vocab has the id {}, expected less than {MOST_IDS}",
            whole.largest_id
        ));
    }
    if let Some(id) = whole.repeated_id {
        return Err(format!("two tokens of its vocab have the id {id}"));
    }
    match whole.cut_charsmap {
        true => Err("its precompiled_charsmap is cut off: fetch the file again".to_owned()),
        false => Ok(()),
    }
}

/// The whole file.
struct Document {
    whole: AnyValue,
    /// What is wrong with the parts that change texts, if anything is.
    growth: Result<(), String>,
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
                let (mut whole, mut growth) = (AnyValue::default(), Ok(()));
                while let Some(name) = fields.next_key::<String>()? {
                    match name.as_str() {
                        "normalizer" | "pre_tokenizer" | "post_processor" | "decoder" => {
                            let part: Value = fields.next_value()?;
                            growth =
                                growth.and(growth::check(&part).map_err(|what| format!("its {name} {what}")));
                            whole.add_field(&name, AnyValue::deserialize(&part).map_err(A::Error::custom)?);
                        }
                        _ => whole.add_field(&name, fields.next_value()?),
                    }
                }
                Ok(Document { whole, growth })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Any value, its texts decoded and dropped.
#[derive(Clone, Copy, Debug, Default)]
struct AnyValue {
    /// Bytes, if it is a text.
    text: usize,
    /// It, if it is a number.
    number: Option<u64>,
    /// Entries, if it is a list.
    entries: usize,
    /// Bytes of the longest text that is an entry of a list in it.
    longest_listed: usize,
    /// Bytes of the longest text in it that is called `content`.
    longest_content: usize,
    /// Entries of the longest list in it that is called `added_tokens`.
    added: usize,
    /// A number that two of its fields have, if it is an object.
    repeated: Option<u64>,
    /// The largest number that one of its fields has, if it is an object.
    largest: u64,
    /// The same of what is called `vocab` in it.
    repeated_id: Option<u64>,
    largest_id: u64,
    /// The first four bytes, little-endian, if it is text in base64.
    head: Option<u32>,
    /// Whether a `precompiled_charsmap` in it says that it is longer than it is: that much would be reserved.
    cut_charsmap: bool,
}

impl AnyValue {
    fn add(&mut self, part: Self) {
        self.longest_listed = self.longest_listed.max(part.longest_listed);
        self.longest_content = self.longest_content.max(part.longest_content);
        self.added = self.added.max(part.added);
        self.repeated_id = self.repeated_id.or(part.repeated_id);
        self.largest_id = self.largest_id.max(part.largest_id);
        self.cut_charsmap |= part.cut_charsmap;
    }

    fn add_field(&mut self, name: &str, value: Self) {
        self.add(value);
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

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
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
        Ok(Self { text: text.len(), head: head(text), ..self })
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self, A::Error> {
        while let Some(entry) = list.next_element::<Self>()? {
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

/// The first four bytes of base64.
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
        assert_eq!(long, "a token has 3000 bytes, expected 2048 at most");
        let long = refused(format!(r#"{{"added_tokens": [{{"content": "{}"}}]}}"#, "a".repeat(600)));
        assert_eq!(long, "a token has 600 bytes, expected 512 at most");
        let many = refused(format!(r#"{{"added_tokens": [{}0]}}"#, "0,".repeat(MOST_ADDED_TOKENS)));
        assert_eq!(many, "it has 80001 added_tokens, expected 80000 at most");
        let step = r#"{"pattern": {"Regex": "."}, "content": "aa"}"#;
        let grows =
            refused(format!(r#"{{"decoder": {{"decoders": [{}{step}]}}}}"#, format!("{step},").repeat(20)));
        assert!(grows.contains("its decoder can make a text 2097152 times as long"), "{grows}");
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
