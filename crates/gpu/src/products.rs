//! Products of a few inputs with matrices of any form.

use cubecl::prelude::*;

use crate::{
    Buffer, Device, PackedBuffer, dense,
    outcome::{MAX_ROWS, Outcome, Product},
    packed,
};

/// A weight matrix `[rows, width]`.
#[derive(Clone, Debug)]
pub enum Weights {
    /// Rows of floats.
    Dense(Buffer),
    /// Quantized blocks.
    Packed(PackedBuffer),
}

impl Weights {
    pub(crate) fn dense(&self) -> Option<&Buffer> {
        match self {
            Self::Dense(buffer) => Some(buffer),
            Self::Packed(_) => None,
        }
    }

    pub(crate) fn packed(&self) -> Option<&PackedBuffer> {
        match self {
            Self::Packed(buffer) => Some(buffer),
            Self::Dense(_) => None,
        }
    }
}

/// Products of `x` `[n, width]` in float32 with one to three matrices of one width: `[n, rows]` in float32 for each,
/// or for all together if the outcome is an activation.
///
/// `None` where there is no kernel: for more than [`MAX_ROWS`] inputs, if some matrices are packed and others are
/// not, or if the device has too little shared memory or too few bindings.
pub fn products<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    n: usize,
    all: &[Product<'_, &Weights>],
    outcome: Outcome,
) -> Option<Vec<Buffer>> {
    if n == 0 || n > MAX_ROWS || all.is_empty() || all.len() > 3 {
        return None;
    }
    let hardware = &device.client.properties().hardware;
    let gated = all.len() == 2 && outcome != Outcome::Each;
    let shared = 32 * 16 * n.next_power_of_two() * size_of::<f32>() * if gated { 2 } else { 1 };
    if shared > hardware.max_shared_memory_size {
        return None;
    }
    fn pick<'a, W>(
        all: &[Product<'a, &'a Weights>],
        of: fn(&'a Weights) -> Option<&'a W>,
    ) -> Option<Vec<Product<'a, &'a W>>> {
        let one = |map: &Product<'a, &'a Weights>| {
            Some(Product { weight: of(map.weight)?, bias: map.bias, rows: map.rows })
        };
        all.iter().map(one).collect()
    }
    let bindings = hardware.max_bindings as usize;
    if let Some(all) = pick(all, Weights::dense) {
        let one_type = all.iter().all(|product| product.weight.dtype == all[0].weight.dtype);
        return (one_type && bindings >= 10).then(|| dense::launch(device, x, n, &all, outcome));
    }
    let all = pick(all, Weights::packed)?;
    let one_type = all.iter().all(|product| product.weight.scales.dtype == all[0].weight.scales.dtype);
    (one_type && bindings >= 16).then(|| packed::launch(device, x, n, &all, outcome))
}
