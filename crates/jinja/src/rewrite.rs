//! Replaces the operators, filters and tests of a compiled template by bounded ones.

use std::collections::BTreeMap;

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    machinery::{Instruction, Instructions},
    value::{Kwargs, Rest},
};

use crate::{
    adapt::{EACH, NOT_CONSTANT},
    cost::{charge_value, listed},
    methods,
    objects::Generator,
    operators::{COMPARISONS, GROWING, ITEM, LIST, MAP, NEGATED, POWER, REMAINDER, SLICE, TUPLE},
    texts::check,
};

/// Replaces the operators of a compiled template by those of [`crate::operators`], and its filters and tests by
/// charged ones.
///
/// # Errors
/// If the template holds a constant that is too large (the compiler has applied operators to constants), or an
/// instruction that cannot be bounded.
pub(crate) fn rewrite<'a>(instructions: &mut Instructions<'a>, charged: &'a Charged) -> Result<(), Error> {
    /// The slot number that makes minijinja look the filter up on each call.
    const NOT_KEPT: u8 = !0;
    let [add, mul, concat] = GROWING;
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
            Instruction::Rem => (REMAINDER, 2),
            Instruction::Pow => (POWER, 2),
            Instruction::Neg => (NEGATED, 1),
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
            // minijinja divides by the number of arguments, so no argument would be a division by zero.
            Instruction::CallMethod("cycle", Some(1) | None) => {
                return refused("`cycle` of nothing or of a list");
            }
            Instruction::Include(true) => return refused("`include` of a template that may be non-existing"),
            Instruction::PushAutoEscape => return refused("`autoescape`"),
            Instruction::GetAttr(name) => match charged.name(&format!(".{name}")) {
                Some(field) => (field, 1),
                None => continue,
            },
            Instruction::ApplyFilter(name, ..) | Instruction::PerformTest(name, ..) => {
                *name = charged.name(name).unwrap_or(*name);
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

/// Filters whose results are generators in Python, which can be read once.
const GENERATORS: [&str; 9] =
    ["batch", "items", "map", "reject", "rejectattr", "select", "selectattr", "slice", "unique"];

/// The filters and tests that a template uses, with the names of their charged versions, which count their arguments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Charged(BTreeMap<String, String>);

impl Charged {
    /// Adds the charged version of a filter or test, which counts its arguments and then calls the original one.
    pub(crate) fn add(&mut self, environment: &mut Environment<'_>, instruction: &Instruction<'_>) {
        if let Instruction::GetAttr(name) = instruction {
            self.add_field(environment, name);
            return;
        }
        let (name, is_filter) = match instruction {
            // These filters read no value.
            Instruction::ApplyFilter(name, ..) if [EACH, NOT_CONSTANT].contains(name) => return,
            Instruction::ApplyFilter(name, ..) => (*name, true),
            Instruction::PerformTest(name, ..) => (*name, false),
            _ => return,
        };
        let charged = format!("charged:{name}");
        // minijinja looks names up without white space.
        let own: String = name.split_whitespace().collect();
        let arguments = |Rest(mut values): Rest<Value>, named: Kwargs| {
            if named.args().next().is_some() {
                values.push(named.into());
            }
            values.iter().try_for_each(charge_value).map(|()| values)
        };
        let called = charged.clone();
        match is_filter {
            true => environment.add_filter(
                called,
                move |state: &mut State, values: Rest<Value>, named: Kwargs| {
                    let is_text = values.first().is_some_and(|value| value.as_str().is_some());
                    let made = state.apply_filter(&own, &arguments(values, named)?);
                    let made =
                        made.map_err(|error| named_in(error, ErrorKind::UnknownFilter, "filter", &own))?;
                    match GENERATORS.contains(&own.as_str()) || (own == "reverse" && !is_text) {
                        true => Generator::value(state, &made),
                        false => listed(made),
                    }
                },
            ),
            false => {
                environment.add_test(called, move |state: &mut State, values: Rest<Value>, named: Kwargs| {
                    let found = state.perform_test(&own, &arguments(values, named)?);
                    found.map_err(|error| named_in(error, ErrorKind::UnknownTest, "test", &own))
                })
            }
        }
        self.0.insert(name.to_owned(), charged);
    }

    /// Adds the filter that reads a field with the name of a method, or of a field of a number.
    fn add_field(&mut self, environment: &mut Environment<'_>, name: &str) {
        let names = [&methods::DICTIONARY[..], &methods::LIST, &methods::TEXT, &methods::NUMBER];
        let is_method = names.concat().contains(&name);
        let own = format!(".{name}");
        if is_method && !self.0.contains_key(&own) {
            let field = format!("field:{name}");
            let name = name.to_owned();
            environment.add_filter(field.clone(), move |value: &Value| methods::field(value, &name));
            self.0.insert(own, field);
        }
    }

    /// The name of the charged version of a filter or test.
    pub(crate) fn name(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// Adds the original name to minijinja's error for an unknown filter or test, which would leave it out here.
fn named_in(error: Error, unknown: ErrorKind, what: &str, name: &str) -> Error {
    /// These filters call other filters or tests, whose names are arguments.
    const USERS: [&str; 5] = ["map", "select", "reject", "selectattr", "rejectattr"];
    match error.kind() == unknown {
        true if USERS.contains(&name) => {
            Error::new(unknown, format!("what {name} was told to use is unknown"))
        }
        true => Error::new(unknown, format!("{what} {name} is unknown")),
        false => error,
    }
}
