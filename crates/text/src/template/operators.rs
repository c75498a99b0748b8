//! Operators of a template, as filters by names that no template can spell: they weigh what they look at, and refuse to
//! make what is too long.

use minijinja::{
    Environment, Error, State, Value, context,
    value::{Kwargs, Rest, Tuple, ValueOrKwargs},
};

use super::{
    texts::{check, concatenated},
    weigh::{count_namespace, listed, weigh},
};

/// `a + b`, `a * b` and `a ~ b`, whose results can grow.
pub(super) const GROWING: [&str; 3] = ["bounded+", "bounded*", "bounded~"];
/// Comparisons, which walk through what they compare.
pub(super) const COMPARISONS: [&str; 7] =
    ["weighed==", "weighed!=", "weighed<", "weighed<=", "weighed>", "weighed>=", "weighed-in"];
/// `a[b]` and `{a: b}`.
pub(super) const ITEM: &str = "weighed[]";
pub(super) const MAP: &str = "weighed{}";
/// `[a, b]`, `(a, b)` and `a[b:c:d]`.
pub(super) const LIST: &str = "weighed,";
pub(super) const TUPLE: &str = "weighed(,)";
pub(super) const SLICE: &str = "weighed[:]";

/// Adds the operators named above, and the functions that make values of values.
pub(super) fn add(environment: &mut Environment<'_>) {
    add_growing(environment);
    type Compare = fn(&Value, &Value) -> bool;
    let compare: [Compare; 6] =
        [|a, b| a == b, |a, b| a != b, |a, b| a < b, |a, b| a <= b, |a, b| a > b, |a, b| a >= b];
    for (name, compare) in COMPARISONS.into_iter().zip(compare) {
        environment.add_filter(name, move |a: &Value, b: &Value| {
            weigh(a)?;
            weigh(b)?;
            Ok::<_, Error>(compare(a, b))
        });
    }
    environment.add_filter(COMPARISONS[6], |state: &State, a: &Value, b: &Value| {
        weigh(a)?;
        weigh(b)?;
        operator(state, "a in b", a, b)
    });
    environment.add_filter(ITEM, |a: &Value, b: &Value| {
        // A text is walked through up to the character.
        if a.as_str().is_some() {
            weigh(a)?;
        }
        weigh(b)?;
        a.get_item(b)
    });
    environment.add_filter(LIST, |items: Rest<Value>| {
        items.iter().try_for_each(weigh)?;
        Ok::<_, Error>(items.iter().cloned().collect::<Value>())
    });
    environment.add_filter(TUPLE, |items: Rest<Value>| {
        items.iter().try_for_each(weigh)?;
        Ok::<_, Error>(Value::from(Tuple::from(&items[..])))
    });
    environment.add_filter(SLICE, |state: &State, a: &Value, b: &Value, c: &Value, d: &Value| {
        weigh(a)?;
        listed(state.env().compile_expression("a[b:c:d]")?.eval(context! { a, b, c, d })?)
    });
    add_functions(environment);
    environment.add_filter(MAP, |pairs: Rest<Value>| {
        pairs.iter().try_for_each(weigh)?;
        let pairs = pairs.as_chunks::<2>().0.iter();
        Ok::<_, Error>(Value::from_pairs(pairs.map(|[key, value]| (key.clone(), value.clone()))))
    });
}

/// Those that refuse to make what is too long.
fn add_growing(environment: &mut Environment<'_>) {
    let [add, mul, concat] = GROWING;
    environment.add_filter(add, |state: &State, a: &Value, b: &Value| {
        check(a.len().zip(b.len()).map(|(a, b)| a.saturating_add(b)), a, b)?;
        listed(operator(state, "a + b", a, b)?)
    });
    environment.add_filter(mul, |state: &State, a: &Value, b: &Value| {
        let times = |list: &Value, n: &Value| Some(list.len()?.saturating_mul(n.as_usize()?));
        check(times(a, b).or_else(|| times(b, a)), a, b)?;
        listed(operator(state, "a * b", a, b)?)
    });
    environment.add_filter(concat, |a: &Value, b: &Value| concatenated(a, b));
}

/// The functions that make values of values.
fn add_functions(environment: &mut Environment<'_>) {
    environment.add_function("dict", |value: Option<Value>, fields: Kwargs| {
        weigh_call(value.as_ref(), &fields)?;
        minijinja::functions::dict(value, fields)
    });
    environment.add_function("namespace", |value: Option<Value>, fields: Kwargs| {
        weigh_call(value.as_ref(), &fields)?;
        count_namespace()?;
        let fields = minijinja::functions::dict(value, fields)?;
        minijinja::functions::namespace(Some(ValueOrKwargs::from(fields)))
    });
}

fn weigh_call(value: Option<&Value>, fields: &Kwargs) -> Result<(), Error> {
    value.into_iter().try_for_each(weigh)?;
    weigh(&Value::from(fields.clone()))
}

/// The engine's own operator.
fn operator(state: &State, operation: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    state.env().compile_expression(operation)?.eval(context! { a, b })
}
