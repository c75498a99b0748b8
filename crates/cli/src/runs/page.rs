//! Renders runs as one HTML page that opens from a local disk.

use anyhow::Result;

use super::Runs;

/// The page, without links and without loading anything.
pub(crate) fn page(runs: &Runs) -> Result<String> {
    Ok(moi_page::trace(&serde_json::to_string(runs)?))
}
