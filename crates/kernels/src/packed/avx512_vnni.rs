//! AVX-512 VNNI kernels: one instruction multiplies and sums four columns.

use std::arch::x86_64::*;

use super::{
    Rows, Tile,
    avx512::{define_products, groups, scales},
};
use crate::{BLOCK, PackedForm, ROWS, packed::prefetch_ahead};

/// Adds the products of sixteen columns, one half of a block, to `sum`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma,f16c")]
unsafe fn dot<const FORM: usize>(mut sum: __m512i, weights: &[__m512i], x: *const i32) -> __m512i {
    for (group, &weights) in weights.iter().enumerate() {
        // SAFETY: the caller passes four times four values.
        sum = _mm512_dpbusd_epi32(sum, weights, _mm512_set1_epi32(unsafe { x.add(group).read_unaligned() }));
    }
    sum
}

define_products!("avx512f,avx512bw,avx512vnni,avx2,fma,f16c", dot);
