//! Tags that mean something else in minijinja than in Jinja.

use std::collections::HashSet;

use minijinja::Error;

use crate::adapt::{EACH, Kind, NOT_CONSTANT, Tag, UNPACKED, refuse};

/// The open tags, without conditions.
#[derive(Debug, Default)]
pub(crate) struct Scopes(Vec<String>);

impl Scopes {
    /// Follows the tags, and refuses those that minijinja evaluates in another order than Jinja, or cannot leave.
    ///
    /// # Errors
    /// If a tag is refused.
    pub(crate) fn check(&mut self, tag: &Tag) -> Result<(), Error> {
        let name = tag.piece(0);
        match name {
            "for" | "with" | "macro" | "call" | "filter" | "block" | "autoescape" | "generation" => {
                self.0.push(name.to_owned());
            }
            "set" => {
                let assigns =
                    (0..tag.pieces.len()).any(|at| tag.piece(at) == "=" && tag.pieces[at].depth == 0);
                if !assigns {
                    self.0.push(name.to_owned());
                }
            }
            "break" | "continue" => {
                // minijinja would leave the loop, but not the tags that are open inside it.
                if let Some(open) = self.0.last().filter(|open| *open != "for") {
                    return refuse(&format!("`{name}` inside of `{open}` is not supported"));
                }
            }
            _ if name
                .strip_prefix("end")
                .is_some_and(|name| self.0.last().is_some_and(|open| open == name)) =>
            {
                self.0.pop();
            }
            _ => {}
        }
        match name {
            "macro" => check_defaults(tag),
            "with" => check_with(tag),
            _ => Ok(()),
        }
    }

    /// The namespace to which this tag assigns, if the tag stands inside a `macro` or `call` block.
    pub(crate) fn namespace_of_macro<'a>(&self, tag: &'a Tag) -> Option<&'a str> {
        let is_field = tag.piece(0) == "set" && tag.is_name(1) && tag.piece(2) == ".";
        (is_field && self.is_in_macro()).then(|| tag.piece(1))
    }

    fn is_in_macro(&self) -> bool {
        self.0.iter().any(|open| open == "macro" || open == "call")
    }

    /// Refuses `varargs` and `kwargs`, under which Jinja has a macro's other arguments, because minijinja has
    /// neither.
    ///
    /// # Errors
    /// If the tag reads one of these names.
    pub(crate) fn check_names(&self, tag: &Tag) -> Result<(), Error> {
        let is_used = |at: usize| {
            let is_field = at > 0 && tag.piece(at - 1) == ".";
            tag.is_name(at) && !is_field && tag.piece(at + 1) != "="
        };
        let found =
            (0..tag.pieces.len()).find(|&at| ["varargs", "kwargs"].contains(&tag.piece(at)) && is_used(at));
        match found.filter(|_| self.is_in_macro()) {
            Some(at) => refuse(&format!("`{}` in a macro is not supported", tag.piece(at))),
            None => Ok(()),
        }
    }
}

/// The parts of a tag between commas at this bracket depth, as ranges of tokens from `first` on.
fn parts(tag: &Tag, first: usize, depth: usize) -> Vec<std::ops::Range<usize>> {
    let mut parts = Vec::new();
    let mut start = first;
    for at in first..tag.pieces.len() {
        if tag.piece(at) == "," && tag.pieces[at].depth == depth && tag.pieces[at].kind == Kind::Sign {
            parts.push(start..at);
            start = at + 1;
        }
    }
    parts.push(start..tag.pieces.len());
    parts
}

/// Whether a part of a tag reads one of these names.
fn reads(tag: &Tag, part: std::ops::Range<usize>, names: &HashSet<&str>) -> bool {
    let mut part = part;
    part.any(|at| {
        let is_field = tag.piece(at - 1) == ".";
        tag.is_name(at) && !is_field && names.contains(tag.piece(at))
    })
}

/// Refuses a `with` that reads a name which it assigns, because Jinja evaluates all values before it assigns the
/// first.
fn check_with(tag: &Tag) -> Result<(), Error> {
    let mut assigned: HashSet<&str> = HashSet::new();
    for part in parts(tag, 1, 0) {
        if part.len() > 2 && reads(tag, part.start + 2..part.end, &assigned) {
            return refuse("a `with` that reads a name which it assigns is not supported");
        }
        assigned.insert(tag.piece(part.start));
    }
    Ok(())
}

