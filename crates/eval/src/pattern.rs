//! Regular expressions that are part of the program.

use regex::Regex;

/// Compiles a pattern that is written in this crate.
#[allow(clippy::unwrap_used, reason = "the patterns are constants, and tests compile each of them")]
pub(crate) fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}
