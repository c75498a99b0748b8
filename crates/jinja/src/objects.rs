//! Iterables that are no lists in Python: generators, which can be read once, views of dictionaries, and ranges.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use minijinja::{
    Error, State, Value,
    value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind},
};

use crate::{cost::charge_value, python::refuse};

/// The result of a filter like `map`: it has no length and no text, is always true, and is empty after it was read.
#[derive(Debug)]
pub(crate) struct Generator(Arc<Mutex<VecDeque<Value>>>);

impl Generator {
    /// Makes a generator of these items, which are counted.
    ///
    /// # Errors
    /// If there are too many items, or `items` is not iterable.
    pub(crate) fn value(state: &State<'_, '_>, items: &Value) -> Result<Value, Error> {
        let items: VecDeque<Value> = items.try_iter()?.collect();
        state.consume_fuel(items.len() as u64)?;
        Ok(Value::from_object(Self(Arc::new(Mutex::new(items)))))
    }

    /// The remaining items, without consuming them.
    pub(crate) fn left(&self) -> Vec<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(Reading(self.0.clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator>")
    }
}

/// An iterator that takes items out of a generator.
struct Reading(Arc<Mutex<VecDeque<Value>>>);

impl Iterator for Reading {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // A loop over the generator must know which item is its last.
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        (left, Some(left))
    }
}

/// The view that `keys()`, `values()` or `items()` of a dictionary returns.
#[derive(Debug)]
pub(crate) struct View {
    name: &'static str,
    items: Vec<Value>,
}

impl View {
    /// The view that a method returns, if it is one of these three.
    ///
    /// # Errors
    /// If a key cannot be read.
    pub(crate) fn of(map: &Value, method: &str) -> Result<Option<Value>, Error> {
        let name = match method {
            "keys" => "dict_keys",
            "values" => "dict_values",
            "items" => "dict_items",
            _ => return Ok(None),
        };
        let mut items = Vec::new();
        for key in map.try_iter()? {
            items.push(match method {
                "keys" => key,
                "values" => map.get_item(&key)?,
                _ => {
                    let value = map.get_item(&key)?;
                    Value::from(Tuple::from([key, value]))
                }
            });
        }
        Ok(Some(Value::from_object(Self { name, items })))
    }

    /// The name of the view's type in Python.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }
}

/// `range(start, stop, step)`
#[derive(Debug)]
pub(crate) struct Range {
    start: i64,
    stop: i64,
    step: i64,
}

impl Range {
    /// Implements the function `range`.
    ///
    /// # Errors
    /// If the range is longer than Jinja's sandbox allows.
    pub(crate) fn function(
        first: &Value,
        second: Option<Value>,
        step: Option<Value>,
    ) -> Result<Value, Error> {
        /// The limit of Jinja's sandbox.
        const MAX_LENGTH: u64 = 100_000;
        let integer = |value: &Value| match value.as_i64().filter(|_| float_free(value)) {
            Some(integer) => Ok(integer),
            None => refuse("range takes integers"),
        };
        let first = integer(first)?;
        let (start, stop) = match &second {
            Some(second) => (first, integer(second)?),
            None => (0, first),
        };
        let step = step.as_ref().map_or(Ok(1), integer)?;
        if step == 0 {
            return refuse("the step of a range is 0");
        }
        let range = Self { start, stop, step };
        match range.length() > MAX_LENGTH {
            true => refuse(format!("range has more than {MAX_LENGTH} items")),
            false => Ok(Value::from_object(range)),
        }
    }

    fn length(&self) -> u64 {
        let up = i128::from(self.stop) - i128::from(self.start);
        let distance = if self.step > 0 { up } else { -up };
        let step = i128::from(self.step).abs();
        u64::try_from((distance.max(0) + step - 1) / step).unwrap_or(u64::MAX)
    }

    /// The range as Python writes it.
    pub(crate) fn text(&self) -> String {
        match self.step {
            1 => format!("range({}, {})", self.start, self.stop),
            step => format!("range({}, {}, {step})", self.start, self.stop),
        }
    }
}

fn float_free(value: &Value) -> bool {
    value.is_integer() || value.kind() == ValueKind::Bool
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let (start, step) = (self.start, self.step);
        // The limit of the length keeps these numbers within `i64`.
        let items = (0..self.length() as usize).map(move |at| Value::from(start + at as i64 * step));
        Enumerator::Iter(Box::new(items))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.length() as usize)
    }
}

/// Whether a value is one of these lazy iterables, which must not be turned into lists.
pub(crate) fn is_lazy(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
        || value.downcast_object_ref::<View>().is_some()
        || value.downcast_object_ref::<Range>().is_some()
}

/// Whether the value is an iterable that Python cannot index with `[...]`.
pub(crate) fn has_no_items(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some() || value.downcast_object_ref::<View>().is_some()
}

/// Copies the items of a value into a list, and counts them.
///
/// # Errors
/// If Python cannot loop over the value, or it has too many items.
pub(crate) fn items_of(state: &State<'_, '_>, value: &Value) -> Result<Vec<Value>, Error> {
    crate::lists::each(value)?;
    charge_value(value)?;
    let items: Vec<Value> = value.try_iter()?.collect();
    state.consume_fuel(items.len() as u64)?;
    Ok(items)
}
