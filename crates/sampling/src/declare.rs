//! The declaration of a sampler: its knobs with their keys, help, defaults and allowed values, in one place.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned, de::MapAccess, ser::SerializeMap};

use crate::{Candidates, Past, Sampling, SamplingError, SamplingStep};

/// A value of a sampler that a caller may set.
///
/// # Examples
/// ```
/// use moi_sampling::{KnobKind, Sampling, SamplingStep};
///
/// let knobs = Sampling::knobs();
/// let knob = knobs.iter().find(|knob| knob.key == "top_k").ok_or("there is no such knob")?;
/// assert_eq!((knob.flag(), knob.default.as_str()), ("top-k".to_owned(), "0"));
/// assert_eq!((knob.kind, knob.step), (KnobKind::Count, Some(SamplingStep::TopK)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knob {
    /// Its key in JSON. The flag of a command line is the same with dashes, and without the last `s` for
    /// [`KnobKind::Texts`], which may be repeated.
    pub key: &'static str,
    /// What it does, in a sentence.
    pub help: &'static str,
    /// The type of its value.
    pub kind: KnobKind,
    /// Its default as text.
    pub default: String,
    /// The sampler that reads it; `None` if several do.
    pub step: Option<SamplingStep>,
}

impl Knob {
    /// The name of its flag, without the leading dashes.
    pub fn flag(&self) -> String {
        let name = self.key.replace('_', "-");
        match self.kind {
            KnobKind::Texts => name.trim_end_matches('s').to_owned(),
            _ => name,
        }
    }
}

/// The type of a knob's value.
///
/// # Examples
/// ```
/// use moi_sampling::{KnobKind, Sampling};
///
/// // Knobs that cannot be flags of a command line.
/// let by_token = Sampling::knobs().into_iter().filter(|knob| knob.kind == KnobKind::ByToken);
/// assert_eq!(by_token.map(|knob| knob.key).collect::<Vec<_>>(), ["logit_bias"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnobKind {
    /// A number.
    Number,
    /// A whole number from 0 on.
    Count,
    /// A whole number, where -1 has a meaning of its own.
    Integer,
    /// A list of texts.
    Texts,
    /// Numbers by token. It cannot be set from text, which would need a tokenizer.
    ByToken,
}

/// A Rust type that a knob's value may have.
pub(crate) trait KnobValue: Serialize + DeserializeOwned + PartialEq + Debug {
    const KIND: KnobKind;

    /// Reads a value from texts, of which there is one unless the value is a list; `Err` says what was expected.
    fn read(texts: &[&str]) -> Result<Self, &'static str>;

    fn write(&self) -> String;

    /// Whether the value is free of infinities and NaN.
    fn is_finite(&self) -> bool {
        true
    }
}

impl KnobValue for f64 {
    const KIND: KnobKind = KnobKind::Number;

    fn read(texts: &[&str]) -> Result<Self, &'static str> {
        let wrong = "a number";
        texts.last().ok_or(wrong)?.parse().map_err(|_| wrong)
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn is_finite(&self) -> bool {
        f64::is_finite(*self)
    }
}

impl KnobValue for usize {
    const KIND: KnobKind = KnobKind::Count;

    fn read(texts: &[&str]) -> Result<Self, &'static str> {
        let wrong = "a whole number from 0 on";
        texts.last().ok_or(wrong)?.parse().map_err(|_| wrong)
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl KnobValue for i64 {
    const KIND: KnobKind = KnobKind::Integer;

    fn read(texts: &[&str]) -> Result<Self, &'static str> {
        let wrong = "a whole number from -1 on";
        texts.last().ok_or(wrong)?.parse().map_err(|_| wrong)
    }

    fn write(&self) -> String {
        self.to_string()
    }
}

impl KnobValue for Vec<String> {
    const KIND: KnobKind = KnobKind::Texts;

    /// `none` alone is an empty list, as in llama.cpp.
    fn read(texts: &[&str]) -> Result<Self, &'static str> {
        Ok(if texts == ["none"] { Vec::new() } else { texts.iter().map(|&text| text.to_owned()).collect() })
    }

    fn write(&self) -> String {
        self.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" ")
    }
}

impl KnobValue for std::collections::BTreeMap<u32, f64> {
    const KIND: KnobKind = KnobKind::ByToken;

    fn read(_texts: &[&str]) -> Result<Self, &'static str> {
        Err("numbers by token, which are not read from text")
    }

    fn write(&self) -> String {
        format!("{self:?}")
    }
}

/// What the `sampler!` declaration of a sampler provides.
pub(crate) trait Declared {
    /// Its knobs; `step` says which sampler reads them.
    fn knobs(&self, step: Option<SamplingStep>) -> Vec<Knob>;

    /// Whether all values are the defaults.
    fn is_default(&self) -> bool;

    /// Checks that all values are allowed.
    fn check_values(&self) -> Result<(), SamplingError>;

