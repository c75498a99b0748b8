//! Things that Python loops over and that are no lists: generators, which are read once, views of dictionaries, and
//! ranges.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use minijinja::{
    Error, State, Value,
    value::{Enumerator, Object, ObjectRepr, Tuple, ValueKind},
};

use super::{python::refuse, weigh::weigh};

/// What a filter like `map` gives: it has no length and no text, is always true, and is empty once it was read.
#[derive(Debug)]
pub(super) struct Generator(Arc<Mutex<VecDeque<Value>>>);

impl Generator {
    /// The items, counted.
    ///
    /// # Errors
    /// If there are too many, or it is no list.
    pub(super) fn value(state: &State<'_, '_>, items: &Value) -> Result<Value, Error> {
        let items: VecDeque<Value> = items.try_iter()?.collect();
        state.consume_fuel(items.len() as u64)?;
        Ok(Value::from_object(Self(Arc::new(Mutex::new(items)))))
    }

    /// What is left, without reading it.
    pub(super) fn left(&self) -> Vec<Value> {
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

/// Takes items out of a generator.
struct Reading(Arc<Mutex<VecDeque<Value>>>);

impl Iterator for Reading {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // A loop over it knows its last item.
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        (left, Some(left))
    }
}

/// `keys()`, `values()` and `items()` of a dictionary.
#[derive(Debug)]
pub(super) struct View {
    name: &'static str,
    items: Vec<Value>,
}

impl View {
    /// The view that a method gives, if it is one of these.
    ///
    /// # Errors
    /// If a key cannot be read.
    pub(super) fn of(map: &Value, method: &str) -> Result<Option<Value>, Error> {
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

    /// What Python calls it.
    pub(super) fn name(&self) -> &'static str {
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
pub(super) struct Range {
    start: i64,
    stop: i64,
    step: i64,
}

impl Range {
    /// The function.
    ///
    /// # Errors
    /// If it would be longer than Jinja's sandbox lets it be.
    pub(super) fn function(
        first: &Value,
        second: Option<Value>,
        step: Option<Value>,
    ) -> Result<Value, Error> {
        /// As in Jinja's sandbox.
        const LONGEST: u64 = 100_000;
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
        match range.length() > LONGEST {
            true => refuse(format!("range has more than {LONGEST} items")),
            false => Ok(Value::from_object(range)),
        }
    }

    fn length(&self) -> u64 {
        let up = i128::from(self.stop) - i128::from(self.start);
        let distance = if self.step > 0 { up } else { -up };
        let step = i128::from(self.step).abs();
        u64::try_from((distance.max(0) + step - 1) / step).unwrap_or(u64::MAX)
    }

    /// Its text.
    pub(super) fn text(&self) -> String {
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
        // The limit keeps all of these numbers in their type.
        let items = (0..self.length() as usize).map(move |at| Value::from(start + at as i64 * step));
        Enumerator::Iter(Box::new(items))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.length() as usize)
    }
}

/// Whether a value is one of these, which stay what they are.
pub(super) fn is_lazy(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
        || value.downcast_object_ref::<View>().is_some()
        || value.downcast_object_ref::<Range>().is_some()
}

/// Whether Python has no `[...]` for it.
pub(super) fn has_no_items(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some() || value.downcast_object_ref::<View>().is_some()
}

/// The items of a value as a list of its own, counted.
///
/// # Errors
/// If Python cannot loop over it, or it is too long.
pub(super) fn items_of(state: &State<'_, '_>, value: &Value) -> Result<Vec<Value>, Error> {
    super::lists::each(value)?;
    weigh(value)?;
    let items: Vec<Value> = value.try_iter()?.collect();
    state.consume_fuel(items.len() as u64)?;
    Ok(items)
}
