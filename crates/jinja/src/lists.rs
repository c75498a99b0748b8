//! Jinja's list filters where minijinja's behave otherwise.

use std::{cmp::Ordering, fmt::Write};

use minijinja::{
    Environment, Error, State, Value,
    value::{Kwargs, Tuple, ValueKind},
};

use crate::{
    adapt::{EACH, NOT_CONSTANT, UNPACKED},
    args::{Filter, add_all, bind, is_true, text},
    objects::{Generator, items_of},
    python::{self, escaped, is_dictionary, is_unhashable, refuse, type_name},
    texts::{Text, too_long},
};

const FILTERS: [(&str, Filter); 16] = [
    (EACH, |_, value, _, _| each(value)),
    (NOT_CONSTANT, |_, value, _, _| Ok(value.clone())),
    (UNPACKED, |state, value, _, _| match value.kind() {
        ValueKind::String => items_of(state, value).map(Value::from),
        _ => Ok(value.clone()),
    }),
    ("attr", attr),
    ("list", list),
    ("last", last),
    ("join", join),
    ("map", map),
    ("sort", sort),
    ("dictsort", dictsort),
    ("min", |state, value, more, named| extreme(state, value, more, named, Ordering::Less)),
    ("max", |state, value, more, named| extreme(state, value, more, named, Ordering::Greater)),
    ("sum", sum),
    ("unique", unique),
    ("groupby", groupby),
    ("default", default),
];

/// Adds these filters.
pub(crate) fn add(environment: &mut Environment<'_>) {
    add_all(environment, &FILTERS);
    let short: [(&'static str, Filter); 1] = [("d", default)];
    add_all(environment, &short);
}

/// The value, if Python can loop over it.
///
/// # Errors
/// If Python cannot loop over it.
pub(crate) fn each(value: &Value) -> Result<Value, Error> {
    let is_looped = match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Iterable => true,
        ValueKind::Map => is_dictionary(value),
        _ => false,
    };
    match is_looped {
        true => Ok(value.clone()),
        false => refuse(format!("{} is not iterable", type_name(value))),
    }
}

/// Jinja's `attr` reads a field but not an item, and lists, strings and dictionaries have no fields besides methods.
fn attr(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [name] = bind("attr", ["name"], more, named)?;
    let name = text("attr", name.as_ref())?;
    let found = crate::methods::field(value, name)?;
    let has_none = is_dictionary(value) || matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    let is_group = value.downcast_object_ref::<Group>().is_some();
    Ok(if has_none && !is_group { Value::UNDEFINED } else { found })
}

fn list(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [] = bind("list", [], more, named)?;
    items_of(state, value).map(Value::from)
}

fn last(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [] = bind("last", [], more, named)?;
    if value.downcast_object_ref::<Generator>().is_some() {
        return refuse("a generator has no last item: put `|list` before `|last`");
    }
    Ok(items_of(state, value)?.pop().unwrap_or_default())
}

/// The value under a path like `a.b` or `0`, as in Jinja's `attribute`.
fn attribute(item: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return item.get_item(path) };
    let mut value = item.clone();
    for part in path.split('.') {
        let key = match part.parse::<i64>() {
            Ok(index) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::from(index),
            _ => Value::from(part),
        };
        value = value.get_item(&key)?;
    }
    Ok(value)
}

/// The key by which an item is compared; strings are compared without regard to case unless `sensitive`.
fn key_of(
    state: &State<'_, '_>,
    item: &Value,
    path: Option<&Value>,
    sensitive: bool,
) -> Result<Value, Error> {
    let folded = |value: Value| -> Result<Value, Error> {
        match value.as_str() {
            Some(text) if !sensitive => {
                // The lower-case copies of all items are held at once.
                state.consume_fuel(text.len() as u64 / 64)?;
                Ok(Value::from(text.to_lowercase()))
            }
            _ => Ok(value),
        }
    };
    let Some(path) = path.filter(|path| !path.is_none()) else { return folded(item.clone()) };
    match path.as_str().filter(|path| path.contains(',')) {
        None => folded(attribute(item, path)?),
        Some(paths) => {
            let mut keys: Vec<Value> = Vec::new();
            for path in paths.split(',') {
                state.consume_fuel(1)?;
                keys.push(folded(attribute(item, &Value::from(path))?)?);
            }
            Ok(Value::from(keys))
        }
    }
}

