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
}

impl AnyValue {
    fn add(&mut self, part: Self) {
        self.longest_listed = self.longest_listed.max(part.longest_listed);
        self.longest_content = self.longest_content.max(part.longest_content);
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
        Ok(Self { text: text.len(), ..self })
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
            self.add(Self { longest_content: value.longest_content.max(content), ..value });
        }
        Ok(self)
    }
}
