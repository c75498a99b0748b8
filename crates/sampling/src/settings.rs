//! How tokens are sampled, as data.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Candidates, History, filters, penalties};

/// How tokens are sampled. Plain data: the same value comes from flags, a JSON request or Rust code.
///
/// Banned tokens are taken away first, then the steps of [`Sampling::samplers`] work in their order. A step whose value
/// is the default changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token always (greedy).
    pub temperature: f64,
    /// Keeps the K most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keeps tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f64,
    /// Keeps the fewest tokens nearest to the entropy whose probabilities reach this sum; 1 keeps all.
    pub typical_p: f64,
    /// Keeps tokens whose logits are within this many standard deviations of the largest; 0 keeps all.
    pub top_n_sigma: f64,
    /// Divides the logits of tokens that are in the prompt or were generated, or multiplies negative ones; 1 is none.
    pub repetition_penalty: f64,
    /// Taken from the logits of tokens that were generated.
    pub presence_penalty: f64,
    /// Taken from the logits of tokens as often as they were generated.
    pub frequency_penalty: f64,
    /// The last tokens that penalties look back at; 0 is all.
    pub penalty_window: usize,
    /// No sequence of so many tokens comes twice; 0 allows it.
    pub no_repeat_ngram: usize,
    /// Added to the logits of some tokens.
    pub logit_bias: BTreeMap<u32, f64>,
    /// Tokens that are never sampled.
    pub banned: Vec<u32>,
    /// The order. What is left out is not done.
    pub samplers: Vec<SamplingStep>,
}

/// Makes the steps' enum, their names and the order in which they stand by default.
macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $name:literal),+ $(,)?) => {
        /// A step of sampling.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum SamplingStep {
            $($(#[$doc])* $step),+
        }

        impl SamplingStep {
            /// All, in the order in which they work where none is given.
            pub const ALL: &[Self] = &[$(Self::$step),+];

            /// Its name, as on a command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name),+
                }
            }
        }
    };
}

steps! {
    /// [`Sampling::logit_bias`].
    LogitBias = "logit-bias",
    /// [`Sampling::repetition_penalty`].
    Repetition = "repetition",
    /// [`Sampling::presence_penalty`].
    Presence = "presence",
    /// [`Sampling::frequency_penalty`].
    Frequency = "frequency",
    /// [`Sampling::no_repeat_ngram`].
    NoRepeatNgram = "no-repeat-ngram",
    /// [`Sampling::temperature`].
    Temperature = "temperature",
    /// [`Sampling::top_n_sigma`].
    TopNSigma = "top-n-sigma",
    /// [`Sampling::top_k`].
    TopK = "top-k",
    /// [`Sampling::typical_p`].
    Typical = "typical",
    /// [`Sampling::top_p`].
    TopP = "top-p",
    /// [`Sampling::min_p`].
    MinP = "min-p",
}

impl SamplingStep {
    /// Whether it changes logits, or takes tokens away, by what came before or by what a caller wants.
    fn is_penalty(self) -> bool {
        use SamplingStep::{Frequency, LogitBias, NoRepeatNgram, Presence, Repetition};
        matches!(self, LogitBias | Repetition | Presence | Frequency | NoRepeatNgram)
    }
}

impl fmt::Display for SamplingStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplingStep {
    type Err = SamplingError;

    fn from_str(text: &str) -> Result<Self, SamplingError> {
        let found = Self::ALL.iter().copied().find(|step| step.name() == text.trim());
        found.ok_or_else(|| SamplingError::Step(text.to_owned()))
    }
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            top_n_sigma: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: 0,
            no_repeat_ngram: 0,
            logit_bias: BTreeMap::new(),
            banned: Vec::new(),
            samplers: SamplingStep::ALL.to_vec(),
        }
    }
}

