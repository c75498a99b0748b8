//! Mutations of safetensors files and of their index files.

use serde_json::{Value, json};

use super::{Dice, bytes, json};

/// A parsed safetensors file.
#[derive(Clone, Debug)]
pub struct File {
    header: Value,
    data: Vec<u8>,
}

impl File {
    /// Parses a valid file.
    pub fn parse(bytes: &[u8]) -> Self {
        let (length, rest) = bytes.split_at(8);
        let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        Self { header: serde_json::from_slice(header).unwrap(), data: data.to_vec() }
    }
}

/// A copy of a file in which some fields and sometimes bytes are changed.
pub fn mutate(dice: &mut Dice, good: &File) -> Vec<u8> {
    let mut file = good.clone();
    for _ in 0..dice.below(3) {
        of_entry(dice, &mut file.header);
    }
    let header = match dice.once_in(2) {
        true => json::mutate_with(dice, &file.header, &odd_entries()),
        false => file.header.to_string().into_bytes(),
    };
    let length = header.len() as u64;
    let length = if dice.once_in(10) { dice.odd_number(length) } else { length };
    match dice.below(12) {
        0 => file.data.truncate(dice.below(file.data.len() + 1)),
        1 => file.data.extend(vec![0; dice.below(64)]),
        _ => {}
    }
    let mut out = length.to_le_bytes().to_vec();
    out.extend(header);
    if dice.once_in(8) {
        bytes::mutate(dice, &mut out);
    }
    out.extend(file.data);
    out
}

fn odd_entries() -> Vec<Value> {
    vec![
        json!({"dtype": "F32", "shape": [], "data_offsets": [0, 4]}),
        json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
        json!({"dtype": "F32", "shape": [1u64 << 62, 4], "data_offsets": [0, 0]}),
        json!({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}),
        json!({"dtype": "F32", "shape": [2], "data_offsets": [u64::MAX - 7, 0]}),
        json!({"dtype": "F32", "shape": vec![1; 1000], "data_offsets": [0, 4]}),
    ]
}

/// Changes a field in the header entry of one tensor.
fn of_entry(dice: &mut Dice, header: &mut Value) {
    let Some(fields) = header.as_object_mut().filter(|fields| !fields.is_empty()) else { return };
    let at = dice.below(fields.len());
    let donor = fields.values().nth(dice.below(fields.len())).cloned().unwrap_or_default();
    let Some(entry) = fields.values_mut().nth(at) else { return };
    let types =
        ["F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U8", "I64", "BOOL", "F4", "C64", "Q4_0", ""];
    match dice.below(6) {
        0 => entry["dtype"] = json!(dice.pick(&types)),
        1 => entry["data_offsets"] = donor["data_offsets"].clone(),
        2 => {
            let offset = dice.below(2);
            let right = entry["data_offsets"][offset].as_u64().unwrap_or(0);
            if let Some(place) = entry.get_mut("data_offsets").and_then(|offsets| offsets.get_mut(offset)) {
                *place = json!(dice.odd_number(right));
            }
        }
        3 => entry["shape"] = donor["shape"].clone(),
        4 => {
            if let Some(shape) = entry.get_mut("shape").and_then(Value::as_array_mut) {
                shape.reverse();
            }
        }
        _ => {
            let axes = entry["shape"].as_array().map_or(0, Vec::len);
            if let Some(size) = entry.get_mut("shape").and_then(|shape| shape.get_mut(dice.below(axes))) {
                *size = json!(dice.odd_number(size.as_u64().unwrap_or(1)));
            }
        }
    }
}

/// A copy of an index in which some names and sometimes bytes are changed.
pub fn mutate_index(dice: &mut Dice, good: &Value) -> Vec<u8> {
    const SHARDS: &[&str] = &[
        "../model.safetensors",
        "/etc/passwd",
        "/dev/zero",
        "a/b.safetensors",
        "./config.json",
        "config.json",
        "",
        ".",
        "..",
        "\u{0}",
        "model-00001-of-00010.safetensors\u{0}",
        "loop.safetensors",
        "pipe.safetensors",
        "directory.safetensors",
        "outside.safetensors",
        "model.safetensors.index.json",
        "C:\\x",
        "..\\x",
    ];
    let mut index = good.clone();
    if let Some(map) = index["weight_map"].as_object_mut() {
        for _ in 0..dice.below(3) {
            let at = dice.below(map.len());
            if let Some(shard) = map.values_mut().nth(at) {
                *shard = json!(dice.pick(SHARDS));
            }
        }
    }
    match dice.once_in(2) {
        true => json::mutate(dice, &index),
        false => index.to_string().into_bytes(),
    }
}
