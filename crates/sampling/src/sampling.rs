//! How tokens are sampled, as data: the samplers and the order in which they are applied.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};

use crate::{
    Candidates, Dry, Frequency, Knob, LogitBias, MinP, Mirostat, NoRepeatNgram, Past, Presence, Repetition,
    SamplingError, Temperature, TopK, TopNSigma, TopP, Typical, Xtc,
    declare::{Declared, Sampler, sampler},
};

sampler! {
    /// How many of the last tokens the penalties of repetition, presence and frequency look back at.
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, History, Past, Sampling};
    ///
    /// let mut history = History::default();
    /// history.push(0);
    /// history.push(1);
    /// let sampling = Sampling { presence: 1.0.into(), penalty_window: 1.into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[2.0, 2.0]);
    /// sampling.penalise(&mut candidates, &Past::new(history));
    /// // Only the last token is looked at.
    /// let logits: Vec<f64> = candidates.iter().map(|candidate| candidate.logit).collect();
    /// assert_eq!(logits, [2.0, 1.0]);
    /// ```
    PenaltyWindow(usize) = "penalty-window" {
        /// How many of the last tokens penalties look back at; 0 or -1 is all
        "penalty_window" => 0: usize = 0;
    }
}

/// Defines [`Sampling`] and [`SamplingStep`] from the samplers, which are listed in the default order.
macro_rules! samplers {
    ($($field:ident: $sampler:ident),+ $(,)?) => {
        /// How tokens are sampled. Plain data: the same value comes from flags, a JSON request or Rust code. In JSON
        /// the knobs of all samplers are keys of one object: `{"temperature": 0.7, "dry_multiplier": 0.8}`.
        ///
        /// Banned tokens are removed first, then the samplers of [`Sampling::samplers`] are applied in their order. A
        /// sampler whose knobs have their defaults changes nothing, except for the temperature: the default is
        /// greedy.
        ///
        /// # Examples
        /// ```
        /// use moi_sampling::{Candidates, Past, Sampling};
        ///
        /// let mut sampling: Sampling = serde_json::from_str(r#"{"temperature": 0.8, "top_k": 2}"#)?;
        /// sampling.set("min_p", &["0.1"])?;
        /// sampling.check()?;
        /// let mut candidates = Candidates::new(&[1.0, 4.0, 3.5]);
        /// sampling.apply(&mut candidates, &Past::default())?;
        /// assert_eq!(candidates.len(), 2);
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each sampler documents itself")]
        pub struct Sampling {
            $(pub $field: $sampler,)+
            /// How many of the last tokens the penalties of repetition, presence and frequency look back at.
            pub penalty_window: PenaltyWindow,
            /// Tokens that are never sampled.
            pub banned: Vec<u32>,
            /// The samplers in the order in which they are applied. A sampler that is left out is not applied.
            pub samplers: Vec<SamplingStep>,
        }

        /// A sampler as an element of [`Sampling::samplers`].
        ///
        /// # Examples
        /// ```
        /// use moi_sampling::{Sampling, SamplingStep};
        ///
        /// // The filters see the distribution before the temperature.
        /// let samplers = vec![SamplingStep::TopK, SamplingStep::MinP, SamplingStep::Temperature];
        /// let sampling = Sampling { samplers, ..Sampling::default() };
        /// sampling.check()?;
        /// assert_eq!("min-p".parse(), Ok(SamplingStep::MinP));
        /// assert_eq!(SamplingStep::MinP.name(), "min-p");
        /// # Ok::<(), moi_sampling::SamplingError>(())
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each sampler documents itself")]
        pub enum SamplingStep {
            $($sampler),+
        }

        impl SamplingStep {
            /// All samplers, in the default order.
            pub const ALL: &[Self] = &[$(Self::$sampler),+];

            /// Its name, as on a command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$sampler => $sampler::NAME),+
                }
            }
        }

        impl Default for Sampling {
            /// Greedy sampling.
            fn default() -> Self {
                Self {
                    $($field: $sampler::default(),)+
                    penalty_window: PenaltyWindow::default(),
                    banned: Vec::new(),
                    samplers: SamplingStep::ALL.to_vec(),
                }
            }
        }

        impl Sampling {
            /// All knobs, sampler by sampler.
            pub fn knobs() -> Vec<Knob> {
                let all = Self::default();
                let own = [$(all.$field.knobs(Some(SamplingStep::$sampler))),+];
                own.into_iter().flatten().chain(all.penalty_window.knobs(None)).collect()
            }

            /// Sets a knob from texts, of which there is one unless the knob is a list.
            ///
            /// # Errors
            /// If there is no knob of this key, or the texts are not a value of it. [`Sampling::check`] says whether
            /// the value is allowed.
            pub fn set(&mut self, key: &str, texts: &[&str]) -> Result<(), SamplingError> {
                $(if let Some(set) = self.$field.set(key, texts) {
                    return set;
                })+
                let set = self.penalty_window.set(key, texts);
                set.unwrap_or_else(|| Err(SamplingError::Knob(key.to_owned())))
            }

            fn check_values(&self) -> Result<(), SamplingError> {
                $(self.$field.check_values()?;
                self.$field.check()?;)+
                self.penalty_window.check_values()
            }

            /// The sampler of a step.
            fn sampler(&self, step: SamplingStep) -> &dyn Sampler {
                match step {
                    $(SamplingStep::$sampler => &self.$field),+
                }
            }

            fn read_key<'de, A: de::MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
                $(if self.$field.read_key(key, map)? {
                    return Ok(true);
                })+
                self.penalty_window.read_key(key, map)
            }

            fn write_keys<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
                $(self.$field.write_keys(map)?;)+
                self.penalty_window.write_keys(map)
            }
        }
    };
}

