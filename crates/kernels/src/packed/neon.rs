//! NEON kernels: four rows of a tile in one register.
//!
//! Everything here is generic over how 8-bit products are summed. This file has the method of the baseline, which
//! widens products to 16 bits; `neon_dot` has the method of the dot-product extension.

use std::arch::aarch64::*;

use super::{Rows, Tile};
use crate::{BLOCK, PackedForm, ROWS, lanes::widen_f16};

/// A method of summing 8-bit products.
pub(super) trait Dot {
    /// Adds the products of sixteen columns of four rows to a sum for each row. A register of `weights` has four
    /// columns of four rows, and `x` the activations of all sixteen columns.
    ///
    /// # Safety
    /// The CPU must have the instructions of the implementation. Weights must have the bits of form `FORM`, and
    /// activations must not be below -127.
    unsafe fn dot<const FORM: usize>(sums: int32x4_t, weights: [int8x16_t; 4], x: int8x16_t) -> int32x4_t;
}

/// The method of the baseline, which widens products to 16 bits.
struct Widening;

impl Dot for Widening {
    #[inline(always)]
    unsafe fn dot<const FORM: usize>(sums: int32x4_t, weights: [int8x16_t; 4], x: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is part of the baseline.
        unsafe {
            let x = vreinterpretq_s32_s8(x);
            let x = [
                vdupq_laneq_s32::<0>(x),
                vdupq_laneq_s32::<1>(x),
                vdupq_laneq_s32::<2>(x),
                vdupq_laneq_s32::<3>(x),
            ];
            let add = |(low, high): (int16x8_t, int16x8_t), group: usize| {
                let (weights, x) = (weights[group], vreinterpretq_s8_s32(x[group]));
                let low = vmlal_s8(low, vget_low_s8(weights), vget_low_s8(x));
                (low, vmlal_high_s8(high, weights, x))
            };
            let zero = (vdupq_n_s16(0), vdupq_n_s16(0));
            let first = add(add(zero, 0), 1);
            let (low, high) = match const { PackedForm::ALL[FORM].bits() } {
                // The sum of two products with 8-bit weights fits in 16 bits (2 * 128 * 127), that of four does not.
                8 => {
                    let second = add(add(zero, 2), 3);
                    (vpadalq_s16(vpaddlq_s16(first.0), second.0), vpadalq_s16(vpaddlq_s16(first.1), second.1))
                }
                // The sum of four products with 6-bit weights fits (4 * 63 * 127).
                _ => {
                    let all = add(add(first, 2), 3);
                    (vpaddlq_s16(all.0), vpaddlq_s16(all.1))
                }
            };
            vaddq_s32(sums, vpaddq_s32(low, high))
        }
    }
}

/// The quants of four rows of a block, four columns in each register. Quants of 8 bits are signed, others unsigned.
///
/// # Safety
/// The block must be whole, `quarter` below four.
#[inline(always)]
unsafe fn groups<const FORM: usize>(block: *const u8, quarter: usize) -> [int8x16_t; 8] {
    let form = const { PackedForm::ALL[FORM] };
    let groups: [uint8x16_t; 8] = std::array::from_fn(|group| {
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let bytes = |index: usize| vld1q_u8(block.add(64 * index + 16 * quarter));
            if form.bits() == 8 {
                return veorq_u8(bytes(group), vdupq_n_u8(128));
            }
            // The low four bits are right; in even groups those of the next group are still above them.
            let low = match group % 2 {
                0 => bytes(group / 2),
                _ => vshrq_n_u8::<4>(bytes(group / 2)),
            };
            // `vsli` replaces the upper bits in one instruction. LLVM makes two or three of a selection by mask.
            match form.planes() {
                0 if group % 2 == 0 => vandq_u8(low, vdupq_n_u8(15)),
                0 => low,
                1 => vsliq_n_u8::<4>(low, vandq_u8(plane(block, 0, group, quarter), vdupq_n_u8(1))),
                _ => {
                    let (fifth, sixth) = (plane(block, 0, group, quarter), plane(block, 1, group, quarter));
                    let both = vandq_u8(vsliq_n_u8::<1>(fifth, sixth), vdupq_n_u8(3));
                    vsliq_n_u8::<4>(low, both)
                }
            }
        }
    });
    // SAFETY: NEON is part of the baseline.
    groups.map(|group| unsafe { vreinterpretq_s8_u8(group) })
}

