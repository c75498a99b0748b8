//! Interprets the part of Python's pickle machine that a dictionary of tensors needs (opcodes as in CPython's
//! `pickletools`, tensors as in PyTorch's `torch/_utils.py`). Nothing is executed: names of functions are only
//! compared, never looked up or called. Values recalled from the memo are shared and not copied, so the result is
//! never larger than the pickle.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

/// The place of a tensor's values.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TensorView {
    pub(crate) storage: Rc<Storage>,
    /// The index of the first value in the storage.
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    /// The distance in values between neighbours along each axis.
    pub(crate) strides: Vec<usize>,
}

/// Consecutive values, in another file of the same archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Storage {
    /// `torch.FloatStorage` and the like.
    pub(crate) kind: Rc<str>,
    /// The name of the file in the archive.
    pub(crate) key: Rc<str>,
    /// The number of values.
    pub(crate) len: usize,
}

/// Tensors by name; tensors of a nested dictionary have both names, joined by a dot.
pub(crate) type Tensors = BTreeMap<String, Rc<TensorView>>;

/// The parts of a pickled value that matter here.
#[derive(Clone, Debug)]
enum Item {
    Number(i64),
    Text(Rc<str>),
    /// `module.name`
    Global(Rc<str>),
    /// The items, and the nesting depth of tuples.
    Tuple(Rc<[Item]>, usize),
    Storage(Rc<Storage>),
    Tensor(Rc<TensorView>),
    Dict(Tensors),
    Mark,
    Other,
}

/// Deepest nesting of tuples; weights need four.
const MAX_DEPTH: usize = 16;
/// Most bytes of a name: hundreds of nested dictionaries would otherwise make long names out of short ones.
const MAX_NAME: usize = 1024;

