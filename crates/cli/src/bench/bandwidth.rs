//! Measures the bandwidth of the memory that holds the weights, with a copy during the same run.

use std::{thread, time::Instant};

use anyhow::{Result, anyhow};
use burn::tensor::{DType, Tensor, backend::Backend};

/// Bytes of one copy: more than any cache holds.
const BYTES: usize = 1 << 28;
/// Number of copies; the fastest one counts.
const ROUNDS: usize = 3;

/// Bytes read plus bytes written per second, for a copy by this number of CPU threads.
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

/// Bytes read plus bytes written per second on a GPU with `memory` bytes. The copy is an elementwise `x + 1`, which
/// reads one tensor and writes another. GPUs with little memory limit the size of a buffer, so the copy is smaller
/// there.
///
/// # Errors
/// If the device fails.
pub(super) fn of_device<B: Backend>(device: &B::Device, memory: Option<u64>) -> Result<f64> {
    /// Seconds that one round should take at least, so that the launch does not count.
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
    // The first run compiles the kernel; the second is a trial that gives the number of copies.
    seconds(1)?;
    let copies = (ROUND / seconds(1)?).clamp(1.0, 100.0) as usize;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        best = best.min(seconds(copies)?);
    }
    Ok(2.0 * bytes as f64 / best)
}

/// Waits until the device has computed everything.
///
/// # Errors
/// If the device fails.
pub(super) fn wait<B: Backend>(device: &B::Device) -> Result<()> {
    B::sync(device).map_err(|error| anyhow!("the device fails: {error}"))
}
