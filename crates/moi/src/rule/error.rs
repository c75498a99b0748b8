//! Values that a rule does not allow.

use std::fmt;

/// A value that a rule does not allow.
#[derive(Clone, Debug, PartialEq)]
pub enum RuleError {
    /// A text that is no rule.
    Text {
        /// The text.
        text: String,
        /// What is wrong with it, and what is allowed.
        what: String,
    },
    /// A knob's value.
    Value {
        /// The knob.
        knob: &'static str,
        /// Which values are allowed.
        allowed: &'static str,
        /// The value.
        value: String,
    },
    /// A knob that must be given.
    Needs {
        /// The rule.
        rule: &'static str,
        /// The knob.
        knob: &'static str,
    },
    /// What needs tokens that begin and end thinking, of a model without.
    NoMarkers(&'static str),
    /// One token that would both begin and end thinking.
    SameMarkers(u32),
    /// A rule that goes by more than one step, where a step is all there is.
    NeedsRow(&'static str),
}

impl RuleError {
    pub(crate) fn value(knob: &'static str, allowed: &'static str, value: impl fmt::Display) -> Self {
        Self::Value { knob, allowed, value: value.to_string() }
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text, what } => write!(f, "`{text}` is no input rule: {what}"),
            Self::Value { knob, allowed, value } => write!(f, "{knob} must be {allowed}, got {value}"),
            Self::Needs { rule, knob } => write!(f, "the rule `{rule}` needs {knob}"),
            Self::NoMarkers(what) => write!(
                f,
                "{what} needs the tokens between which the model thinks, and none are known of it; name them if it has \
                 some (--think-open and --think-close on the command line)"
            ),
            Self::SameMarkers(token) => write!(f, "token {token} cannot both begin and end thinking"),
            Self::NeedsRow(rule) => {
                write!(
                    f,
                    "the rule `{rule}` goes by more than one step: give it a `Row` that lasts, and `mix`"
                )
            }
        }
    }
}

impl std::error::Error for RuleError {}
