//! The metadata of a GGUF file: key-value pairs.

use std::{collections::BTreeMap, fmt};

use super::reader::Reader;
use crate::CheckpointError;

/// A metadata value. Numbers are widened, because the width in the file carries no meaning.
///
/// # Examples
/// ```
/// use moi_checkpoint::gguf::Value;
///
/// let value = Value::Array(vec![Value::Unsigned(1), Value::Unsigned(2)]);
/// assert_eq!(value.to_string(), "an array of 2");
/// assert_eq!(Value::Signed(7).as_usize(), Some(7));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8 to u64.
    Unsigned(u64),
    /// i8 to i64.
    Signed(i64),
    /// f32 and f64.
    Float(f64),
    /// bool.
    Bool(bool),
    /// A UTF-8 string; bytes that are no UTF-8 in the file are replaced by U+FFFD.
    String(String),
    /// Values of one type.
    Array(Vec<Value>),
}

/// Metadata values by key.
///
/// # Examples
/// ```
/// use moi_checkpoint::gguf::{Metadata, Value};
///
/// let pairs = [("llama.block_count".to_owned(), Value::Unsigned(32))];
/// let metadata: Metadata = pairs.into_iter().collect();
/// assert_eq!(metadata.usize("llama.block_count"), Some(32));
/// assert_eq!(metadata.str("general.name"), None);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    pairs: BTreeMap<String, Value>,
    /// The number of strings of each key that were not UTF-8, for keys that have such strings.
    replaced: BTreeMap<String, usize>,
}

const ARRAY: u32 = 9;
/// Deepest nesting of arrays, which is deeper than in any real file.
const MAX_DEPTH: usize = 4;

impl FromIterator<(String, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (String, Value)>>(pairs: I) -> Self {
        Self { pairs: pairs.into_iter().collect(), ..Self::default() }
    }
}

impl Metadata {
    pub(super) fn read(reader: &mut Reader<'_>, count: usize) -> Result<Self, CheckpointError> {
        let (mut pairs, mut replaced) = (BTreeMap::new(), BTreeMap::new());
        for _ in 0..count {
            let key = reader.text()?;
            let kind = reader.u32()?;
            let before = reader.replaced();
            let value = value(reader, kind, 0)?;
            if reader.replaced() > before {
                replaced.insert(key.clone(), reader.replaced() - before);
            }
            if pairs.insert(key.clone(), value).is_some() {
                return Err(reader.error(format!("metadata key `{key}` stands there twice")));
            }
        }
        Ok(Self { pairs, replaced })
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.get(key)
    }

    /// The number of strings of a key, single or in a list, that were not UTF-8.
    pub fn num_replaced(&self, key: &str) -> usize {
        self.replaced.get(key).copied().unwrap_or(0)
    }

    /// All pairs, in order of key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key, if it is a string.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a key, if it is a non-negative integer.
    pub fn usize(&self, key: &str) -> Option<usize> {
        self.get(key)?.as_usize()
    }

    /// The value of a key as float64, if it is a number.
    pub fn f64(&self, key: &str) -> Option<f64> {
        self.get(key)?.as_f64()
    }

    /// The value of a key, if it is a boolean.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// A list whose entries are converted by `read`; `None` if the key is absent or an entry is of another type.
    pub fn list<'a, T>(&'a self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
        match self.get(key)? {
            Value::Array(values) => values.iter().map(read).collect(),
            _ => None,
        }
    }
}

impl Value {
    /// The value, if it is a non-negative integer.
    pub fn as_usize(&self) -> Option<usize> {
        match *self {
            Self::Unsigned(n) => usize::try_from(n).ok(),
            Self::Signed(n) => usize::try_from(n).ok(),
            _ => None,
        }
    }

    /// The value as float64, if it is a number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Float(x) => Some(x),
            Self::Unsigned(n) => Some(n as f64),
            Self::Signed(n) => Some(n as f64),
            _ => None,
        }
    }

    /// The value, if it is a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(n) => write!(f, "{n}"),
            Self::Signed(n) => write!(f, "{n}"),
            Self::Float(x) => write!(f, "{x}"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::String(text) => write!(f, "{text:?}"),
            Self::Array(values) => write!(f, "an array of {}", values.len()),
        }
    }
}

/// The float64 that has the fewest digits and rounds to this float32, so that 1e-5 stays 1e-5.
pub(super) fn shortest(value: f32) -> f64 {
    // Integers of up to 24 bits are exact in both types; the scores of most vocabularies are such integers.
    if value.trunc() == value && value.abs() <= (1 << 24) as f32 {
        return value.into();
    }
    value.to_string().parse().unwrap_or_else(|_| value.into())
}

fn value(reader: &mut Reader<'_>, kind: u32, depth: usize) -> Result<Value, CheckpointError> {
    Ok(match kind {
        0 => Value::Unsigned(reader.array::<1>()?[0].into()),
        1 => Value::Signed(i8::from_le_bytes(reader.array()?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(reader.array()?).into()),
        3 => Value::Signed(i16::from_le_bytes(reader.array()?).into()),
        4 => Value::Unsigned(u32::from_le_bytes(reader.array()?).into()),
        5 => Value::Signed(i32::from_le_bytes(reader.array()?).into()),
        6 => Value::Float(shortest(f32::from_le_bytes(reader.array()?))),
        7 => Value::Bool(reader.array::<1>()?[0] != 0),
        8 => Value::String(reader.text()?),
        ARRAY => array(reader, depth)?,
        10 => Value::Unsigned(u64::from_le_bytes(reader.array()?)),
        11 => Value::Signed(i64::from_le_bytes(reader.array()?)),
        12 => Value::Float(f64::from_le_bytes(reader.array()?)),
        other => return Err(reader.error(format!("metadata type {other} is not defined"))),
    })
}

fn array(reader: &mut Reader<'_>, depth: usize) -> Result<Value, CheckpointError> {
    if depth >= MAX_DEPTH {
        return Err(reader.error(format!("arrays are nested deeper than {MAX_DEPTH}")));
    }
    let kind = reader.u32()?;
    let least = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        ARRAY => 12,
        _ => 8,
    };
    let count = reader.entries(least)?;
    // The count is bounded by the file's size; collecting an iterator of results could reserve twice that.
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(value(reader, kind, depth + 1)?);
    }
    Ok(Value::Array(values))
}
