//! Jinja's tests (`is ...`) where minijinja's behave otherwise.

use std::cmp::Ordering;

use minijinja::{Environment, Error, Value, value::ValueKind};

use crate::{
    objects::has_no_items,
    operators::is_in,
    python::{float, is_callable, is_dictionary, order, refuse, type_name},
};

/// minijinja's tests that Jinja lacks.
const NOT_JINJA: [&str; 4] = ["endingwith", "int", "safe", "startingwith"];

/// Adds these tests, and removes those that Jinja lacks.
pub(crate) fn add(environment: &mut Environment<'_>) {
    NOT_JINJA.iter().for_each(|name| environment.remove_test(name));
    environment.add_test("iterable", |value: &Value| crate::lists::each(value).is_ok());
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq => true,
        ValueKind::Map => is_dictionary(value),
        ValueKind::Iterable => !has_no_items(value),
        _ => false,
    });
    environment.add_test("mapping", |value: &Value| is_dictionary(value));
    environment.add_test("callable", |value: &Value| is_callable(value) || value.is_undefined());
    environment.add_test("odd", |value: &Value| remainder(value, 2.0).map(|rest| rest == 1.0));
    environment.add_test("even", |value: &Value| remainder(value, 2.0).map(|rest| rest == 0.0));
    environment.add_test("in", |value: &Value, container: &Value| is_in(value, container));
    type Compare = fn(Ordering) -> bool;
    let compare: [(&[&str], Compare); 4] = [
        (&["lt", "lessthan", "<"], Ordering::is_lt),
        (&["le", "<="], Ordering::is_le),
        (&["gt", "greaterthan", ">"], Ordering::is_gt),
        (&["ge", ">="], Ordering::is_ge),
    ];
    for (names, compare) in compare {
        for name in names {
            environment.add_test(*name, move |a: &Value, b: &Value| {
                Ok::<bool, Error>(order(a, b)?.is_some_and(compare))
            });
        }
    }
}

/// The remainder of a number, as Python's `%` gives it.
fn remainder(value: &Value, divisor: f64) -> Result<f64, Error> {
    match (value.kind(), float(value)) {
        (ValueKind::Bool, _) => Ok(if value.is_true() { 1.0 } else { 0.0 }),
        (ValueKind::Number, Some(float)) => Ok(float.rem_euclid(divisor)),
        // Only the last bit matters, and a conversion to float could lose it.
        (ValueKind::Number, None) => match i128::try_from(value.clone()) {
            Ok(integer) => Ok(integer.rem_euclid(2) as f64),
            Err(_) => refuse("an integer is too large to be told odd or even"),
        },
        _ => refuse(format!("{} is neither odd nor even", type_name(value))),
    }
}
