//! Mutations of JSON documents.

use serde_json::{Map, Value, json};

use super::{Dice, bytes};

/// A placeholder that is replaced by text that is not valid JSON.
const PLACE: &str = "@@PLACE@@";

/// A copy of a document in which some values, keys and sometimes bytes are changed.
pub fn mutate(dice: &mut Dice, document: &Value) -> Vec<u8> {
    mutate_with(dice, document, &[])
}

/// As [`mutate`], with further odd values for this kind of document.
pub fn mutate_with(dice: &mut Dice, document: &Value, odd: &[Value]) -> Vec<u8> {
    let mut document = document.clone();
    let mut text_at_place = None;
    for _ in 0..1 + dice.below(3) {
        let donor = random_node(dice, &mut document).clone();
        let node = random_node(dice, &mut document);
        match (dice.below(8), node) {
            (0, Value::Object(fields)) => remove(dice, fields),
            (1, Value::Object(fields)) => rename(dice, fields),
            (2, Value::Array(list)) => {
                if !list.is_empty() {
                    list.remove(dice.below(list.len()));
                }
            }
            (3, Value::Array(list)) => list.extend(list.clone().into_iter().take(64)),
            (4, node) => *node = donor,
            (5, node) if !odd.is_empty() => *node = dice.pick(odd).clone(),
            (6, node) if dice.once_in(4) => {
                *node = PLACE.into();
                text_at_place = Some(odd_text(dice));
            }
            (_, node) => *node = odd_value(dice, node),
        }
    }
    let mut text = document.to_string();
    if let Some(odd) = text_at_place {
        text = text.replace(&format!("\"{PLACE}\""), &odd);
    }
    if dice.once_in(6) {
        text = with_a_field_twice(&text);
    }
    let mut out = text.into_bytes();
    if dice.once_in(4) {
        bytes::mutate(dice, &mut out);
    }
    out
}

/// A random node of the document. Shallow nodes are as likely as deep ones.
fn random_node<'a>(dice: &mut Dice, node: &'a mut Value) -> &'a mut Value {
    if dice.once_in(4) {
        return node;
    }
    let count = match node {
        Value::Object(fields) => fields.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    if count == 0 {
        return node;
    }
    let at = dice.below(count);
    let child = match node {
        Value::Object(fields) => fields.values_mut().nth(at),
        Value::Array(list) => list.get_mut(at),
        _ => None,
    };
    random_node(dice, child.unwrap())
}

fn remove(dice: &mut Dice, fields: &mut Map<String, Value>) {
    if let Some(key) = fields.keys().nth(dice.below(fields.len())).cloned() {
        fields.remove(&key);
    }
}

fn rename(dice: &mut Dice, fields: &mut Map<String, Value>) {
    if let Some(key) = fields.keys().nth(dice.below(fields.len())).cloned()
        && let Some(value) = fields.remove(&key)
    {
        let names = ["", "\u{0}", "a", "weight", "../x", "\u{1F4A5}", "model_type", "__proto__"];
        let name = (*dice.pick(&names)).to_owned();
        fields.insert(if dice.once_in(2) { name } else { key + "x" }, value);
    }
}

/// An unusual value of the same type or another one, which readers may not expect.
fn odd_value(dice: &mut Dice, right: &Value) -> Value {
    if let (Some(number), false) = (right.as_f64(), dice.once_in(3)) {
        let odd = dice.odd_number(right.as_u64().unwrap_or(1));
        return match dice.below(4) {
            0 => json!(-number),
            1 => json!(number * [0.5, 1.5, 1e-30, 1e30, 1e300][dice.below(5)]),
            2 => json!(odd.cast_signed()),
            _ => json!(odd),
        };
    }
    match dice.below(16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(0),
        4 => json!(-1),
        5 => json!(0.5),
        6 => json!(1e308),
        7 => json!(u64::MAX),
        8 => json!(i64::MIN),
        9 => json!(""),
        10 => json!("x".repeat(dice.below(20_000))),
        11 => json!([]),
        12 => json!({}),
        13 => json!([[], [null], {"a": []}]),
        14 => json!(["\u{0}", "../../x", "/dev/zero", "\u{202e}"][dice.below(4)]),
        _ => json!(vec![dice.below(1000); dice.below(2000)]),
    }
}

/// Text that no serializer writes: deep nesting, invalid or endless numbers, unterminated strings.
fn odd_text(dice: &mut Dice) -> String {
    let many = 1 + dice.below(50_000);
    match dice.below(8) {
        0 => "[".repeat(many),
        1 => "[".repeat(many) + &"]".repeat(many),
        2 => "{\"a\":".repeat(many) + "1" + &"}".repeat(many),
        3 => "9".repeat(many),
        4 => format!("1e{many}"),
        5 => "NaN".to_owned(),
        6 => r#""\ud800""#.to_owned(),
        _ => "\"".to_owned(),
    }
}

/// The document with its first field repeated at its end.
fn with_a_field_twice(text: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    match (fields.iter().next(), text.strip_suffix('}')) {
        (Some((key, value)), Some(rest)) => format!("{rest},{}:{value}}}", Value::from(key.as_str())),
        _ => text.to_owned(),
    }
}
