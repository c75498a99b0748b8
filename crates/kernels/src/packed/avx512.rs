//! AVX-512 kernels: sixteen rows of a tile in one register.

use std::arch::x86_64::*;

use super::{Rows, Tile};
use crate::{BLOCK, PackedForm, ROWS, packed::prefetch_ahead};

/// The unsigned quants of a block, four columns of sixteen rows in each register.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
pub(super) unsafe fn groups<const FORM: usize>(block: *const u8) -> [__m512i; 8] {
    let form = const { PackedForm::ALL[FORM] };
    let mut groups = [_mm512_setzero_si512(); 8];
    // SAFETY: the caller passes a whole block.
    unsafe {
        if form.bits() == 8 {
            for (index, group) in groups.iter_mut().enumerate() {
                *group = _mm512_loadu_si512(block.add(64 * index).cast());
            }
            return groups;
        }
        let low = _mm512_set1_epi8(15);
        for chunk in 0..4 {
            let both = _mm512_loadu_si512(block.add(64 * chunk).cast());
            groups[2 * chunk] = _mm512_and_si512(both, low);
            groups[2 * chunk + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
        }
        for plane in 0..form.planes() {
            let bit = _mm512_set1_epi8(16 << plane);
            let masks = block.add(256 + 64 * plane).cast::<u64>();
            for (index, group) in groups.iter_mut().enumerate() {
                let mask = masks.add(index).read_unaligned();
                *group = _mm512_mask_add_epi8(*group, mask, *group, bit);
            }
        }
    }
    groups
}

/// Scales of both halves of the columns of a block (they differ only in Q6_K), and minima, which are to be added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
pub(super) unsafe fn scales<const FORM: usize>(
    tile: Tile,
    block: usize,
    bytes: *const u8,
) -> ([__m512; 2], __m512) {
    let form = const { PackedForm::ALL[FORM] };
    let at = block * BLOCK / form.span() * ROWS;
    // SAFETY: the caller passes a block of the tile.
    unsafe {
        let numbers = |from: *const half::f16| _mm512_cvtph_ps(_mm256_loadu_si256(from.add(at).cast()));
        let d = numbers(tile.scales);
        let small = |which: usize| _mm_loadu_si128(bytes.add(form.small_scales() + 16 * which).cast());
        match form {
            PackedForm::Q6_K => {
                let wide = |which| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(small(which)));
                ([_mm512_mul_ps(d, wide(0)), _mm512_mul_ps(d, wide(1))], d)
            }
            PackedForm::Q4_K | PackedForm::Q5_K => {
                let wide = |which| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(small(which)));
                let d = _mm512_mul_ps(d, wide(0));
                let m = _mm512_mul_ps(numbers(tile.minima), wide(1));
                ([d; 2], _mm512_sub_ps(_mm512_setzero_ps(), m))
            }
            _ if form.has_minima() => ([d; 2], numbers(tile.minima)),
            _ => ([d; 2], d),
        }
    }
}

/// Adds the products of sixteen columns, one half of a block, to `sum`. Products are first summed in 16 bits, as far
/// as they fit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
unsafe fn dot<const FORM: usize>(sum: __m512i, weights: &[__m512i], x: *const i32) -> __m512i {
    let bits = const { PackedForm::ALL[FORM].bits() };
    let one = _mm512_set1_epi16(1);
    // SAFETY: the caller passes four times four values.
    let x = |group: usize| _mm512_set1_epi32(unsafe { x.add(group).read_unaligned() });
    let pairs = |group: usize| _mm512_maddubs_epi16(weights[group], x(group));
    let wide = |pairs| _mm512_madd_epi16(pairs, one);
    // As many products are summed in 16 bits as fit: 8 * 31 * 127 or 4 * 63 * 127.
    match bits {
        4 | 5 => {
            let low = _mm512_add_epi16(pairs(0), pairs(1));
            let high = _mm512_add_epi16(pairs(2), pairs(3));
            _mm512_add_epi32(sum, wide(_mm512_add_epi16(low, high)))
        }
        6 => {
            let low = wide(_mm512_add_epi16(pairs(0), pairs(1)));
            let high = wide(_mm512_add_epi16(pairs(2), pairs(3)));
            _mm512_add_epi32(sum, _mm512_add_epi32(low, high))
        }
        // 2 * 255 * 127 does not fit in 16 bits, but 8 * 15 * 127 does: the upper and the lower four bits are summed
        // apart.
        _ => {
            let mask = _mm512_set1_epi8(15);
            let (mut low, mut high) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            for (group, &weights) in weights.iter().enumerate() {
                let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(weights), mask);
                let lower = _mm512_and_si512(weights, mask);
                low = _mm512_add_epi16(low, _mm512_maddubs_epi16(lower, x(group)));
                high = _mm512_add_epi16(high, _mm512_maddubs_epi16(upper, x(group)));
            }
            _mm512_add_epi32(sum, _mm512_add_epi32(wide(low), _mm512_slli_epi32::<4>(wide(high))))
        }
    }
}

