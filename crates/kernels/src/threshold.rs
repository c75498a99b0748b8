//! Selects the weights of a distribution that are large enough to count.

use crate::{
    isa,
    lanes::dispatch,
    pool::{self, Shared},
    softmax::GRAIN,
};

/// The index of a row or token, and its weight.
pub(crate) type Weighted = (u32, f32);

/// Number of pieces of [`GRAIN`] weights that a thread takes at a time: fewer are not worth waking one.
const PIECES: usize = 16;

/// The highest threshold, on a grid of eighths of powers of two, such that the weights below it sum to at most
/// `allowed` times `sum`. The weights must not be negative.
///
/// The lowest threshold tried is valid for any weights: even if all of them were below it, their sum would not exceed
/// the limit. The search bisects the grid in five or six passes over the weights, which are in the CPU's cache: 1 MB
/// for 262,144 of them.
pub(crate) fn threshold(weights: &[f32], sum: f64, allowed: f64) -> f32 {
    let limit = sum * allowed;
    let lowest = limit / weights.len().max(1) as f64;
    let level = |step: u32| (lowest * (f64::from(step) / 8.0).exp2()) as f32;
    let (mut right, mut wrong) = (0, 8 * (usize::BITS - weights.len().leading_zeros()) + 1);
    while wrong - right > 1 {
        let middle = right + (wrong - right) / 2;
        match sum_below(weights, level(middle)) <= limit {
            true => right = middle,
            false => wrong = middle,
        }
    }
    level(right)
}

/// The sum of the weights below a threshold.
fn sum_below(weights: &[f32], threshold: f32) -> f64 {
    let parts = weights.len().div_ceil(PIECES * GRAIN);
    let mut sums = vec![0.0f64; parts];
    let shared = Shared::new(&mut sums);
    pool::run(parts, |part| {
        let own = &weights[part * PIECES * GRAIN..((part + 1) * PIECES * GRAIN).min(weights.len())];
        let sum = own.chunks(GRAIN).map(|piece| f64::from(piece_below(piece, threshold))).sum();
        // SAFETY: each part has a place of its own.
        unsafe { shared.slice(part, 1)[0] = sum };
    });
    sums.iter().sum()
}

fn piece_below(weights: &[f32], threshold: f32) -> f32 {
    dispatch!(isa(), |weights: &[f32], threshold: f32| -> f32 {
        let (chunks, rest) = weights.as_chunks::<64>();
        let mut sum: f32 = rest.iter().filter(|&&weight| weight < threshold).sum();
        // SAFETY: chunks of four times sixteen; the CPU has the instruction set.
        unsafe {
            // Four sums, so that an addition need not wait for the one before it.
            let mut sums = [L::splat(0.0); 4];
            for chunk in chunks {
                for (index, sum) in sums.iter_mut().enumerate() {
                    let weight = L::load(chunk.as_ptr().add(16 * index));
                    *sum = sum.add(weight.sub(weight.cut_below(threshold, weight)));
                }
            }
            sum += sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
        }
        sum
    })
}

/// The weights that are at least `threshold`, with their indices, in ascending order of these.
pub(crate) fn kept(weights: &[f32], threshold: f32) -> Vec<Weighted> {
    if threshold == f32::INFINITY {
        return Vec::new();
    }
    let len = GRAIN;
    let mut lists: Vec<Vec<Weighted>> = vec![Vec::new(); weights.len().div_ceil(len)];
    let shared = Shared::new(&mut lists);
    pool::run(weights.len().div_ceil(len), |part| {
        let own = &weights[part * len..((part + 1) * len).min(weights.len())];
        // SAFETY: each part has a list of its own.
        push_kept(own, (part * len) as u32, threshold, unsafe { &mut shared.slice(part, 1)[0] });
    });
    match lists.len() {
        1 => lists.swap_remove(0),
        _ => lists.concat(),
    }
}

fn push_kept(weights: &[f32], first: u32, threshold: f32, list: &mut Vec<Weighted>) {
    dispatch!(isa(), |weights: &[f32], first: u32, threshold: f32, list: &mut Vec<Weighted>| -> () {
        let (chunks, rest) = weights.as_chunks::<64>();
        for (index, chunk) in chunks.iter().enumerate() {
            // SAFETY: four times sixteen; the CPU has the instruction set.
            let largest = unsafe {
                let mut largest = L::load(chunk.as_ptr());
                for part in 1..4 {
                    largest = largest.max(L::load(chunk.as_ptr().add(16 * part)));
                }
                largest.largest()
            };
            // Most chunks of a vocabulary have no weight that is kept.
            if largest >= threshold {
                push(chunk, first + 64 * index as u32, threshold, list);
            }
        }
        push(rest, first + 64 * chunks.len() as u32, threshold, list);
    });
}

/// Appends the weights that are at least `threshold` without an unpredictable branch: every weight is written, and
/// the next one overwrites it if it does not count.
#[inline(always)]
fn push(weights: &[f32], first: u32, threshold: f32, list: &mut Vec<Weighted>) {
    let mut at = list.len();
    list.resize(at + weights.len(), (0, 0.0));
    for (row, &weight) in (first..).zip(weights) {
        list[at] = (row, weight);
        at += usize::from(weight >= threshold);
    }
    list.truncate(at);
}