/// The bits of a plane for a group, each as the lowest bit of its byte. The upper bits of the bytes are arbitrary.
///
/// # Safety
/// The block must be whole and have the plane, `group` be below eight and `quarter` below four.
#[inline(always)]
unsafe fn plane(block: *const u8, plane: usize, group: usize, quarter: usize) -> uint8x16_t {
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        // Two bytes hold the sixteen bits. The load starts six bytes before those of the pair's first group, which is
        // still within the block. So it never reads past the block, and the table below is the same for all quarters.
        let masks = vld1q_u8(block.add(256 - 6 + 64 * plane + 16 * (group / 2) + 2 * quarter));
        let at = (8 * (group % 2) + 6) as u8;
        let spread = vqtbl1q_u8(masks, vcombine_u8(vdup_n_u8(at), vdup_n_u8(at + 1)));
        // Byte k shifts its bit k % 8 to the bottom: a negative count shifts to the right.
        let right = vreinterpretq_s8_u64(vdupq_n_u64(0xf9fa_fbfc_fdfe_ff00));
        vshlq_u8(spread, right)
    }
}

/// Scales of both halves of the columns of four rows of a block (they differ only in Q6_K), and minima, which are to
/// be added.
///
/// # Safety
/// The block must be one of the tile's, which starts at `bytes`, and `quarter` below four.
#[inline(always)]
unsafe fn scales<const FORM: usize>(
    tile: Tile,
    block: usize,
    bytes: *const u8,
    quarter: usize,
) -> ([float32x4_t; 2], float32x4_t) {
    let form = const { PackedForm::ALL[FORM] };
    let at = block * BLOCK / form.span() * ROWS + 4 * quarter;
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        let numbers = |from: *const half::f16| widen_f16(vld1_u16(from.add(at).cast()));
        let d = numbers(tile.scales);
        let small = |which: usize| {
            let four = bytes.add(form.small_scales() + 16 * which + 4 * quarter).cast::<u32>();
            vcreate_u8(u64::from(four.read_unaligned()))
        };
        match form {
            PackedForm::Q6_K => {
                let wide = |which| {
                    let words = vmovl_s8(vreinterpret_s8_u8(small(which)));
                    vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)))
                };
                ([vmulq_f32(d, wide(0)), vmulq_f32(d, wide(1))], d)
            }
            PackedForm::Q4_K | PackedForm::Q5_K => {
                let wide = |which| vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(small(which)))));
                let m = vmulq_f32(numbers(tile.minima), wide(1));
                ([vmulq_f32(d, wide(0)); 2], vnegq_f32(m))
            }
            _ if form.has_minima() => ([d; 2], numbers(tile.minima)),
            _ => ([d; 2], d),
        }
    }
}

/// A block of a row of activations.
#[derive(Clone, Copy)]
struct Activations {
    quants: [int8x16_t; 2],
    scale: f32,
    /// Sum of the quants of each half.
    sums: [i32; 2],
    /// Sum of the dequantized values.
    scaled_sum: f32,
}

impl Activations {
    /// # Safety
    /// The row and the block must exist.
    #[inline(always)]
    unsafe fn load(x: Rows, row: usize, block: usize) -> Self {
        let at = row * x.blocks + block;
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let quants = x.quants.add(at * BLOCK);
            Self {
                quants: [vld1q_s8(quants), vld1q_s8(quants.add(16))],
                scale: *x.scales.add(at),
                sums: [*x.sums.add(2 * at), *x.sums.add(2 * at + 1)],
                scaled_sum: *x.scaled_sums.add(at),
            }
        }
    }

    /// Adds the scaled products with four rows of a block of form `FORM`.
    ///
    /// # Safety
    /// As for [`Dot::dot`].
    #[inline(always)]
    unsafe fn add_products<D: Dot, const FORM: usize>(
        &self,
        sum: float32x4_t,
        weights: &[int8x16_t; 8],
        (d, m): ([float32x4_t; 2], float32x4_t),
    ) -> float32x4_t {
        let form = const { PackedForm::ALL[FORM] };
        let offset = if form.bits() == 8 { 0 } else { form.offset() };
        let [first, second] = self.sums;
        let halves = weights.as_chunks::<4>().0;
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            // The sums start at what the form's offset contributes.
            let scaled = match form {
                PackedForm::Q6_K => {
                    let low = D::dot::<FORM>(vdupq_n_s32(-offset * first), halves[0], self.quants[0]);
                    let high = D::dot::<FORM>(vdupq_n_s32(-offset * second), halves[1], self.quants[1]);
                    vfmaq_f32(vmulq_f32(vcvtq_f32_s32(low), d[0]), vcvtq_f32_s32(high), d[1])
                }
                _ => {
                    let both = vdupq_n_s32(-offset * (first + second));
                    let both = D::dot::<FORM>(both, halves[0], self.quants[0]);
                    let both = D::dot::<FORM>(both, halves[1], self.quants[1]);
                    vmulq_f32(vcvtq_f32_s32(both), d[0])
                }
            };
            let sum = vfmaq_n_f32(sum, scaled, self.scale);
            match form.has_minima() {
                true => vfmaq_n_f32(sum, m, self.scaled_sum),
                false => sum,
            }
        }
    }
}