/// Refuses an argument that is given twice, and a test right behind a test.
///
/// # Errors
/// If the tag has one of these.
pub(crate) fn check_expression(tag: &Tag) -> Result<(), Error> {
    // The names of the arguments inside each open bracket.
    let mut open: Vec<HashSet<&str>> = Vec::new();
    for at in 0..tag.pieces.len() {
        match tag.piece(at) {
            "(" | "[" | "{" => open.push(HashSet::new()),
            ")" | "]" | "}" => {
                open.pop();
            }
            "=" if at > 0 && tag.is_name(at - 1) => {
                let name = tag.piece(at - 1);
                if open.last_mut().is_some_and(|names| !names.insert(name)) {
                    return refuse(&format!("the argument {name} is given twice"));
                }
            }
            "is" if at > 1 && tag.is_name(at) && tag.is_name(at - 1) => {
                let is_negated = at > 2 && tag.piece(at - 2) == "not" && tag.piece(at - 3) == "is";
                if is_negated || tag.piece(at - 2) == "is" {
                    return refuse("a test right behind a test needs brackets around the first");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses defaults that read arguments before them, which Jinja allows.
fn check_defaults(tag: &Tag) -> Result<(), Error> {
    let Some(open) = (1..tag.pieces.len()).find(|&at| tag.piece(at) == "(") else { return Ok(()) };
    let depth = tag.pieces[open].depth + 1;
    let parts: Vec<_> = parts(tag, open + 1, depth)
        .into_iter()
        .filter(|part| !part.is_empty() && tag.pieces[part.start].depth == depth)
        .collect();
    let names: HashSet<&str> = parts.iter().map(|part| tag.piece(part.start)).collect();
    if names.len() < parts.len() {
        return refuse("a macro has two arguments of one name");
    }
    let is_read = parts.iter().any(|part| part.len() > 2 && reads(tag, part.start + 2..part.end, &names));
    match is_read {
        true => refuse("a default that reads another argument of its macro is not supported"),
        false => Ok(()),
    }
}

/// Renames `{% generation %}`, which marks the text that a trainer learns from, to `with`: it renders to its content
/// in a scope of its own.
pub(crate) fn rename(tag: &mut Tag) {
    if tag.pieces.len() == 1 {
        let name = match tag.piece(0) {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => return,
        };
        let (start, end) = (tag.pieces[0].start, tag.pieces[0].end);
        tag.text.replace_range(start..end, name);
        tag.pieces[0].end = start + name.len();
    }
}

/// Whether an expression is a tuple without brackets: `{{ 1, 2 }}`.
pub(crate) fn is_tuple(tag: &Tag) -> bool {
    let mut open: usize = 0;
    let mut has_comma = false;
    for at in 0..tag.pieces.len() {
        match tag.piece(at) {
            "(" | "[" | "{" => open += 1,
            ")" | "]" | "}" if open == 0 => return false,
            ")" | "]" | "}" => open -= 1,
            "," => has_comma |= open == 0,
            _ => {}
        }
    }
    has_comma
}

/// The text of a tag with the filters that keep minijinja from behaving otherwise than Jinja: one around the value
/// that a `for` loops over or a `set` unpacks, and one behind constants before a comparison or another operator,
/// which minijinja's compiler would otherwise evaluate by its own rules.
pub(crate) fn guarded(tag: &Tag, is_block: bool) -> String {
    let mut inserted: Vec<(usize, String)> = Vec::new();
    let mut looped = None;
    if is_block && tag.piece(0) == "set" {
        let sign =
            |sign: &str| (1..tag.pieces.len()).find(|&at| tag.piece(at) == sign && tag.pieces[at].depth == 0);
        if let (Some(comma), Some(assigned)) = (sign(","), sign("=")) {
            let value = assigned + 1;
            if comma < assigned && value < tag.pieces.len() {
                inserted.push((tag.pieces[value].start, "(".to_owned()));
                inserted.push((tag.text.trim_end().len(), format!(")|{UNPACKED}")));
            }
        }
    }
    if is_block && tag.piece(0) == "for" {
        let at_top = |at: usize, names: &[&str]| {
            tag.is_name(at) && tag.pieces[at].depth == 0 && names.contains(&tag.piece(at))
        };
        looped = (1..tag.pieces.len()).find(|&at| at_top(at, &["in"]));
        if let Some(found) = looped {
            let from = found + 1;
            let to = (from..tag.pieces.len()).find(|&at| at_top(at, &["if", "recursive"]));
            let to = to.unwrap_or(tag.pieces.len());
            if to > from {
                inserted.push((tag.pieces[from].start, "(".to_owned()));
                inserted.push((tag.pieces[to - 1].end, format!(")|{EACH}")));
            }
        }
    }
    for at in 1..tag.pieces.len() {
        let is_operator = match tag.piece(at) {
            "<" | ">" | "<=" | ">=" | "~" | "*" | "**" => tag.pieces[at].kind == Kind::Sign,
            "in" => tag.is_name(at) && looped != Some(at),
            "not" => tag.is_name(at) && tag.piece(at + 1) == "in",
            _ => false,
        };
        let before = tag.piece(at - 1);
        // A string constant is the same string before `~`.
        let is_text = before.starts_with(['\'', '"']) && tag.piece(at) == "~";
        let is_constant = tag.pieces[at - 1].kind == Kind::Literal && !is_text
            || [")", "]", "}", "true", "True", "false", "False", "none", "None"].contains(&before);
        if is_operator && is_constant {
            inserted.push((tag.pieces[at - 1].end, format!("|{NOT_CONSTANT}")));
        }
    }
    inserted.sort_by_key(|(at, _)| *at);
    let mut out = String::with_capacity(tag.text.len() + 16 * inserted.len());
    let mut done = 0;
    for (at, text) in inserted {
        out += &tag.text[done..at];
        out += &text;
        done = at;
    }
    out + &tag.text[done..]
}