/// Reads the tensors of a pickled dictionary.
///
/// # Errors
/// If it is cut off, uses an instruction that weights do not need, or holds no dictionary of tensors.
pub(crate) fn tensors(pickle: &[u8]) -> Result<Tensors, String> {
    let mut machine = Machine { bytes: pickle, at: 0, stack: Vec::new(), memo: HashMap::new() };
    let found = machine.run();
    found.map_err(|what| format!("data.pkl, byte {}: {what}", machine.at))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Item>,
    memo: HashMap<u32, Item>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Tensors, String> {
        loop {
            let item = match self.take(1)?[0] {
                b'.' => break,
                b'(' => Item::Mark,
                b'}' => Item::Dict(Tensors::new()),
                b')' => tuple(Vec::new())?,
                b']' | b'N' | 0x88 | 0x89 => Item::Other,
                b'G' => self.take(8).map(|_| Item::Other)?,
                b'K' => Item::Number(self.number(1)?.into()),
                b'M' => Item::Number(self.number(2)?.into()),
                // Four-byte numbers are signed.
                b'J' => Item::Number((self.number(4)? as i32).into()),
                0x8a => self.long()?,
                b'X' => Item::Text(self.text(4)?),
                0x8c | b'U' => Item::Text(self.text(1)?),
                b'c' => Item::Global(format!("{}.{}", self.line()?, self.line()?).into()),
                0x93 => self.global()?,
                b't' => tuple(self.since_mark()?)?,
                code @ 0x85..=0x87 => {
                    let from = self.stack.len().checked_sub(usize::from(code - 0x84)).ok_or(EMPTY)?;
                    tuple(self.stack.split_off(from))?
                }
                b'Q' => persistent(&self.pop()?)?,
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    made(&callable, &arguments)?
                }
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                code => {
                    self.change(code)?;
                    continue;
                }
            };
            self.stack.push(item);
        }
        match self.pop()? {
            Item::Dict(tensors) if !tensors.is_empty() => Ok(tensors),
            _ => Err("it is no dictionary of tensors (a state_dict)".to_owned()),
        }
    }

    /// Runs an opcode that pushes nothing.
    fn change(&mut self, code: u8) -> Result<(), String> {
        match code {
            // These opcodes hold the protocol version and a frame's length.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            // These opcodes set an object's state or append to a list.
            b'b' | b'a' => drop(self.pop()?),
            b'e' => drop(self.since_mark()?),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(items)?;
            }
            b'q' => {
                let index = self.number(1)?;
                self.remember(index);
            }
            b'r' => {
                let index = self.number(4)?;
                self.remember(index);
            }
            0x94 => self.remember(self.memo.len() as u32),
            code => return Err(format!("an instruction {code:#04x} that weights do not need")),
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end)).ok_or("it is cut off")?;
        self.at += len;
        Ok(taken)
    }

    fn number(&mut self, len: usize) -> Result<u32, String> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    /// Reads an integer of up to 255 bytes; one of more than eight bytes is no size.
    fn long(&mut self) -> Result<Item, String> {
        let len = self.number(1)? as usize;
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut word = if negative { [0xff; 8] } else { [0; 8] };
        match word.get_mut(..len) {
            Some(place) => place.copy_from_slice(bytes),
            None => return Ok(Item::Other),
        }
        Ok(Item::Number(i64::from_le_bytes(word)))
    }

    fn text(&mut self, len: usize) -> Result<Rc<str>, String> {
        let len = self.number(len)? as usize;
        let text = std::str::from_utf8(self.take(len)?);
        text.map(Rc::from).map_err(|_| "text that is not UTF-8".to_owned())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or("it is cut off")?;
        let line = self.take(len + 1)?;
        std::str::from_utf8(line).map(str::trim_end).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn pop(&mut self) -> Result<Item, String> {
        Ok(self.stack.pop().ok_or(EMPTY)?)
    }

    fn global(&mut self) -> Result<Item, String> {
        let (name, module) = (self.pop()?, self.pop()?);
        Ok(match (module, name) {
            (Item::Text(module), Item::Text(name)) => Item::Global(format!("{module}.{name}").into()),
            _ => Item::Other,
        })
    }

    /// Pops what was pushed since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Item>, String> {
        let mark = self.stack.iter().rposition(|item| matches!(item, Item::Mark));
        let items = self.stack.split_off(mark.ok_or("the end of a list without its start")?);
        Ok(items.into_iter().skip(1).collect())
    }

    /// Puts keys and values into the dictionary on top of the stack.
    fn set(&mut self, items: Vec<Item>) -> Result<(), String> {
        let Some(Item::Dict(tensors)) = self.stack.last_mut() else { return Ok(()) };
        let mut add = |name: String, tensor| {
            if name.len() > MAX_NAME {
                return Err(format!("a name of {} bytes, expected {MAX_NAME} at most", name.len()));
            }
            match tensors.insert(name.clone(), tensor) {
                None => Ok(()),
                Some(_) => Err(format!("tensor `{name}` is there twice")),
            }
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            match (key, value) {
                (Item::Text(name), Item::Tensor(tensor)) => add(name.to_string(), tensor)?,
                (Item::Text(name), Item::Dict(inner)) => {
                    for (inner, tensor) in inner {
                        add(format!("{name}.{inner}"), tensor)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn remember(&mut self, index: u32) {
        let item = match self.stack.last() {
            // Dictionaries are memoised while empty, in case they contain themselves; weights never recall them.
            None | Some(Item::Dict(_)) => Item::Other,
            Some(item) => item.clone(),
        };
        self.memo.insert(index, item);
    }

    fn recall(&mut self, len: usize) -> Result<Item, String> {
        let index = self.number(len)?;
        self.memo.get(&index).cloned().ok_or_else(|| format!("a reference to {index}, which is nothing"))
    }
}

const EMPTY: &str = "an instruction that finds nothing to work on";

fn tuple(items: Vec<Item>) -> Result<Item, String> {
    let inner = items.iter().map(|item| if let Item::Tuple(_, depth) = item { *depth } else { 0 });
    match 1 + inner.max().unwrap_or(0) {
        depth if depth > MAX_DEPTH => Err("tuples nested too deep for weights".to_owned()),
        depth => Ok(Item::Tuple(items.into(), depth)),
    }
}

/// `("storage", kind, key, device, length)`
fn persistent(id: &Item) -> Result<Item, String> {
    let Item::Tuple(parts, _) = id else { return Ok(Item::Other) };
    match &parts[..] {
        [Item::Text(what), Item::Global(kind), Item::Text(key), _, Item::Number(len), ..]
            if &**what == "storage" =>
        {
            let len = usize::try_from(*len).map_err(|_| format!("a storage of {len} values"))?;
            Ok(Item::Storage(Rc::new(Storage { kind: kind.clone(), key: key.clone(), len })))
        }
        _ => Err("a storage described in a way that is not known".to_owned()),
    }
}

/// The result of a PyTorch function with these arguments.
fn made(callable: &Item, arguments: &Item) -> Result<Item, String> {
    let (Item::Global(name), Item::Tuple(arguments, _)) = (callable, arguments) else {
        return Ok(Item::Other);
    };
    match (&**name, &arguments[..]) {
        ("collections.OrderedDict", []) => Ok(Item::Dict(Tensors::new())),
        (
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
            [Item::Storage(storage), Item::Number(offset), shape, strides, ..],
        ) => {
            let sizes =
                sizes(shape).zip(sizes(strides)).filter(|(shape, strides)| shape.len() == strides.len());
            let (Some((shape, strides)), Ok(offset)) = (sizes, usize::try_from(*offset)) else {
                return Err("a tensor of a shape, strides or an offset that cannot be".to_owned());
            };
            Ok(Item::Tensor(Rc::new(TensorView { storage: storage.clone(), offset, shape, strides })))
        }
        ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [tensor, ..]) => {
            // Dictionaries are never shared by two parameters.
            Ok(if matches!(tensor, Item::Tensor(_)) { tensor.clone() } else { Item::Other })
        }
        ("torch._tensor._rebuild_from_type_v2", [function, _, arguments, ..]) => made(function, arguments),
        (name, _) if name.contains("_rebuild") => {
            Err(format!("a tensor made by `{name}`, which is not known"))
        }
        _ => Ok(Item::Other),
    }
}

fn sizes(item: &Item) -> Option<Vec<usize>> {
    let Item::Tuple(items, _) = item else { return None };
    let size = |item: &Item| if let Item::Number(size) = item { usize::try_from(*size).ok() } else { None };
    items.iter().map(size).collect()
}
