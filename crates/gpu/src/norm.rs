//! Norms, as other kernels apply them.

use cubecl::prelude::*;

use crate::{Buffer, reduce::sum};

/// What a norm does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f32,
    /// Whether the mean is taken away first: LayerNorm; else RMSNorm.
    pub centered: bool,
    /// Whether 1 is added to the weight, as Gemma has it.
    pub plus_one: bool,
}

/// A norm's parameters, in one type.
#[derive(Clone, Debug)]
pub struct NormWeights {
    /// `[width]`.
    pub weight: Buffer,
    /// `[width]`.
    pub bias: Option<Buffer>,
}

/// What is known of a norm when a kernel is compiled; by default that there is none.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) is_there: bool,
    pub(crate) centered: bool,
    pub(crate) plus_one: bool,
    pub(crate) has_bias: bool,
}

impl Fixed {
    pub(crate) fn new(spec: &NormSpec, weights: &NormWeights) -> Self {
        let &NormSpec { centered, plus_one, .. } = spec;
        Self { is_there: true, centered, plus_one, has_bias: weights.bias.is_some() }
    }
}

/// Mean and one over the root of the mean square of numbers from `start` on, for all units of a cube.
#[cube]
pub(crate) fn statistics<B: Float>(
    values: &Array<B>,
    start: usize,
    width: usize,
    eps: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] centered: bool,
) -> (f32, f32) {
    let mut mean = 0.0f32;
    if comptime![centered] {
        let mut total = 0.0f32;
        for i in range_stepped(UNIT_POS as usize, width, CUBE_DIM as usize) {
            total += f32::cast_from(values[start + i]);
        }
        mean = sum(total, shared) / width as f32;
    }
    let mut squares = 0.0f32;
    for i in range_stepped(UNIT_POS as usize, width, CUBE_DIM as usize) {
        let value = f32::cast_from(values[start + i]) - mean;
        squares += value * value;
    }
    let factor = (sum(squares, shared) / width as f32 + eps).inverse_sqrt();
    (mean, factor)
}

/// A number behind the norm.
#[cube]
pub(crate) fn scaled<W: Float>(
    value: f32,
    mean: f32,
    factor: f32,
    weight: &Array<W>,
    bias: &Array<W>,
    at: usize,
    #[comptime] fixed: Fixed,
) -> f32 {
    let mut by = f32::cast_from(weight[at]);
    if comptime![fixed.plus_one] {
        by += 1.0;
    }
    let mut out = (value - mean) * factor * by;
    if comptime![fixed.has_bias] {
        out += f32::cast_from(bias[at]);
    }
    out
}
