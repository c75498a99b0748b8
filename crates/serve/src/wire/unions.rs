//! Values that have one of several JSON types. Their errors say what was expected, which serde's untagged enums do not.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// The most elements of a list, except for lists of token ids.
pub(crate) const MAX_ELEMENTS: usize = 4096;

/// The elements of a list. A list that is too long is refused before its elements take memory.
fn elements<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(seq: &mut A) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(element) = seq.next_element()? {
        if all.len() >= MAX_ELEMENTS {
            return Err(de::Error::custom(format!("the list has more than {MAX_ELEMENTS} elements")));
        }
        all.push(element);
    }
    Ok(all)
}

/// A list of limited length.
pub(crate) fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct List<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            elements(&mut seq)
        }
    }

    deserializer.deserialize_seq(List(std::marker::PhantomData))
}

/// A text, or a list of texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Texts(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
                Ok(Texts(elements(&mut seq)?))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

/// A prompt of a completion: a text, a list of texts, token ids, or a list of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompts {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// An element of the outer list.
        enum Element {
            Text(String),
            Id(u32),
            Ids(Vec<u32>),
        }

        struct Elements;

        impl<'de> Visitor<'de> for Elements {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
                u32::try_from(id).map(Element::Id).map_err(|_| E::custom(format!("there is no token {id}")))
            }

            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Element, E> {
                Err(E::custom(format!("there is no token {id}")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }

        impl<'de> Deserialize<'de> for Element {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Elements)
            }
        }

        struct Whole;

        impl<'de> Visitor<'de> for Whole {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a list of strings, a list of token ids, or a list of such lists")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts::Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mixed = || de::Error::custom("strings, token ids and lists of these do not go together");
                let (mut texts, mut flat, mut lists) = (Vec::new(), Vec::new(), Vec::new());
                while let Some(element) = seq.next_element::<Element>()? {
                    if texts.len().max(lists.len()) >= MAX_ELEMENTS {
                        return Err(de::Error::custom(format!("there are more than {MAX_ELEMENTS} prompts")));
                    }
                    match element {
                        Element::Text(text) => texts.push(text),
                        Element::Id(id) => flat.push(id),
                        Element::Ids(ids) => lists.push(ids),
                    }
                }
                match (texts.is_empty(), flat.is_empty(), lists.is_empty()) {
                    (false, true, true) => Ok(Prompts::Texts(texts)),
                    (true, false, true) => Ok(Prompts::Ids(vec![flat])),
                    (true, true, false) => Ok(Prompts::Ids(lists)),
                    (true, true, true) => Err(de::Error::custom("the list is empty")),
                    _ => Err(mixed()),
                }
            }
        }

        deserializer.deserialize_any(Whole)
    }
}

/// A text, or a list of parts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TextOr<T> {
    Text(String),
    Parts(Vec<T>),
}

/// The content of a message: a text, or parts of which only texts are supported.
pub(crate) type Content = TextOr<Part>;
/// The content of a turn in Anthropic's API.
pub(crate) type Blocks = TextOr<super::messages::Block>;
/// The input of a response.
pub(crate) type Input = TextOr<super::responses::Item>;

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
pub(crate) struct Part {
    /// `text`; `input_text` and `output_text` are the same.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) text: Option<String>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrParts<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TextOr<T>, A::Error> {
                Ok(TextOr::Parts(elements(&mut seq)?))
            }
        }

        deserializer.deserialize_any(TextOrParts(std::marker::PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for TextOr<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("TextOr{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let part = generator.subschema_for::<T>();
        json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": part}]})
    }
}

/// `none`, `auto`, `required`, or the function that is to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    Required,
    Function(String),
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrFunction;

        impl<'de> Visitor<'de> for WordOrFunction {
            type Value = ToolChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ...}}",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ToolChoice, E> {
                match text {
                    "none" => Ok(ToolChoice::None),
                    "auto" => Ok(ToolChoice::Auto),
                    "required" => Ok(ToolChoice::Required),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToolChoice, A::Error> {
                let value = Value::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let name = value.pointer("/function/name").or_else(|| value.get("name"));
                match name.and_then(Value::as_str) {
                    Some(name) => Ok(ToolChoice::Function(name.to_owned())),
                    None => Err(de::Error::custom(format!("expected {}", Expected(&self)))),
                }
            }
        }

        struct Expected<'a>(&'a WordOrFunction);

        impl fmt::Display for Expected<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.expecting(f)
            }
        }

        deserializer.deserialize_any(WordOrFunction)
    }
}

/// Gives a type its name and schema.
macro_rules! schema {
    ($type:ident, $schema:expr) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let schema: fn(&mut SchemaGenerator) -> Schema = $schema;
                schema(generator)
            }
        }
    };
}

schema!(Texts, |_| {
    json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
});
schema!(Prompts, |_| {
    let id = json_schema!({"type": "integer", "minimum": 0});
    json_schema!({"anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": id, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": id}, "minItems": 1},
    ]})
});
schema!(ToolChoice, |_| {
    let flat = json_schema!({
        "type": "object",
        "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
        "required": ["type", "name"],
    });
    json_schema!({"anyOf": [{"enum": ["none", "auto", "required"]}, flat, {
        "type": "object",
        "properties": {
            "type": {"const": "function"},
            "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
        "required": ["type", "function"],
    }]})
});
