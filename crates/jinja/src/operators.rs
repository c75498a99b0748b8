//! Operators of a template, implemented as filters whose names no template can spell: they count what they read, and
//! refuse to make results that are too long.

use std::cmp::Ordering;

use minijinja::{
    Environment, Error, State, Value, context,
    value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs},
};

use crate::{
    cost::{charge_value, count_namespace, listed},
    lists::{added_markup, each},
    objects::{Range, has_no_items},
    printf,
    python::{float, is_dictionary, is_unhashable, order, refuse, type_name},
    texts::{check, concatenated},
};

/// `a + b`, `a * b` and `a ~ b`, whose results can grow.
pub(crate) const GROWING: [&str; 3] = ["bounded+", "bounded*", "bounded~"];
/// Comparisons, which read both operands entirely.
pub(crate) const COMPARISONS: [&str; 7] =
    ["charged==", "charged!=", "charged<", "charged<=", "charged>", "charged>=", "charged-in"];
/// `a % b`, which formats a string if `a` is one.
pub(crate) const REMAINDER: &str = "charged%";
/// `a ** b`, whose result in Python is complex or an error if it is no float.
pub(crate) const POWER: &str = "charged**";
/// `-a`, also for booleans.
pub(crate) const NEGATED: &str = "charged-";
/// `a[b]` and `{a: b}`.
pub(crate) const ITEM: &str = "charged[]";
pub(crate) const MAP: &str = "charged{}";
/// `[a, b]`, `(a, b)` and `a[b:c:d]`.
pub(crate) const LIST: &str = "charged,";
pub(crate) const TUPLE: &str = "charged(,)";
pub(crate) const SLICE: &str = "charged[:]";

/// Adds the operators named above, and the functions that make values from other values.
pub(crate) fn add(environment: &mut Environment<'_>) {
    add_growing(environment);
    type Compare = fn(&Value, &Value) -> Result<bool, Error>;
    let compare: [Compare; 7] = [
        |a, b| Ok(a == b),
        |a, b| Ok(a != b),
        |a, b| Ok(order(a, b)?.is_some_and(Ordering::is_lt)),
        |a, b| Ok(order(a, b)?.is_some_and(Ordering::is_le)),
        |a, b| Ok(order(a, b)?.is_some_and(Ordering::is_gt)),
        |a, b| Ok(order(a, b)?.is_some_and(Ordering::is_ge)),
        is_in,
    ];
    for (name, compare) in COMPARISONS.into_iter().zip(compare) {
        environment.add_filter(name, move |a: &Value, b: &Value| {
            charge_value(a)?;
            charge_value(b)?;
            compare(a, b)
        });
    }
    environment.add_filter(REMAINDER, |state: &State, a: &Value, b: &Value| {
        charge_value(a)?;
        charge_value(b)?;
        match a.as_str() {
            Some(_) if a.is_safe() => refuse("`%` of an escaped text is not supported"),
            Some(text) => printf::operator(text, b),
            None => operator(state, "a % b", a, b),
        }
    });
    environment.add_filter(POWER, |state: &State, a: &Value, b: &Value| {
        let power = operator(state, "a ** b", a, b)?;
        let is_finite = |value: &Value| float(value).is_none_or(f64::is_finite);
        match is_finite(a) && is_finite(b) && !is_finite(&power) {
            true => refuse("`**` gives a number that is too large, or complex"),
            false => Ok(power),
        }
    });
    environment.add_filter(NEGATED, |state: &State, a: &Value| match a.kind() {
        ValueKind::Bool => Ok(Value::from(-i64::from(a.is_true()))),
        ValueKind::Number => operator(state, "-a", a, a),
        _ => refuse(format!("`-` takes a number, not {}", type_name(a))),
    });
    environment.add_filter(ITEM, |a: &Value, b: &Value| {
        // A string is read up to the character.
        if a.as_str().is_some() {
            charge_value(a)?;
        }
        charge_value(b)?;
        let is_list = matches!(a.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String);
        match has_no_items(a) || (is_list && float(b).is_some()) {
            true => Ok(Value::UNDEFINED),
            false => a.get_item(b),
        }
    });
    environment.add_filter(LIST, |items: Rest<Value>| {
        items.iter().try_for_each(charge_value)?;
        Ok::<_, Error>(items.iter().cloned().collect::<Value>())
    });
    environment.add_filter(TUPLE, |items: Rest<Value>| {
        items.iter().try_for_each(charge_value)?;
        Ok::<_, Error>(Value::from(Tuple::from(&items[..])))
    });
    environment.add_filter(SLICE, |state: &State, a: &Value, b: &Value, c: &Value, d: &Value| {
        charge_value(a)?;
        if a.is_undefined() {
            return refuse("what is undefined has no parts");
        }
        // As in Jinja, which swallows the error for values that cannot be sliced.
        let is_cut = matches!(a.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::String);
        if !is_cut || has_no_items(a) {
            return Ok(Value::UNDEFINED);
        }
        listed(state.env().compile_expression("a[b:c:d]")?.eval(context! { a, b, c, d })?)
    });
    add_functions(environment);
    environment.add_filter(MAP, |pairs: Rest<Value>| {
        pairs.iter().try_for_each(charge_value)?;
        if let Some([key, _]) = pairs.as_chunks::<2>().0.iter().find(|[key, _]| is_unhashable(key)) {
            return refuse(format!("{} is no key of a dictionary", type_name(key)));
        }
        let pairs = pairs.as_chunks::<2>().0.iter();
        Ok::<_, Error>(Value::from_pairs(pairs.map(|[key, value]| (key.clone(), value.clone()))))
    });
}