/// Defines the kernel `products` from a function that sums the products of sixteen columns and has these target
/// features.
macro_rules! define_products {
    ($features:literal, $dot:ident) => {
        /// Products of a tile with `N` rows of activations from `row` on, each of which is stored as `TIMES` rows of
        /// quants.
        ///
        /// # Safety
        /// The tile and the rows must be whole and have equally many blocks; `out` must have a place for each row.
        #[target_feature(enable = $features)]
        pub(in crate::packed) unsafe fn products<const FORM: usize, const N: usize, const TIMES: usize>(
            tile: Tile,
            x: Rows,
            row: usize,
            out: *mut [f32; ROWS],
        ) {
            let form = const { PackedForm::ALL[FORM] };
            let mut sums = [_mm512_setzero_ps(); N];
            for block in 0..tile.blocks {
                // SAFETY: the caller upholds this function's contract.
                unsafe {
                    let bytes = tile.words.cast::<u8>().add(block * form.block_bytes());
                    // Other rows find the tile in the cache.
                    if row == 0 {
                        prefetch_ahead(bytes, form.block_bytes());
                    }
                    let weights = groups::<FORM>(bytes);
                    let (d, m) = scales::<FORM>(tile, block, bytes);
                    for (n, sum) in sums.iter_mut().enumerate() {
                        // Sums of both halves of the block; in all forms but Q6_K, the first one holds the total.
                        let mut dots = [_mm512_setzero_si512(); 2];
                        let (mut scale, mut scaled_sum) = (0.0, 0.0);
                        for part in 0..TIMES {
                            let at = (TIMES * (row + n) + part) * x.blocks + block;
                            let quants = x.quants.add(at * BLOCK).cast::<i32>();
                            let (first, second) = (*x.sums.add(2 * at), *x.sums.add(2 * at + 1));
                            // The sums start at what the form's offset contributes.
                            let (first, second) = match form {
                                PackedForm::Q6_K => (-form.offset() * first, -form.offset() * second),
                                _ => (-form.offset() * (first + second), 0),
                            };
                            let low = $dot::<FORM>(_mm512_set1_epi32(first), &weights[..4], quants);
                            let high = $dot::<FORM>(_mm512_set1_epi32(second), &weights[4..], quants.add(4));
                            let halves = match form {
                                PackedForm::Q6_K => [low, high],
                                _ => [_mm512_add_epi32(low, high), low],
                            };
                            for (dots, half) in dots.iter_mut().zip(halves) {
                                // The coarser quants before count `FINER` times as much: 256 - 2.
                                let coarse = _mm512_sub_epi32(
                                    _mm512_slli_epi32::<8>(*dots),
                                    _mm512_slli_epi32::<1>(*dots),
                                );
                                *dots = if part == 0 { half } else { _mm512_add_epi32(coarse, half) };
                            }
                            scale = *x.scales.add(at);
                            scaled_sum += *x.scaled_sums.add(at);
                        }
                        let scaled = match form {
                            PackedForm::Q6_K => _mm512_fmadd_ps(
                                _mm512_cvtepi32_ps(dots[1]),
                                d[1],
                                _mm512_mul_ps(_mm512_cvtepi32_ps(dots[0]), d[0]),
                            ),
                            _ => _mm512_mul_ps(_mm512_cvtepi32_ps(dots[0]), d[0]),
                        };
                        *sum = _mm512_fmadd_ps(scaled, _mm512_set1_ps(scale), *sum);
                        if form.has_minima() {
                            *sum = _mm512_fmadd_ps(m, _mm512_set1_ps(scaled_sum), *sum);
                        }
                    }
                }
            }
            for (n, sum) in sums.into_iter().enumerate() {
                // SAFETY: the caller upholds this function's contract.
                unsafe { _mm512_storeu_ps(out.add(n).cast(), sum) };
            }
        }
    };
}
pub(super) use define_products;

