//! Binds arguments of filters and methods, given by position or by name as in Python.

use minijinja::{Environment, Error, State, Value, value::Kwargs, value::Rest};

use crate::python::{refuse, type_name};

/// A filter. Its parameters are the state, the value it is applied to, and the other arguments by position and by
/// name.
pub(crate) type Filter = fn(&mut State<'_, '_>, &Value, &[Value], &Kwargs) -> Result<Value, Error>;

/// Adds filters, replacing minijinja's filters of the same name.
pub(crate) fn add_all(environment: &mut Environment<'_>, filters: &[(&'static str, Filter)]) {
    for &(name, filter) in filters {
        environment.add_filter(name, move |state: &mut State, Rest(values): Rest<Value>, named: Kwargs| {
            match values.split_first() {
                Some((value, more)) => filter(state, value, more, &named),
                None => refuse(format!("{name} is applied to nothing")),
            }
        });
    }
}

/// The arguments in the order of their names.
///
/// # Errors
/// If there are too many arguments, one is given twice, or one has an unknown name.
pub(crate) fn bind<const N: usize>(
    what: &str,
    names: [&str; N],
    given: &[Value],
    named: &Kwargs,
) -> Result<[Option<Value>; N], Error> {
    if given.len() > N {
        return refuse(format!("{what} takes {N} arguments at most"));
    }
    let mut bound: [Option<Value>; N] = std::array::from_fn(|at| given.get(at).cloned());
    for (slot, name) in bound.iter_mut().zip(names) {
        if named.has(name) {
            if slot.is_some() {
                return refuse(format!("{what} has {name} twice"));
            }
            *slot = Some(named.get::<Value>(name)?);
        }
    }
    named.assert_all_used()?;
    Ok(bound)
}

/// An integer argument, or its default.
///
/// # Errors
/// If the value is no integer.
pub(crate) fn integer(what: &str, value: Option<&Value>, default: i64) -> Result<i64, Error> {
    match value {
        None => Ok(default),
        Some(value) => {
            match i64::try_from(value.clone()).ok().filter(|_| crate::python::float(value).is_none()) {
                Some(integer) => Ok(integer),
                None => refuse(format!("{what} takes an integer, not {}", type_name(value))),
            }
        }
    }
}

/// A string argument.
///
/// # Errors
/// If the value is missing or no string.
pub(crate) fn text<'a>(what: &str, value: Option<&'a Value>) -> Result<&'a str, Error> {
    match value.map(|value| (value.as_str(), value)) {
        Some((Some(text), _)) => Ok(text),
        Some((None, value)) => refuse(format!("{what} takes a text, not {}", type_name(value))),
        None => refuse(format!("{what} lacks an argument")),
    }
}

/// Whether an argument is given and true.
pub(crate) fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}
