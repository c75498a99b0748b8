//! burn-store 0.21 reads the values of a PyTorch tensor in the order in which they are stored and leaves its strides
//! unread: a tensor that was saved as a transposed view would come out wrong, in silence. So the pickle is looked
//! through first, and a tensor whose values do not stand row by row is refused.

use std::{collections::HashMap, fs::File, io::Read, path::Path};

use crate::ConvertError;

/// A pickle of names and sizes; the values stand beside it.
const MOST_BYTES: u64 = 1 << 28;

/// What matters of a pickled value.
#[derive(Clone, Debug)]
enum Item {
    Number(i64),
    Tuple(Vec<Item>),
    /// `module.name`
    Global(String),
    Text(String),
    Mark,
    Other,
}

/// Refuses a file with a tensor whose values do not stand row by row.
pub(crate) fn check(path: &Path) -> Result<(), ConvertError> {
    let wrong = |what: String| ConvertError::file(path, what);
    let file = File::open(path).map_err(|error| ConvertError::io(path, error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| {
        wrong(format!("{error}; only files of PyTorch 1.6 and newer are read, save it again with one"))
    })?;
    let name = archive.file_names().find(|name| name.ends_with("data.pkl")).map(str::to_owned);
    let name = name.ok_or_else(|| wrong("it holds no data.pkl".to_owned()))?;
    let entry = archive.by_name(&name).map_err(|error| wrong(error.to_string()))?;
    let mut pickle = Vec::new();
    entry.take(MOST_BYTES).read_to_end(&mut pickle).map_err(|error| ConvertError::io(path, error))?;
    let mut machine = Machine { bytes: &pickle, at: 0, stack: Vec::new(), memo: HashMap::new() };
    machine.run().map_err(wrong)
}

/// As much of the pickle machine as a dictionary of tensors needs; nothing is ever called.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Item>,
    memo: HashMap<u32, Item>,
}

impl Machine<'_> {
    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let taken = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end));
        self.at += len;
        taken.ok_or_else(|| "data.pkl is cut off".to_owned())
    }

    fn number(&mut self, len: usize) -> Result<u32, String> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or("data.pkl is cut off")?;
        let line = String::from_utf8_lossy(self.take(len + 1)?).trim_end().to_owned();
        Ok(line)
    }

    fn text(&mut self, len: usize) -> Result<(), String> {
        let text = String::from_utf8_lossy(self.take(len)?).into_owned();
        self.stack.push(Item::Text(text));
        Ok(())
    }

    fn pop(&mut self) -> Item {
        self.stack.pop().unwrap_or(Item::Other)
    }

    /// What was pushed since the last mark.
    fn since_mark(&mut self) -> Vec<Item> {
        let mark = self.stack.iter().rposition(|item| matches!(item, Item::Mark)).unwrap_or(0);
        let items = self.stack.split_off(mark);
        items.into_iter().skip(1).collect()
    }

    fn tuple(&mut self, len: usize) {
        let items = self.stack.split_off(self.stack.len().saturating_sub(len));
        self.stack.push(Item::Tuple(items));
    }

    fn run(&mut self) -> Result<(), String> {
        loop {
            match self.take(1)?[0] {
                b'.' => return Ok(()),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.stack.push(Item::Mark),
                b'}' | b']' | b')' | 0x8f => {
                    let empty =
                        if self.bytes[self.at - 1] == b')' { Item::Tuple(Vec::new()) } else { Item::Other };
                    self.stack.push(empty);
                }
                b'N' | 0x88 | 0x89 => self.stack.push(Item::Other),
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Item::Other);
                }
                b'K' => self.push_number(1)?,
                b'M' => self.push_number(2)?,
                b'J' => self.push_number(4)?,
                0x8a => self.push_long()?,
                b'X' => {
                    let len = self.number(4)?;
                    self.text(len as usize)?;
                }
                0x8c => {
                    let len = self.number(1)?;
                    self.text(len as usize)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Item::Global(format!("{module}.{name}")));
                }
                0x93 => {
                    let (name, module) = (self.pop(), self.pop());
                    self.stack.push(match (module, name) {
                        (Item::Text(module), Item::Text(name)) => Item::Global(format!("{module}.{name}")),
                        _ => Item::Other,
                    });
                }
                b't' => {
                    let items = self.since_mark();
                    self.stack.push(Item::Tuple(items));
                }
                code @ 0x85..=0x87 => self.tuple(usize::from(code - 0x84)),
                b'Q' => {
                    self.pop();
                    self.stack.push(Item::Other);
                }
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop(), self.pop());
                    rebuilt(&callable, &arguments)?;
                    self.stack.push(Item::Other);
                }
                b'b' | b'a' => drop(self.pop()),
                b's' => self.tuple_dropped(2),
                b'u' | b'e' => drop(self.since_mark()),
                b'q' => self.remember(1)?,
                b'r' => self.remember(4)?,
                0x94 => {
                    let (index, item) = (self.memo.len() as u32, self.stack.last().cloned());
                    self.memo.insert(index, item.unwrap_or(Item::Other));
                }
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                code => {
                    return Err(format!("data.pkl has an instruction {code:#04x} that weights do not need"));
                }
            }
        }
    }

    fn push_number(&mut self, len: usize) -> Result<(), String> {
        let number = self.number(len)?;
        // Four bytes have a sign.
        let number = if len == 4 { i64::from(number as i32) } else { i64::from(number) };
        self.stack.push(Item::Number(number));
        Ok(())
    }

    fn push_long(&mut self) -> Result<(), String> {
        let len = self.number(1)? as usize;
        let bytes = self.take(len)?;
        let number = bytes.iter().rev().take(8).fold(0u64, |number, &byte| number << 8 | u64::from(byte));
        self.stack.push(if len <= 7 { Item::Number(number as i64) } else { Item::Other });
        Ok(())
    }

    fn tuple_dropped(&mut self, len: usize) {
        self.stack.truncate(self.stack.len().saturating_sub(len));
    }

    fn remember(&mut self, len: usize) -> Result<(), String> {
        let index = self.number(len)?;
        let item = self.stack.last().cloned().unwrap_or(Item::Other);
        self.memo.insert(index, item);
        Ok(())
    }

    fn recall(&mut self, len: usize) -> Result<(), String> {
        let index = self.number(len)?;
        self.stack.push(self.memo.get(&index).cloned().unwrap_or(Item::Other));
        Ok(())
    }
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, ...)`
fn rebuilt(callable: &Item, arguments: &Item) -> Result<(), String> {
    let (Item::Global(name), Item::Tuple(arguments)) = (callable, arguments) else { return Ok(()) };
    if !name.contains("_rebuild_tensor") {
        return Ok(());
    }
    let numbers = |item: Option<&Item>| match item {
        Some(Item::Tuple(items)) => items
            .iter()
            .map(|item| match item {
                Item::Number(number) => Some(*number),
                _ => None,
            })
            .collect::<Option<Vec<i64>>>(),
        _ => None,
    };
    let (Some(size), Some(stride)) = (numbers(arguments.get(2)), numbers(arguments.get(3))) else {
        return Err("data.pkl describes a tensor in a way that is not known".to_owned());
    };
    let mut expected = 1i64;
    for (&size_of_axis, &stride_of_axis) in size.iter().zip(&stride).rev() {
        if size_of_axis != 1 && stride_of_axis != expected {
            return Err(format!(
                "a tensor of shape {size:?} is stored with strides {stride:?}, not row by row; \
                 save it again after .contiguous()"
            ));
        }
        expected = expected.saturating_mul(size_of_axis);
    }
    Ok(())
}