impl Sampling {
    /// Whether all values are allowed.
    ///
    /// # Errors
    /// A [`SamplingError`] that names the one that is not.
    pub fn check(&self) -> Result<(), SamplingError> {
        let finite = |value: f64| value.is_finite();
        let share = |value: f64| value > 0.0 && value <= 1.0;
        // Less would divide logits to infinity.
        let heat = self.temperature == 0.0 || self.temperature >= 1e-4;
        let rules = [
            ("temperature", self.temperature, heat, "0 (greedy) or from 0.0001 on, and finite"),
            ("top-p", self.top_p, share(self.top_p), "above 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            ("typical-p", self.typical_p, share(self.typical_p), "above 0 and at most 1"),
            ("top-n-sigma", self.top_n_sigma, self.top_n_sigma >= 0.0, "0 (off) or more, and finite"),
            (
                "repetition-penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above 0, and finite",
            ),
            ("presence-penalty", self.presence_penalty, true, "finite"),
            ("frequency-penalty", self.frequency_penalty, true, "finite"),
        ];
        for (name, value, allowed, what) in rules {
            if !(finite(value) && allowed) {
                return Err(SamplingError::Value { name, allowed: what, value });
            }
        }
        if let Some((&id, &value)) = self.logit_bias.iter().find(|(_, value)| !value.is_finite()) {
            return Err(SamplingError::Bias { id, value });
        }
        let twice = |(i, step): (usize, &SamplingStep)| self.samplers[..i].contains(step).then_some(*step);
        match self.samplers.iter().enumerate().find_map(twice) {
            Some(step) => Err(SamplingError::Twice(step)),
            None => Ok(()),
        }
    }

    /// Whether there are but temperature, top-k, top-p and min-p, in this order.
    pub fn is_plain(&self) -> bool {
        let Self { temperature, top_k, top_p, min_p, ref samplers, .. } = *self;
        let plain = Self { temperature, top_k, top_p, min_p, ..Self::default() };
        let does = |step: &&SamplingStep| {
            use SamplingStep::{MinP, Temperature, TopK, TopP};
            matches!(step, Temperature | TopK | TopP | MinP)
        };
        let own: Vec<_> = samplers.iter().filter(does).collect();
        *self == Self { samplers: samplers.clone(), ..plain }
            && own == SamplingStep::ALL.iter().filter(does).collect::<Vec<_>>()
    }

    /// Leaves the tokens that may be sampled. What `history` holds counts for penalties.
    ///
    /// # Errors
    /// If none is left.
    pub fn apply(&self, candidates: &mut Candidates, history: &History) -> Result<(), SamplingError> {
        self.ban(candidates);
        for step in &self.samplers {
            self.step(*step, candidates, history);
        }
        match candidates.largest() > f64::NEG_INFINITY {
            true => Ok(()),
            false => Err(SamplingError::NothingLeft),
        }
    }

    /// Whether [`Sampling::penalise`] may change anything.
    pub fn has_penalties(&self) -> bool {
        let none = Self::default();
        self.repetition_penalty != none.repetition_penalty
            || self.presence_penalty != none.presence_penalty
            || self.frequency_penalty != none.frequency_penalty
            || self.no_repeat_ngram != none.no_repeat_ngram
            || !(self.logit_bias.is_empty() && self.banned.is_empty())
    }

    /// Changes logits as [`Sampling::apply`] does, and takes away what is banned or would repeat a sequence, without the
    /// temperature and the filters.
    pub fn penalise(&self, candidates: &mut Candidates, history: &History) {
        self.ban(candidates);
        for step in self.samplers.iter().filter(|step| step.is_penalty()) {
            self.step(*step, candidates, history);
        }
    }

    fn ban(&self, candidates: &mut Candidates) {
        if !self.banned.is_empty() {
            candidates.retain(|candidate| !self.banned.contains(&candidate.id));
        }
    }

    fn step(&self, step: SamplingStep, candidates: &mut Candidates, history: &History) {
        let window = self.penalty_window;
        match step {
            SamplingStep::LogitBias => penalties::logit_bias(candidates, &self.logit_bias),
            SamplingStep::Repetition => {
                penalties::repetition(candidates, history.all(window), self.repetition_penalty);
            }
            SamplingStep::Presence => {
                penalties::presence(candidates, history.generated(window), self.presence_penalty);
            }
            SamplingStep::Frequency => {
                penalties::frequency(candidates, history.generated(window), self.frequency_penalty);
            }
            SamplingStep::NoRepeatNgram => {
                penalties::no_repeat_ngram(candidates, history.all(0), self.no_repeat_ngram);
            }
            SamplingStep::Temperature => filters::temperature(candidates, self.temperature),
            SamplingStep::TopNSigma => filters::top_n_sigma(candidates, self.top_n_sigma),
            SamplingStep::TopK => filters::top_k(candidates, self.top_k),
            SamplingStep::Typical => filters::typical(candidates, self.typical_p),
            SamplingStep::TopP => filters::top_p(candidates, self.top_p),
            SamplingStep::MinP => filters::min_p(candidates, self.min_p),
        }
    }
}

/// A value that is not allowed, or nothing to sample from.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// A value that is not allowed.
    #[error("{name} must be {allowed}, got {value}")]
    Value {
        /// The field.
        name: &'static str,
        /// Which values are.
        allowed: &'static str,
        /// The value.
        value: f64,
    },
    /// A bias that is not finite.
    #[error("the logit bias of token {id} must be finite, got {value}; ban the token instead")]
    Bias {
        /// The token.
        id: u32,
        /// Its bias.
        value: f64,
    },
    /// No step has this name.
    #[error("there is no sampler `{0}`; there are {names}", names = names())]
    Step(String),
    /// A step that stands twice in the order.
    #[error("the sampler `{0}` is given twice")]
    Twice(SamplingStep),
    /// Every token was taken away.
    #[error("no token is left to sample: all are banned, would repeat a sequence, or break the grammar")]
    NothingLeft,
}

