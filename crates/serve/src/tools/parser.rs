//! Finds calls in an answer that comes piece by piece.

use std::sync::Arc;

use super::{
    ARGS, CALL_ID, CallForm, PYTHON, Tools,
    cursor::{Cursor, JsonEnd, Stop},
    gemma, xml,
};
use crate::thoughts::begun;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    Call(CallDelta),
}

/// What a piece adds to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallDelta {
    /// Its index among the calls of the answer.
    pub(crate) index: usize,
    /// Its id and the name of the function, if the call begins here.
    pub(crate) begins: Option<(String, String)>,
    /// A piece of its arguments, which are JSON.
    pub(crate) arguments: String,
}

/// The current place in the text.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Before a call, or where there is none.
    Text,
    /// Behind the marker that opens a call.
    Call,
    /// Within arguments that are JSON.
    Arguments(JsonEnd),
    /// Behind the arguments.
    Tail,
    /// Behind a call.
    Behind,
}

/// Splits an answer that comes piece by piece into text and calls. Text that may become a call is held back.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    tools: Option<Arc<Tools>>,
    state: State,
    held: String,
    /// Number of calls so far.
    count: usize,
    /// Whether the answer has begun as text. Llama's calls come only at its beginning.
    is_text: bool,
}

impl Calls {
    /// A parser. Without tools, everything is text.
    pub(crate) fn new(tools: Option<Arc<Tools>>) -> Self {
        Self { tools, state: State::Text, held: String::new(), count: 0, is_text: false }
    }

    /// Whether there were calls, and all of them are complete.
    pub(crate) fn has_calls(&self) -> bool {
        self.count > 0 && !matches!(self.state, State::Call | State::Arguments(_))
    }

