//! The knobs of rules: one declaration gives a rule's data, defaults, JSON, text and help.

use serde::Serialize;

use super::{RuleError, Support};

/// A setting of an input rule.
///
/// # Examples
/// ```
/// use moi::{InputRule, Knob};
///
/// let knobs: Vec<Knob> = InputRule::named("moi")?.knobs();
/// let defaults: Vec<_> = knobs.iter().map(|knob| (knob.name, knob.default.as_deref())).collect();
/// assert_eq!(defaults, [("beta", Some("1")), ("support", Some("full")), ("floor", Some("0"))]);
/// // A constant gate has no default.
/// assert_eq!(InputRule::named("gate")?.knobs()[0].default, None);
/// # Ok::<(), moi::RuleError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Knob {
    /// Its name in JSON and in a rule's text.
    pub name: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Its default value; `None` if a value must be given.
    pub default: Option<String>,
}

/// What the `knobs!` declaration of a rule provides.
pub(crate) trait Knobs {
    fn name(&self) -> &'static str;
    /// What the rule does.
    fn help(&self) -> &'static str;
    fn knobs(&self) -> Vec<Knob>;
    /// The values of all knobs.
    fn values(&self) -> Vec<(&'static str, String)>;
    /// Sets a knob from its text; `None` where there is no such knob.
    fn set(&mut self, knob: &str, text: &str) -> Option<Result<(), RuleError>>;
}

/// A knob's value as text.
pub(crate) trait KnobText: Sized {
    /// The accepted texts in words, for error messages.
    const EXPECTED: &'static str;
    fn read(text: &str) -> Option<Self>;
    fn write(&self) -> String;
}

impl KnobText for f64 {
    const EXPECTED: &'static str = "a number";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl KnobText for usize {
    const EXPECTED: &'static str = "a number, 0 or more";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl KnobText for Option<usize> {
    const EXPECTED: &'static str = "a number, 0 or more, or `auto`";

    fn read(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(None),
            _ => text.parse().ok().map(Some),
        }
    }

    fn write(&self) -> String {
        self.map_or_else(|| "auto".to_owned(), |value| value.to_string())
    }
}

impl KnobText for Support {
    const EXPECTED: &'static str = "`full` or a number of tokens, 1 or more";

    fn read(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

/// Reads a knob's text.
pub(crate) fn read<T: KnobText>(knob: &'static str, text: &str) -> Result<T, RuleError> {
    let wrong = || RuleError::Value { knob, allowed: T::EXPECTED, value: format!("`{text}`") };
    T::read(text).ok_or_else(wrong)
}

/// Declares a rule: `Name = "name" { knob: type = default, ... }`, each with its documentation, which is also its
/// help text. A default of NaN means that a value must be given.
macro_rules! knobs {
    (
        #[doc = $help:literal] $(#[doc = $more:literal])*
        $rule:ident = $name:literal {
            $(#[doc = $knob_help:literal] $(#[doc = $knob_more:literal])* $knob:ident: $type:ty = $default:expr,)*
        }
    ) => {
        #[doc = $help] $(#[doc = $more])*
        #[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $rule {
            $(#[doc = $knob_help] $(#[doc = $knob_more])* pub $knob: $type,)*
        }

        impl Default for $rule {
            fn default() -> Self {
                Self { $($knob: $default,)* }
            }
        }

        impl $crate::rule::knobs::Knobs for $rule {
            fn name(&self) -> &'static str {
                $name
            }

            fn help(&self) -> &'static str {
                $help.trim_ascii()
            }

            fn knobs(&self) -> Vec<$crate::rule::Knob> {
                #[allow(unused_imports, reason = "a rule may have no knobs")]
                use $crate::rule::knobs::KnobText;
                vec![$($crate::rule::Knob {
                    name: stringify!($knob),
                    help: concat!($knob_help, $($knob_more),*).trim_ascii(),
                    default: Some(<$type as KnobText>::write(&$default)).filter(|text| text != "NaN"),
                }),*]
            }

            fn values(&self) -> Vec<(&'static str, String)> {
                #[allow(unused_imports, reason = "a rule may have no knobs")]
                use $crate::rule::knobs::KnobText;
                vec![$((stringify!($knob), self.$knob.write())),*]
            }

            #[allow(unused_variables, reason = "a rule may have no knobs")]
            fn set(&mut self, knob: &str, text: &str) -> Option<Result<(), $crate::rule::RuleError>> {
                match knob {
                    $(stringify!($knob) => {
                        Some($crate::rule::knobs::read(stringify!($knob), text).map(|value| self.$knob = value))
                    })*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use knobs;