fn names() -> String {
    SamplingStep::ALL.iter().map(|step| step.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn left(sampling: &Sampling, logits: &[f32], history: &History) -> Result<Vec<u32>, SamplingError> {
        let mut candidates = Candidates::new(logits);
        sampling.apply(&mut candidates, history)?;
        Ok(candidates.probabilities().into_iter().map(|(id, _)| id).collect())
    }

    #[test]
    fn the_order_is_data() {
        let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
        let sampling = Sampling { temperature: 1.0, top_k: 2, top_p: 0.75, ..Sampling::default() };
        // Two of the four, .57 and .43 of what is left: both are needed for .75. The other way round three are.
        assert_eq!(left(&sampling, &logits, &History::default()).unwrap(), [0, 1]);
        let only = |steps: &[SamplingStep]| Sampling { samplers: steps.to_vec(), ..sampling.clone() };
        use SamplingStep::{MinP, Temperature, TopK, TopP};
        assert_eq!(left(&only(&[TopP]), &logits, &History::default()).unwrap(), [0, 1, 2]);
        assert_eq!(left(&only(&[]), &logits, &History::default()).unwrap(), [0, 1, 2, 3]);
        assert!(sampling.is_plain() && only(&[Temperature, TopK, TopP, MinP]).is_plain());
        assert!(!only(&[TopP, TopK]).is_plain() && !only(&[Temperature, TopP, TopK, MinP]).is_plain());
        assert!(!Sampling { banned: vec![1], ..sampling.clone() }.is_plain());
        assert!(!Sampling { typical_p: 0.5, ..sampling }.is_plain());
    }

    #[test]
    fn bans_penalties_and_ngrams_compose() {
        let history = History::new(&[1, 2, 1]);
        let sampling = Sampling { banned: vec![0], no_repeat_ngram: 2, ..Sampling::default() };
        assert_eq!(left(&sampling, &[9.0, 5.0, 8.0, 4.0], &history).unwrap(), [1]);
        let sampling = Sampling { repetition_penalty: 2.0, ..sampling };
        assert_eq!(left(&sampling, &[9.0, 5.0, 8.0, 4.0], &history).unwrap(), [3]);
        let all = Sampling { banned: vec![0, 1, 2], ..Sampling::default() };
        assert_eq!(left(&all, &[0.0; 3], &history), Err(SamplingError::NothingLeft));
        let rest = Sampling { banned: vec![0], temperature: 1.0, ..Sampling::default() };
        assert_eq!(left(&rest, &[0.0, f32::NEG_INFINITY], &history), Err(SamplingError::NothingLeft));
    }

    #[test]
    fn penalties_alone_leave_filters_out() {
        let sampling = Sampling {
            temperature: 0.5,
            top_k: 1,
            banned: vec![3],
            logit_bias: [(1, 2.0)].into(),
            presence_penalty: 0.5,
            ..Sampling::default()
        };
        let mut history = History::new(&[0]);
        history.push(2);
        let mut candidates = Candidates::new(&[1.0; 4]);
        sampling.penalise(&mut candidates, &history);
        let logits: Vec<(u32, f64)> = candidates.iter().map(|c| (c.id, c.logit)).collect();
        assert_eq!(logits, [(0, 1.0), (1, 3.0), (2, 0.5)]);
        assert!(sampling.has_penalties());
        assert!(!Sampling { temperature: 0.5, top_k: 3, ..Sampling::default() }.has_penalties());
    }

    #[test]
    fn values_are_named() {
        let none = Sampling::default();
        let cases = [
            (Sampling { temperature: -1.0, ..none.clone() }, "temperature must be 0 (greedy) or from 0.0001"),
            (Sampling { temperature: f64::NAN, ..none.clone() }, "temperature"),
            (Sampling { temperature: 1e-310, ..none.clone() }, "temperature must be"),
            (Sampling { top_p: 0.0, ..none.clone() }, "top-p must be above 0"),
            (Sampling { min_p: 1.5, ..none.clone() }, "min-p must be between 0 and 1, got 1.5"),
            (Sampling { typical_p: f64::INFINITY, ..none.clone() }, "typical-p"),
            (Sampling { top_n_sigma: -1.0, ..none.clone() }, "top-n-sigma"),
            (Sampling { repetition_penalty: 0.0, ..none.clone() }, "repetition-penalty must be above 0"),
            (Sampling { presence_penalty: f64::NAN, ..none.clone() }, "presence-penalty must be finite"),
            (Sampling { logit_bias: [(3, f64::INFINITY)].into(), ..none.clone() }, "bias of token 3"),
            (Sampling { samplers: vec![SamplingStep::TopK; 2], ..none }, "`top-k` is given twice"),
        ];
        for (sampling, part) in cases {
            let said = sampling.check().unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
        let unknown = "top_k".parse::<SamplingStep>().unwrap_err().to_string();
        assert!(unknown.contains("`top_k`") && unknown.contains("top-k, typical"), "{unknown}");
    }

    #[test]
    fn it_is_plain_data() {
        let text = r#"{"temperature":0.7,"banned":[3],"logit_bias":{"5":-1.0},"samplers":["top-k","min-p"]}"#;
        let sampling: Sampling = serde_json::from_str(text).unwrap();
        assert_eq!(sampling.logit_bias[&5], -1.0);
        assert_eq!(sampling.samplers, [SamplingStep::TopK, SamplingStep::MinP]);
        let back: Sampling = serde_json::from_str(&serde_json::to_string(&sampling).unwrap()).unwrap();
        assert_eq!(back, sampling);
        assert!(serde_json::from_str::<Sampling>(r#"{"tempersture":1}"#).is_err());
        for step in SamplingStep::ALL {
            assert_eq!(step.name().parse(), Ok(*step));
            assert_eq!(serde_json::to_string(step).unwrap(), format!("\"{step}\""));
        }
    }

    fn sampling() -> impl Strategy<Value = Sampling> {
        let filters = (0.0..2.0f64, 0usize..6, 0.01..=1.0f64, 0.0..=1.0f64, 0.01..=1.0f64, 0.0..3.0f64);
        let penalties = (0.5..2.0f64, -1.0..1.0f64, -1.0..1.0f64, 0usize..4);
        let order = Just(SamplingStep::ALL.to_vec()).prop_shuffle();
        (filters, penalties, order).prop_map(|(f, p, samplers)| Sampling {
            temperature: f.0,
            top_k: f.1,
            top_p: f.2,
            min_p: f.3,
            typical_p: f.4,
            top_n_sigma: f.5,
            repetition_penalty: p.0,
            presence_penalty: p.1,
            frequency_penalty: p.2,
            penalty_window: p.3,
            samplers,
            ..Sampling::default()
        })
    }

    proptest! {
        /// Whatever the values and their order, something is left, and a draw gives one of what is left.
        #[test]
        fn something_is_always_left(
            sampling in sampling(),
            logits in proptest::collection::vec(-30.0..30.0f32, 1..12),
            history in proptest::collection::vec(0u32..12, 0..6),
            uniform in 0.0..1.0f64,
        ) {
            sampling.check().unwrap();
            let mut candidates = Candidates::new(&logits);
            sampling.apply(&mut candidates, &History::new(&history)).unwrap();
            let probabilities = candidates.clone().probabilities();
            let sum: f64 = probabilities.iter().map(|p| p.1).sum();
            prop_assert!((sum - 1.0).abs() < 1e-12);
            let token = candidates.draw(uniform);
            prop_assert!(probabilities.iter().any(|p| p.0 == token));
        }
    }
}
