//! Checks whether this build can draw charts.

use anyhow::{Result, bail};

/// The error message if it cannot.
pub(crate) const MISSING: &str = "this moi was built without plots: build it with `cargo build --release --features plots`, \
                                  or take the binary of a release";

/// Checks before a measurement that its chart can be drawn.
///
/// # Errors
/// If this build cannot draw.
pub(crate) fn check() -> Result<()> {
    if !cfg!(feature = "plots") {
        bail!(MISSING);
    }
    Ok(())
}