/// The items, each with the key by which it is compared.
fn keyed(
    state: &State<'_, '_>,
    value: &Value,
    path: Option<&Value>,
    sensitive: bool,
) -> Result<Vec<(Value, Value)>, Error> {
    let items: Vec<Value> = items_of(state, value)?;
    items.into_iter().map(|item| Ok((key_of(state, &item, path, sensitive)?, item))).collect()
}

fn sort(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [reverse, sensitive, path] = bind("sort", ["reverse", "case_sensitive", "attribute"], more, named)?;
    let mut items = keyed(state, value, path.as_ref(), is_true(sensitive.as_ref()))?;
    python::sort(&mut items, is_true(reverse.as_ref()))?;
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

fn dictsort(
    state: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    let [sensitive, by, reverse] = bind("dictsort", ["case_sensitive", "by", "reverse"], more, named)?;
    if !is_dictionary(value) {
        return refuse(format!("dictsort sorts a dictionary, not {}", type_name(value)));
    }
    let by_value = match by.as_ref().map_or(Ok("key"), |by| text("dictsort", Some(by)))? {
        "key" => false,
        "value" => true,
        _ => return refuse("dictsort sorts by \"key\" or \"value\""),
    };
    let mut pairs = Vec::new();
    for key in items_of(state, value)? {
        let item = value.get_item(&key)?;
        let by = if by_value { &item } else { &key };
        let by = key_of(state, by, None, is_true(sensitive.as_ref()))?;
        pairs.push((by, Value::from(Tuple::from([key, item]))));
    }
    python::sort(&mut pairs, is_true(reverse.as_ref()))?;
    Ok(pairs.into_iter().map(|(_, pair)| pair).collect())
}

fn extreme(
    state: &mut State<'_, '_>,
    value: &Value,
    more: &[Value],
    named: &Kwargs,
    wanted: Ordering,
) -> Result<Value, Error> {
    let [sensitive, path] = bind("min and max", ["case_sensitive", "attribute"], more, named)?;
    let mut found: Option<(Value, Value)> = None;
    for (key, item) in keyed(state, value, path.as_ref(), is_true(sensitive.as_ref()))? {
        let is_better = match &found {
            Some((best, _)) => python::order(&key, best)? == Some(wanted),
            None => true,
        };
        if is_better {
            found = Some((key, item));
        }
    }
    Ok(found.map(|(_, item)| item).unwrap_or_default())
}

fn sum(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [path, start] = bind("sum", ["attribute", "start"], more, named)?;
    let mut total = start.unwrap_or_else(|| Value::from(0));
    if total.kind() == ValueKind::String {
        return refuse("sum adds no texts: use `|join`");
    }
    for item in items_of(state, value)? {
        let item = match &path {
            Some(path) if !path.is_none() => attribute(&item, path)?,
            _ => item,
        };
        // The sum uses the `+` operator, which refuses what cannot be added and limits growth.
        total = state.apply_filter(crate::operators::GROWING[0], &[total, item])?;
    }
    Ok(total)
}

fn unique(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [sensitive, path] = bind("unique", ["case_sensitive", "attribute"], more, named)?;
    let mut seen = std::collections::BTreeSet::new();
    let mut kept = Vec::new();
    for (key, item) in keyed(state, value, path.as_ref(), is_true(sensitive.as_ref()))? {
        if is_unhashable(&key) {
            return refuse(format!("unique cannot compare {}", type_name(&key)));
        }
        state.consume_fuel(8)?;
        if seen.insert(key) {
            kept.push(item);
        }
    }
    Ok(Value::from(kept))
}

fn groupby(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [path, default, sensitive] =
        bind("groupby", ["attribute", "default", "case_sensitive"], more, named)?;
    let Some(path) = path else { return refuse("groupby lacks an attribute") };
    let sensitive = is_true(sensitive.as_ref());
    let mut items = Vec::new();
    for item in items_of(state, value)? {
        let mut named = attribute(&item, &path)?;
        if let Some(default) = default.as_ref().filter(|_| named.is_undefined()) {
            named = default.clone();
        }
        items.push((key_of(state, &named, None, sensitive)?, Value::from(Tuple::from([named, item]))));
    }
    python::sort(&mut items, false)?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (key, pair) in items {
        let (label, item) = (pair.get_item_by_index(0)?, pair.get_item_by_index(1)?);
        match groups.last_mut().filter(|(last, _, _)| *last == key) {
            Some((_, _, list)) => list.push(item),
            None => groups.push((key, label, vec![item])),
        }
    }
    Ok(groups.into_iter().map(|(_, grouper, list)| Group::value(grouper, list)).collect())
}

/// A group of `groupby`: a pair whose parts have names.
#[derive(Debug)]
pub(crate) struct Group {
    grouper: Value,
    list: Value,
}

impl Group {
    fn value(grouper: Value, list: Vec<Value>) -> Value {
        Value::from_object(Self { grouper, list: Value::from(list) })
    }
}

impl minijinja::value::Object for Group {
    fn repr(self: &std::sync::Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Seq
    }

    fn get_value(self: &std::sync::Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_usize(), key.as_str()) {
            (Some(0), _) | (_, Some("grouper")) => Some(self.grouper.clone()),
            (Some(1), _) | (_, Some("list")) => Some(self.list.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &std::sync::Arc<Self>) -> minijinja::value::Enumerator {
        minijinja::value::Enumerator::Seq(2)
    }
}

fn join(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [separator, path] = bind("join", ["d", "attribute"], more, named)?;
    let separator =
        separator.map(|separator| crate::texts::text(&separator)).transpose()?.unwrap_or_default();
    let mut joined = Text::default();
    for (at, item) in items_of(state, value)?.iter().enumerate() {
        if at > 0 {
            joined.write_str(&separator).map_err(|_| too_long())?;
        }
        match &path {
            Some(path) if !path.is_none() => python::write_text(&mut joined, &attribute(item, path)?)?,
            _ => python::write_text(&mut joined, item)?,
        }
    }
    Ok(Value::from(joined.0))
}

fn map(state: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    // As in Jinja, a false value of any type has no items.
    if !value.is_true() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    let Some((name, arguments)) = more.split_first() else {
        let [path, default] = bind("map", ["attribute", "default"], more, named)?;
        let Some(path) = path else { return refuse("map lacks the name of a filter or an attribute") };
        let mut found = Vec::new();
        for item in items_of(state, value)? {
            let field = attribute(&item, &path)?;
            found.push(match &default {
                Some(default) if field.is_undefined() => default.clone(),
                _ => field,
            });
        }
        return Ok(Value::from(found));
    };
    let name = text("map", Some(name))?;
    let mut found = Vec::new();
    for item in items_of(state, value)? {
        let mut values = vec![item];
        values.extend_from_slice(arguments);
        if named.args().next().is_some() {
            values.push(Value::from(named.clone()));
        }
        let made = state.apply_filter(name, &values)?;
        state.consume_fuel(1 + made.as_str().map_or(0, str::len) as u64 / 64)?;
        found.push(made);
    }
    Ok(Value::from(found))
}

fn default(_: &mut State<'_, '_>, value: &Value, more: &[Value], named: &Kwargs) -> Result<Value, Error> {
    let [other, boolean] = bind("default", ["default_value", "boolean"], more, named)?;
    match value.is_undefined() || (is_true(boolean.as_ref()) && !value.is_true()) {
        true => Ok(other.unwrap_or_else(|| Value::from(""))),
        false => Ok(value.clone()),
    }
}

/// `a + b` for two strings of which one is escaped: the other one is then escaped, too.
///
/// # Errors
/// If the result is too long.
pub(crate) fn added_markup(a: &Value, b: &Value) -> Result<Option<Value>, Error> {
    let (Some(left), Some(right)) = (a.as_str(), b.as_str()) else { return Ok(None) };
    if a.is_safe() == b.is_safe() {
        return Ok(None);
    }
    let mut text = Text::default();
    for (part, is_safe) in [(left, a.is_safe()), (right, b.is_safe())] {
        let written = if is_safe { text.write_str(part) } else { text.write_str(&escaped(part)) };
        written.map_err(|_| too_long())?;
    }
    Ok(Some(Value::from_safe_string(text.0)))
}
