//! Input rules as plain data: what is fed to the model after a token was sampled.
//!
//! All have one shape: a distribution, its support, a gate, and a scope. A rule is a page of this module and a line of
//! `rules!` below.

mod direct;
mod error;
mod gate;
mod k_sample;
mod knobs;
mod moi;
mod selar;
mod soft_thinking;
mod steps;
mod support;
mod swir;
mod token;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use self::knobs::Knobs;
pub(crate) use self::steps::{Plan, Raw, Steps, View, nats};
pub use self::{
    direct::Direct,
    error::RuleError,
    gate::Gate as ConstantGate,
    k_sample::KSample,
    knobs::Knob,
    moi::Moi,
    selar::Selar,
    soft_thinking::{Noise, SoftThinking},
    steps::{Markers, Start},
    support::Support,
    swir::Swir,
    token::Token,
};

/// What a rule is, beside its knobs. It has either a gate or steps.
pub(crate) trait Rule: Knobs {
    /// Whether its values are allowed.
    fn check(&self) -> Result<(), RuleError> {
        Ok(())
    }

    /// The gate of a rule that moves the token's embedding towards the mean of the raw distribution. A device can do
    /// these by itself.
    fn gated(&self) -> Option<Gated> {
        None
    }

    /// The steps of any other rule, from the start of a row on.
    fn steps(&self, _start: &Start) -> Result<Option<Box<dyn Steps>>, RuleError> {
        Ok(None)
    }

    /// Whether it is meant for a model's thinking, not for its answer.
    fn thinks(&self) -> bool {
        false
    }
}

/// A gate as a function of the normalised entropy: `clamp(slope * H + offset, 0, 1)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// What the entropy counts.
    pub slope: f32,
    /// The constant part.
    pub offset: f32,
}

impl Gate {
    /// Always the same.
    pub const fn constant(share: f32) -> Self {
        Self { slope: 0.0, offset: share }
    }

    /// The gate at a normalised entropy.
    pub fn at(self, entropy: f32) -> f32 {
        (self.slope * entropy + self.offset).clamp(0.0, 1.0)
    }

    /// The gate at an entropy in nats over so many tokens.
    pub fn at_nats(self, nats: f32, tokens: usize) -> f32 {
        self.at(if tokens > 1 { (nats / (tokens as f32).ln()).clamp(0.0, 1.0) } else { 0.0 })
    }
}

/// Moves the token's embedding towards the mean of the raw distribution on a support.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gated {
    /// How far.
    pub gate: Gate,
    /// Which tokens the mean is of.
    pub support: Support,
}

impl Gated {
    /// Not at all.
    pub const TOKEN: Self = Self { gate: Gate { slope: 0.0, offset: 0.0 }, support: Support::Full };

    /// Whether the mean is ever needed.
    pub fn mixes(&self) -> bool {
        self.gate != Self::TOKEN.gate
    }
}

/// Makes [`InputRule`] of the rules.
macro_rules! rules {
    ($($rule:ident: $type:ty),+ $(,)?) => {
        /// What is fed to the model after a token was sampled. Plain data: the same value comes from a flag, a JSON
        /// request or Rust code, and each row of a batch has its own.
        ///
        /// In JSON: `{"rule": "moi", "beta": 1.0, "support": "full"}`, as text `moi:beta=1:support=full`; knobs may be
        /// left out.
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "rule", rename_all = "kebab-case")]
        #[allow(missing_docs, reason = "each rule documents itself")]
        pub enum InputRule {
            $($rule($type)),+
        }

        impl InputRule {
            /// Every rule, with its defaults. Where a knob has none, the rule is not yet a valid one.
            pub fn all() -> Vec<Self> {
                vec![$(Self::$rule(Default::default())),+]
            }

            fn rule(&self) -> &dyn Rule {
                match self {
                    $(Self::$rule(rule) => rule),+
                }
            }

            fn rule_mut(&mut self) -> &mut dyn Rule {
                match self {
                    $(Self::$rule(rule) => rule),+
                }
            }
        }

        $(impl From<$type> for InputRule {
            fn from(rule: $type) -> Self {
                Self::$rule(rule)
            }
        })+
    };
}

rules! {
    Token: Token,
    Moi: Moi,
    Direct: Direct,
    Gate: ConstantGate,
    SoftThinking: SoftThinking,
    KSample: KSample,
    Swir: Swir,
    Selar: Selar,
}

impl Default for InputRule {
    /// MoI as the paper defines it: beta 1, full support.
    fn default() -> Self {
        Moi::default().into()
    }
}

impl InputRule {
    /// Standard decoding.
    pub const TOKEN: Self = Self::Token(Token {});

    /// Mixture of Inputs.
    ///
    /// # Errors
    /// If `beta` is not finite or not above -1, or the support is 0.
    pub fn moi(beta: f64, support: Support) -> Result<Self, RuleError> {
        Self::Moi(Moi { beta, support }).validated()
    }

    /// Direct Mixture.
    ///
    /// # Errors
    /// If the support is 0.
    pub fn direct(support: Support) -> Result<Self, RuleError> {
        Self::Direct(Direct { support }).validated()
    }

