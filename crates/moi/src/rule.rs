//! Input rules as plain data: what is fed to the model after a token was sampled.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Which tokens take part in the mixture.
///
/// In JSON and on a command line: `"full"`, or the number K.
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
                Ok(0) => Err(RuleError::SupportZero),
                Ok(k) => Ok(Self::TopK(k)),
                Err(_) => Err(RuleError::SupportUnknown(text.to_owned())),
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
                    Ok(0) => Err(E::custom(RuleError::SupportZero)),
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

/// What is fed to the model after a token was sampled. Plain data: the same value comes from a flag, a JSON
/// request or Rust code, and each row of a batch has its own.
///
/// In JSON: `{"rule": "moi", "beta": 1.0, "support": "full"}`; a rule's knobs may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case", deny_unknown_fields)]
pub enum InputRule {
    /// The sampled token's embedding: standard decoding.
    Token,
    /// Mixture of Inputs: the gate is H / (beta + 1).
    Moi {
        /// Weight of the sampled token, above -1 and finite. More beta means less mixing.
        #[serde(default = "default_beta")]
        beta: f64,
        /// Which tokens take part.
        #[serde(default)]
        support: Support,
    },
    /// Direct Mixture: the mean embedding of the distribution, whatever was sampled.
    Direct {
        /// Which tokens take part.
        #[serde(default)]
        support: Support,
    },
    /// A constant gate: the control that the paper leaves out.
    Gate {
        /// How far the input moves towards the mean embedding: 0 (token) to 1 (direct).
        gate: f64,
        /// Which tokens take part.
        #[serde(default)]
        support: Support,
    },
}

fn default_beta() -> f64 {
    InputRule::DEFAULT_BETA
}

/// A rule's gate as a function of the normalised entropy: `clamp(slope * H + offset, 0, 1)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// What the entropy counts.
    pub slope: f32,
    /// The constant part.
    pub offset: f32,
}

impl Default for InputRule {
    /// MoI as the paper defines it: beta 1, full support.
    fn default() -> Self {
        Self::Moi { beta: Self::DEFAULT_BETA, support: Support::Full }
    }
}

impl InputRule {
    /// The paper's default weight of the sampled token.
    pub const DEFAULT_BETA: f64 = 1.0;

    /// Mixture of Inputs.
    ///
    /// # Errors
    /// If `beta` is not finite or not above -1, or the support is 0.
    pub fn moi(beta: f64, support: Support) -> Result<Self, RuleError> {
        Self::Moi { beta, support }.validated()
    }

    /// Direct Mixture.
    ///
    /// # Errors
    /// If the support is 0.
    pub fn direct(support: Support) -> Result<Self, RuleError> {
        Self::Direct { support }.validated()
    }

    /// A constant gate.
    ///
    /// # Errors
    /// If `gate` is not between 0 and 1, or the support is 0.
    pub fn gate(gate: f64, support: Support) -> Result<Self, RuleError> {
        Self::Gate { gate, support }.validated()
    }

    /// The rule's name, as in JSON and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Moi { .. } => "moi",
            Self::Direct { .. } => "direct",
            Self::Gate { .. } => "gate",
        }
    }

    /// The rule as one word that parses back, without the knobs that have their default:
    /// `moi:beta=0.5:support=20`.
    pub fn spec(&self) -> String {
        let mut spec = self.name().to_owned();
        match *self {
            Self::Moi { beta, .. } if beta != Self::DEFAULT_BETA => spec += &format!(":beta={beta}"),
            Self::Gate { gate, .. } => spec += &format!(":gate={gate}"),
            _ => {}
        }
        match self.support() {
            Support::Full => spec,
            Support::TopK(k) => format!("{spec}:support={k}"),
        }
    }

    /// The rule itself, if its values are allowed.
    ///
    /// # Errors
    /// A [`RuleError`] that names the value.
    pub fn validated(self) -> Result<Self, RuleError> {
        match self {
            Self::Moi { beta, .. } if !beta.is_finite() || beta <= -1.0 => {
                return Err(RuleError::Beta(beta));
            }
            Self::Gate { gate, .. } if !(0.0..=1.0).contains(&gate) => {
                return Err(RuleError::Gate(gate));
            }
            _ => {}
        }
        match self.support() {
            Support::TopK(0) => Err(RuleError::SupportZero),
            _ => Ok(self),
        }
    }

    /// Which tokens take part. The token rule mixes nothing; its entropy is that of the full distribution.
    pub fn support(&self) -> Support {
        match *self {
            Self::Token => Support::Full,
            Self::Moi { support, .. } | Self::Direct { support } | Self::Gate { support, .. } => support,
        }
    }

    /// Whether the rule ever needs the mean embedding.
    pub fn mixes(&self) -> bool {
        *self != Self::Token
    }

    /// How far the input moves towards the mean embedding.
    ///
    /// The clamp matters for a beta below 0 only: there H / (beta + 1) may pass 1, which would give the
    /// sampled token a negative weight.
    pub fn gate_of_entropy(&self) -> Gate {
        let (slope, offset) = match *self {
            Self::Token => (0.0, 0.0),
            Self::Moi { beta, .. } => (1.0 / (beta + 1.0), 0.0),
            Self::Direct { .. } => (0.0, 1.0),
            Self::Gate { gate, .. } => (0.0, gate),
        };
        // beta just above -1 divides to more than f32 holds; the clamp makes any such slope alike.
        Gate { slope: (slope as f32).min(f32::MAX), offset: offset as f32 }
    }
}

