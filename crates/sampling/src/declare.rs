//! The declaration of a sampler: its knobs with their keys, help, defaults and allowed values, in one place.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned, de::MapAccess, ser::SerializeMap};

use crate::{Candidates, Past, Sampling, SamplingError, SamplingStep};

/// A value of a sampler that a caller may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knob {
    /// Its key in JSON. The flag of a command line is the same with dashes, and without the last `s` for
    /// [`KnobKind::Texts`], which may be repeated.
    pub key: &'static str,
    /// What it does, in a sentence.
    pub help: &'static str,
    /// What it may be.
    pub kind: KnobKind,
    /// Its default as text.
    pub default: String,
    /// The sampler that reads it; `None` where several do.
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

/// What a knob's value may be.
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

/// A type of knobs.
pub(crate) trait KnobValue: Serialize + DeserializeOwned + PartialEq + Debug {
    const KIND: KnobKind;

    /// Reads it from texts, of which there is one unless it is a list; `Err` is what was expected.
    fn read(texts: &[&str]) -> Result<Self, &'static str>;

    fn write(&self) -> String;

    /// Whether it can be calculated with.
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

    /// `none` alone is an empty list, as llama.cpp has it.
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

/// What a declaration gives.
pub(crate) trait Declared {
    /// Its knobs; `step` says which sampler reads them.
    fn knobs(&self, step: Option<SamplingStep>) -> Vec<Knob>;

    /// Whether all values are the defaults.
    fn is_default(&self) -> bool;

    /// Whether all values are allowed.
    fn check_values(&self) -> Result<(), SamplingError>;

    /// Sets a knob from texts; `None` where it has no knob of this key.
    fn set(&mut self, key: &str, texts: &[&str]) -> Option<Result<(), SamplingError>>;

    /// Reads the value of a key from a map; whether it has a knob of this key.
    fn read_key<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>
    where
        Self: Sized;

    /// Writes all knobs to a map.
    fn write_keys<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error>
    where
        Self: Sized;
}

/// What a sampler does.
pub(crate) trait Sampler: Declared {
    /// Whether it changes logits, or takes tokens away, by what came before or by what a caller wants; a filter looks at
    /// the distribution alone.
    fn is_penalty(&self) -> bool {
        false
    }

    /// Whether it changes nothing.
    fn is_off(&self) -> bool {
        self.is_default()
    }

    /// What else its values must be.
    fn check(&self) -> Result<(), SamplingError> {
        Ok(())
    }

    /// Changes logits or takes candidates away.
    fn apply(&self, candidates: &mut Candidates, past: &Past, sampling: &Sampling);

    /// Whether it keeps a number from step to step: [`Sampler::observe`] is called of no other.
    fn keeps_state(&self) -> bool {
        false
    }

    /// Learns which of the candidates became the token, and which probability it had among them. The state is the
    /// sampler's own, 0 steps old where `None`.
    fn observe(&self, _probability: f64, state: Option<f64>) -> Option<f64> {
        state
    }
}

/// Declares a sampler. Of one knob: `Name(type) = "step"`, then the knob as field `0`; of several: `Name = "step"`, then its
/// fields. A knob: `"key" => field: type = default`, then `if condition, "what is allowed"` where not every value is.
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

/// The part of [`sampler`] that is alike for one knob and several.
macro_rules! declared {
    (
        $name:ident = $step:literal {
            $(#[doc = $help:literal] $(#[doc = $more:literal])* $key:literal => $field:tt: $type:ty = $default:expr
                $(, if $allowed:expr, $what:literal)?;)+
        }
    ) => {
        impl $name {
            /// Its name in the order of samplers.
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
