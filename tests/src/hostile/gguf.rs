//! Mutations of GGUF files: every field that a writer fills in can be wrong. This module has its own reader and
//! writer, so that it can write files that no other writer would.

use super::{Dice, bytes};

/// A parsed file.
#[derive(Clone, Debug)]
pub struct File {
    version: u32,
    metadata: Vec<Pair>,
    tensors: Vec<Entry>,
    /// The data section: everything from the first tensor on.
    data: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Pair {
    key: Vec<u8>,
    kind: u32,
    /// The bytes of the value, as in the file.
    value: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Vec<u8>,
    /// The dimensions, innermost first.
    sizes: Vec<u64>,
    kind: u32,
    offset: u64,
}

/// Metadata types.
const U16: u32 = 2;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> Vec<u8> {
        let len = self.u64() as usize;
        self.take(len).to_vec()
    }

    /// Skips a value.
    fn value(&mut self, kind: u32) {
        match kind {
            0 | 1 | 7 => drop(self.take(1)),
            2 | 3 => drop(self.take(2)),
            4..=6 => drop(self.take(4)),
            STRING => drop(self.string()),
            ARRAY => {
                let (kind, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| self.value(kind));
            }
            _ => drop(self.take(8)),
        }
    }
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

impl File {
    /// Parses a valid file.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut cursor = Cursor(bytes);
        assert_eq!(cursor.take(4), b"GGUF");
        let version = cursor.u32();
        let (tensors, pairs) = (cursor.u64(), cursor.u64());
        let pair = |_| {
            let (key, kind) = (cursor.string(), cursor.u32());
            let before = cursor.0;
            cursor.value(kind);
            Pair { key, kind, value: before[..before.len() - cursor.0.len()].to_vec() }
        };
        let metadata = (0..pairs).map(pair).collect();
        let entry = |_| {
            let (name, rank) = (cursor.string(), cursor.u32());
            let sizes = (0..rank).map(|_| cursor.u64()).collect();
            Entry { name, sizes, kind: cursor.u32(), offset: cursor.u64() }
        };
        let tensors = (0..tensors).map(entry).collect();
        let read = bytes.len() - cursor.0.len();
        Self { version, metadata, tensors, data: bytes[read.next_multiple_of(32)..].to_vec() }
    }

    fn set(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.metadata.retain(|pair| pair.key != key.as_bytes());
        self.metadata.push(Pair { key: key.as_bytes().to_vec(), kind, value });
    }

    /// Adds a text to the metadata.
    pub fn with_text(mut self, key: &str, text: &str) -> Self {
        self.set(key, STRING, string(text.as_bytes()));
        self
    }