/// Adds the operators that refuse to make results that are too long.
fn add_growing(environment: &mut Environment<'_>) {
    let [add, mul, concat] = GROWING;
    environment.add_filter(add, |state: &State, a: &Value, b: &Value| {
        check(a.len().zip(b.len()).map(|(a, b)| a.saturating_add(b)), a, b)?;
        if let Some(text) = added_markup(a, b)? {
            return Ok(text);
        }
        if [a, b].iter().any(|value| value.kind() == ValueKind::Iterable) {
            return refuse(format!("{} and {} cannot be added", type_name(a), type_name(b)));
        }
        listed(operator(state, "a + b", a, b)?)
    });
    environment.add_filter(mul, |state: &State, a: &Value, b: &Value| {
        let is_list =
            |value: &Value| matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Iterable);
        if (is_list(a) && float(b).is_some()) || (is_list(b) && float(a).is_some()) {
            return refuse("a text or list is repeated by an integer only");
        }
        let times = |list: &Value, n: &Value| Some(list.len()?.saturating_mul(n.as_usize()?));
        check(times(a, b).or_else(|| times(b, a)), a, b)?;
        listed(operator(state, "a * b", a, b)?)
    });
    environment.add_filter(concat, |a: &Value, b: &Value| concatenated(a, b));
}

/// Adds the functions that make values from other values.
fn add_functions(environment: &mut Environment<'_>) {
    environment.add_function("range", |first: &Value, second: Option<Value>, step: Option<Value>| {
        Range::function(first, second, step)
    });
    // The values are taken as a list, because an optional argument would treat none and undefined as absent.
    let made = |Rest(values): Rest<Value>, fields: Kwargs| match &values[..] {
        [] => dictionary(None, &fields),
        [value] => dictionary(Some(value), &fields),
        _ => refuse("a dictionary is made of one value and of fields"),
    };
    environment.add_function("dict", made);
    environment.add_function("namespace", move |values: Rest<Value>, fields: Kwargs| {
        count_namespace()?;
        let fields = made(values, fields)?;
        minijinja::functions::namespace(Some(ValueOrKwargs::from(fields)))
    });
}

/// Makes a dictionary from a dictionary or a list of pairs, and from fields.
fn dictionary(value: Option<&Value>, fields: &Kwargs) -> Result<Value, Error> {
    value.into_iter().try_for_each(charge_value)?;
    charge_value(&Value::from(fields.clone()))?;
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(value) = value {
        match value.kind() {
            ValueKind::Map if is_dictionary(value) => {
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    pairs.push((key, item));
                }
            }
            ValueKind::String | ValueKind::Seq | ValueKind::Iterable => {
                for pair in value.try_iter()? {
                    pairs.push(key_and_value(&pair)?);
                }
            }
            _ => {
                return refuse(format!(
                    "a dictionary is made of a dictionary or of pairs, not of {}",
                    type_name(value)
                ));
            }
        }
    }
    for name in fields.args() {
        pairs.push((Value::from(name), fields.peek::<Value>(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// The key and value of a pair that a dictionary is made from.
fn key_and_value(pair: &Value) -> Result<(Value, Value), Error> {
    let items: Vec<Value> = each(pair)?.try_iter()?.collect();
    match &items[..] {
        [key, _] if is_unhashable(key) => refuse(format!("{} is no key of a dictionary", type_name(key))),
        [key, value] => Ok((key.clone(), value.clone())),
        _ => refuse(format!("a dictionary is made of pairs, and one has {} items", items.len())),
    }
}

/// `a in b`
///
/// # Errors
/// If Python does not support `in` for these types.
pub(crate) fn is_in(a: &Value, b: &Value) -> Result<bool, Error> {
    match b.kind() {
        ValueKind::String => match (a.as_str(), b.as_str()) {
            (Some(part), Some(text)) => Ok(text.contains(part)),
            _ => refuse(format!("`in` looks for a text in a text, not for {}", type_name(a))),
        },
        ValueKind::Map if is_unhashable(a) => refuse(format!("{} is no key of a dictionary", type_name(a))),
        ValueKind::Map => Ok(b.as_object().is_some_and(|object| object.get_value(a).is_some())),
        ValueKind::Seq | ValueKind::Iterable => Ok(b.try_iter()?.any(|item| item == *a)),
        ValueKind::Undefined => Ok(false),
        _ => refuse(format!("`in` looks into no {}", type_name(b))),
    }
}

/// Applies minijinja's own operator.
fn operator(state: &State, operation: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    state.env().compile_expression(operation)?.eval(context! { a, b })
}
