//! The keywords of JSON Schema that constrain values, and where they do not.

use serde_json::{Map, Number, Value};

/// The drafts of JSON Schema, by the year or number that sorts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Draft(u16);

const DRAFT_4: Draft = Draft(4);
const DRAFT_6: Draft = Draft(6);
const DRAFT_7: Draft = Draft(7);
const DRAFT_2019: Draft = Draft(2019);
const DRAFT_2020: Draft = Draft(2020);

impl Draft {
    /// The draft that a schema names, else the newest one.
    pub(crate) fn of(schema: &Value) -> Self {
        match schema.get("$schema").and_then(Value::as_str).map(|uri| uri.trim_end_matches('#')) {
            Some("http://json-schema.org/draft-04/schema") => DRAFT_4,
            Some("http://json-schema.org/draft-06/schema") => DRAFT_6,
            Some("http://json-schema.org/draft-07/schema") => DRAFT_7,
            Some("https://json-schema.org/draft/2019-09/schema") => DRAFT_2019,
            _ => DRAFT_2020,
        }
    }

    /// Whether a schema is only a reference: in old drafts, keywords beside a `$ref` do not count.
    pub(crate) fn hides_siblings(self, object: &Map<String, Value>) -> bool {
        self <= DRAFT_7 && object.contains_key("$ref")
    }

    /// The keyword that gives a schema a URI.
    pub(crate) fn id(self) -> &'static str {
        if self == DRAFT_4 { "id" } else { "$id" }
    }

    /// Whether anchors are written in [`Self::id`], behind a `#`.
    pub(crate) fn has_anchors_in_ids(self) -> bool {
        self <= DRAFT_7
    }
}

/// What the value of a keyword holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// A schema.
    Schema,
    /// A list of schemas.
    Schemas,
    /// A schema or a list of schemas.
    SchemaOrSchemas,
    /// Schemas by name; the names are not keywords.
    Named,
    /// A number of characters, items or properties.
    Length,
    /// A value that contains no schema, whatever it looks like.
    Value,
}

/// The keywords that constrain, what they hold, and the first and the last draft that has them.
const KEYWORDS: &[(&str, Holds, Draft, Draft)] = &[
    ("$ref", Holds::Value, DRAFT_4, DRAFT_2020),
    ("$recursiveRef", Holds::Value, DRAFT_2019, DRAFT_2019),
    ("$dynamicRef", Holds::Value, DRAFT_2020, DRAFT_2020),
    ("type", Holds::Value, DRAFT_4, DRAFT_2020),
    ("enum", Holds::Value, DRAFT_4, DRAFT_2020),
    ("const", Holds::Value, DRAFT_6, DRAFT_2020),
    ("allOf", Holds::Schemas, DRAFT_4, DRAFT_2020),
    ("anyOf", Holds::Schemas, DRAFT_4, DRAFT_2020),
    ("oneOf", Holds::Schemas, DRAFT_4, DRAFT_2020),
    ("not", Holds::Schema, DRAFT_4, DRAFT_2020),
    ("if", Holds::Schema, DRAFT_7, DRAFT_2020),
    ("then", Holds::Schema, DRAFT_7, DRAFT_2020),
    ("else", Holds::Schema, DRAFT_7, DRAFT_2020),
    ("properties", Holds::Named, DRAFT_4, DRAFT_2020),
    ("patternProperties", Holds::Named, DRAFT_4, DRAFT_2020),
    ("additionalProperties", Holds::Schema, DRAFT_4, DRAFT_2020),
    ("unevaluatedProperties", Holds::Schema, DRAFT_2019, DRAFT_2020),
    ("propertyNames", Holds::Schema, DRAFT_6, DRAFT_2020),
    ("required", Holds::Value, DRAFT_4, DRAFT_2020),
    ("minProperties", Holds::Length, DRAFT_4, DRAFT_2020),
    ("maxProperties", Holds::Length, DRAFT_4, DRAFT_2020),
    // Newer drafts split it in two, but schemas that do not name their draft still have it.
    ("dependencies", Holds::Named, DRAFT_4, DRAFT_2020),
    ("dependentRequired", Holds::Value, DRAFT_2019, DRAFT_2020),
    ("dependentSchemas", Holds::Named, DRAFT_2019, DRAFT_2020),
    ("prefixItems", Holds::Schemas, DRAFT_2020, DRAFT_2020),
    ("items", Holds::SchemaOrSchemas, DRAFT_4, DRAFT_2020),
    ("additionalItems", Holds::Schema, DRAFT_4, DRAFT_2020),
    ("unevaluatedItems", Holds::Schema, DRAFT_2019, DRAFT_2020),
    ("contains", Holds::Schema, DRAFT_6, DRAFT_2020),
    ("minContains", Holds::Length, DRAFT_2019, DRAFT_2020),
    ("maxContains", Holds::Length, DRAFT_2019, DRAFT_2020),
    ("minItems", Holds::Length, DRAFT_4, DRAFT_2020),
    ("maxItems", Holds::Length, DRAFT_4, DRAFT_2020),
    ("uniqueItems", Holds::Value, DRAFT_4, DRAFT_2020),
    ("minLength", Holds::Length, DRAFT_4, DRAFT_2020),
    ("maxLength", Holds::Length, DRAFT_4, DRAFT_2020),
    ("pattern", Holds::Value, DRAFT_4, DRAFT_2020),
    ("format", Holds::Value, DRAFT_4, DRAFT_2020),
    ("minimum", Holds::Value, DRAFT_4, DRAFT_2020),
    ("maximum", Holds::Value, DRAFT_4, DRAFT_2020),
    ("exclusiveMinimum", Holds::Value, DRAFT_4, DRAFT_2020),
    ("exclusiveMaximum", Holds::Value, DRAFT_4, DRAFT_2020),
    ("multipleOf", Holds::Value, DRAFT_4, DRAFT_2020),
];

