//! Activation functions of feed-forward blocks.

use std::f32::consts::{FRAC_2_SQRT_PI, SQRT_2};

use crate::{
    isa,
    lanes::{Lanes, dispatch},
    pool::{self, Shared},
};

/// The activation function that is applied to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gated {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x / (1 + e^(-1.702 x))`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
}

/// Computes `function(gate) * up` in place in `gate`; without `up`, `function(gate)`.
pub fn gated(function: Gated, gate: &mut [f32], up: Option<&[f32]>) {
    assert!(up.is_none_or(|up| up.len() == gate.len()), "as many values in both");
    let len = gate.len();
    let shared = Shared::new(gate);
    pool::run_ranges(len, 1 << 13, |start, end| {
        // SAFETY: the ranges are disjoint.
        let gate = unsafe { shared.slice(start, end - start) };
        some(function, gate, up.map(|up| &up[start..end]));
    });
}

fn some(function: Gated, gate: &mut [f32], up: Option<&[f32]>) {
    dispatch!(isa(), |function: Gated, gate: &mut [f32], up: Option<&[f32]>| -> () {
        // SAFETY: all loads and stores are inside chunks of sixteen; the CPU has the instruction set.
        unsafe {
            let (chunks, rest) = gate.as_chunks_mut::<16>();
            for (index, chunk) in chunks.iter_mut().enumerate() {
                let mut y = apply::<L>(function, L::load(chunk.as_ptr()));
                if let Some(up) = up {
                    y = y.mul(L::load(up.as_ptr().add(16 * index)));
                }
                y.store(chunk.as_mut_ptr());
            }
            if !rest.is_empty() {
                let mut padded = [0.0; 16];
                padded[..rest.len()].copy_from_slice(rest);
                apply::<L>(function, L::load(padded.as_ptr())).store(padded.as_mut_ptr());
                let done = 16 * chunks.len();
                for (i, value) in rest.iter_mut().enumerate() {
                    *value = padded[i] * up.map_or(1.0, |up| up[done + i]);
                }
            }
        }
    });
}

#[inline(always)]
unsafe fn apply<L: Lanes>(function: Gated, x: L) -> L {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        match function {
            Gated::Silu => x.mul(sigmoid(x)),
            // (1 + tanh y) / 2 is the sigmoid of 2y.
            Gated::GeluTanh => {
                let inner = x.mul(x).mul_add(L::splat(0.044_715), one).mul(x);
                x.mul(sigmoid(inner.mul(L::splat(SQRT_2 * FRAC_2_SQRT_PI))))
            }
            Gated::QuickGelu => x.mul(sigmoid(x.mul(L::splat(1.702)))),
            // In this order of arguments `max` returns NaN where x is NaN.
            Gated::Relu => zero.max(x),
            Gated::ReluSquared => zero.max(x).mul(zero.max(x)),
        }
    }
}

/// `1 / (1 + e^-x)`. `exp` is at most `e^88`, where the quotient is below float32's smallest normal number.
#[inline(always)]
unsafe fn sigmoid<L: Lanes>(x: L) -> L {
    // SAFETY: the caller has the instruction set.
    unsafe {
        let one = L::splat(1.0);
        one.div(one.add(L::splat(0.0).sub(x).exp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agree_with_the_formulas_in_float64() {
        let x: Vec<f32> = (-600..603).map(|i| i as f32 * 0.05).collect();
        let up: Vec<f32> = x.iter().map(|x| 0.5 - x * 0.1).collect();
        let formula = |function: Gated, x: f64| match function {
            Gated::Silu => x / (1.0 + (-x).exp()),
            Gated::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Gated::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Gated::Relu => x.max(0.0),
            Gated::ReluSquared => x.max(0.0).powi(2),
        };
        for function in [Gated::Silu, Gated::GeluTanh, Gated::QuickGelu, Gated::Relu, Gated::ReluSquared] {
            let (mut with, mut without) = (x.clone(), x.clone());
            gated(function, &mut with, Some(&up));
            gated(function, &mut without, None);
            for i in 0..x.len() {
                let expected = formula(function, x[i].into());
                let near = |found: f32, expected: f64| {
                    (f64::from(found) - expected).abs() <= 2e-6 * expected.abs() + 1e-7
                };
                assert!(near(without[i], expected), "{function:?}({}) = {} {expected}", x[i], without[i]);
                assert!(near(with[i], expected * f64::from(up[i])));
            }
        }
    }
}
