//! What products have in common, whatever the form of the weights: the linear layers of one input, and what is done
//! with their sums.

use cubecl::{ir::StorageType, prelude::*};

use crate::{Buffer, Device};

/// Maximum number of inputs of a launch.
pub const MAX_ROWS: usize = 8;

/// Rows of a matrix that a cube computes: as many as a tile of packed weights has.
pub(crate) const TILE: usize = 16;

/// A linear layer: a matrix of any form, `[rows, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a, W> {
    /// The matrix.
    pub weight: W,
    /// Biases, `[rows]`. Either all layers of a launch have biases, of the same type, or none has.
    pub bias: Option<&'a Buffer>,
    /// Number of outputs.
    pub rows: usize,
}

/// What is done with the products.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Outcome {
    /// Each layer has an output of its own.
    Each,
    /// One layer's output is `activation(y)`; that of two layers is `activation(y) * y'`.
    Activated(Activation),
}

/// The activation function of a feed-forward block.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x).
    Silu,
    /// The exact GELU, with the error function.
    Gelu,
    /// The approximation of GELU with tanh.
    GeluTanh,
    /// x sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2.
    ReluSquared,
    /// x sigmoid(1.702 x) of the gate, which is limited from above, times one more than the up value, which is
    /// limited in both directions. It holds the bits of the limit: see [`Self::clamped`].
    ClampedSwiGlu(u32),
}

impl Activation {
    /// [`Self::ClampedSwiGlu`] with this limit.
    pub fn clamped(limit: f32) -> Self {
        Self::ClampedSwiGlu(limit.to_bits())
    }

    fn limit(self) -> Option<f32> {
        match self {
            Self::ClampedSwiGlu(bits) => Some(f32::from_bits(bits)),
            _ => None,
        }
    }
}

/// Compile-time constants of a kernel.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct Fixed {
    /// Number of inputs, rounded up to a power of two.
    pub(crate) batch: usize,
    pub(crate) count: usize,
    pub(crate) lanes: usize,
    pub(crate) bias: bool,
    activation: Option<Activation>,
}

impl Fixed {
    pub(crate) fn new<W>(n: usize, products: &[Product<'_, W>], outcome: Outcome, lanes: usize) -> Self {
        let bias = some_bias(products).is_some();
        let activation = match outcome {
            Outcome::Each => None,
            Outcome::Activated(activation) => Some(activation),
        };
        Self { batch: n.next_power_of_two(), count: products.len(), lanes, bias, activation }
    }

    pub(crate) fn gated(&self) -> bool {
        self.activation.is_some() && self.count == 2
    }

    pub(crate) fn outputs(&self) -> usize {
        if self.gated() { 1 } else { self.count }
    }
}

/// Number of partial sums in a cube's shared memory.
pub(crate) fn partials(fixed: Fixed) -> usize {
    fixed.lanes * TILE * fixed.batch * if fixed.gated() { 2 } else { 1 }
}

const ROOT_OF_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;
const ROOT_OF_2_BY_PI: f32 = 0.797_884_6;

#[cube]
pub(crate) fn activated(x: f32, #[comptime] activation: Activation) -> f32 {
    match comptime![activation] {
        Activation::Silu => x / (1.0f32 + (-x).exp()),
        Activation::Gelu => 0.5f32 * x * (1.0f32 + Erf::erf(x * ROOT_OF_HALF)),
        Activation::GeluTanh => {
            0.5f32 * x * (1.0f32 + (ROOT_OF_2_BY_PI * (x + 0.044715f32 * x * x * x)).tanh())
        }
        Activation::QuickGelu | Activation::ClampedSwiGlu(_) => x / (1.0f32 + (-1.702f32 * x).exp()),
        Activation::Relu => max(x, 0.0f32),
        Activation::ReluSquared => {
            let positive = max(x, 0.0f32);
            positive * positive
        }
    }
}

#[cube]
pub(crate) fn total(shared: &SharedMemory<f32>, #[comptime] fixed: Fixed, #[comptime] offset: usize) -> f32 {
    let mut total = 0.0f32;
    for lane in 0..comptime![fixed.lanes] {
        total += shared[offset + lane * comptime![fixed.batch * TILE] + UNIT_POS as usize];
    }
    total
}

/// Adds up the partial sums of a tile's rows, applies biases and activation, and writes the results to `out` from
/// `first_out` on. The biases begin at `first_bias`.
#[cube]
pub(crate) fn finish<V: Float>(
    shared: &SharedMemory<f32>,
    bias: &Array<V>,
    other_bias: &Array<V>,
    out: &mut Array<f32>,
    first_bias: usize,
    first_out: usize,
    tile: usize,
    rows: usize,
    n: usize,
    #[comptime] fixed: Fixed,
) {
    let (b, row) = (UNIT_POS as usize / TILE, tile * TILE + UNIT_POS as usize % TILE);
    if b < n && row < rows {
        let mut y = total(shared, fixed, 0usize);
        if comptime![fixed.bias] {
            y += f32::cast_from(bias[first_bias + row]);
        }
        if comptime![fixed.activation.is_some()] {
            let activation = comptime![fixed.activation.unwrap_or(Activation::Relu)];
            let limit = comptime![activation.limit()];
            if comptime![limit.is_some()] {
                y = min(y, comptime![limit.unwrap_or(0.0)].runtime());
            }
            y = activated(y, activation);
            if comptime![fixed.gated()] {
                let mut other = total(shared, fixed, comptime![partials(fixed) / 2]);
                if comptime![fixed.bias] {
                    other += f32::cast_from(other_bias[first_bias + row]);
                }
                if comptime![limit.is_some()] {
                    let limit = comptime![limit.unwrap_or(0.0)].runtime();
                    other = max(min(other, limit), -limit) + 1.0f32;
                }
                y *= other;
            }
        }
        out[first_out + b * rows + row] = y;
    }
}

/// Biases, outputs and sizes of a launch.
pub(crate) struct Bindings {
    biases: [Buffer; 3],
    pub(crate) bias_type: StorageType,
    pub(crate) outs: [Buffer; 3],
    pub(crate) rows: [u32; 3],
    pub(crate) cubes: usize,
}

impl Bindings {
    pub(crate) fn new<R: Runtime, W>(
        device: &Device<R>,
        n: usize,
        products: &[Product<'_, W>],
        fixed: Fixed,
    ) -> Self {
        let rows = |i: usize| products.get(i).map_or(0, |product| product.rows);
        let written = |i: usize| if i < fixed.outputs() { n * rows(i) } else { 1 };
        let outs = [0, 1, 2].map(|i| device.floats(written(i)));
        // Buffers that stand in for absent biases are never read.
        let biases = [0, 1, 2].map(|i| {
            products
                .get(i)
                .and_then(|product| product.bias)
                .unwrap_or_else(|| some_bias(products).unwrap_or(&outs[0]))
                .clone()
        });
        let bias_type = some_bias(products).unwrap_or(&outs[0]).dtype;
        let cubes = (0..fixed.outputs()).map(|i| rows(i).div_ceil(TILE)).sum();
        Self { biases, bias_type, outs, rows: [0, 1, 2].map(|i| rows(i) as u32), cubes }
    }

    pub(crate) fn biases<R: Runtime>(&self) -> [ArrayArg<R>; 3] {
        self.biases.each_ref().map(Buffer::numbers)
    }
}

fn some_bias<'a, W>(products: &[Product<'a, W>]) -> Option<&'a Buffer> {
    products.iter().find_map(|product| product.bias)
}