    /// Sets a knob from texts; `None` if there is no knob of this key.
    fn set(&mut self, key: &str, texts: &[&str]) -> Option<Result<(), SamplingError>>;

    /// Reads the value of a key from a map; false if there is no knob of this key.
    fn read_key<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>
    where
        Self: Sized;

    /// Writes all knobs to a map.
    fn write_keys<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error>
    where
        Self: Sized;
}

/// The behaviour of a sampler.
pub(crate) trait Sampler: Declared {
    /// Whether the sampler changes logits or removes tokens because of earlier tokens or a caller's wish. A filter,
    /// in contrast, depends on the distribution alone.
    fn is_penalty(&self) -> bool {
        false
    }

    /// Whether the sampler changes nothing.
    fn is_off(&self) -> bool {
        self.is_default()
    }

    /// Checks what [`Declared::check_values`] does not cover.
    fn check(&self) -> Result<(), SamplingError> {
        Ok(())
    }

    /// Changes logits or removes candidates.
    fn apply(&self, candidates: &mut Candidates, past: &Past, sampling: &Sampling);

    /// Whether the sampler keeps a number from step to step. [`Sampler::observe`] is called only for such samplers.
    fn keeps_state(&self) -> bool {
        false
    }

    /// Returns the sampler's new state after a token was drawn that had this probability among the candidates. The
    /// state is `None` before the first step.
    fn observe(&self, _probability: f64, state: Option<f64>) -> Option<f64> {
        state
    }
}

/// Declares a sampler. With one knob: `Name(type) = "step"`, then the knob as field `0`; with several: `Name =
/// "step"`, then its fields. A knob is `"key" => field: type = default`, then `if condition, "what is allowed"` if
/// not every finite value is.
macro_rules! sampler {
    (
        $(#[doc = $doc:literal])+
        $name:ident($type:ty) = $step:literal { $($knob:tt)+ }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name(pub $type);

        impl From<$type> for $name {
            fn from(value: $type) -> Self {
                Self(value)
            }
        }

        $crate::declare::declared! { $name = $step { $($knob)+ } }
    };
    (
        $(#[doc = $doc:literal])+
        $name:ident = $step:literal {
            $($(#[doc = $help:literal])+ $key:literal => $field:ident: $type:ty = $default:expr
                $(, if $allowed:expr, $what:literal)?;)+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[doc = $help])+ pub $field: $type,)+
        }

        $crate::declare::declared! {
            $name = $step {
                $($(#[doc = $help])+ $key => $field: $type = $default $(, if $allowed, $what)?;)+
            }
        }
    };
}

/// The part of [`sampler`] that samplers of one knob and of several have in common.
macro_rules! declared {
    (
        $name:ident = $step:literal {
            $(#[doc = $help:literal] $(#[doc = $more:literal])* $key:literal => $field:tt: $type:ty = $default:expr
                $(, if $allowed:expr, $what:literal)?;)+
        }
    ) => {
        impl $name {
            /// The sampler's name in [`crate::Sampling::samplers`].
            pub const NAME: &'static str = $step;
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::declare::Declared for $name {
            fn knobs(&self, step: Option<$crate::SamplingStep>) -> Vec<$crate::Knob> {
                use $crate::declare::KnobValue;
                vec![$($crate::Knob {
                    key: $key,
                    help: concat!($help, $($more),*).trim_ascii(),
                    kind: <$type as KnobValue>::KIND,
                    default: <$type as KnobValue>::write(&Self::default().$field),
                    step,
                }),+]
            }

            fn is_default(&self) -> bool {
                *self == Self::default()
            }

            fn check_values(&self) -> Result<(), $crate::SamplingError> {
                use $crate::declare::KnobValue;
                $({
                    #[allow(unused_mut, unused_assignments, reason = "most knobs allow every finite value")]
                    let (mut is_allowed, mut allowed) = (true, "finite");
                    $({
                        let condition: fn(&$type) -> bool = $allowed;
                        (is_allowed, allowed) = (condition(&self.$field), $what);
                    })?
                    if !(is_allowed && self.$field.is_finite()) {
                        return Err($crate::SamplingError::value($key, allowed, &self.$field.write()));
                    }
                })+
                Ok(())
            }

            fn set(&mut self, key: &str, texts: &[&str]) -> Option<Result<(), $crate::SamplingError>> {
                use $crate::declare::KnobValue;
                match key {
                    $($key => {
                        let wrong =
                            |expected| $crate::SamplingError::value($key, expected, &texts.join(" "));
                        Some(KnobValue::read(texts).map(|value| self.$field = value).map_err(wrong))
                    })+
                    _ => None,
                }
            }

            fn read_key<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> Result<bool, A::Error> {
                match key {
                    $($key => self.$field = map.next_value()?,)+
                    _ => return Ok(false),
                }
                Ok(true)
            }

            fn write_keys<M: serde::ser::SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
                $(map.serialize_entry($key, &self.$field)?;)+
                Ok(())
            }
        }
    };
}

pub(crate) use {declared, sampler};
