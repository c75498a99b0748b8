//! The parts of a generation's text: thoughts, the answer, and calls of functions.

use crate::{
    thoughts::{Said, Thoughts},
    tools::{CallDelta, Calls, Part},
};

/// Parts of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) thought: String,
    pub(crate) answer: String,
    /// One delta for each call.
    pub(crate) calls: Vec<CallDelta>,
}

impl Parts {
    fn add(&mut self, part: Part) {
        match part {
            Part::Text(text) => self.answer += &text,
            Part::Call(delta) => match self.calls.last_mut() {
                Some(last) if last.index == delta.index => last.arguments += &delta.arguments,
                _ => self.calls.push(delta),
            },
        }
    }
}

/// Splits a text that comes piece by piece into its parts.
#[derive(Clone, Debug)]
pub(crate) struct PartParser {
    thoughts: Thoughts,
    calls: Calls,
}

impl PartParser {
    pub(crate) fn new(thoughts: Thoughts, calls: Calls) -> Self {
        Self { thoughts, calls }
    }

    /// A parser for a text that is all answer.
    pub(crate) fn plain() -> Self {
        Self::new(Thoughts::new(None, false), Calls::new(None))
    }

    /// Whether there was a call.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls.has_calls()
    }

    /// Takes a piece, which is the last one if `is_last`. Returns the parts that are certain now.
    pub(crate) fn push(&mut self, text: &str, is_last: bool) -> Parts {
        let mut said = self.thoughts.push(text);
        if is_last {
            said.extend(self.thoughts.finish());
        }
        let mut parts = Parts::default();
        for (said, text) in said {
            match said {
                Said::Thought => parts.thought += &text,
                Said::Answer => self.calls.push(&text).into_iter().for_each(|part| parts.add(part)),
            }
        }
        if is_last {
            self.calls.finish().into_iter().for_each(|part| parts.add(part));
        }
        parts
    }
}
