//! What a chat template may walk through. minijinja counts steps and what is made of them; here is counted what a single
//! step looks at: a comparison, a key, a filter or a text of a value walks through all of it, which a few steps can make
//! endless. A list of the same list twice, and that forty times over, is small and stands for more than anything can
//! read; a namespace can hold itself.

use std::{cell::Cell, collections::BTreeMap};

use minijinja::{
    Environment, Error, ErrorKind, State, Value, context,
    machinery::{Instruction, Token, tokenize},
    syntax::SyntaxConfig,
    value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs},
};

/// Deepest value in a value; conversations with tools need ten.
const DEEPEST: usize = 64;
/// What a rendering may look at, in values and pieces of texts.
const MOST: u64 = 10_000_000;
/// Namespaces of a rendering: each can hold the one before.
const MOST_NAMESPACES: usize = 500;
/// Bytes of a text that count as one value.
const PIECE: usize = 64;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(MOST) };
    static NAMESPACES: Cell<usize> = const { Cell::new(0) };
}

/// A rendering begins on this thread.
pub(crate) fn begin() {
    LEFT.set(MOST);
    NAMESPACES.set(0);
}

/// Counts a value that is to be walked through.
///
/// # Errors
/// If it is nested too deeply, or too much was walked through.
pub(crate) fn weigh(value: &Value) -> Result<(), Error> {
    inner(value, 0)
}

fn refuse<T>(what: &'static str) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, what))
}

fn inner(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return refuse("a value is nested more than 64 deep, or holds itself");
    }
    let cost = 1 + value.as_str().map_or(0, |text| text.len() / PIECE) as u64;
    match LEFT.get().checked_sub(cost) {
        Some(left) => LEFT.set(left),
        None => return refuse("it compares and walks through more than a template needs"),
    }
    match value.kind() {
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            inner(&key, depth + 1)?;
            inner(&value.get_item(&key)?, depth + 1)
        }),
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.try_for_each(|item| inner(&item, depth + 1))
        }
        _ => Ok(()),
    }
}

/// Operators that weigh what they compare, as filters of these names; no template can spell them.
pub(crate) const COMPARISONS: [&str; 7] =
    ["weighed==", "weighed!=", "weighed<", "weighed<=", "weighed>", "weighed>=", "weighed-in"];
/// `a[b]` and `{a: b}`.
pub(crate) const ITEM: &str = "weighed[]";
pub(crate) const MAP: &str = "weighed{}";
/// `[a, b]`, `(a, b)` and `a[b:c:d]`.
pub(crate) const LIST: &str = "weighed,";
pub(crate) const TUPLE: &str = "weighed(,)";
pub(crate) const SLICE: &str = "weighed[:]";

/// Adds the operators named above, and the functions that make values of values.
pub(crate) fn add_operators(environment: &mut Environment<'_>) {
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

/// The functions that make values of values.
fn add_functions(environment: &mut Environment<'_>) {
    environment.add_function("dict", |value: Option<Value>, fields: Kwargs| {
        weigh_call(value.as_ref(), &fields)?;
        minijinja::functions::dict(value, fields)
    });
    environment.add_function("namespace", |value: Option<Value>, fields: Kwargs| {
        weigh_call(value.as_ref(), &fields)?;
        NAMESPACES.set(NAMESPACES.get() + 1);
        if NAMESPACES.get() > MOST_NAMESPACES {
            return refuse("it makes more namespaces than a template needs");
        }
        let fields = minijinja::functions::dict(value, fields)?;
        minijinja::functions::namespace(Some(ValueOrKwargs::from(fields)))
    });
}

fn weigh_call(value: Option<&Value>, fields: &Kwargs) -> Result<(), Error> {
    value.into_iter().try_for_each(weigh)?;
    weigh(&Value::from(fields.clone()))
}

/// Items that are made when they are read, as a list: such a thing of such a thing, and so on, would be deep.
pub(crate) fn listed(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => {
            weigh(&value)?;
            Ok(value.try_iter()?.collect())
        }
        _ => Ok(value),
    }
}

