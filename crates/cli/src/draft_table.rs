//! The table of successors that recycling drafts from, kept in a file from run to run.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use moi_engine::{DrafterChoice, Engine, Speculation, speculation::RecyclingTable};
use moi_models::{CausalLm, Decoder, is_gpu};

use crate::file;

/// The table of this process, and the file that it is written to at the end.
static KEPT: OnceLock<(PathBuf, Arc<Mutex<RecyclingTable>>)> = OnceLock::new();

/// The most bytes for each token of the vocabulary: successors as numbers of four bytes.
const MAX_BYTES_PER_TOKEN: u64 = 4 * 256;

/// Gives an engine the table in a file, or an empty one that will be written there.
///
/// # Errors
/// If the file cannot be read or written, holds something else, or nothing asks for the table.
pub(crate) fn with_table<B: Backend>(
    engine: Engine<B, Decoder<B>>,
    path: Option<&Path>,
    speculation: &Speculation,
) -> Result<Engine<B, Decoder<B>>> {
    let Some(path) = path else { return Ok(engine) };
    if !matches!(speculation.drafter, DrafterChoice::Recycling | DrafterChoice::Auto) {
        bail!("--draft-table keeps what recycling drafts from; use it with --speculate recycling or auto");
    }
    if is_gpu::<B>() && speculation.drafter == DrafterChoice::Auto {
        bail!("--draft-table has no use here: on a GPU `auto` is lookup alone; use --speculate recycling");
    }
    file::check(path)?;
    let vocab = engine.model().embedding().dims()[0];
    let engine = match File::open(path) {
        Ok(found) => {
            let mut bytes = Vec::new();
            let most = (vocab as u64 + 1) * MAX_BYTES_PER_TOKEN;
            found
                .take(most)
                .read_to_end(&mut bytes)
                .with_context(|| format!("{} cannot be read", path.display()))?;
            let Some(table) = RecyclingTable::from_bytes(&bytes, vocab) else {
                bail!(
                    "{} is no table of this model's {vocab} tokens; remove it, or name another file",
                    path.display()
                )
            };
            engine.with_recycling_table(table)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => engine,
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    // A process has one model, and so one table.
    let _ = KEPT.set((path.to_owned(), Arc::clone(engine.recycling_table())));
    Ok(engine)
}

/// Writes the table, if there is one to keep.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn save() -> Result<()> {
    let Some((path, table)) = KEPT.get() else { return Ok(()) };
    let bytes = table.lock().unwrap_or_else(PoisonError::into_inner).to_bytes();
    file::write_whole(path, &bytes)
}