define_products!("avx512f,avx512bw,avx2,fma,f16c", dot);

/// Unpacks a block to float32, `[32 columns][16 rows]`.
///
/// # Safety
/// The block must be one of the tile's.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
pub(super) unsafe fn unpack<const FORM: usize>(tile: Tile, block: usize, out: &mut [[f32; ROWS]; BLOCK]) {
    let form = const { PackedForm::ALL[FORM] };
    // SAFETY: the caller upholds this function's contract.
    unsafe {
        let bytes = tile.words.cast::<u8>().add(block * form.block_bytes());
        let weights = groups::<FORM>(bytes);
        let (d, m) = scales::<FORM>(tile, block, bytes);
        // Subtracting the offset in 8 bits gives signed quants.
        let offset = _mm512_set1_epi8(form.offset() as u8 as i8);
        for (group, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let quants = _mm512_sub_epi8(weights[group], offset);
            let d = d[group / 4];
            let lanes = [
                _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(quants)),
                _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(quants)),
                _mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(quants)),
                _mm512_srai_epi32::<24>(quants),
            ];
            for (lane, out) in lanes.into_iter().zip(out) {
                let mut value = _mm512_mul_ps(d, _mm512_cvtepi32_ps(lane));
                if form.has_minima() {
                    value = _mm512_add_ps(value, m);
                }
                _mm512_storeu_ps(out.as_mut_ptr(), value);
            }
        }
    }
}

/// Adds the weighted sum of the rows of several tiles to `sums`, the columns of block `block`. The rows are in lanes.
///
/// # Safety
/// The block must exist in all tiles.
#[target_feature(enable = "avx512f,avx512bw,avx2,fma,f16c")]
pub(super) unsafe fn weighted<const FORM: usize>(
    tiles: &[(Tile, [f32; ROWS])],
    block: usize,
    sums: &mut [f32; BLOCK],
) {
    let form = const { PackedForm::ALL[FORM] };
    let mut lanes = [_mm512_setzero_ps(); BLOCK];
    let mut added = _mm512_setzero_ps();
    for (tile, weights) in tiles {
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let bytes = tile.words.cast::<u8>().add(block * form.block_bytes());
            let quants = groups::<FORM>(bytes);
            let (d, m) = scales::<FORM>(*tile, block, bytes);
            let weights = _mm512_loadu_ps(weights.as_ptr());
            let factors = [_mm512_mul_ps(d[0], weights), _mm512_mul_ps(d[1], weights)];
            if form.has_minima() {
                added = _mm512_fmadd_ps(m, weights, added);
            }
            // Subtracting the offset in 8 bits gives signed quants.
            let offset = _mm512_set1_epi8(form.offset() as u8 as i8);
            for (group, lanes) in lanes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let quants = _mm512_sub_epi8(quants[group], offset);
                let each = [
                    _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(quants)),
                    _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(quants)),
                    _mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(quants)),
                    _mm512_srai_epi32::<24>(quants),
                ];
                for (lane, each) in lanes.iter_mut().zip(each) {
                    *lane = _mm512_fmadd_ps(_mm512_cvtepi32_ps(each), factors[group / 4], *lane);
                }
            }
        }
    }
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        *sum += _mm512_reduce_add_ps(_mm512_add_ps(lanes, added));
    }
}
