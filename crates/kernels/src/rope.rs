//! Prepares the heads of a projection for attention: norm, rotary embedding, scaling, and conversion to the cache's
//! type.

use half::{bf16, f16};

use crate::{
    NormSpec, isa,
    lanes::{Lanes, dispatch},
    norm::normed,
    pool::{self, Unwritten},
};

/// The operations on the heads `[positions, heads, head_dim]` of a projection.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// Number of positions.
    pub positions: usize,
    /// Number of heads.
    pub heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// A norm over each head, applied first.
    pub norm: Option<NormSpec<'a>>,
    /// Cosines and sines `[positions, dims]`, and `dims`: the first `dims` values of a head are rotated, where value
    /// `i` is paired with value `i + dims / 2`.
    pub angles: Option<(&'a [f32], &'a [f32], usize)>,
    /// A factor, applied last.
    pub scale: f32,
}

/// A type that heads can be converted to.
pub trait HeadValue: Copy + Send + Default {
    /// Converts from float32, rounding to even. Both slices must have the same length.
    fn narrow(values: &[f32], out: &mut [Self]);
}

impl HeadValue for f32 {
    fn narrow(values: &[f32], out: &mut [Self]) {
        out.copy_from_slice(values);
    }
}

impl HeadValue for f16 {
    fn narrow(values: &[f32], out: &mut [Self]) {
        dispatch!(isa(), |values: &[f32], out: &mut [f16]| -> () {
            let (chunks, rest) = values.as_chunks::<16>();
            let (places, last) = out.as_chunks_mut::<16>();
            for (chunk, place) in chunks.iter().zip(places) {
                // SAFETY: both have sixteen values, and float16 has the layout of its bits; the CPU has the
                // instruction set.
                unsafe { L::load(chunk.as_ptr()).store_f16(place.as_mut_ptr().cast()) };
            }
            last.iter_mut().zip(rest).for_each(|(out, &value)| *out = f16::from_f32(value));
        });
    }
}

impl HeadValue for bf16 {
    fn narrow(values: &[f32], out: &mut [Self]) {
        out.iter_mut().zip(values).for_each(|(out, &value)| *out = bf16::from_f32(value));
    }
}

/// Normalizes, rotates and scales heads.
pub fn rotate_heads<T: HeadValue>(rotated: &Rotary<'_>, x: &[f32]) -> Vec<T> {
    let &Rotary { positions, heads, head_dim, .. } = rotated;
    assert!(x.len() == positions * heads * head_dim, "the heads of all positions");
    let mut out = Vec::new();
    let memory = Unwritten::new(&mut out, x.len());
    let row = heads * head_dim;
    pool::run_ranges(positions, (1 << 13) / row.max(1), |start, end| {
        let mut head = vec![0.0; head_dim];
        for position in start..end {
            for h in 0..heads {
                let at = position * row + h * head_dim;
                one(rotated, position, &x[at..][..head_dim], &mut head);
                // SAFETY: each head has a place of its own in the vector, which is alive.
                T::narrow(&head, unsafe { memory.zeroed(at, head_dim) });
            }
        }
    });
    // SAFETY: the heads of all positions were written.
    unsafe { memory.written(&mut out) };
    out
}

fn one(rotated: &Rotary<'_>, position: usize, x: &[f32], out: &mut [f32]) {
    dispatch!(isa(), |rotated: &Rotary<'_>, position: usize, x: &[f32], out: &mut [f32]| -> () {
        // SAFETY: the CPU has the instruction set.
        unsafe { head::<L>(rotated, position, x, out) }
    });
}

#[inline(always)]
unsafe fn head<L: Lanes>(rotated: &Rotary<'_>, position: usize, x: &[f32], out: &mut [f32]) {
    match &rotated.norm {
        // SAFETY: the caller has the instruction set.
        Some(norm) => unsafe { normed::<L>(norm, x, out) },
        None => out.copy_from_slice(x),
    }
    if let Some((cos, sin, dims)) = rotated.angles {
        let at = position * dims;
        let (cos, sin) = (&cos[at..at + dims], &sin[at..at + dims]);
        let (low, high) = out[..dims].split_at_mut(dims / 2);
        for i in 0..dims / 2 {
            let (a, b) = (low[i], high[i]);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i + dims / 2] + a * sin[i + dims / 2];
        }
    }
    if rotated.scale != 1.0 {
        out.iter_mut().for_each(|value| *value *= rotated.scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_normed_turned_and_scaled() {
        let (positions, heads, head_dim, dims) = (6, 2, 6, 4);
        let x: Vec<f32> = (0..positions * heads * head_dim).map(|i| (i % 17) as f32 - 5.0).collect();
        let angle = |i: usize| 0.3 * i as f32 + 0.1;
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (0..positions * dims).map(|i| (angle(i).cos(), angle(i).sin())).unzip();
        let weight: Vec<f32> = (0..head_dim).map(|i| i as f32 + 0.5).collect();
        let norm = NormSpec { weight: &weight, bias: None, eps: 0.0, centered: false, plus: 0.0 };
        let angles = Some((&cos[..], &sin[..], dims));
        let rotated = Rotary { positions, heads, head_dim, norm: Some(norm), angles, scale: 2.0 };
        let out = rotate_heads::<f32>(&rotated, &x);
        let half = rotate_heads::<f16>(&rotated, &x);
        for position in 0..positions {
            for head in 0..heads {
                let from = (position * heads + head) * head_dim;
                let x = &x[from..from + head_dim];
                let mean = x.iter().map(|x| x * x).sum::<f32>() / head_dim as f32;
                let mut y: Vec<f32> = (0..head_dim).map(|i| x[i] / mean.sqrt() * weight[i]).collect();
                let z = y.clone();
                for i in 0..2 {
                    let (c, d) = (position * dims + i, position * dims + i + 2);
                    y[i] = z[i] * cos[c] - z[i + 2] * sin[c];
                    y[i + 2] = z[i + 2] * cos[d] + z[i] * sin[d];
                }
                for i in 0..head_dim {
                    assert!((out[from + i] - 2.0 * y[i]).abs() < 1e-4);
                    assert_eq!(f16::from_f32(out[from + i]), half[from + i]);
                }
            }
        }
    }
}
