//! AVX2 kernels: eight rows of a tile in one register.

use std::arch::x86_64::*;

use super::{Rows, Tile};
use crate::{BLOCK, PackedForm, ROWS, packed::prefetch_ahead};

/// The quants of half of the rows of a block, four columns of eight rows in each register. Quants of 8 bits are
/// signed if `SIGNED`; others are unsigned.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn groups<const FORM: usize, const SIGNED: bool>(
    block: *const u8,
    half: usize,
) -> [__m256i; 8] {
    let form = const { PackedForm::ALL[FORM] };
    let mut groups = [_mm256_setzero_si256(); 8];
    // SAFETY: the caller passes a whole block.
    unsafe {
        if form.bits() == 8 {
            let offset = _mm256_set1_epi8(if SIGNED { -128 } else { 0 });
            for (index, group) in groups.iter_mut().enumerate() {
                let bytes = _mm256_loadu_si256(block.add(64 * index + 32 * half).cast());
                *group = _mm256_xor_si256(bytes, offset);
            }
            return groups;
        }
        let low = _mm256_set1_epi8(15);
        for chunk in 0..4 {
            let both = _mm256_loadu_si256(block.add(64 * chunk + 32 * half).cast());
            groups[2 * chunk] = _mm256_and_si256(both, low);
            groups[2 * chunk + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
        }
        // Bit k of 32 belongs to byte k: each byte tests its own bit in the byte of the mask that holds it.
        let holder =
            _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        for plane in 0..form.planes() {
            let bit = _mm256_set1_epi8(16 << plane);
            let masks = block.add(256 + 64 * plane).cast::<i32>();
            for (index, group) in groups.iter_mut().enumerate() {
                let mask = _mm256_set1_epi32(masks.add(2 * index + half).read_unaligned());
                let spread = _mm256_and_si256(_mm256_shuffle_epi8(mask, holder), own);
                let set = _mm256_and_si256(_mm256_cmpeq_epi8(spread, own), bit);
                *group = _mm256_or_si256(*group, set);
            }
        }
    }
    groups
}

/// Scales of both halves of the columns of a block (they differ only in Q6_K), and minima, which are to be added.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn scales<const FORM: usize>(
    tile: Tile,
    block: usize,
    bytes: *const u8,
    half: usize,
) -> ([__m256; 2], __m256) {
    let form = const { PackedForm::ALL[FORM] };
    let at = block * BLOCK / form.span() * ROWS + 8 * half;
    // SAFETY: the caller passes a block of the tile.
    unsafe {
        let numbers = |from: *const half::f16| _mm256_cvtph_ps(_mm_loadu_si128(from.add(at).cast()));
        let d = numbers(tile.scales);
        let small =
            |which: usize| _mm_loadl_epi64(bytes.add(form.small_scales() + 16 * which + 8 * half).cast());
        match form {
            PackedForm::Q6_K => {
                let wide = |which| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(small(which)));
                ([_mm256_mul_ps(d, wide(0)), _mm256_mul_ps(d, wide(1))], d)
            }
            PackedForm::Q4_K | PackedForm::Q5_K => {
                let wide = |which| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(small(which)));
                let d = _mm256_mul_ps(d, wide(0));
                let m = _mm256_mul_ps(numbers(tile.minima), wide(1));
                ([d; 2], _mm256_sub_ps(_mm256_setzero_ps(), m))
            }
            _ if form.has_minima() => ([d; 2], numbers(tile.minima)),
            _ => ([d; 2], d),
        }
    }
}

/// The products of four columns, summed in pairs in 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn pairs<const FORM: usize>(weights: __m256i, x: __m256i) -> __m256i {
    // The sum 2 * 128 * 127 fits in 16 bits, but 2 * 255 * 127 does not, so 8-bit weights are signed.
    match const { PackedForm::ALL[FORM].bits() } {
        8 => _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights)),
        _ => _mm256_maddubs_epi16(weights, x),
    }
}

/// Adds the products of sixteen columns, one half of a block, to `sum`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot<const FORM: usize>(sum: __m256i, weights: &[__m256i], x: *const i32) -> __m256i {
    // SAFETY: the caller passes four times four values.
    let pairs = |group: usize| unsafe {
        pairs::<FORM>(weights[group], _mm256_set1_epi32(x.add(group).read_unaligned()))
    };
    let wide = |pairs| _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    // As many products are summed in 16 bits as fit: 8 * 31 * 127 or 4 * 63 * 127.
    match const { PackedForm::ALL[FORM].bits() } {
        4 | 5 => {
            let low = _mm256_add_epi16(pairs(0), pairs(1));
            let high = _mm256_add_epi16(pairs(2), pairs(3));
            _mm256_add_epi32(sum, wide(_mm256_add_epi16(low, high)))
        }
        6 => {
            let low = wide(_mm256_add_epi16(pairs(0), pairs(1)));
            let high = wide(_mm256_add_epi16(pairs(2), pairs(3)));
            _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
        }
        _ => {
            let mut sum = sum;
            for group in 0..4 {
                sum = _mm256_add_epi32(sum, wide(pairs(group)));
            }
            sum
        }
    }
}

