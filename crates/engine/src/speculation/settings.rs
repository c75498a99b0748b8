//! Settings of speculation.

use std::{fmt, str::FromStr, sync::Arc};

use moi_speculation::{Drafter, Verifier};
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// How tokens are drafted and verified.
///
/// # Examples
/// ```
/// use moi_engine::{DrafterChoice, Speculation};
///
/// let settings: Speculation = serde_json::from_str(r#"{"drafter": "lookup", "draft_tokens": 8}"#)?;
/// assert_eq!((settings.drafter, settings.draft_tokens, settings.draft_budget), (DrafterChoice::Lookup, 8, 8));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Speculation {
    /// What drafts.
    pub drafter: DrafterChoice,
    /// The most tokens that are drafted behind each other.
    pub draft_tokens: usize,
    /// The most tokens that are drafted for a pass, alternatives included; 1 to [`Speculation::MAX_BUDGET`].
    pub draft_budget: usize,
    /// A draft model drafts nothing behind tokens that it finds less likely than this, 0 to 1; [`Verify::KSeq`] and
    /// [`Verify::Greedy`] draft all the same.
    pub draft_min_p: f64,
    /// How the next token is decided where tokens were drafted.
    pub verify: Verify,
    /// Where the input rule feeds a mixture, how far the input that a pass was given in its place may be from it, as a
    /// share of its norm. From 1e-4 or so on, results are approximate: see [`crate::SpeculationReport::inexact`].
    /// `None` stands for 1e-6 where the rule always mixes, which is exact up to rounding, and otherwise for 0. Where
    /// drafting is optional, only a tolerance makes rules that always mix draft.
    pub tolerance: Option<f64>,
    /// Where the tolerance is above 0, the most positions of a pass: the next input, guesses that are kept from the
    /// last pass, and new drafts; 2 to [`Speculation::MAX_BUDGET`] + 1.
    pub window: usize,
    /// Compute for some tokens how often the best possible verifier would accept a draft, which takes a while for each:
    /// see [`crate::DepthReport::optimal`].
    pub optimum: bool,
    /// Where drafts can gain nothing, draft nothing instead of refusing the request. `auto` always does so.
    pub optional: bool,
}

impl Speculation {
    /// The largest budget. Layers with a sliding window can take back 64 positions.
    pub const MAX_BUDGET: usize = 48;

    /// These settings with another drafter.
    pub fn by(drafter: DrafterChoice) -> Self {
        Self { drafter, ..Self::default() }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let budget = self.draft_budget;
        if !(1..=Self::MAX_BUDGET).contains(&budget) {
            return Err(EngineError::DraftBudget { budget });
        }
        if self.draft_tokens == 0 {
            return Err(EngineError::DraftTokensZero);
        }
        if !(0.0..=1.0).contains(&self.draft_min_p) {
            return Err(EngineError::DraftMinP { min_p: self.draft_min_p });
        }
        if let Some(tolerance) = self.tolerance.filter(|tolerance| !(0.0..1.0).contains(tolerance)) {
            return Err(EngineError::SpeculateTolerance { tolerance });
        }
        if !(2..=Self::MAX_BUDGET + 1).contains(&self.window) {
            return Err(EngineError::SpeculateWindow { window: self.window });
        }
        let samples = matches!(self.drafter, DrafterChoice::Model | DrafterChoice::Own(_));
        if self.verify != Verify::Match && self.drafter != DrafterChoice::None && !samples {
            return Err(EngineError::NoSampledDrafts { verify: self.verify.name() });
        }
        Ok(())
    }
}

impl Default for Speculation {
    fn default() -> Self {
        Self {
            drafter: DrafterChoice::None,
            draft_tokens: 7,
            draft_budget: 8,
            draft_min_p: 0.4,
            verify: Verify::Match,
            tolerance: None,
            window: 8,
            optimum: false,
            optional: false,
        }
    }
}

