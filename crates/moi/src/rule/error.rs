//! Errors of input rules.

use std::fmt;

/// Why an input rule is rejected.
///
/// # Examples
/// ```
/// use moi::{InputRule, RuleError};
///
/// let error = "moi:beta=-2".parse::<InputRule>().unwrap_err();
/// assert!(matches!(error, RuleError::Value { knob: "beta", .. }));
/// assert_eq!(error.to_string(), "beta must be finite and above -1, got -2");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum RuleError {
    /// A text that is not an input rule.
    Text {
        /// The text.
        text: String,
        /// What is wrong with it, and what is allowed.
        what: String,
    },
    /// A value that a knob does not allow.
    Value {
        /// The knob.
        knob: &'static str,
        /// Which values are allowed.
        allowed: &'static str,
        /// The value.
        value: String,
    },
    /// A required knob that is missing.
    Needs {
        /// The rule.
        rule: &'static str,
        /// The knob.
        knob: &'static str,
    },
    /// A setting (named by the string) that needs the tokens which begin and end thinking, for a model without them.
    NoMarkers(&'static str),
    /// The same token would both begin and end thinking.
    SameMarkers(u32),
    /// A rule (named by the string) that depends on more than one step was used where only one step is known.
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
                    "the rule `{rule}` goes by more than one step: give it a `RuleState` that lasts, and `mix`"
                )
            }
        }
    }
}

impl std::error::Error for RuleError {}