    /// Takes a piece. Returns the parts that are certain now.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Part> {
        let Some(tools) = self.tools.clone() else { return text(piece.to_owned()).into_iter().collect() };
        self.held += piece;
        let mut parts = Vec::new();
        while self.advance(&tools, &mut parts) {}
        parts
    }

    /// Returns what was held back, when nothing more comes. A call that was cut off before its arguments is left out.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let form = self.tools.as_ref().map(|tools| tools.form);
        match (self.state, form) {
            (State::Text, _) if self.count == 0 || !held.trim().is_empty() => {
                text(held).into_iter().collect()
            }
            // Text that has begun like a call may be another answer.
            (State::Call, Some(CallForm::Llama)) if self.count == 0 => text(held).into_iter().collect(),
            // A call that has an end but could not be parsed is text.
            (State::Call, Some(form)) if !form.close().is_empty() && held.contains(form.close()) => {
                text(format!("{}{held}", form.open())).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Takes the next part of the held text. Returns whether there may be another.
    fn advance(&mut self, tools: &Tools, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Text if tools.form == CallForm::Llama => self.llama_text(parts),
            State::Text => self.marked_text(tools, parts),
            State::Call => match tools.form {
                CallForm::Hermes | CallForm::Llama | CallForm::MistralList | CallForm::MistralArgs => {
                    self.json_head(tools, parts)
                }
                CallForm::Xml | CallForm::Gemma4 | CallForm::FunctionGemma => self.whole_call(tools, parts),
            },
            State::Arguments(end) => self.arguments(end, parts),
            State::Tail => self.tail(tools),
            State::Behind => self.behind(tools),
        }
    }

    /// Takes text up to the marker that opens a call.
    fn marked_text(&mut self, tools: &Tools, parts: &mut Vec<Part>) -> bool {
        let open = tools.form.open();
        if let Some(at) = self.held.find(open) {
            // Space before a call is not part of the answer.
            parts.extend(text(self.held[..at].trim_end().to_owned()));
            self.held.drain(..at + open.len());
            self.state = State::Call;
            return true;
        }
        let certain = self.held.len() - begun(&self.held, open);
        let certain = self.held[..certain].trim_end().len();
        parts.extend(text(self.held.drain(..certain).collect()));
        false
    }

    /// Takes text, unless the answer begins with a call.
    fn llama_text(&mut self, parts: &mut Vec<Part>) -> bool {
        if !self.is_text && self.count == 0 {
            let mut cursor = Cursor::new(&self.held);
            let _ = cursor.literal(PYTHON);
            let begins = cursor.literal("{").and_then(|()| cursor.literal("\"name\""));
            match begins {
                Ok(()) => {
                    let behind = self.held.find('{').unwrap_or(0);
                    self.held.drain(..behind);
                    self.state = State::Call;
                    return true;
                }
                Err(Stop::More) => return false,
                Err(Stop::Wrong) if PYTHON.starts_with(self.held.trim_start()) => return false,
                Err(Stop::Wrong) => self.is_text = true,
            }
        }
        parts.extend(text(std::mem::take(&mut self.held)));
        false
    }

    /// Takes the name of a call whose arguments are JSON.
    fn json_head(&mut self, tools: &Tools, parts: &mut Vec<Part>) -> bool {
        let mut cursor = Cursor::new(&self.held);
        let name = if tools.form == CallForm::MistralArgs {
            cursor.until(ARGS).map(|name| name.split(CALL_ID).next().unwrap_or_default().trim().to_owned())
        } else {
            object_head(&mut cursor, tools.form)
        };
        match name {
            Ok(name) => {
                cursor.space();
                // The first byte of the arguments is needed to decide.
                match cursor.rest().bytes().next() {
                    None => return false,
                    Some(b'{') if tools.functions.iter().any(|function| function.name == name) => {}
                    Some(_) => return self.is_no_call(tools, parts),
                }
                self.held.drain(..cursor.at);
                let begins = Some((tools.new_id(), name));
                parts.push(Part::Call(CallDelta { index: self.count, begins, arguments: String::new() }));
                self.count += 1;
                self.state = State::Arguments(JsonEnd::default());
                true
            }
            Err(Stop::More) => false,
            Err(Stop::Wrong) => self.is_no_call(tools, parts),
        }
    }

    /// Gives out text that looked like a call but is none.
    fn is_no_call(&mut self, tools: &Tools, parts: &mut Vec<Part>) -> bool {
        parts.extend(text(format!("{}{}", tools.form.open(), std::mem::take(&mut self.held))));
        (self.state, self.is_text) = (State::Text, true);
        false
    }

    fn arguments(&mut self, mut end: JsonEnd, parts: &mut Vec<Part>) -> bool {
        let (bytes, is_whole) = end.push(&self.held);
        let arguments: String = self.held.drain(..bytes).collect();
        if !arguments.is_empty() {
            parts.push(Part::Call(CallDelta { index: self.count - 1, begins: None, arguments }));
        }
        self.state = if is_whole { State::Tail } else { State::Arguments(end) };
        is_whole
    }

    /// Takes a call whose arguments are not JSON, when it is complete. Text within it may look like its end.
    fn whole_call(&mut self, tools: &Tools, parts: &mut Vec<Part>) -> bool {
        let close = tools.form.close();
        let parsed = |body: &str| match tools.form {
            CallForm::Xml => xml::parsed(body, &tools.functions),
            form => gemma::parsed(body, form.quote()),
        };
        let known = |name: &str| tools.functions.iter().any(|function| function.name == name);
        let ends = self.held.match_indices(close).map(|(at, _)| at);
        let found =
            ends.filter_map(|at| Some((at, parsed(&self.held[..at])?))).find(|(_, (name, _))| known(name));
        let Some((at, (name, arguments))) = found else { return false };
        self.held.drain(..at + close.len());
        let begins = Some((tools.new_id(), name));
        parts.push(Part::Call(CallDelta { index: self.count, begins, arguments: arguments.to_string() }));
        self.count += 1;
        self.state = State::Behind;
        true
    }

    /// Skips what stands between the arguments and the end of the call.
    fn tail(&mut self, tools: &Tools) -> bool {
        let end = match tools.form {
            CallForm::Hermes => tools.form.close(),
            CallForm::Llama | CallForm::MistralList => "}",
            _ => "",
        };
        let Some(at) = self.held.find(end) else { return false };
        self.held.drain(..at + end.len());
        self.state = State::Behind;
        true
    }

    /// Decides whether another call or text follows a call.
    fn behind(&mut self, tools: &Tools) -> bool {
        let mut cursor = Cursor::new(&self.held);
        cursor.space();
        if cursor.rest().is_empty() {
            return false;
        }
        let next = match tools.form {
            CallForm::Llama => cursor.literal(";"),
            CallForm::MistralList => cursor.literal(","),
            form => cursor.literal(form.open()),
        };
        let at = cursor.at;
        match next {
            Ok(()) => {
                self.held.drain(..at);
                self.state = State::Call;
                true
            }
            Err(Stop::More) => false,
            Err(Stop::Wrong) => {
                let close = if tools.form == CallForm::MistralList { tools.form.close() } else { "" };
                let rest = self.held.trim_start();
                self.held = rest.strip_prefix(close).unwrap_or(rest).to_owned();
                self.state = State::Text;
                !self.held.is_empty()
            }
        }
    }
}

/// Reads the name in `{"name": "f", "arguments":`, behind the bracket of a list if the form has one.
fn object_head(cursor: &mut Cursor<'_>, form: CallForm) -> Result<String, Stop> {
    if form == CallForm::MistralList && !cursor.rest().trim_start().starts_with('{') {
        cursor.literal("[")?;
    }
    cursor.literal("{")?;
    cursor.literal("\"name\"")?;
    cursor.literal(":")?;
    let name = cursor.string()?;
    cursor.literal(",")?;
    match cursor.string()?.as_str() {
        "arguments" | "parameters" => cursor.literal(":")?,
        _ => return Err(Stop::Wrong),
    }
    Ok(name)
}

fn text(text: String) -> Option<Part> {
    (!text.is_empty()).then_some(Part::Text(text))
}
