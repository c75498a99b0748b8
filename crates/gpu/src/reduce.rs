//! Reductions over all units of a cube.

use cubecl::prelude::*;

/// Units per cube, in most kernels.
pub(crate) const UNITS: usize = 256;

/// Units that reduce what all units have written.
const SECOND: usize = 16;

/// Length of the shared memory that [`sum`], [`largest`] and [`before`] need.
pub(crate) const SHARED: usize = UNITS + SECOND;

/// The sum of the values of all [`UNITS`] units of a cube, returned to each. Calls may follow one another without a
/// barrier.
#[cube]
pub(crate) fn sum(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    shared[UNIT_POS as usize] = value;
    sync_cube();
    if UNIT_POS < SECOND as u32 {
        let mut part = 0.0f32;
        #[unroll]
        for i in 0..UNITS / SECOND {
            part += shared[UNIT_POS as usize + i * SECOND];
        }
        shared[UNITS + UNIT_POS as usize] = part;
    }
    sync_cube();
    let mut total = 0.0f32;
    #[unroll]
    for i in 0..SECOND {
        total += shared[UNITS + i];
    }
    total
}

/// The largest of the values of all [`UNITS`] units of a cube, returned to each.
#[cube]
pub(crate) fn largest(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    shared[UNIT_POS as usize] = value;
    sync_cube();
    if UNIT_POS < SECOND as u32 {
        let mut part = shared[UNIT_POS as usize];
        #[unroll]
        for i in 1..UNITS / SECOND {
            part = max(part, shared[UNIT_POS as usize + i * SECOND]);
        }
        shared[UNITS + UNIT_POS as usize] = part;
    }
    sync_cube();
    let mut total = shared[UNITS];
    #[unroll]
    for i in 1..SECOND {
        total = max(total, shared[UNITS + i]);
    }
    total
}

/// The sum of the values of the units before this one, in a cube of [`UNITS`] units.
#[cube]
pub(crate) fn before(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    const WIDTH: usize = UNITS / SECOND;
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    if unit < SECOND {
        let mut part = 0.0f32;
        #[unroll]
        for i in 0..WIDTH {
            part += shared[unit * WIDTH + i];
        }
        shared[UNITS + unit] = part;
    }
    sync_cube();
    let mut total = 0.0f32;
    for i in 0..unit / WIDTH {
        total += shared[UNITS + i];
    }
    for i in 0..unit % WIDTH {
        total += shared[unit / WIDTH * WIDTH + i];
    }
    // The shared memory must not be overwritten before all units have read it.
    sync_cube();
    total
}
