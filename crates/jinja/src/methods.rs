//! Python's methods of strings, dictionaries and lists.

use minijinja::{
    Error, ErrorKind, State, Value,
    value::{Kwargs, Rest, ValueKind, from_args},
};

use crate::{
    args::bind,
    cost::charge_value,
    objects::{View, items_of},
    python::{is_dictionary, is_unhashable, refuse, type_name},
    text_methods,
};

/// Names of the methods of a dictionary. If a template reads a method without calling it, Jinja prints an address.
pub(crate) const DICTIONARY: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
/// Names of the methods of a list.
pub(crate) const LIST: [&str; 11] =
    ["append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"];
/// Names of the methods of a string.
pub(crate) const TEXT: [&str; 36] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "replace",
    "rfind",
    "rjust",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Names of fields that only a number has.
pub(crate) const NUMBER: [&str; 4] = ["denominator", "imag", "numerator", "real"];

/// Reads a field whose name is that of a method.
///
/// # Errors
/// If it is a method of this value, or a field of a number.
pub(crate) fn field(value: &Value, name: &str) -> Result<Value, Error> {
    if matches!(value.kind(), ValueKind::Number | ValueKind::Bool) && NUMBER.contains(&name) {
        return refuse(format!("{name} of a number is not supported"));
    }
    let methods: &[&str] = match value.kind() {
        ValueKind::String => &TEXT,
        ValueKind::Seq => &LIST,
        ValueKind::Map if is_dictionary(value) => &DICTIONARY,
        _ => &[],
    };
    match methods.contains(&name) {
        true => refuse(format!(
            "{name} is a method of {} and is not called: write {name}(), or [\"{name}\"]",
            type_name(value)
        )),
        false => value.get_attr(name),
    }
}

/// Calls a method.
///
/// # Errors
/// If the value has no such method, or Python does not take these arguments.
pub(crate) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    charge_value(value)?;
    args.iter().try_for_each(charge_value)?;
    let (Rest(given), named): (Rest<Value>, Kwargs) = from_args(args)?;
    match value.kind() {
        ValueKind::String if value.is_safe() => refuse("methods of escaped text are not supported"),
        ValueKind::String => text_methods::call(state, value, name, args, &given, &named),
        ValueKind::Map if is_dictionary(value) => dictionary_method(state, value, name, &given, &named),
        ValueKind::Seq | ValueKind::Iterable => list_method(value, name, &given, &named),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn dictionary_method(
    state: &State<'_, '_>,
    value: &Value,
    name: &str,
    given: &[Value],
    named: &Kwargs,
) -> Result<Value, Error> {
    match name {
        "get" => {
            let [] = bind("get", [], &[], named)?;
            let (key, default) = match given {
                [key] => (key, Value::from(())),
                [key, default] => (key, default.clone()),
                _ => return refuse("get takes a key and a default"),
            };
            if is_unhashable(key) {
                return refuse(format!("{} is no key of a dictionary", type_name(key)));
            }
            let found = value.as_object().and_then(|object| object.get_value(key));
            Ok(found.unwrap_or(default))
        }
        "copy" => {
            let [] = bind("copy", [], given, named)?;
            Ok(value.clone())
        }
        "fromkeys" => {
            let [] = bind("fromkeys", [], &[], named)?;
            let (keys, item) = match given {
                [keys] => (keys, Value::from(())),
                [keys, item] => (keys, item.clone()),
                _ => return refuse("fromkeys takes keys and a value"),
            };
            let keys = items_of(state, keys)?;
            match keys.iter().find(|key| is_unhashable(key)) {
                Some(key) => refuse(format!("{} is no key of a dictionary", type_name(key))),
                None => Ok(Value::from_pairs(keys.into_iter().map(|key| (key, item.clone())))),
            }
        }
        _ => match View::of(value, name)? {
            Some(view) => {
                let [] = bind(name, [], given, named)?;
                Ok(view)
            }
            None => Err(Error::from(ErrorKind::UnknownMethod)),
        },
    }
}

fn list_method(value: &Value, name: &str, given: &[Value], named: &Kwargs) -> Result<Value, Error> {
    if crate::objects::has_no_items(value) {
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    let mut items = value.try_iter()?;
    match (name, given) {
        ("count", [what]) => Ok(Value::from(items.filter(|item| item == what).count())),
        ("index", [what]) => match items.position(|item| item == *what) {
            Some(at) => Ok(Value::from(at)),
            None => refuse("index finds no such item"),
        },
        ("copy", [])
            if value.kind() == ValueKind::Seq && !value.is_tuple() && named.args().next().is_none() =>
        {
            Ok(value.clone())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}
