//! Normalization of rows.

use crate::{
    isa,
    lanes::{Lanes, dispatch},
    pool::{self, Unwritten},
};

/// A norm: RMSNorm (Zhang & Sennrich, arXiv 1910.07467), or LayerNorm, which subtracts the mean first.
#[derive(Clone, Copy, Debug)]
pub struct NormSpec<'a> {
    /// Weights, `[width]`.
    pub weight: &'a [f32],
    /// Biases, `[width]`.
    pub bias: Option<&'a [f32]>,
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// Whether the mean is subtracted first (LayerNorm).
    pub centered: bool,
    /// Added to each weight: 1 for Gemma's norms, else 0.
    pub plus: f32,
}

impl NormSpec<'_> {
    /// Number of values per row.
    pub fn width(&self) -> usize {
        self.weight.len()
    }
}

/// Normalizes rows of `spec.width()` values.
pub fn norm_rows(spec: &NormSpec<'_>, x: &[f32]) -> Vec<f32> {
    let width = spec.width().max(1);
    assert!(x.len().is_multiple_of(width), "whole rows");
    let mut out = Vec::new();
    let memory = Unwritten::new(&mut out, x.len());
    pool::run_ranges(x.len() / width, (1 << 15) / width, |start, end| {
        for row in start..end {
            // SAFETY: each row of `out`, which outlives the tasks, is written once.
            let out = unsafe { memory.zeroed(row * width, width) };
            norm_row(spec, &x[row * width..][..width], out);
        }
    });
    // SAFETY: all rows were written.
    unsafe { memory.written(&mut out) };
    out
}

fn norm_row(spec: &NormSpec<'_>, x: &[f32], out: &mut [f32]) {
    dispatch!(isa(), |spec: &NormSpec<'_>, x: &[f32], out: &mut [f32]| -> () {
        // SAFETY: the CPU has the instruction set.
        unsafe { normed::<L>(spec, x, out) }
    });
}

/// # Safety
/// The CPU must have the instruction set; all slices must have the norm's width.
#[inline(always)]
pub(crate) unsafe fn normed<L: Lanes>(spec: &NormSpec<'_>, x: &[f32], out: &mut [f32]) {
    let width = spec.width();
    let (x, out) = (&x[..width], &mut out[..width]);
    let vectors = width / 16 * 16;
    let count = width as f32;
    // SAFETY: all indices are below the width.
    unsafe {
        let mut mean = 0.0;
        if spec.centered {
            let mut sum = L::splat(0.0);
            for i in (0..vectors).step_by(16) {
                sum = sum.add(L::load(x.as_ptr().add(i)));
            }
            mean = (sum.sum() + x[vectors..].iter().sum::<f32>()) / count;
        }
        let middle = L::splat(mean);
        let mut squares = [L::splat(0.0); 2];
        for i in (0..vectors).step_by(16) {
            let value = L::load(x.as_ptr().add(i)).sub(middle);
            squares[i / 16 % 2] = value.mul_add(value, squares[i / 16 % 2]);
        }
        let rest: f32 = x[vectors..].iter().map(|value| (value - mean) * (value - mean)).sum();
        let square = squares[0].add(squares[1]).sum() + rest;
        let deviation = (square / count + spec.eps).sqrt();
        let plus = L::splat(spec.plus);
        let inverse = L::splat(1.0 / deviation);
        for i in (0..vectors).step_by(16) {
            let weight = L::load(spec.weight.as_ptr().add(i)).add(plus);
            let mut y = L::load(x.as_ptr().add(i)).sub(middle).mul(inverse).mul(weight);
            if let Some(bias) = spec.bias {
                y = y.add(L::load(bias.as_ptr().add(i)));
            }
            y.store(out.as_mut_ptr().add(i));
        }
        for i in vectors..width {
            let y = (x[i] - mean) / deviation * (spec.weight[i] + spec.plus);
            out[i] = y + spec.bias.map_or(0.0, |bias| bias[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_formula_in_float64() {
        for (width, centered, plus) in [(64, false, 0.0), (37, true, 0.0), (8, false, 1.0), (100, true, 1.0)]
        {
            let number = |i: usize| ((i * 71 % 113) as f32 - 50.0) * 0.07;
            let weight: Vec<f32> = (0..width).map(|i| 1.0 + 0.01 * number(i)).collect();
            let bias: Vec<f32> = (0..width).map(|i| number(3 * i)).collect();
            let x: Vec<f32> = (0..3 * width).map(number).collect();
            let spec =
                NormSpec { weight: &weight, bias: centered.then_some(&bias), eps: 1e-5, centered, plus };
            let out = norm_rows(&spec, &x);
            for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
                let mean = if centered { x.iter().sum::<f64>() / width as f64 } else { 0.0 };
                let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                for i in 0..width {
                    let y = (x[i] - mean) / (square + 1e-5).sqrt() * f64::from(weight[i] + plus);
                    let y = y + if centered { f64::from(bias[i]) } else { 0.0 };
                    assert!((y - f64::from(out[i])).abs() < 1e-5, "{y} {}", out[i]);
                }
            }
        }
    }
}
