//! Whether no value matches two schemas, as far as a limited search can show.

use std::{collections::HashSet, rc::Rc};

use serde_json::{Map, Value};

use super::references::{Document, Target};

/// The most schemas that are inspected for one `oneOf`.
const MAX_LOOKS: usize = 20_000;
/// Entries of a schema's lists, or pieces of their texts, that count as one schema.
const ENTRIES_PER_LOOK: usize = 16;
/// Bytes of such a piece.
const PIECE_BYTES: usize = 64;
/// The deepest nesting of schemas, with references followed.
const MAX_DEPTH: usize = 12;
/// The most options of one `oneOf` that are compared.
const MAX_OPTIONS: usize = 256;

const NUMBER: u8 = 1;
const STRING: u8 = 2;
const OBJECT: u8 = 4;
const ARRAY: u8 = 8;
const BOOLEAN: u8 = 16;
const NULL: u8 = 32;
const ALL: u8 = 63;

impl<'a> Document<'a> {
    /// Whether no value matches two schemas of a list in the schema `parent`, which belongs to the resource with the
    /// URI `base`.
    pub(crate) fn excludes_all(
        &self,
        parent: &Map<String, Value>,
        options: &'a Value,
        base: &Rc<str>,
    ) -> bool {
        let Value::Array(options) = options else { return false };
        if options.len() > MAX_OPTIONS {
            return false;
        }
        let place = |schema| Target { schema, outer: base.clone(), name: String::new() };
        let options: Vec<Target<'a>> = options.iter().map(place).collect();
        let mut looks = MAX_LOOKS;
        let mut pairs = options.iter().enumerate().flat_map(|(index, a)| {
            let later = &options[index + 1..];
            later.iter().map(move |b| (a, b))
        });
        let kept = types(parent);
        pairs.all(|(a, b)| self.excludes(a, b, kept, &mut looks, 0))
    }

    /// Whether no value of the types `kept` matches both schemas.
    fn excludes(&self, a: &Target<'a>, b: &Target<'a>, kept: u8, looks: &mut usize, depth: usize) -> bool {
        if *looks == 0 || depth > MAX_DEPTH {
            return false;
        }
        *looks = looks.saturating_sub(1 + cost(a.schema) + cost(b.schema));
        if *looks == 0 {
            return false;
        }
        let never = Value::Bool(false);
        if a.schema == &never || b.schema == &never {
            return true;
        }
        let (Value::Object(x), Value::Object(y)) = (a.schema, b.schema) else { return false };
        let refers = self.draft.hides_siblings(x) || self.draft.hides_siblings(y);
        if !refers && (exclude_by_value(x, y, kept) || self.exclude_by_property(a, b, kept, looks, depth)) {
            return true;
        }
        self.parts_exclude(a, b, kept, looks, depth) || self.parts_exclude(b, a, kept, looks, depth)
    }

