//! JSON that is read only to know that it is JSON, and how long its listed texts are.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// Any value, its texts decoded and dropped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AnyValue {
    /// Bytes, if it is a text.
    text: usize,
    /// Bytes of the longest text that is an entry of a list in it.
    pub(crate) longest_listed: usize,
    /// Bytes of the longest text in it that is called `content`.
    pub(crate) longest_content: usize,
    /// The first four bytes, little-endian, if it is text in base64.
    head: Option<u32>,
    /// Whether a `precompiled_charsmap` in it says that it is longer than it is: that much would be reserved.
    pub(crate) cut_charsmap: bool,
}

impl AnyValue {
    fn add(&mut self, part: Self) {
        self.longest_listed = self.longest_listed.max(part.longest_listed);
        self.longest_content = self.longest_content.max(part.longest_content);
        self.cut_charsmap |= part.cut_charsmap;
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

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
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
        }
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Self, A::Error> {
        while let Some((key, value)) = fields.next_entry::<String, Self>()? {
            let content = if key == "content" { value.text } else { 0 };
            if key == "precompiled_charsmap" {
                self.cut_charsmap |=
                    value.head.is_some_and(|claimed| claimed as usize + 4 > value.text / 4 * 3);
            }
            self.add(Self { longest_content: value.longest_content.max(content), ..value });
        }
        Ok(self)
    }
}

/// The first four bytes of base64.
fn head(text: &str) -> Option<u32> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(u64::from(byte - b'A')),
        b'a'..=b'z' => Some(u64::from(byte - b'a') + 26),
        b'0'..=b'9' => Some(u64::from(byte - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    // Six digits have 36 bits.
    let digits = text.as_bytes().first_chunk::<6>()?;
    let bits = digits.iter().try_fold(0, |bits, &byte| Some(bits << 6 | digit(byte)?))?;
    Some(((bits >> 4) as u32).swap_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn a_charsmap_is_as_long_as_it_says() {
        assert_eq!(
            (head("CAAAAP//"), head("/////w=="), head("CAAA"), head("C!AAAA")),
            (Some(8), Some(u32::MAX), None, None)
        );
        let cut = |text: &str| {
            let json =
                format!(r#"{{"normalizer": {{"normalizers": [{{"precompiled_charsmap": "{text}"}}]}}}}"#);
            serde_json::from_str::<AnyValue>(&json).unwrap().cut_charsmap
        };
        assert!(cut("/////w==") && cut("CQAAAAAAAAA=") && !cut("BAAAAAAAAAA=") && !cut(""));
    }
}