/// The engine's own operator.
pub(crate) fn operator(state: &State, operation: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    state.env().compile_expression(operation)?.eval(context! { a, b })
}

/// The filters and tests that a template uses, and what they are called where their arguments are weighed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weighed(BTreeMap<String, String>);

impl Weighed {
    /// Adds a filter or test that weighs its arguments and then is the one of this name.
    pub(crate) fn add(&mut self, environment: &mut Environment<'_>, instruction: &Instruction<'_>) {
        let (name, is_filter) = match instruction {
            Instruction::ApplyFilter(name, ..) => (*name, true),
            Instruction::PerformTest(name, ..) => (*name, false),
            _ => return,
        };
        let weighed = format!("weighed:{name}");
        // As the engine looks names up.
        let own: String = name.split_whitespace().collect();
        let arguments = |Rest(mut values): Rest<Value>, named: Kwargs| {
            if named.args().next().is_some() {
                values.push(named.into());
            }
            values.iter().try_for_each(weigh).map(|()| values)
        };
        let called = weighed.clone();
        match is_filter {
            true => environment.add_filter(
                called,
                move |state: &mut State, values: Rest<Value>, named: Kwargs| {
                    let made = state.apply_filter(&own, &arguments(values, named)?);
                    listed(made.map_err(|error| named_in(error, ErrorKind::UnknownFilter, "filter", &own))?)
                },
            ),
            false => {
                environment.add_test(called, move |state: &mut State, values: Rest<Value>, named: Kwargs| {
                    let found = state.perform_test(&own, &arguments(values, named)?);
                    found.map_err(|error| named_in(error, ErrorKind::UnknownTest, "test", &own))
                })
            }
        }
        self.0.insert(name.to_owned(), weighed);
    }

