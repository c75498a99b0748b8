//! Compiles the regular expressions of this crate.

use regex::Regex;

/// Compiles a pattern that is a constant of this crate.
#[allow(clippy::unwrap_used, reason = "the patterns are constants, and tests compile each of them")]
pub(crate) fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}
