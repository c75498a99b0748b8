//! Which tokens a rule applies to.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::RuleError;

/// Which of the generated tokens a rule applies to. For all others, and for prompt tokens, the token's own embedding
/// is fed.
///
/// The default is `Thinking` for rules that are meant for it ([`crate::InputRule::thinks`]) if the model's markers
/// are known, else `All`.
///
/// As text and in JSON: `all`, `thinking`, or a range of tokens, counted from 0: `N..M`, `N..`, `..M`.
///
/// # Examples
/// ```
/// use moi::Scope;
///
/// assert_eq!("thinking".parse(), Ok(Scope::Thinking));
/// assert_eq!("..100".parse(), Ok(Scope::Range { from: 0, to: Some(100) }));
/// assert_eq!(Scope::Range { from: 8, to: None }.to_string(), "8..");
/// assert!("9..3".parse::<Scope>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All generated tokens.
    All,
    /// Tokens between the model's markers of thinking.
    Thinking,
    /// A range of generated tokens, counted from 0.
    Range {
        /// The first token (inclusive).
        from: usize,
        /// The end (exclusive); `None` means no end.
        to: Option<usize>,
    },
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Thinking => f.write_str("thinking"),
            Self::Range { from, to: None } => write!(f, "{from}.."),
            Self::Range { from, to: Some(to) } => write!(f, "{from}..{to}"),
        }
    }
}

impl FromStr for Scope {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = || {
            RuleError::value(
                "scope",
                "all, thinking or a range of tokens such as 0..100",
                format!("`{text}`"),
            )
        };
        match text {
            "all" => return Ok(Self::All),
            "thinking" => return Ok(Self::Thinking),
            _ => {}
        }
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        let from = if from.is_empty() { 0 } else { from.parse().map_err(|_| wrong())? };
        let to = if to.is_empty() { None } else { Some(to.parse().map_err(|_| wrong())?) };
        match to {
            Some(to) if to <= from => Err(wrong()),
            _ => Ok(Self::Range { from, to }),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
