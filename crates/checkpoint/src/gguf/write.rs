//! Writes GGUF files, version 3.

use std::io::{self, Write};

use super::{DEFAULT_ALIGNMENT, MAGIC, Value};
use crate::Storage;

/// A tensor that is about to be written.
///
/// # Examples
/// ```
/// use moi_checkpoint::{BlockFormat, Storage, gguf::NewTensor};
///
/// let storage = Storage::Block(BlockFormat::Q8_0);
/// let tensor = NewTensor { name: "output.weight".to_owned(), shape: vec![4, 32], storage };
/// assert_eq!(tensor.num_bytes(), 4 * 34);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NewTensor {
    /// The tensor's name in the file.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub storage: Storage,
}

impl NewTensor {
    /// Bytes of the values.
    pub fn num_bytes(&self) -> usize {
        let (block, bytes) = self.storage.block();
        self.shape.iter().product::<usize>() / block * bytes
    }
}

/// Writes a whole file: metadata in the given order, then the tensors, whose bytes `data` writes one tensor after the
/// other. Numbers are written as 32-bit numbers if they fit, because llama.cpp's readers expect that.
///
/// # Errors
/// If the writer fails.
///
/// # Examples
/// ```
/// use moi_checkpoint::Storage;
/// use moi_checkpoint::gguf::{NewTensor, Value, write_gguf};
///
/// let metadata = [("general.name".to_owned(), Value::String("nothing".to_owned()))];
/// let tensors = [NewTensor { name: "a".to_owned(), shape: vec![8], storage: Storage::F32 }];
/// let mut file: Vec<u8> = Vec::new();
/// write_gguf(&mut file, &metadata, &tensors, |index, to| {
///     to.extend(vec![0u8; tensors[index].num_bytes()]);
///     Ok(())
/// })?;
/// assert!(file.starts_with(b"GGUF"));
/// assert_eq!(file.len() % 32, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_gguf<W: Write>(
    to: &mut W,
    metadata: &[(String, Value)],
    tensors: &[NewTensor],
    mut data: impl FnMut(usize, &mut W) -> io::Result<()>,
) -> io::Result<()> {
    let mut head = MAGIC.to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(key, &mut head);
        head.extend(kind(value).to_le_bytes());
        put(value, &mut head);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        string(&tensor.name, &mut head);
        head.extend((tensor.shape.len() as u32).to_le_bytes());
        head.extend(tensor.shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        let number = tensor.storage.ggml_type();
        let number =
            number.ok_or_else(|| io::Error::other(format!("ggml has no type {}", tensor.storage.name())))?;
        head.extend(number.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += tensor.num_bytes().next_multiple_of(DEFAULT_ALIGNMENT) as u64;
    }
    head.resize(head.len().next_multiple_of(DEFAULT_ALIGNMENT), 0);
    to.write_all(&head)?;
    for (index, tensor) in tensors.iter().enumerate() {
        data(index, to)?;
        let size = tensor.num_bytes();
        to.write_all(&vec![0; size.next_multiple_of(DEFAULT_ALIGNMENT) - size])?;
    }
    Ok(())
}

fn string(text: &str, to: &mut Vec<u8>) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// GGUF's number of a value's type.
fn kind(value: &Value) -> u32 {
    match value {
        Value::Unsigned(n) if u32::try_from(*n).is_ok() => 4,
        Value::Unsigned(_) => 10,
        Value::Signed(n) if i32::try_from(*n).is_ok() => 5,
        Value::Signed(_) => 11,
        Value::Float(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
    }
}

fn put(value: &Value, to: &mut Vec<u8>) {
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => to.extend(n.to_le_bytes()),
            Err(_) => to.extend(n.to_le_bytes()),
        },
        Value::Signed(n) => match i32::try_from(*n) {
            Ok(n) => to.extend(n.to_le_bytes()),
            Err(_) => to.extend(n.to_le_bytes()),
        },
        Value::Float(x) => to.extend((*x as f32).to_le_bytes()),
        Value::Bool(truth) => to.push(u8::from(*truth)),
        Value::String(text) => string(text, to),
        Value::Array(values) => {
            // All entries have the widest type among them; an empty list needs a type, too.
            let kind = values.iter().map(kind).max().unwrap_or(4);
            to.extend(kind.to_le_bytes());
            to.extend((values.len() as u64).to_le_bytes());
            for value in values {
                match (value, kind) {
                    (Value::Unsigned(n), 10 | 11) => to.extend(n.to_le_bytes()),
                    (Value::Signed(n), 10 | 11) => to.extend(n.to_le_bytes()),
                    _ => put(value, to),
                }
            }
        }
    }
}