impl fmt::Display for InputRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("token"),
            Self::Moi { beta, support } => write!(f, "moi (beta {beta}, support {support})"),
            Self::Direct { support } => write!(f, "direct (support {support})"),
            Self::Gate { gate, support } => write!(f, "gate (gate {gate}, support {support})"),
        }
    }
}

impl FromStr for InputRule {
    type Err = RuleError;

    /// `NAME[:KEY=VALUE]...`, such as `moi:beta=0.5:support=20`; a comma does as well as a colon.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = |what: String| RuleError::Text { text: text.to_owned(), what };
        let mut parts = text.split([':', ',']).map(str::trim);
        let name = parts.next().unwrap_or_default();
        let keys: &[&str] = match name {
            "token" => &[],
            "moi" => &["beta", "support"],
            "direct" => &["support"],
            "gate" => &["gate", "support"],
            _ => return Err(wrong("the rules are token, moi, direct and gate".to_owned())),
        };
        let (mut beta, mut gate, mut support) = (None, None, None);
        for part in parts {
            let Some((key, value)) = part.split_once('=') else {
                return Err(wrong(format!("`{part}` is no KEY=VALUE")));
            };
            let (key, value) = (key.trim(), value.trim());
            let number =
                || value.parse::<f64>().map_err(|_| wrong(format!("{key} must be a number, got `{value}`")));
            let given_before = match key {
                _ if !keys.contains(&key) => return Err(wrong(unknown_key(name, key, keys))),
                "beta" => beta.replace(number()?).is_some(),
                "gate" => gate.replace(number()?).is_some(),
                _ => support.replace(value.parse::<Support>()?).is_some(),
            };
            if given_before {
                return Err(wrong(format!("{key} is given twice")));
            }
        }
        let support = support.unwrap_or_default();
        match (name, gate) {
            ("token", _) => Ok(Self::Token),
            ("moi", _) => Self::moi(beta.unwrap_or(Self::DEFAULT_BETA), support),
            ("direct", _) => Self::direct(support),
            (_, Some(gate)) => Self::gate(gate, support),
            (_, None) => Err(wrong("it needs gate=F, 0 to 1".to_owned())),
        }
    }
}

fn unknown_key(name: &str, key: &str, keys: &[&str]) -> String {
    match keys {
        [] => format!("`{name}` has no knobs, so no `{key}`"),
        _ => format!("`{name}` has no `{key}`, but {}", keys.join(" and ")),
    }
}

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
    /// beta is NaN, infinite or not above -1.
    Beta(f64),
    /// The constant gate is not between 0 and 1.
    Gate(f64),
    /// The support holds no token.
    SupportZero,
    /// The support is neither `full` nor a number.
    SupportUnknown(String),
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { text, what } => write!(f, "`{text}` is no input rule: {what}"),
            Self::Beta(beta) => write!(f, "beta must be finite and above -1, got {beta}"),
            Self::Gate(gate) => write!(f, "gate must be between 0 and 1, got {gate}"),
            Self::SupportZero => f.write_str("support must be 1 or more tokens, got 0"),
            Self::SupportUnknown(text) => {
                write!(f, "support must be `full` or a number of tokens, got `{text}`")
            }
        }
    }
}

impl std::error::Error for RuleError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        let full = Support::Full;
        for (text, rule, spec) in [
            ("token", InputRule::Token, "token"),
            ("moi", InputRule::default(), "moi"),
            ("moi:beta=1:support=full", InputRule::default(), "moi"),
            ("moi:support=20", InputRule::Moi { beta: 1.0, support: Support::TopK(20) }, "moi:support=20"),
            (
                "moi:beta=-0.5,support=8",
                InputRule::Moi { beta: -0.5, support: Support::TopK(8) },
                "moi:beta=-0.5:support=8",
            ),
            ("moi: beta = 0.25", InputRule::Moi { beta: 0.25, support: full }, "moi:beta=0.25"),
            ("direct:support=full", InputRule::Direct { support: full }, "direct"),
            ("direct:support=3", InputRule::Direct { support: Support::TopK(3) }, "direct:support=3"),
            ("gate:gate=0.3", InputRule::Gate { gate: 0.3, support: full }, "gate:gate=0.3"),
            (
                "gate:support=20:gate=1",
                InputRule::Gate { gate: 1.0, support: Support::TopK(20) },
                "gate:gate=1:support=20",
            ),
        ] {
            assert_eq!(text.parse(), Ok(rule), "{text}");
            assert_eq!(rule.spec(), spec);
            assert_eq!(spec.parse(), Ok(rule));
        }
    }

    #[test]
    fn texts_that_are_no_rules_are_named() {
        let cases: &[(&str, &[&str])] = &[
            ("", &["token, moi, direct and gate"]),
            ("mio", &["`mio`", "token, moi, direct and gate"]),
            ("support=20", &["`support=20`", "token, moi, direct and gate"]),
            ("token:beta=1", &["`token` has no knobs", "`beta`"]),
            ("moi:gate=1", &["`moi` has no `gate`", "beta and support"]),
            ("moi:beta", &["`beta` is no KEY=VALUE"]),
            ("moi:beta=much", &["beta must be a number", "`much`"]),
            ("moi:beta=1:beta=2", &["beta is given twice"]),
            ("moi:beta=-1", &["beta must be finite and above -1"]),
            ("moi:support=0", &["support must be 1 or more"]),
            ("moi:support=half", &["`full` or a number", "`half`"]),
            ("gate", &["needs gate=F"]),
            ("gate:gate=2", &["gate must be between 0 and 1, got 2"]),
        ];
        for (text, parts) in cases {
            let said = text.parse::<InputRule>().unwrap_err().to_string();
            assert!(parts.iter().all(|part| said.contains(part)), "{text}: {said}");
        }
    }
}
