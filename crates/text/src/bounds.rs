//! What a chat template may make of little. minijinja counts what its operators and filters make (its fuel); here is what
//! it does not count: lists that are put together or repeated only when they are read, their texts, and Python's methods.

use std::{fmt, io};

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    machinery::{Instruction, Instructions},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::weigh::{COMPARISONS, ITEM, LIST, MAP, SLICE, TUPLE, Weighed, listed, operator, weigh};

/// Longest text that one step makes.
const MOST_BYTES: usize = 4 << 20;
/// Longest list that one step walks: as many as `range` gives.
const MOST_ITEMS: usize = 100_000;

/// Text that grows up to the limit.
#[derive(Default)]
struct Text(String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MOST_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Bytes that grow up to the limit.
#[derive(Default)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a text grows beyond {MOST_BYTES} bytes"))
}

/// The operators that can grow, as filters by these names: no template can spell them.
const OPERATORS: [&str; 3] = ["bounded+", "bounded*", "bounded~"];

/// Makes the operators of a compiled template those of [`add_operators`] and of [`crate::weigh`], and its filters and
/// tests the weighed ones.
///
/// # Errors
/// If it holds a constant that is too large (the compiler has applied the operators to constants), or an instruction
/// that cannot be bounded.
pub(crate) fn bound<'a>(instructions: &mut Instructions<'a>, weighed: &'a Weighed) -> Result<(), Error> {
    /// The filter is looked up each time.
    const NOT_KEPT: u8 = !0;
    let [add, mul, concat] = OPERATORS;
    for at in 0.. {
        let Some(instruction) = instructions.get_mut(at) else { break };
        let [eq, ne, lt, lte, gt, gte, contained] = COMPARISONS;
        let refused =
            |what: &str| Err(Error::new(ErrorKind::SyntaxError, format!("{what} is not supported")));
        let (name, args) = match instruction {
            Instruction::Add => (add, 2),
            Instruction::Mul => (mul, 2),
            Instruction::StringConcat => (concat, 2),
            Instruction::Eq => (eq, 2),
            Instruction::Ne => (ne, 2),
            Instruction::Lt => (lt, 2),
            Instruction::Lte => (lte, 2),
            Instruction::Gt => (gt, 2),
            Instruction::Gte => (gte, 2),
            Instruction::In => (contained, 2),
            Instruction::GetItem => (ITEM, 2),
            Instruction::Slice => (SLICE, 4),
            Instruction::BuildTuple(Some(items @ 1..=60_000)) => (TUPLE, *items as u16),
            Instruction::BuildList(Some(items @ 1..=60_000)) => (LIST, *items as u16),
            Instruction::BuildMap(pairs) if (1..=1000).contains(pairs) => (MAP, 2 * *pairs as u16),
            Instruction::BuildMap(pairs) if *pairs > 0 => {
                return refused("a dictionary of more than 1000 entries");
            }
            Instruction::CompareAndPreserve(_) => return refused("a comparison like `a < b < c`"),
            Instruction::CallMethod("changed", _) => return refused("`changed`"),
            Instruction::ApplyFilter(name, ..) | Instruction::PerformTest(name, ..) => {
                *name = weighed.name(name).unwrap_or(*name);
                continue;
            }
            Instruction::LoadConst(value) => {
                check(value.len(), value, value)?;
                continue;
            }
            _ => continue,
        };
        *instruction = Instruction::ApplyFilter(name, Some(args), NOT_KEPT);
    }
    Ok(())
}

/// Operators that refuse to make lists of more than [`MOST_ITEMS`] and texts of more than [`MOST_BYTES`].
pub(crate) fn add_operators(environment: &mut Environment<'_>) {
    let [add, mul, concat] = OPERATORS;
    environment.add_filter(add, |state: &State, a: &Value, b: &Value| {
        check(a.len().zip(b.len()).map(|(a, b)| a.saturating_add(b)), a, b)?;
        listed(operator(state, "a + b", a, b)?)
    });
    environment.add_filter(mul, |state: &State, a: &Value, b: &Value| {
        let times = |list: &Value, n: &Value| Some(list.len()?.saturating_mul(n.as_usize()?));
        check(times(a, b).or_else(|| times(b, a)), a, b)?;
        listed(operator(state, "a * b", a, b)?)
    });
    environment.add_filter(concat, |a: &Value, b: &Value| {
        weigh(a)?;
        weigh(b)?;
        let mut joined = Text::default();
        fmt::Write::write_fmt(&mut joined, format_args!("{a}{b}")).map_err(|_| too_long())?;
        Ok::<_, Error>(Value::from(joined.0))
    });
}

