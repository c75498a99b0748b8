//! Products of a few inputs with matrices of any form.

use cubecl::prelude::*;

use crate::{
    Buffer, Device, PackedBuffer, dense,
    outcome::{MAX_ROWS, Map, Outcome},
    packed,
};

/// A matrix `[rows, width]`.
#[derive(Clone, Debug)]
pub enum Weights {
    /// Of floats.
    Dense(Buffer),
    /// Of blocks.
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

/// Products of `x` `[n, width]` in float32 with one to three matrices of one width: `[n, rows]` in float32 of each, or
/// of all together where the outcome is an activation.
///
/// `None` where there is no kernel: of more than [`MAX_ROWS`] inputs, of matrices of which some are packed and some are
/// not, or where the device has too little shared memory or too few bindings.
pub fn products<R: Runtime>(
    device: &Device<R>,
    x: &Buffer,
    n: usize,
    maps: &[Map<'_, &Weights>],
    outcome: Outcome,
) -> Option<Vec<Buffer>> {
    if n == 0 || n > MAX_ROWS || maps.is_empty() || maps.len() > 3 {
        return None;
    }
    let hardware = &device.client.properties().hardware;
    let gated = maps.len() == 2 && outcome != Outcome::Each;
    let shared = 32 * 16 * n.next_power_of_two() * size_of::<f32>() * if gated { 2 } else { 1 };
    if shared > hardware.max_shared_memory_size {
        return None;
    }
    fn pick<'a, W>(
        maps: &[Map<'a, &'a Weights>],
        of: fn(&'a Weights) -> Option<&'a W>,
    ) -> Option<Vec<Map<'a, &'a W>>> {
        let one = |map: &Map<'a, &'a Weights>| {
            Some(Map { weight: of(map.weight)?, bias: map.bias, rows: map.rows })
        };
        maps.iter().map(one).collect()
    }
    let bindings = hardware.max_bindings as usize;
    if let Some(maps) = pick(maps, Weights::dense) {
        let one_type = maps.iter().all(|map| map.weight.dtype == maps[0].weight.dtype);
        return (one_type && bindings >= 10).then(|| dense::launch(device, x, n, &maps, outcome));
    }
    let maps = pick(maps, Weights::packed)?;
    let one_type = maps.iter().all(|map| map.weight.scales.dtype == maps[0].weight.scales.dtype);
    (one_type && bindings >= 16).then(|| packed::launch(device, x, n, &maps, outcome))
}
