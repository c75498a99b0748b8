//! Which of many weights count.

use crate::{
    isa,
    lanes::dispatch,
    pool::{self, Shared},
    softmax::GRAIN,
};

/// A number of a row or token, and its weight.
pub(crate) type Weighted = (u32, f32);

/// Pieces of [`GRAIN`] weights that a thread takes at a time: fewer are not worth waking one for.
const PIECES: usize = 16;

/// The highest threshold found on a grid of eighths of powers of two below which the weights, which are not negative, sum to
/// at most `allowed` times `sum`.
///
/// The lowest one that is tried is right whatever the weights are: all of them below it would still not be too much. The
/// search halves what is left of the grid, in five or six passes over weights that are in the cache: 1 MB for 262,144
/// of them.
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
        // SAFETY: each part has its own place.
        unsafe { shared.slice(part, 1)[0] = sum };
    });
    sums.iter().sum()
}

fn piece_below(weights: &[f32], threshold: f32) -> f32 {
    dispatch!(isa(), |weights: &[f32], threshold: f32| -> f32 {
        let (chunks, rest) = weights.as_chunks::<64>();
        let mut sum: f32 = rest.iter().filter(|&&weight| weight < threshold).sum();
        // SAFETY: chunks of four times sixteen; the instruction set is there.
        unsafe {
            // Four sums, that one does not wait for the last.
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

/// The weights that are at least `threshold`, with the numbers of their rows, in order.
pub(crate) fn kept(weights: &[f32], threshold: f32) -> Vec<Weighted> {
    if threshold == f32::INFINITY {
        return Vec::new();
    }
    let len = GRAIN;
    let mut lists: Vec<Vec<Weighted>> = vec![Vec::new(); weights.len().div_ceil(len)];
    let shared = Shared::new(&mut lists);
    pool::run(weights.len().div_ceil(len), |part| {
        let own = &weights[part * len..((part + 1) * len).min(weights.len())];
        // SAFETY: each part has its own list.
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
            // SAFETY: four times sixteen; the instruction set is there.
            let largest = unsafe {
                let mut largest = L::load(chunk.as_ptr());
                for part in 1..4 {
                    largest = largest.max(L::load(chunk.as_ptr().add(16 * part)));
                }
                largest.largest()
            };
            // Most of a vocabulary has nothing to be kept.
            if largest >= threshold {
                push(chunk, first + 64 * index as u32, threshold, list);
            }
        }
        push(rest, first + 64 * chunks.len() as u32, threshold, list);
    });
}

/// Without a branch that is taken now and then: each weight is written, and the next one over those that do not count.
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
