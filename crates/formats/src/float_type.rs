//! Floating-point types.

use std::{fmt, str::FromStr};

/// A floating-point type in which weights are stored or computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a float32 (bfloat16).
    BF16,
}

impl FloatType {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// The type's name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// A one-line description.
    pub const fn help(self) -> &'static str {
        match self {
            Self::F32 => "Single precision",
            Self::F16 => "Half precision",
            Self::BF16 => "The upper half of a single",
        }
    }

    /// The corresponding type in burn.
    #[cfg(feature = "burn")]
    pub const fn dtype(self) -> burn_std::FloatDType {
        match self {
            Self::F32 => burn_std::FloatDType::F32,
            Self::F16 => burn_std::FloatDType::F16,
            Self::BF16 => burn_std::FloatDType::BF16,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|known| known.name() == text);
        known.ok_or_else(|| format!("`{text}` is none of f32, f16 and bf16"))
    }
}