    /// Whether the parts of a schema exclude another schema: a part that every value must match, or all of the
    /// options of which a value must match one.
    fn parts_exclude(
        &self,
        whole: &Target<'a>,
        other: &Target<'a>,
        kept: u8,
        looks: &mut usize,
        depth: usize,
    ) -> bool {
        let Value::Object(object) = whole.schema else { return false };
        let Ok(base) = self.base_of(object, &whole.outer) else { return false };
        if let Some(Value::String(reference)) = object.get("$ref")
            && let Ok(target) = self.resolve(reference, &base)
            && self.excludes(&target, other, kept, looks, depth + 1)
        {
            return true;
        }
        if self.draft.hides_siblings(object) {
            return false;
        }
        let place = |schema| Target { schema, outer: base.clone(), name: String::new() };
        let parts = |key: &str| -> Vec<Target<'a>> {
            let list: &'a [Value] =
                object.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            list.iter().map(place).collect()
        };
        if parts("allOf").iter().any(|part| self.excludes(part, other, kept, looks, depth + 1)) {
            return true;
        }
        ["anyOf", "oneOf"].into_iter().any(|key| {
            let options = parts(key);
            !options.is_empty()
                && options.iter().all(|part| self.excludes(part, other, kept, looks, depth + 1))
        })
    }

    /// Whether both schemas allow objects alone, and have a required property with schemas that exclude each other.
    fn exclude_by_property(
        &self,
        a: &Target<'a>,
        b: &Target<'a>,
        kept: u8,
        looks: &mut usize,
        depth: usize,
    ) -> bool {
        let (Value::Object(x), Value::Object(y)) = (a.schema, b.schema) else { return false };
        if types(x) & types(y) & kept != OBJECT {
            return false;
        }
        let (Ok(x_base), Ok(y_base)) = (self.base_of(x, &a.outer), self.base_of(y, &b.outer)) else {
            return false;
        };
        let property = |object: &'a Map<String, Value>, base: &Rc<str>, name: &str| {
            let schema = object.get("properties")?.get(name)?;
            Some(Target { schema, outer: base.clone(), name: String::new() })
        };
        let required = |object: &'a Map<String, Value>| -> &'a [Value] {
            object.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
        };
        required(x).iter().chain(required(y)).filter_map(Value::as_str).any(|name| {
            match (property(x, &x_base, name), property(y, &y_base, name)) {
                (Some(p), Some(q)) => self.excludes(&p, &q, ALL, looks, depth + 1),
                _ => false,
            }
        })
    }
}

/// The cost of reading a schema's lists, which are read again for each other schema that it is compared with.
fn cost(schema: &Value) -> usize {
    const LISTS: [&str; 6] = ["type", "enum", "required", "allOf", "anyOf", "oneOf"];
    let lists = LISTS.into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let entry = |value: &Value| 1 + value.as_str().map_or(0, str::len) / PIECE_BYTES;
    lists.chain(schema.get("const")).map(entry).sum::<usize>() / ENTRIES_PER_LOOK
}

/// Whether the types, listed values or limits of two schemas exclude each other.
fn exclude_by_value(x: &Map<String, Value>, y: &Map<String, Value>, kept: u8) -> bool {
    let (x_types, y_types) = (types(x), types(y));
    let both = x_types & y_types & kept;
    if both == 0 {
        return true;
    }
    if let (Some(listed), Some(other)) = (values(x), values(y)) {
        let keys: HashSet<Key<'_>> = listed.into_iter().map(Key::of).collect();
        if !other.into_iter().any(|value| keys.contains(&Key::of(value))) {
            return true;
        }
    }
    if both == NUMBER && (ends_before(x, y) || ends_before(y, x)) {
        return true;
    }
    let lie_outside = |values: Vec<&Value>, object: &Map<String, Value>, types: u8| {
        values.iter().all(|value| type_of(value) & types == 0 || is_beyond(value, object))
    };
    values(x).is_some_and(|values| lie_outside(values, y, y_types))
        || values(y).is_some_and(|values| lie_outside(values, x, x_types))
}

/// Whether a value is a number beyond the limits of a schema.
fn is_beyond(value: &Value, object: &Map<String, Value>) -> bool {
    let Some(number) = value.as_f64() else { return false };
    let limit = |key: &str| object.get(key).and_then(Value::as_f64);
    limit("minimum").is_some_and(|least| number < least)
        || limit("exclusiveMinimum").is_some_and(|least| number <= least)
        || limit("maximum").is_some_and(|most| number > most)
        || limit("exclusiveMaximum").is_some_and(|most| number >= most)
}

/// The types that values of a schema can have, one bit for each.
fn types(object: &Map<String, Value>) -> u8 {
    let named = |name: &str| match name {
        "number" | "integer" => NUMBER,
        "string" => STRING,
        "object" => OBJECT,
        "array" => ARRAY,
        "boolean" => BOOLEAN,
        "null" => NULL,
        _ => ALL,
    };
    let said = match object.get("type") {
        Some(Value::String(name)) => named(name),
        Some(Value::Array(names)) => {
            names.iter().map(|name| name.as_str().map_or(ALL, named)).fold(0, |all, one| all | one)
        }
        _ => ALL,
    };
    match values(object) {
        Some(values) => said & values.iter().map(|value| type_of(value)).fold(0, |all, one| all | one),
        None => said,
    }
}