    /// What a filter or test is called now.
    pub(crate) fn name(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The engine's error for what is unknown leaves out its name here.
fn named_in(error: Error, unknown: ErrorKind, what: &str, name: &str) -> Error {
    match error.kind() == unknown {
        true => Error::new(unknown, format!("{what} {name} is unknown")),
        false => error,
    }
}

/// Of names and operators in one expression, and of `elif` in all: an expression and a chain of conditions are compiled
/// a level deeper for each.
const LONGEST_CHAIN: usize = 2000;

/// Refuses a template that the compiler's recursion has no room for.
///
/// # Errors
/// If an expression or a chain of conditions is too long.
pub(crate) fn check_chains(source: &str, syntax: &SyntaxConfig) -> Result<(), Error> {
    let (mut chain, mut conditions, mut line) = (0, 0, 0);
    let mut begins = false;
    // What cannot be cut into tokens is told of by the compiler.
    for (token, span) in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        line = span.start_line;
        match token {
            Token::VariableStart | Token::BlockStart => (chain, begins) = (0, true),
            Token::TemplateData(_)
            | Token::Comma
            | Token::Colon
            | Token::Str(_)
            | Token::String(_)
            | Token::Int(_)
            | Token::Int128(_)
            | Token::Float(_) => begins = false,
            token => {
                conditions += usize::from(begins && matches!(token, Token::Ident("elif")));
                chain += 1;
                begins = false;
            }
        }
        if chain.max(conditions) > LONGEST_CHAIN {
            break;
        }
    }
    match chain.max(conditions) > LONGEST_CHAIN {
        false => Ok(()),
        true => {
            let what = format!(
                "line {line}: more than {LONGEST_CHAIN} names and operators in one expression, or `elif`"
            );
            Err(Error::new(ErrorKind::SyntaxError, what))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use crate::{ChatTemplate, Message, TemplateTokens};

    fn render(source: &str, content: &str) -> Result<String, String> {
        let template =
            ChatTemplate::new(source, TemplateTokens::default()).map_err(|error| error.to_string())?;
        template.render(&[Message::new("user", content)], true).map_err(|error| error.to_string())
    }

    #[test]
    fn what_templates_do_is_as_before() {
        for (source, expected) in [
            (
                "{{ 1 == 1 }}{{ 1 != 1 }}{{ 1 < 2 }}{{ 2 <= 1 }}{{ 1 > 2 }}{{ 2 >= 2 }}",
                "TrueFalseTrueFalseFalseTrue",
            ),
            ("{{ 'a' in 'cab' }}{{ 'x' not in ['x'] }}{{ 'role' in messages[0] }}", "TrueFalseTrue"),
            (
                "{{ messages[0]['content'] }}{{ messages[-1].content[0] }}{{ messages[0].none is defined }}",
                "abcaFalse",
            ),
            (
                "{{ {'a': 1, 'b': [2]} }}{{ {'a': {'b': 3}}['a']['b'] }}{{ {}|length }}",
                "{'a': 1, 'b': [2]}30",
            ),
            (
                "{{ [3, 1]|sort|join(',') }}{{ 'x'|upper }}{{ messages|map(attribute='role')|list }}",
                "1,3X['user']",
            ),
            (
                "{{ 'a' is string }}{{ x is defined }}{{ 4 is divisibleby 2 }}{{ 'a' is in ['a'] }}",
                "TrueFalseTrueTrue",
            ),
            (
                "{{ [1, 2, 3]|select('odd')|list }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
                "[1, 3]1",
            ),
            ("{% filter upper %}a{% endfilter %}{{ [1]|tojson }}{{ {'a': none}.get('a', 1) }}", "A[1]None"),
            (
                "{% set ns = namespace(x=[], n=0) %}{% for i in range(3) %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x }}",
                "[0, 1, 2]",
            ),
            (
                "{{ (1, 'a') }}{{ (1,)[0] }}{{ [1, 2, 3][1:] }}{{ 'abc'[::-1] }}{{ dict(a=1, b=2) }}",
                "(1, 'a')1[2, 3]cba{'a': 1, 'b': 2}",
            ),
            ("{% macro f(a, b='c') %}{{ a ~ b }}{% endmacro %}{{ f('x') }}{{ f(b='y', a='z') }}", "xczy"),
        ] {
            assert_eq!(render(source, "abc").unwrap(), expected, "{source}");
        }
        assert!(render("{{ nothing[0] }}", "").unwrap_err().contains("undefined"));
        assert!(render("{{ 1|nothing }}", "").unwrap_err().contains("filter nothing is unknown"));
        assert!(render("{{ 1 is nothing }}", "").unwrap_err().contains("test nothing is unknown"));
        let refused = render("{% set n = 1 %}{{ n < 2 < 3 }}", "").unwrap_err();
        assert!(refused.contains("`a < b < c` is not supported"), "{refused}");
    }

    #[test]
    fn what_holds_itself_is_refused() {
        for reading in [
            "{{ ns }}",
            "{{ ns|tojson }}",
            "{{ ns|string }}",
            "{{ ns|list }}",
            "{{ ns ~ '' }}",
            "{{ {ns: 1} }}",
            "{{ [ns, ns]|sort }}",
            "{{ [ns]|join }}",
            "{{ '%s'|format(ns) }}",
            "{{ 'a'|replace(ns, ns) }}",
            "{{ raise_exception(ns) }}",
            "{{ ns == other }}",
            "{{ ns in [other] }}",
            "{{ ns is eq(other) }}",
            "{{ ns|pprint }}",
            "{{ 'a'.join([ns]) }}",
            "{{ {'a': 1}[ns] }}",
            "{{ {'a': 1}.get(ns) }}",
            "{{ strftime_now(ns) }}",
            "{% for x in [1, 2] %}{{ loop.changed(ns) }}{% endfor %}",
            "{{ debug() }}",
        ] {
            let itself = "{% set ns = namespace() %}{% set ns.x = [ns] %}{% set other = namespace(x=[ns]) %}";
            assert!(render(&format!("{itself}{reading}"), "").is_err(), "{reading}");
        }
        // A thing of the same thing, again and again: dropping it takes a level of the stack for each.
        for deeper in [
            "ns.x = (ns.x, 1)",
            "ns.x = {'a': ns.x}",
            "ns.x = dict(a=ns.x)",
            "ns.x = namespace(a=ns.x)",
            "ns.x = ns.x[0:]",
            "ns.x = ns.x + [1]",
            "ns.x = ns.x|reverse",
            "ns.x = ns.x|batch(2)",
            "ns.x = ns.x * 1",
            "ns.x = [ns.x]|map('first')",
            "n = namespace() %}{% set n.x = ns.x %}{% set ns.x = n",
        ] {
            let source = format!(
                "{{% set ns = namespace(x=[1]) %}}{{% for i in range(30000) %}}{{% set {deeper} %}}{{% endfor %}}"
            );
            let _ = render(&source, &"x".repeat(1_000_000));
        }
        let nested =
            "{% set ns = namespace(x=[]) %}{% for i in range(30000) %}{% set ns.x = [ns.x] %}{% endfor %}";
        for reading in ["{{ ns.x }}", "{{ ns.x == [ns.x] }}", "{{ {ns.x: 1} }}"] {
            let error = render(&format!("{nested}{reading}"), &"x".repeat(100_000)).unwrap_err();
            assert!(error.contains("nested more than"), "{reading}: {error}");
        }
    }

    #[test]
    fn little_that_stands_for_much_is_refused() {
        let doubled = "{% set ns = namespace(x=[], y=[]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
                       {% set ns.y = [ns.y, ns.y] %}{% endfor %}";
        let many = "{% set b = 'a' * 4000000 %}{% set l = range(90000)|list %}{% for i in range(9000) %}";
        for source in [
            format!("{doubled}{{{{ ns.x == ns.y }}}}"),
            format!("{doubled}{{{{ ns.x in [ns.y] }}}}"),
            format!("{doubled}{{% set d = {{ns.x: 1}} %}}"),
            format!("{doubled}{{{{ ns.x|pprint|length }}}}"),
            format!("{many}{{% set x = b[3999999] %}}{{% endfor %}}"),
            format!("{many}{{% set x = {{l: 1}} %}}{{% endfor %}}"),
            format!("{many}{{% set x = l == l %}}{{% endfor %}}"),
        ] {
            let error = render(&source, "").unwrap_err();
            assert!(error.contains("walks through more than") || error.contains("fuel"), "{source}: {error}");
        }
    }

    #[test]
    fn long_chains_are_refused() {
        for (start, link, end) in [
            ("{{ 1", "+1", " }}"),
            ("{{ messages", ".a", " }}"),
            ("{{ messages", "[0]", " }}"),
            ("{{ 1", "|string", " }}"),
            ("{{ 1", " and 1", " }}"),
            ("{{ 1", "~1", " }}"),
            ("{{ f", "()", " }}"),
            ("{{ 1", " == 1", " }}"),
            ("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
            ("{{ ", "1 if 1 else ", "1 }}"),
        ] {
            let error = render(&format!("{start}{}{end}", link.repeat(50_000)), "").unwrap_err();
            assert!(error.contains("more than 2000") || error.contains("recursion"), "{link}: {error}");
            // What is let through is compiled, in the stack of any thread.
            let links = 1990 / if link.contains("if") { 3 } else { 2 };
            let _ = render(&format!("{start}{}{end}", link.repeat(links)), "");
        }
        let list = format!("{{{{ [{}]|length }}}}", "'a', ".repeat(5000));
        assert_eq!(render(&list, "").unwrap(), "5000");
    }
}
