//! What the memory that weights are read from can do: a copy, measured beside everything else.

use std::{thread, time::Instant};

use anyhow::{Result, anyhow};
use burn::tensor::{DType, Tensor, backend::Backend};

/// Of what is copied: more than any cache holds.
const BYTES: usize = 1 << 28;
/// Of which the best counts.
const ROUNDS: usize = 3;

/// Bytes read plus bytes written per second by so many threads of the processor.
pub(super) fn of_processor(threads: usize) -> f64 {
    let from = vec![1u8; BYTES];
    let mut to = vec![0u8; BYTES];
    let piece = BYTES.div_ceil(threads.max(1));
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        thread::scope(|scope| {
            for (to, from) in to.chunks_mut(piece).zip(from.chunks(piece)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        best = best.min(begun.elapsed().as_secs_f64());
    }
    std::hint::black_box(&to);
    2.0 * BYTES as f64 / best
}

/// Bytes read plus bytes written per second by a GPU with so many bytes of memory: a tensor's values plus one are another
/// tensor. Small GPUs bind small buffers, so there less is copied.
///
/// # Errors
/// If the device fails.
pub(super) fn of_device<B: Backend>(device: &B::Device, memory: Option<u64>) -> Result<f64> {
    /// Seconds that one round should take at least, so that its start does not count.
    const ROUND: f64 = 0.05;
    let bytes = memory.map_or(BYTES, |memory| BYTES.min(memory as usize / 32)).max(1 << 20);
    let values = Tensor::<B, 1>::ones([bytes / 4], (device, DType::F32));
    let seconds = |copies: usize| -> Result<f64> {
        let begun = Instant::now();
        for _ in 0..copies {
            drop(values.clone().add_scalar(1.0));
        }
        wait::<B>(device)?;
        Ok(begun.elapsed().as_secs_f64() / copies as f64)
    };
    // The kernel is compiled, then tried.
    seconds(1)?;
    let copies = (ROUND / seconds(1)?).clamp(1.0, 100.0) as usize;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        best = best.min(seconds(copies)?);
    }
    Ok(2.0 * bytes as f64 / best)
}

/// Until everything is computed.
///
/// # Errors
/// If the device fails.
pub(super) fn wait<B: Backend>(device: &B::Device) -> Result<()> {
    B::sync(device).map_err(|error| anyhow!("the device fails: {error}"))
}