/// The formats that llguidance enforces. Others are annotations.
const FORMATS: &[&str] =
    &["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Keywords that affect each other: llguidance compiles the keywords between two of [`IN_PLACE`] together, so the
/// keywords of a group must not be apart.
const TOGETHER: &[&[&str]] = &[
    &["patternProperties", "additionalProperties", "unevaluatedProperties"],
    &["items", "additionalItems"],
    &["minimum", "exclusiveMinimum"],
    &["maximum", "exclusiveMaximum"],
];

/// Keywords whose schemas apply to the same value as the schema that contains them.
const IN_PLACE: &[&str] = &[
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentSchemas",
];

/// What a keyword holds, if it constrains values in this draft.
pub(crate) fn holds(keyword: &str, draft: Draft) -> Option<Holds> {
    let found = KEYWORDS.iter().find(|(name, ..)| *name == keyword)?;
    let (_, holds, first, last) = *found;
    (first <= draft && draft <= last).then_some(holds)
}

/// What a keyword holds, if that is schemas, including definitions.
pub(crate) fn holds_schemas(keyword: &str, draft: Draft) -> Option<Holds> {
    match keyword {
        "$defs" | "definitions" => Some(Holds::Named),
        _ => holds(keyword, draft).filter(|holds| !matches!(holds, Holds::Value | Holds::Length)),
    }
}

/// The keys of a schema in order, with the keys of a [`TOGETHER`] group moved to the first of them.
pub(crate) fn in_order(object: &Map<String, Value>) -> Vec<&str> {
    let mut keys: Vec<&str> = Vec::with_capacity(object.len());
    for key in object.keys().map(String::as_str) {
        match TOGETHER.iter().find(|group| group.contains(&key)) {
            None => keys.push(key),
            Some(_) if keys.contains(&key) => {}
            Some(group) => keys.extend(group.iter().copied().filter(|member| object.contains_key(*member))),
        }
    }
    keys
}

/// Whether no other schema applies to the same value.
pub(crate) fn is_alone(object: &Map<String, Value>) -> bool {
    !IN_PLACE.iter().any(|keyword| object.contains_key(*keyword))
}

/// Whether a keyword with this value can make a value invalid.
pub(crate) fn constrains(object: &Map<String, Value>, keyword: &str, value: &Value, draft: Draft) -> bool {
    let has = |keyword: &str| object.contains_key(keyword);
    let number = |keyword: &str| object.get(keyword).and_then(Value::as_f64);
    match keyword {
        "format" => match value {
            Value::String(format) => FORMATS.contains(&format.as_str()),
            _ => true,
        },
        "uniqueItems" => value != &Value::Bool(false) && number("maxItems").is_none_or(|most| most > 1.0),
        // It only counts behind a list in `items`, from before lists had a keyword of their own.
        "additionalItems" => object.get("items").is_some_and(Value::is_array),
        "if" => has("then") || has("else"),
        "then" | "else" => has("if"),
        "maxContains" => has("contains"),
        // A minimum of 0 asks for nothing, unless it replaces the default of 1 beside a `maxContains`.
        "minContains" => has("contains") && (number("minContains") != Some(0.0) || has("maxContains")),
        "contains" => {
            let counts = draft >= DRAFT_2019;
            !(counts && number("minContains") == Some(0.0) && !has("maxContains"))
        }
        "not" => value != &Value::Bool(false),
        "unevaluatedProperties" | "unevaluatedItems" | "propertyNames" => !allows_all(value),
        "dependencies" | "dependentRequired" | "dependentSchemas" | "patternProperties" => {
            value.as_object().is_none_or(|entries| !entries.is_empty())
        }
        _ => true,
    }
}

fn allows_all(schema: &Value) -> bool {
    match schema {
        Value::Bool(all) => *all,
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

/// A length as a whole number, even if it is written as `2.0`.
pub(crate) fn whole(number: &Number) -> Value {
    /// Above this, not every whole number is a float.
    const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;
    match number.as_f64() {
        Some(value)
            if !number.is_u64() && value.fract() == 0.0 && (0.0..MAX_EXACT_INTEGER).contains(&value) =>
        {
            Value::from(value as u64)
        }
        _ => Value::Number(number.clone()),
    }
}