/// How the next token is decided where tokens were drafted. Every way gives the distribution of a run without drafts.
///
/// # Examples
/// ```
/// use moi_engine::Verify;
///
/// assert_eq!("k-seq".parse(), Ok(Verify::KSeq));
/// assert!("guessing".parse::<Verify>().unwrap_err().contains("rejection"));
/// assert_eq!(Verify::default().to_string(), "match");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// By the sampler, with the number of its position, so that the tokens are those of a run without drafts.
    #[default]
    Match,
    /// Drafts are drawn from the draft model, and accepted or rejected one after the other (recursive rejection
    /// sampling without replacement). The seed gives other tokens than without drafts.
    Rejection,
    /// Drafts are drawn independently, and one of them is selected (SpecTr, arXiv 2310.15141). Other tokens, too.
    KSeq,
    /// One draft is the draft model's likeliest token, another one is drawn (arXiv 2502.18779). Other tokens, too.
    Greedy,
}

impl Verify {
    /// All ways.
    pub const ALL: [Self; 4] = [Self::Match, Self::Rejection, Self::KSeq, Self::Greedy];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Rejection => "rejection",
            Self::KSeq => "k-seq",
            Self::Greedy => "greedy",
        }
    }

    pub(crate) fn verifier(self) -> Verifier {
        match self {
            Self::Match => Verifier::Match,
            Self::Rejection => Verifier::WithoutReplacement,
            Self::KSeq => Verifier::KSeq,
            Self::Greedy => Verifier::Greedy,
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Verify {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|verify| verify.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{name}` verifies nothing; use one of: {names}")
        })
    }
}

/// What drafts tokens.
///
/// # Examples
/// ```
/// use moi_engine::DrafterChoice;
///
/// assert_eq!("lookup".parse(), Ok(DrafterChoice::Lookup));
/// assert!("guessing".parse::<DrafterChoice>().unwrap_err().contains("recycling"));
/// assert_eq!(DrafterChoice::default().to_string(), "none");
/// ```
#[derive(Clone, Debug, Default)]
pub enum DrafterChoice {
    /// Nothing: each pass gives a token.
    #[default]
    None,
    /// Lookup and recycling together; nothing where drafts cannot gain.
    Auto,
    /// What followed an earlier occurrence of the last tokens.
    Lookup,
    /// The successors that the model found likeliest when it last saw a token.
    Recycling,
    /// The likeliest tokens of the engine's draft model: see [`crate::Engine::with_draft_model`].
    Model,
    /// An app's own drafter.
    Own(OwnDrafter),
}

/// Makes an app's own drafter for each sequence.
///
/// # Examples
/// ```
/// use moi_engine::{OwnDrafter, speculation::{LookupDrafter, LookupSettings}};
///
/// let own = OwnDrafter::new(|| Box::new(LookupDrafter::new(LookupSettings { max_ngram: 5, ..LookupSettings::default() })));
/// assert_eq!(format!("{own:?}"), "OwnDrafter");
/// ```
#[derive(Clone)]
pub struct OwnDrafter(Arc<dyn Fn() -> Box<dyn Drafter> + Send + Sync>);

impl OwnDrafter {
    /// A drafter for each sequence, made by `make` when its request is prepared.
    pub fn new(make: impl Fn() -> Box<dyn Drafter> + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    pub(crate) fn make(&self) -> Box<dyn Drafter> {
        (self.0)()
    }
}

impl fmt::Debug for OwnDrafter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnDrafter")
    }
}

impl PartialEq for DrafterChoice {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Own(a), Self::Own(b)) => Arc::ptr_eq(&a.0, &b.0),
            (Self::Own(_), _) | (_, Self::Own(_)) => false,
            _ => self.name() == other.name(),
        }
    }
}

impl DrafterChoice {
    /// The choices that have a name.
    pub const NAMED: [Self; 5] = [Self::None, Self::Auto, Self::Lookup, Self::Recycling, Self::Model];

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Auto => "auto",
            Self::Lookup => "lookup",
            Self::Recycling => "recycling",
            Self::Model => "model",
            Self::Own(_) => "own",
        }
    }
}

impl fmt::Display for DrafterChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DrafterChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::NAMED.into_iter().find(|choice| choice.name() == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::NAMED.iter().map(Self::name).collect();
            format!("`{name}` drafts nothing; use one of: {}", names.join(", "))
        })
    }
}

impl Serialize for DrafterChoice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for DrafterChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}
