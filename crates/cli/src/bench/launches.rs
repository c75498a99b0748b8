//! Counts the kernel launches of a step.

use anyhow::Result;
use burn::tensor::backend::Backend;
use moi_engine::Engine;
use moi_models::Decoder;
use tempfile::TempDir;

use super::{
    plan::Test,
    timing::{self, Drafts},
};

/// Starts to count kernel launches, into a directory that is removed on drop. Call it before a GPU is started.
///
/// # Errors
/// If a temporary directory cannot be created.
pub(super) fn count() -> Result<TempDir> {
    let directory = TempDir::with_prefix("moi-launches-")?;
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu", feature = "metal"))]
    moi_backends::count_launches(directory.path().join("launches.txt"));
    Ok(directory)
}

/// The number of launches until now.
fn so_far() -> Result<usize> {
    #[cfg(any(feature = "cuda", feature = "vulkan", feature = "wgpu", feature = "metal"))]
    return Ok(moi_backends::launches()?.values().sum());
    #[cfg(not(any(feature = "cuda", feature = "vulkan", feature = "wgpu", feature = "metal")))]
    Ok(0)
}

/// The launches per step of a row that generates: the difference between a longer and a shorter generation.
///
/// # Errors
/// If the device fails, or the file with the counts cannot be read.
pub(super) fn of_step<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    device: &B::Device,
    test: &Test,
) -> Result<Option<f64>> {
    const STEPS: usize = 4;
    if test.prompt > 0 || test.decode == 0 {
        return Ok(None);
    }
    let counted = |decode| {
        let before = so_far()?;
        timing::run(
            engine,
            device,
            &Test { decode, speculate: None, ..test.clone() },
            &Drafts::default(),
            None,
        )?;
        anyhow::Ok(so_far()? - before)
    };
    let few = counted(STEPS)?;
    Ok(Some((counted(2 * STEPS)? as f64 - few as f64) / STEPS as f64))
}
