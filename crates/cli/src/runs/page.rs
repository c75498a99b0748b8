//! Runs as one page that opens from a disk.

use anyhow::Result;

use super::Runs;

const PAGE: &str = include_str!("page.html");
/// Where the data goes.
const PLACE: &str = "/*DATA*/";

/// The page. It has no links and loads nothing.
pub(crate) fn page(runs: &Runs) -> Result<String> {
    // In a script element `<` could end it, or begin a comment.
    let data = serde_json::to_string(runs)?.replace('<', "\\u003c");
    Ok(PAGE.replacen(PLACE, &data, 1))
}
