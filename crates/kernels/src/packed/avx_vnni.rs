//! AVX-VNNI kernels: like those for AVX2, but one instruction multiplies and sums four columns.

/// Defines kernels that use an instruction which adds products of unsigned and signed bytes to 32-bit sums.
macro_rules! by {
    ($features:literal, $add:ident) => {
        use std::arch::x86_64::*;

        use crate::{
            PackedForm,
            BLOCK, ROWS,
            packed::{
                Rows, Tile,
                avx2::{define_products, groups, scales},
                prefetch_ahead,
            },
        };

        /// Adds the products of sixteen columns, one half of a block, to `sum`.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn dot<const FORM: usize>(mut sum: __m256i, weights: &[__m256i], x: *const i32) -> __m256i {
            for (group, &weights) in weights.iter().enumerate() {
                // SAFETY: the caller passes four times four values.
                sum = $add(sum, weights, _mm256_set1_epi32(unsafe { x.add(group).read_unaligned() }));
            }
            sum
        }

        define_products!($features, dot, signed: false);
    };
}

by!("avx2,fma,f16c,avxvnni", _mm256_dpbusd_avx_epi32);

/// The same kernels with the instruction's AVX-512 encoding, because more of the CPUs that run the tests have that.
#[cfg(test)]
pub(super) mod as_avx512 {
    by!("avx2,fma,f16c,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
}
