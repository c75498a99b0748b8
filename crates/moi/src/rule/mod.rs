//! Input rules as plain data: what is fed to the model after a token was sampled.
//!
//! Every rule has the same parts: a distribution, its support, a gate and a scope. To add a rule, add a file to this
//! module and a line to `rules!` below.

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

/// The behaviour of a rule, beside its knobs. A rule has either a gate or steps.
pub(crate) trait Rule: Knobs {
    /// Checks that the values of the knobs are allowed.
    fn check(&self) -> Result<(), RuleError> {
        Ok(())
    }

    /// The gate of a rule that moves the token's embedding towards the mean of the raw distribution. A device can
    /// compute such rules without the host.
    fn gated(&self) -> Option<Gated> {
        None
    }

    /// The state of any other rule for one sequence, at its start.
    fn steps(&self, _start: &Start) -> Result<Option<Box<dyn Steps>>, RuleError> {
        Ok(None)
    }

    /// Whether the rule is meant for a model's thinking, not for its answer.
    fn thinks(&self) -> bool {
        false
    }
}

/// A gate as a function of the normalised entropy: `clamp(slope * H + offset, 0, 1)`, and 0 where that is below a
/// floor.
///
/// # Examples
/// ```
/// use moi::Gate;
///
/// let gate = Gate { slope: 0.5, offset: 0.0, floor: 0.0 }; // of MoI with a beta of 1
/// assert_eq!([0.0, 0.5, 1.0].map(|entropy| gate.at(entropy)), [0.0, 0.25, 0.5]);
/// let gate = Gate { floor: 0.3, ..gate };
/// assert_eq!([0.0, 0.5, 1.0].map(|entropy| gate.at(entropy)), [0.0, 0.0, 0.5]);
/// assert_eq!(Gate::constant(0.3).at(1.0), 0.3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// Factor of the normalised entropy.
    pub slope: f32,
    /// The constant part.
    pub offset: f32,
    /// Below it the gate is 0.
    pub floor: f32,
}

impl Gate {
    /// A gate that does not depend on the entropy.
    pub const fn constant(share: f32) -> Self {
        Self { slope: 0.0, offset: share, floor: 0.0 }
    }

    /// The gate at a normalised entropy.
    pub fn at(self, entropy: f32) -> f32 {
        let gate = (self.slope * entropy + self.offset).clamp(0.0, 1.0);
        if gate < self.floor { 0.0 } else { gate }
    }

    /// The gate at an entropy in nats of a distribution over `tokens` tokens. Where rounding decides on which side of
    /// the floor it is, it is not 0.
    pub fn at_nats(self, nats: f32, tokens: usize) -> f32 {
        let gate = Self { floor: self.floor * (1.0 - 1e-4), ..self };
        gate.at(if tokens > 1 { (nats / (tokens as f32).ln()).clamp(0.0, 1.0) } else { 0.0 })
    }
}

/// Moves the token's embedding towards the mean of the raw distribution on a support.
///
/// # Examples
/// ```
/// use moi::{Gate, Gated, InputRule, Support};
///
/// let gated = InputRule::gate(0.25, Support::TopK(20))?.gated();
/// assert_eq!(gated, Some(Gated { gate: Gate::constant(0.25), support: Support::TopK(20) }));
/// assert!(!Gated::TOKEN.mixes());
/// // A rule that depends on more than one step is more than a gate.
/// assert_eq!("swir".parse::<InputRule>()?.gated(), None);
/// # Ok::<(), moi::RuleError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gated {
    /// How far the embedding moves.
    pub gate: Gate,
    /// The tokens that the mean is taken over.
    pub support: Support,
}

impl Gated {
    /// A gate of 0, which feeds the token's own embedding.
    pub const TOKEN: Self = Self { gate: Gate::constant(0.0), support: Support::Full };

    /// Whether the mean is ever needed.
    pub fn mixes(&self) -> bool {
        self.gate != Self::TOKEN.gate
    }
}

/// Defines [`InputRule`] with a variant per rule.
macro_rules! rules {
    ($($rule:ident: $type:ty),+ $(,)?) => {
        /// What is fed to the model after a token was sampled. Plain data: the same value comes from a flag, a JSON
        /// request or Rust code, and each row of a batch has its own.
        ///
        /// In JSON: `{"rule": "moi", "beta": 1.0, "support": "full"}`, as text `moi:beta=1:support=full`; knobs may be
        /// left out.
        ///
        /// # Examples
        /// ```
        /// use moi::{InputRule, Support};
        ///
        /// let rule: InputRule = "moi:beta=0.5:support=20".parse()?;
        /// assert_eq!(rule, InputRule::moi(0.5, Support::TopK(20))?);
        /// assert_eq!(rule.spec(), "moi:beta=0.5:support=20");
        /// let json = serde_json::json!({"rule": "moi", "beta": 0.5, "support": 20});
        /// assert_eq!(serde_json::from_value::<InputRule>(json)?, rule);
        /// assert!(InputRule::moi(-1.0, Support::Full).is_err());
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "rule", rename_all = "kebab-case")]
        #[allow(missing_docs, reason = "each rule documents itself")]
        pub enum InputRule {
            $($rule($type)),+
        }

        impl InputRule {
            /// Every rule with its defaults. A rule with a required knob is valid only after that knob is set.
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
        Self::Moi(Moi { beta, support, floor: 0.0 }).validated()
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
    /// If there is no such rule; the error lists all names.
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

    /// The rule's knobs.
    pub fn knobs(&self) -> Vec<Knob> {
        self.rule().knobs()
    }

    /// Sets a knob from text.
    ///
    /// # Errors
    /// If the rule has no such knob, or the text is not a value of it.
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

    /// The rule as one word that parses back, such as `moi:beta=0.5:support=20`; knobs at their default are left out.
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

    /// The tokens over which the normalised entropy is computed; the whole vocabulary for rules with supports of
    /// their own.
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
    /// Shows all knobs of a gated rule, and of other rules the knobs that differ from their defaults.
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
