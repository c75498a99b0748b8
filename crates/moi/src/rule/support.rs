//! Which tokens take part in a mixture.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::RuleError;

/// Which tokens take part in the mixture.
///
/// In JSON and on a command line: `"full"`, or the number K.
///
/// # Examples
/// ```
/// use moi::Support;
///
/// assert_eq!("full".parse(), Ok(Support::Full));
/// assert_eq!("20".parse(), Ok(Support::TopK(20)));
/// assert_eq!(serde_json::to_value(Support::TopK(20))?, serde_json::json!(20));
/// assert!("0".parse::<Support>().is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Support {
    /// The whole vocabulary; entropies are divided by ln(vocabulary). The paper's equations 2 to 5.
    #[default]
    Full,
    /// The K most likely tokens, renormalised; entropies are divided by ln(K). The paper's released code
    /// does this with K = 20. A K above the vocabulary's size means the whole vocabulary.
    TopK(usize),
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::TopK(k) => write!(f, "{k}"),
        }
    }
}

impl FromStr for Support {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "full" => Ok(Self::Full),
            _ => match text.parse() {
                Ok(0) => Err(RuleError::value("support", "1 or more tokens", 0)),
                Ok(k) => Ok(Self::TopK(k)),
                Err(_) => Err(RuleError::value(
                    "support",
                    "`full` or a number of tokens, 1 or more",
                    format!("`{text}`"),
                )),
            },
        }
    }
}

impl Serialize for Support {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Full => serializer.serialize_str("full"),
            Self::TopK(k) => serializer.serialize_u64(*k as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Support {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Support;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"full\" or a number of tokens, 1 or more")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Support, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, k: u64) -> Result<Support, E> {
                match usize::try_from(k) {
                    Ok(0) => Err(E::custom(RuleError::value("support", "1 or more tokens", 0))),
                    Ok(k) => Ok(Support::TopK(k)),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Unsigned(k), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, k: i64) -> Result<Support, E> {
                u64::try_from(k)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(k), &self))
                    .and_then(|k| self.visit_u64(k))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
