//! A compiled template, its operators, filters and tests replaced by those that are bounded.

use std::collections::BTreeMap;

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    machinery::{Instruction, Instructions},
    value::{Kwargs, Rest},
};

use super::{
    operators::{COMPARISONS, GROWING, ITEM, LIST, MAP, SLICE, TUPLE},
    texts::check,
    weigh::{listed, weigh},
};

/// Makes the operators of a compiled template those of [`super::operators`], and its filters and
/// tests the weighed ones.
///
/// # Errors
/// If it holds a constant that is too large (the compiler has applied the operators to constants), or an instruction
/// that cannot be bounded.
pub(super) fn rewrite<'a>(instructions: &mut Instructions<'a>, weighed: &'a Weighed) -> Result<(), Error> {
    /// The filter is looked up each time.
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

/// The filters and tests that a template uses, and what they are called where their arguments are weighed.
#[derive(Clone, Debug, Default)]
pub(super) struct Weighed(BTreeMap<String, String>);

impl Weighed {
    /// Adds a filter or test that weighs its arguments and then is the one of this name.
    pub(super) fn add(&mut self, environment: &mut Environment<'_>, instruction: &Instruction<'_>) {
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
    pub(super) fn name(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// The engine's error for what is unknown leaves out its name here.
fn named_in(error: Error, unknown: ErrorKind, what: &str, name: &str) -> Error {
    /// These use others, by names that they are given.
    const USERS: [&str; 5] = ["map", "select", "reject", "selectattr", "rejectattr"];
    match error.kind() == unknown {
        true if USERS.contains(&name) => {
            Error::new(unknown, format!("what {name} was told to use is unknown"))
        }
        true => Error::new(unknown, format!("{what} {name} is unknown")),
        false => error,
    }
}
