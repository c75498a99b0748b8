//! Settings of speculation.

use std::{fmt, str::FromStr, sync::Arc};

use moi_speculation::Drafter;
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
    /// A draft model drafts nothing behind tokens that it finds less likely than this, 0 to 1.
    pub draft_min_p: f64,
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
            optional: false,
        }
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