    /// A constant gate.
    ///
    /// # Errors
    /// If `gate` is not between 0 and 1, or the support is 0.
    pub fn gate(gate: f64, support: Support) -> Result<Self, RuleError> {
        Self::Gate(ConstantGate { gate, support }).validated()
    }

    /// The rule of this name, with its defaults.
    ///
    /// # Errors
    /// If there is none; the error names all.
    pub fn named(name: &str) -> Result<Self, RuleError> {
        let wrong =
            || RuleError::Text { text: name.to_owned(), what: format!("the rules are {}", listed(names())) };
        Self::all().into_iter().find(|rule| rule.name() == name).ok_or_else(wrong)
    }

    /// The rule's name, as in JSON and on the command line.
    pub fn name(&self) -> &'static str {
        self.rule().name()
    }

    /// What the rule does, in a line.
    pub fn help(&self) -> &'static str {
        self.rule().help()
    }

    /// Its knobs.
    pub fn knobs(&self) -> Vec<Knob> {
        self.rule().knobs()
    }

    /// Sets a knob from text.
    ///
    /// # Errors
    /// If the rule has no such knob, or the text is no value of it.
    pub fn set(&mut self, knob: &str, text: &str) -> Result<(), RuleError> {
        let set = self.rule_mut().set(&knob.replace('-', "_"), text);
        set.unwrap_or_else(|| {
            let names = self.knobs().into_iter().map(|knob| knob.name).collect();
            let what = match self.name() {
                name if self.knobs().is_empty() => format!("`{name}` has no knobs, so no `{knob}`"),
                name => format!("`{name}` has no `{knob}`, but {}", listed(names)),
            };
            Err(RuleError::Text { text: format!("{}:{knob}={text}", self.name()), what })
        })
    }

    /// The rule as one word that parses back, without the knobs that have their default:
    /// `moi:beta=0.5:support=20`.
    pub fn spec(&self) -> String {
        let given = self.given().into_iter().map(|(knob, value)| format!(":{knob}={value}"));
        [self.name().to_owned()].into_iter().chain(given).collect()
    }

    fn given(&self) -> Vec<(&'static str, String)> {
        let values = self.rule().values().into_iter().zip(self.knobs());
        values
            .filter(|((_, value), knob)| knob.default.as_ref() != Some(value))
            .map(|(given, _)| given)
            .collect()
    }

    /// The rule itself, if its values are allowed.
    ///
    /// # Errors
    /// A [`RuleError`] that names the value.
    pub fn validated(self) -> Result<Self, RuleError> {
        self.rule().check()?;
        Ok(self)
    }

    /// Its gate, if it moves the token's embedding towards the mean of the raw distribution and does no more.
    pub fn gated(&self) -> Option<Gated> {
        self.rule().gated()
    }

    /// Which tokens its normalised entropy is of; the whole vocabulary for rules that have supports of their own.
    pub fn support(&self) -> Support {
        self.gated().map_or(Support::Full, |gated| gated.support)
    }

    /// Whether it ever feeds anything but the token's own embedding.
    pub fn mixes(&self) -> bool {
        self.gated().is_none_or(|gated| gated.mixes())
    }

    /// Whether it is meant for a model's thinking, not for its answer: see [`crate::Scope`].
    pub fn thinks(&self) -> bool {
        self.rule().thinks()
    }

    pub(crate) fn steps(&self, start: &Start) -> Result<Option<Box<dyn Steps>>, RuleError> {
        self.rule().steps(start)
    }
}

impl fmt::Display for InputRule {
    /// With the knobs that matter where results are shown: a support, and what differs from the defaults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = match self.gated() {
            Some(_) => self.rule().values().iter().map(|(knob, value)| format!("{knob} {value}")).collect(),
            None => self.given().iter().map(|(knob, value)| format!("{knob} {value}")).collect(),
        };
        match shown.is_empty() {
            true => f.write_str(self.name()),
            false => write!(f, "{} ({})", self.name(), shown.join(", ")),
        }
    }
}

impl FromStr for InputRule {
    type Err = RuleError;

    /// `NAME[:KNOB=VALUE]...`, such as `moi:beta=0.5:support=20`; a comma does as well as a colon.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = |what: String| RuleError::Text { text: text.to_owned(), what };
        let mut parts = text.split([':', ',']).map(str::trim);
        let mut rule = Self::named(parts.next().unwrap_or_default())?;
        let mut before: Vec<&str> = Vec::new();
        for part in parts {
            let Some((knob, value)) = part.split_once('=') else {
                return Err(wrong(format!("`{part}` is no KNOB=VALUE")));
            };
            let (knob, value) = (knob.trim(), value.trim());
            if before.contains(&knob) {
                return Err(wrong(format!("{knob} is given twice")));
            }
            before.push(knob);
            rule.set(knob, value)?;
        }
        rule.validated()
    }
}

fn names() -> Vec<&'static str> {
    InputRule::all().iter().map(InputRule::name).collect()
}

/// `a, b and c`.
fn listed(names: Vec<&str>) -> String {
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.join(""),
    }
}

fn check_support(support: Support) -> Result<(), RuleError> {
    match support {
        Support::TopK(0) => Err(RuleError::value("support", "1 or more tokens", 0)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