fn type_of(value: &Value) -> u8 {
    match value {
        Value::Number(_) => NUMBER,
        Value::String(_) => STRING,
        Value::Object(_) => OBJECT,
        Value::Array(_) => ARRAY,
        Value::Bool(_) => BOOLEAN,
        Value::Null => NULL,
    }
}

/// The values that a schema lists, if it does.
fn values(object: &Map<String, Value>) -> Option<Vec<&Value>> {
    match (object.get("const"), object.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

/// The key by which values are compared: values that may be equal have the same key. Numbers are equal however they
/// are written, so all lists have one key, and so do all objects.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Null,
    Bool(bool),
    /// The bits of the number as a float.
    Number(Option<u64>),
    Text(&'a str),
    Array,
    Object,
}

impl<'a> Key<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            // Adding zero gives both zeros the same bits.
            Value::Number(number) => Self::Number(number.as_f64().map(|number| (number + 0.0).to_bits())),
            Value::String(text) => Self::Text(text),
            Value::Array(_) => Self::Array,
            Value::Object(_) => Self::Object,
        }
    }
}

/// Whether the largest number of one schema is below the smallest of another.
fn ends_before(x: &Map<String, Value>, y: &Map<String, Value>) -> bool {
    let number = |object: &Map<String, Value>, key: &str| object.get(key).and_then(Value::as_f64);
    let below = |last: Option<f64>, first: Option<f64>, equal: bool| match (last, first) {
        (Some(last), Some(first)) => last < first || (equal && last == first),
        _ => false,
    };
    let last = (number(x, "maximum"), number(x, "exclusiveMaximum"));
    let first = (number(y, "minimum"), number(y, "exclusiveMinimum"));
    below(last.0, first.0, false)
        || below(last.0, first.1, true)
        || below(last.1, first.0, true)
        || below(last.1, first.1, true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::json;

    use super::*;

    fn exclude_each_other(options: &[Value]) -> bool {
        let schema = json!({ "oneOf": options });
        let document = Document::new(&schema).unwrap();
        document.excludes_all(schema.as_object().unwrap(), &schema["oneOf"], &Rc::from(""))
    }

    #[test]
    fn listed_values_are_compared() {
        for (a, b, expected) in [
            (json!([1, "a", null]), json!([2, "b", true]), true),
            (json!([1]), json!([1.0]), false),
            (json!([0]), json!([-0.0]), false),
            (json!(["1"]), json!([1]), true),
            (json!([[1]]), json!([[2]]), false),
            (json!([{}]), json!([[]]), true),
            (json!([false, "x"]), json!([null, "x"]), false),
        ] {
            let options = [json!({ "enum": a }), json!({ "enum": b })];
            assert_eq!(exclude_each_other(&options), expected, "{options:?}");
        }
    }

    #[test]
    fn what_is_compared_is_counted() {
        let listing = |first: usize, count: usize| json!({ "enum": Vec::from_iter(first..first + count) });
        // Compared each with each, these would be 10^10 comparisons.
        assert!(exclude_each_other(&[listing(0, 100_000), listing(100_000, 100_000)]));
        let of = |options: usize, count: usize| -> Vec<Value> {
            (0..options).map(|option| listing(option * count, count)).collect()
        };
        assert!(exclude_each_other(&of(20, 100)));
        assert!(!exclude_each_other(&of(20, 2000)));
        let requiring = |value: usize| {
            let names: Vec<String> = (0..2000).map(|name| name.to_string()).collect();
            json!({ "type": "object", "required": names, "properties": { "1999": { "const": value } } })
        };
        assert!(exclude_each_other(&[requiring(0), requiring(1)]));
        assert!(!exclude_each_other(&Vec::from_iter((0..20).map(requiring))));
    }
}
