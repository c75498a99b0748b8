//! Normalization, as a part of other kernels.

use cubecl::prelude::*;

use crate::{Buffer, reduce::sum};

/// The options of a norm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square, or to the variance.
    pub eps: f32,
    /// Whether the mean is subtracted first (LayerNorm); else it is RMSNorm.
    pub centered: bool,
    /// Whether 1 is added to the weight, as in Gemma's norms.
    pub plus_one: bool,
}

/// A norm's parameters, of one type.
#[derive(Clone, Debug)]
pub struct NormWeights {
    /// Weights, `[width]`.
    pub weight: Buffer,
    /// Biases, `[width]`.
    pub bias: Option<Buffer>,
}

/// Compile-time constants of a norm. The default means that there is no norm.
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

/// The mean, and one over the root of the mean square, of the `width` numbers from `start` on. The mean is 0 unless
/// `centered`. All units of a cube must call this, and all get the result.
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

/// A normalized value, at index `at` of its row.
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
