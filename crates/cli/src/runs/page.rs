//! Runs as one page that opens from a disk.

use anyhow::Result;

use super::Runs;

/// The page. It has no links and loads nothing.
pub(crate) fn page(runs: &Runs) -> Result<String> {
    Ok(moi_page::trace(&serde_json::to_string(runs)?))
}
