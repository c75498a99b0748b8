//! NEON with the dot-product extension: one instruction adds sixteen products in 8 bits to the sums of four rows.

use std::arch::{aarch64::*, asm};

use super::{
    Rows, Tile,
    neon::{Dot, products_by},
};
use crate::ROWS;

/// The method of the dot-product extension.
struct DotProduct;

impl Dot for DotProduct {
    #[inline(always)]
    unsafe fn dot<const FORM: usize>(sums: int32x4_t, weights: [int8x16_t; 4], x: int8x16_t) -> int32x4_t {
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let sums = add_group::<0>(sums, weights[0], x);
            let sums = add_group::<1>(sums, weights[1], x);
            let sums = add_group::<2>(sums, weights[2], x);
            add_group::<3>(sums, weights[3], x)
        }
    }
}

/// Adds the products of four columns of four rows with the `GROUP`-th four of the activations.
///
/// This is assembly because the intrinsic is unstable in Rust 1.95. As an intrinsic does, it enables the extension
/// itself and is inlined into a function that enables it too, [`products`]. A closure in between, which does not
/// inherit the extension, could prevent that.
///
/// # Safety
/// The CPU must have the extension.
#[inline]
#[target_feature(enable = "dotprod")]
unsafe fn add_group<const GROUP: usize>(mut sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the CPU has the extension, and the instruction only computes one register from others.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {x:v}.4b[{group}]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            x = in(vreg) x,
            group = const GROUP,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Products of a tile with `N` rows of activations from `row` on.
///
/// # Safety
/// The tile and the rows must be whole and have equally many blocks; `out` must have a place for each row. The CPU
/// must have the extension.
#[target_feature(enable = "dotprod")]
pub(super) unsafe fn products<const FORM: usize, const N: usize>(
    tile: Tile,
    x: Rows,
    row: usize,
    out: *mut [f32; ROWS],
) {
    // SAFETY: the caller upholds this function's contract.
    unsafe { products_by::<DotProduct, FORM, N>(tile, x, row, out) }
}