/// Refuses a list of so many items, or a text of so many bytes at least.
fn check(length: Option<usize>, a: &Value, b: &Value) -> Result<(), Error> {
    let is_text = a.as_str().is_some() || b.as_str().is_some();
    match length {
        Some(length) if is_text && length > MOST_BYTES => Err(too_long()),
        Some(length) if !is_text && length > MOST_ITEMS => Err(too_many()),
        _ => Ok(()),
    }
}

fn too_many() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a list grows beyond {MOST_ITEMS} items"))
}

/// The text of a value.
pub(crate) fn text(value: &Value) -> Result<String, Error> {
    weigh(value)?;
    let mut text = Text::default();
    fmt::Write::write_fmt(&mut text, format_args!("{value}")).map_err(|_| too_long())?;
    Ok(text.0)
}

/// Python's methods, as minijinja-contrib has them.
pub(crate) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    weigh(value)?;
    args.iter().try_for_each(weigh)?;
    if let Some(own) = value.as_str() {
        match (name, args) {
            ("join", [list]) => return joined(own, list),
            ("replace", [old, new, ..]) => {
                let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
                let bytes = own.matches(old).count().saturating_mul(new.len());
                if bytes.saturating_add(own.len()) > MOST_BYTES {
                    return Err(too_long());
                }
            }
            // A width or a precision: `'{:9}'.format(x)`.
            ("format", _) if longest_number(own) > 4 => return Err(too_long()),
            _ => {}
        }
    }
    unknown_method_callback(state, value, name, args)
}

/// Digits of the longest number in a text.
fn longest_number(text: &str) -> usize {
    text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0)
}

/// `separator.join(list)`
fn joined(separator: &str, list: &Value) -> Result<Value, Error> {
    let mut text = Text::default();
    for (at, item) in list.try_iter()?.enumerate() {
        let separator = if at == 0 { "" } else { separator };
        if at == MOST_ITEMS {
            return Err(too_many());
        }
        fmt::Write::write_fmt(&mut text, format_args!("{separator}{item}")).map_err(|_| too_long())?;
    }
    Ok(Value::from(text.0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use crate::{ChatTemplate, Message, TemplateTokens};

    fn render(source: &str) -> Result<String, String> {
        let template =
            ChatTemplate::new(source, TemplateTokens::default()).map_err(|error| error.to_string())?;
        template.render(&[Message::new("user", "a-b-c")], true).map_err(|error| error.to_string())
    }

    #[test]
    fn little_stays_what_it_was() {
        assert_eq!(render("{{ '-'.join(['a', 1, none]) }}").unwrap(), "a-1-None");
        assert_eq!(render("{{ messages[0].content.replace('-', '+', 1) }}").unwrap(), "a+b-c");
        assert_eq!(
            render("{{ ['a'] * 2 }}{{ {'a': 1} }}{{ 1.5 }}{{ none }}").unwrap(),
            "['a', 'a']{'a': 1}1.5None"
        );
        assert_eq!(
            render("{{ 1 + 2 }}{{ 2 * 3 }}{{ 'a' + 'b' }}{{ 'a' ~ 1 }}{{ '-' * 3 }}").unwrap(),
            "36aba1---"
        );
        assert_eq!(render("{{ ([1] + [2])|length }}{{ 1.5 + 1 }}{{ 'a' ~ ['b'] }}").unwrap(), "22.5a['b']");
        assert!(render("{{ 1 + 'a' }}").is_err() && render("{{ [1] + 1 }}").is_err());
        assert_eq!(render("{{ '<b>' }}{{ 'x'|string }}{{ [1]|string }}").unwrap(), "<b>x[1]");
    }

    #[test]
    fn much_is_refused() {
        for source in [
            "{% set ns = namespace(x=['a', 'b']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x=['ab']) %}{% for i in range(99) %}{% set ns.x = ns.x * 9 %}{% endfor %}",
            "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% macro f() %}{{ 'x' ~ (['y'] * 9999999) }}{% endmacro %}{{ f() }}",
            "{% include 'chat_template' %}",
            "{{ ['x'] * 100000000 }}",
            "{{ (['x'] * 100000000)|string }}",
            "{{ (['x'] * 100000000)|tojson }}",
            "{{ ''.join([''] * 100000000) }}",
            "{{ ('y' * 1000000).join(['x'] * 1000) }}",
            "{{ ('x' * 100000).replace('', 'y' * 1000) }}",
            "{{ '{:999999999}'.format(1) }}",
        ] {
            let error = render(source).unwrap_err();
            let parts = ["beyond", "more than", "many", "fuel", "non-existing"];
            assert!(parts.iter().any(|part| error.contains(part)), "{source}: {error}");
        }
    }
}