    /// Adds a list of texts to the metadata.
    pub fn with_texts(mut self, key: &str, texts: &[String]) -> Self {
        let head = [&STRING.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
        let texts = texts.iter().flat_map(|text| string(text.as_bytes()));
        self.set(key, ARRAY, head.into_iter().chain(texts).collect());
        self
    }

    /// Adds a list of numbers to the metadata, as uint32 or as float32.
    pub fn with_numbers(mut self, key: &str, numbers: &[u32], as_floats: bool) -> Self {
        let kind = if as_floats { F32 } else { U32 };
        let head = [&kind.to_le_bytes()[..], &(numbers.len() as u64).to_le_bytes()].concat();
        let bytes = numbers.iter().flat_map(|&n| match as_floats {
            true => (n as f32).to_le_bytes(),
            false => n.to_le_bytes(),
        });
        self.set(key, ARRAY, head.into_iter().chain(bytes).collect());
        self
    }

    /// Adds float32 tensors of zeros, with the innermost dimension first.
    pub fn with_tensors(mut self, names: impl Iterator<Item = String>, sizes: &[u64]) -> Self {
        for name in names {
            self.data.resize(self.data.len().next_multiple_of(32), 0);
            let offset = self.data.len() as u64;
            self.tensors.push(Entry { name: name.into_bytes(), sizes: sizes.to_vec(), kind: 0, offset });
            self.data.resize(self.data.len() + 4 * sizes.iter().product::<u64>() as usize, 0);
        }
        self
    }

    /// Splits the file into several, as `llama-gguf-split` does: the first one has all metadata.
    pub fn split(&self, count: usize) -> Vec<Vec<u8>> {
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by_key(|&at| self.tensors[at].offset);
        let end =
            |place: usize| order.get(place).map_or(self.data.len(), |&at| self.tensors[at].offset as usize);
        let part = |number: usize| {
            let metadata = if number == 0 { self.metadata.clone() } else { Vec::new() };
            let mut part = Self { version: self.version, metadata, tensors: Vec::new(), data: Vec::new() };
            part.set("split.no", U16, (number as u16).to_le_bytes().to_vec());
            part.set("split.count", U16, (count as u16).to_le_bytes().to_vec());
            part.set("split.tensors.count", I32, (order.len() as i32).to_le_bytes().to_vec());
            for (place, &at) in order.iter().enumerate() {
                if place * count / order.len() == number {
                    part.data.resize(part.data.len().next_multiple_of(32), 0);
                    let offset = part.data.len() as u64;
                    part.data.extend(&self.data[end(place)..end(place + 1)]);
                    part.tensors.push(Entry { offset, ..self.tensors[at].clone() });
                }
            }
            part.to_bytes()
        };
        (0..count).map(part).collect()
    }

    /// Replaces one entry of a list of texts in the metadata by bytes.
    pub fn with_bytes_at(mut self, key: &str, index: usize, bytes: &[u8]) -> Self {
        let at = self.metadata.iter().position(|pair| pair.key == key.as_bytes()).unwrap();
        let (head, texts) = self.metadata[at].value.split_at(12);
        let mut cursor = Cursor(texts);
        let count = u64::from_le_bytes(head[4..12].try_into().unwrap()) as usize;
        let mut texts: Vec<Vec<u8>> = (0..count).map(|_| cursor.string()).collect();
        texts[index] = bytes.to_vec();
        let value = [head.to_vec(), texts.iter().flat_map(|text| string(text)).collect()].concat();
        self.metadata[at].value = value;
        self
    }

    /// Writes the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for pair in &self.metadata {
            out.extend(string(&pair.key));
            out.extend(pair.kind.to_le_bytes());
            out.extend(&pair.value);
        }
        for entry in &self.tensors {
            out.extend(string(&entry.name));
            out.extend((entry.sizes.len() as u32).to_le_bytes());
            out.extend(entry.sizes.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(entry.kind.to_le_bytes());
            out.extend(entry.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// A copy of a file in which some fields and sometimes bytes are changed.
pub fn mutate(dice: &mut Dice, good: &File) -> Vec<u8> {
    let mut file = good.clone();
    for _ in 0..1 + dice.below(2) {
        match dice.below(10) {
            0..4 if !file.metadata.is_empty() => of_metadata(dice, &mut file.metadata),
            4..9 if !file.tensors.is_empty() => of_table(dice, &mut file.tensors),
            9 if dice.once_in(4) => file.version = dice.odd_number(3) as u32,
            _ => file.data.truncate(dice.below(file.data.len() + 1)),
        }
    }
    let mut out = file.to_bytes();
    if dice.once_in(8) {
        // One of the two counts in the header.
        let at = 8 * (1 + dice.below(2));
        let right = u64::from_le_bytes(out[at..at + 8].try_into().unwrap());
        out[at..at + 8].copy_from_slice(&dice.odd_number(right).to_le_bytes());
    }
    if dice.once_in(3) {
        // Mutate only the fields: flipped bits in the data are just other weights.
        let mut data = out.split_off(out.len() - file.data.len());
        bytes::mutate(dice, &mut out);
        out.append(&mut data);
    }
    out
}

fn of_metadata(dice: &mut Dice, metadata: &mut Vec<Pair>) {
    let at = dice.below(metadata.len());
    let donor = metadata[dice.below(metadata.len())].clone();
    let pair = &mut metadata[at];
    match dice.below(9) {
        0 => drop(metadata.remove(at)),
        1 => metadata.push(donor),
        2 => (pair.kind, pair.value) = (donor.kind, donor.value),
        3 => pair.kind = *dice.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, u32::MAX]),
        4 => bytes::mutate(dice, &mut pair.key),
        5 => (pair.kind, pair.value) = (ARRAY, deep_array(dice)),
        _ => of_value(dice, pair),
    }
}

fn of_value(dice: &mut Dice, pair: &mut Pair) {
    match pair.kind {
        // Change the length of a text, or its bytes.
        STRING if dice.once_in(3) => {
            let odd = dice.odd_number(pair.value.len() as u64 - 8).to_le_bytes();
            pair.value[..8].copy_from_slice(&odd);
        }
        STRING => {
            let mut text = pair.value.split_off(8);
            bytes::mutate(dice, &mut text);
            pair.value = string(&text);
        }
        // Change the element type of an array, its length, or any of its bytes.
        ARRAY if dice.once_in(3) => pair.value[..4].copy_from_slice(&(dice.below(14) as u32).to_le_bytes()),
        ARRAY if dice.once_in(2) => {
            let right = u64::from_le_bytes(pair.value[4..12].try_into().unwrap());
            pair.value[4..12].copy_from_slice(&dice.odd_number(right).to_le_bytes());
        }
        ARRAY => {
            let mut entries = pair.value.split_off(12);
            bytes::mutate(dice, &mut entries);
            pair.value.extend(entries);
        }
        F32 => {
            let odd = *dice.pick(&[f32::NAN, f32::INFINITY, -1.0, 0.0, f32::MIN_POSITIVE, f32::MAX]);
            pair.value = odd.to_le_bytes().to_vec();
        }
        _ => {
            let odd = dice.odd_number(pair.value[0].into()).to_le_bytes();
            let len = pair.value.len();
            pair.value = odd.iter().copied().cycle().take(len).collect();
        }
    }
}

/// Nested arrays, with a count that could fit in the rest of the file.
fn deep_array(dice: &mut Dice) -> Vec<u8> {
    let mut value = Vec::new();
    for _ in 0..dice.below(40) {
        value.extend(ARRAY.to_le_bytes());
        value.extend(if dice.once_in(8) { dice.odd_number(1) } else { 1 }.to_le_bytes());
    }
    value.extend(U32.to_le_bytes());
    value.extend(dice.odd_number(0).to_le_bytes());
    value
}

fn of_table(dice: &mut Dice, tensors: &mut Vec<Entry>) {
    let at = dice.below(tensors.len());
    let donor = tensors[dice.below(tensors.len())].clone();
    let entry = &mut tensors[at];
    match dice.below(10) {
        0 => drop(tensors.remove(at)),
        1 => tensors.push(donor),
        2 => entry.name = donor.name,
        3 => bytes::mutate(dice, &mut entry.name),
        4 => entry.sizes.reverse(),
        5 => entry.sizes = vec![dice.odd_number(1); dice.below(6)],
        6 => entry.kind = *dice.pick(&[0, 1, 2, 3, 4, 5, 8, 12, 14, 16, 24, 28, 30, 36, 39, 255, u32::MAX]),
        7 => entry.offset = donor.offset,
        8 => entry.offset = dice.odd_number(entry.offset),
        _ => {
            let size = dice.below(entry.sizes.len());
            if let Some(size) = entry.sizes.get_mut(size) {
                *size = dice.odd_number(*size);
            }
        }
    }
}