/// Defines the kernel `products` from a function that sums the products of sixteen columns and has these target
/// features.
macro_rules! define_products {
    ($features:literal, $dot:ident, signed: $signed:literal) => {
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
            let offset = if $signed && form.bits() == 8 { 0 } else { form.offset() };
            for half in 0..2 {
                let mut sums = [_mm256_setzero_ps(); N];
                for block in 0..tile.blocks {
                    // SAFETY: the caller upholds this function's contract.
                    unsafe {
                        let bytes = tile.words.cast::<u8>().add(block * form.block_bytes());
                        // Other rows, and the other half, find the tile in the cache.
                        if row == 0 && half == 0 {
                            prefetch_ahead(bytes, form.block_bytes());
                        }
                        let weights = groups::<FORM, { $signed }>(bytes, half);
                        let (d, m) = scales::<FORM>(tile, block, bytes, half);
                        for (n, sum) in sums.iter_mut().enumerate() {
                            // Sums of both halves of the block; in all forms but Q6_K, the first one holds the total.
                            let mut dots = [_mm256_setzero_si256(); 2];
                            let (mut scale, mut scaled_sum) = (0.0, 0.0);
                            for part in 0..TIMES {
                                let at = (TIMES * (row + n) + part) * x.blocks + block;
                                let quants = x.quants.add(at * BLOCK).cast::<i32>();
                                let (first, second) = (*x.sums.add(2 * at), *x.sums.add(2 * at + 1));
                                // The sums start at what the form's offset contributes.
                                let (first, second) = match form {
                                    PackedForm::Q6_K => (-offset * first, -offset * second),
                                    _ => (-offset * (first + second), 0),
                                };
                                let low = $dot::<FORM>(_mm256_set1_epi32(first), &weights[..4], quants);
                                let high =
                                    $dot::<FORM>(_mm256_set1_epi32(second), &weights[4..], quants.add(4));
                                let halves = match form {
                                    PackedForm::Q6_K => [low, high],
                                    _ => [_mm256_add_epi32(low, high), low],
                                };
                                for (dots, half) in dots.iter_mut().zip(halves) {
                                    // The coarser quants before count `FINER` times as much: 256 - 2.
                                    let coarse = _mm256_sub_epi32(
                                        _mm256_slli_epi32::<8>(*dots),
                                        _mm256_slli_epi32::<1>(*dots),
                                    );
                                    *dots = if part == 0 { half } else { _mm256_add_epi32(coarse, half) };
                                }
                                scale = *x.scales.add(at);
                                scaled_sum += *x.scaled_sums.add(at);
                            }
                            let scaled = match form {
                                PackedForm::Q6_K => _mm256_fmadd_ps(
                                    _mm256_cvtepi32_ps(dots[1]),
                                    d[1],
                                    _mm256_mul_ps(_mm256_cvtepi32_ps(dots[0]), d[0]),
                                ),
                                _ => _mm256_mul_ps(_mm256_cvtepi32_ps(dots[0]), d[0]),
                            };
                            *sum = _mm256_fmadd_ps(scaled, _mm256_set1_ps(scale), *sum);
                            if form.has_minima() {
                                *sum = _mm256_fmadd_ps(m, _mm256_set1_ps(scaled_sum), *sum);
                            }
                        }
                    }
                }
                for (n, sum) in sums.into_iter().enumerate() {
                    // SAFETY: the caller upholds this function's contract.
                    unsafe { _mm256_storeu_ps(out.add(n).cast::<f32>().add(8 * half), sum) };
                }
            }
        }
    };
}
pub(super) use define_products;

define_products!("avx2,fma,f16c", dot, signed: true);

/// Unpacks a block to float32, `[32 columns][16 rows]`.
///
/// # Safety
/// The block must be one of the tile's.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn unpack<const FORM: usize>(tile: Tile, block: usize, out: &mut [[f32; ROWS]; BLOCK]) {
    let form = const { PackedForm::ALL[FORM] };
    let offset = if form.bits() == 8 { 0 } else { form.offset() };
    for half in 0..2 {
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let bytes = tile.words.cast::<u8>().add(block * form.block_bytes());
            let weights = groups::<FORM, true>(bytes, half);
            let (d, m) = scales::<FORM>(tile, block, bytes, half);
            // Subtracting the offset in 8 bits gives signed quants.
            let offset = _mm256_set1_epi8(offset as i8);
            for (group, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let quants = _mm256_sub_epi8(weights[group], offset);
                let d = d[group / 4];
                let lanes = [
                    _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(quants)),
                    _mm256_srai_epi32::<24>(_mm256_slli_epi32::<16>(quants)),
                    _mm256_srai_epi32::<24>(_mm256_slli_epi32::<8>(quants)),
                    _mm256_srai_epi32::<24>(quants),
                ];
                for (lane, out) in lanes.into_iter().zip(out) {
                    let mut value = _mm256_mul_ps(d, _mm256_cvtepi32_ps(lane));
                    if form.has_minima() {
                        value = _mm256_add_ps(value, m);
                    }
                    _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), value);
                }
            }
        }
    }
}