/// Adds the scaled products of a block's activations with four rows of the block.
///
/// # Safety
/// The block must be one of the tile's, and `quarter` below four. The CPU must have the instructions of `D`.
#[inline(always)]
unsafe fn add_quarter<D: Dot, const FORM: usize, const N: usize>(
    sums: &mut [float32x4_t; N],
    tile: Tile,
    block: usize,
    quarter: usize,
    x: &[Activations; N],
) {
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        let bytes = tile.words.cast::<u8>().add(block * const { PackedForm::ALL[FORM].block_bytes() });
        let weights = groups::<FORM>(bytes, quarter);
        let scales = scales::<FORM>(tile, block, bytes, quarter);
        for n in 0..N {
            sums[n] = x[n].add_products::<D, FORM>(sums[n], &weights, scales);
        }
    }
}

/// Products of a tile with `N` rows of activations from `row` on, summed by `D`.
///
/// # Safety
/// The tile and the rows must be whole and have equally many blocks; `out` must have a place for each row. The CPU
/// must have the instructions of `D`.
#[inline(always)]
pub(super) unsafe fn products_by<D: Dot, const FORM: usize, const N: usize>(
    tile: Tile,
    x: Rows,
    row: usize,
    out: *mut [f32; ROWS],
) {
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); N]; 4];
        for block in 0..tile.blocks {
            let x: [Activations; N] = std::array::from_fn(|n| Activations::load(x, row + n, block));
            // These calls are written out, because the compiler keeps a loop of them and then the sums in memory.
            add_quarter::<D, FORM, N>(&mut sums[0], tile, block, 0, &x);
            add_quarter::<D, FORM, N>(&mut sums[1], tile, block, 1, &x);
            add_quarter::<D, FORM, N>(&mut sums[2], tile, block, 2, &x);
            add_quarter::<D, FORM, N>(&mut sums[3], tile, block, 3, &x);
        }
        for (quarter, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                vst1q_f32(out.add(n).cast::<f32>().add(4 * quarter), sum);
            }
        }
    }
}

/// Products of a tile with `N` rows of activations from `row` on.
///
/// # Safety
/// The tile and the rows must be whole and have equally many blocks; `out` must have a place for each row.
// This is not inlined into its one caller, because there all forms would share that function's registers.
#[inline(never)]
pub(super) unsafe fn products<const FORM: usize, const N: usize>(
    tile: Tile,
    x: Rows,
    row: usize,
    out: *mut [f32; ROWS],
) {
    // SAFETY: the caller upholds this function's contract.
    unsafe { products_by::<Widening, FORM, N>(tile, x, row, out) }
}

/// Unpacks a block to float32, `[32 columns][16 rows]`.
///
/// # Safety
/// The block must be one of the tile's.
pub(super) unsafe fn unpack<const FORM: usize>(tile: Tile, block: usize, out: &mut [[f32; ROWS]; BLOCK]) {
    let form = const { PackedForm::ALL[FORM] };
    let offset = if form.bits() == 8 { 0 } else { form.offset() };
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        let bytes = tile.words.cast::<u8>().add(block * form.block_bytes());
        for quarter in 0..4 {
            let weights = groups::<FORM>(bytes, quarter);
            let (d, m) = scales::<FORM>(tile, block, bytes, quarter);
            for (group, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                // Subtracting the offset in 8 bits gives signed quants.
                let quants = vreinterpretq_s32_s8(vsubq_s8(weights[group], vdupq_n_s8(offset as i8)));
                let columns =
                    [vshlq_n_s32::<24>(quants), vshlq_n_s32::<16>(quants), vshlq_n_s32::<8>(quants), quants];
                for (column, out) in columns.into_iter().zip(out) {
                    let mut value = vmulq_f32(d[group / 4], vcvtq_f32_s32(vshrq_n_s32::<24>(column)));
                    if form.has_minima() {
                        value = vaddq_f32(value, m);
                    }
                    vst1q_f32(out.as_mut_ptr().add(4 * quarter), value);
                }
            }
        }
    }
}