samplers! {
    logit_bias: LogitBias,
    repetition: Repetition,
    presence: Presence,
    frequency: Frequency,
    dry: Dry,
    no_repeat_ngram: NoRepeatNgram,
    temperature: Temperature,
    top_n_sigma: TopNSigma,
    top_k: TopK,
    typical: Typical,
    top_p: TopP,
    min_p: MinP,
    xtc: Xtc,
    mirostat: Mirostat,
}

impl Sampling {
    /// Checks that all values are allowed.
    ///
    /// # Errors
    /// A [`SamplingError`] that names the value that is not.
    pub fn check(&self) -> Result<(), SamplingError> {
        self.check_values()?;
        let twice = |(i, step): (usize, &SamplingStep)| self.samplers[..i].contains(step).then_some(*step);
        match self.samplers.iter().enumerate().find_map(twice) {
            Some(step) => Err(SamplingError::Twice(step)),
            None => Ok(()),
        }
    }

    /// Whether only temperature, top-k, top-p and min-p have an effect, and are applied in this order.
    pub fn is_plain(&self) -> bool {
        let does = |step: &SamplingStep| {
            use SamplingStep::{MinP, Temperature, TopK, TopP};
            matches!(step, Temperature | TopK | TopP | MinP)
        };
        let is_off = |step: &SamplingStep| self.sampler(*step).is_off();
        let own = self.samplers.iter().filter(|step| does(step));
        self.banned.is_empty()
            && SamplingStep::ALL.iter().all(|step| does(step) || is_off(step))
            && own.eq(SamplingStep::ALL.iter().filter(|step| does(step)))
    }

    /// Applies all samplers, which leaves the tokens that may be sampled.
    ///
    /// # Errors
    /// If no token is left.
    pub fn apply(&self, candidates: &mut Candidates, past: &Past) -> Result<(), SamplingError> {
        self.ban(candidates);
        for step in &self.samplers {
            self.sampler(*step).apply(candidates, past, self);
        }
        match candidates.largest() > f64::NEG_INFINITY {
            true => Ok(()),
            false => Err(SamplingError::NothingLeft),
        }
    }

    /// Tells the samplers which of the candidates that [`Sampling::apply`] left was drawn, so that they update the
    /// state that they keep in `past`.
    pub fn observe(&self, candidates: &mut Candidates, token: u32, past: &mut Past) {
        for step in &self.samplers {
            let sampler = self.sampler(*step);
            if !sampler.is_off()
                && sampler.keeps_state()
                && let Some(probability) = candidates.probability(token)
            {
                past.set_state(*step, sampler.observe(probability, past.state(*step)));
            }
        }
    }

    /// Whether [`Sampling::penalise`] may change anything.
    pub fn has_penalties(&self) -> bool {
        !self.banned.is_empty()
            || SamplingStep::ALL
                .iter()
                .map(|step| self.sampler(*step))
                .any(|one| one.is_penalty() && !one.is_off())
    }

    /// Changes logits as [`Sampling::apply`] does, and removes tokens that are banned or would repeat a sequence,
    /// without the temperature and the filters.
    pub fn penalise(&self, candidates: &mut Candidates, past: &Past) {
        self.ban(candidates);
        let samplers = self.samplers.iter().map(|step| self.sampler(*step));
        samplers.filter(|one| one.is_penalty()).for_each(|one| one.apply(candidates, past, self));
    }

    /// Whether a sampler needs [`Past::chance`], a random number beside that of the draw.
    pub fn needs_chance(&self) -> bool {
        self.samplers.contains(&SamplingStep::Xtc) && !self.xtc.is_off()
    }

    fn ban(&self, candidates: &mut Candidates) {
        if !self.banned.is_empty() {
            candidates.retain(|candidate| !self.banned.contains(&candidate.id));
        }
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

impl Serialize for SamplingStep {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for SamplingStep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Sampling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.write_keys(&mut map)?;
        map.serialize_entry("banned", &self.banned)?;
        map.serialize_entry("samplers", &self.samplers)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Sampling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SamplingVisitor)
    }
}

/// Reads [`Sampling`] from a map whose keys may be left out.
struct SamplingVisitor;

impl<'de> de::Visitor<'de> for SamplingVisitor {
    type Value = Sampling;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that says how to sample")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Sampling, A::Error> {
        let mut sampling = Sampling::default();
        let mut before: Vec<String> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if before.contains(&key) {
                return Err(de::Error::custom(format!("duplicate field `{key}`")));
            }
            match key.as_str() {
                "banned" => sampling.banned = map.next_value()?,
                "samplers" => sampling.samplers = map.next_value()?,
                key if sampling.read_key(key, &mut map)? => {}
                key => {
                    let knobs = Sampling::knobs();
                    let known = knobs.iter().map(|knob| knob.key).chain(["banned", "samplers"]);
                    let known = known.map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                    let said = format!("unknown field `{key}`, expected one of {known}");
                    return Err(de::Error::custom(said));
                }
            }
            before.push(key);
        }
        Ok(sampling)
    }
}

#[cfg(test)]
mod tests;
