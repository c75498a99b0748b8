//! Copies of single rows of packed matrices.
//!
//! A tile interleaves sixteen rows, so that one of them has four bytes of each 64: reading it touches all cache lines
//! of the tile. A copy of a single row is a sixteenth of that and holds the same numbers: its quants in 8 bits,
//! followed by scales and minima in float32.

use super::{Packed, portable};
use crate::{
    BLOCK, Isa, PackedForm, ROWS,
    lanes::{Lanes, dispatch, prefetch},
};

/// The layout of a copied row, counted in float32 words: quants, then scales, then minima.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RowLayout {
    columns: usize,
    /// Columns that share a scale: 16 or 32.
    span: usize,
    has_minima: bool,
}

impl RowLayout {
    pub(crate) fn of(table: &Packed<'_>) -> Self {
        let span = if table.form == PackedForm::Q6_K { BLOCK / 2 } else { BLOCK };
        Self { columns: table.columns, span, has_minima: table.form.has_minima() }
    }

    /// Index of the scales, which follow the quants.
    fn scales(self) -> usize {
        self.columns / size_of::<f32>()
    }

    fn minima(self) -> usize {
        self.scales() + self.columns / self.span
    }

    /// Number of words of a row.
    pub(crate) fn words(self) -> usize {
        self.minima() + if self.has_minima { self.columns / BLOCK } else { 0 }
    }

    /// Adds copied rows, with their weights, to `sums` `[columns]`.
    pub(crate) fn add(self, isa: Isa, rows: &[(&[f32], f32)], sums: &mut [f32]) {
        let fit = rows.iter().all(|row| row.0.len() == self.words());
        assert!(fit && sums.len() == self.columns, "rows of this layout, and a sum for each column");
        let layout = self;
        dispatch!(isa, |layout: RowLayout, rows: &[(&[f32], f32)], sums: &mut [f32]| -> () {
            let (fours, rest) = rows.as_chunks::<4>();
            // SAFETY: rows and sums have the layout's lengths; the CPU has the instruction set.
            unsafe {
                // There are no closures here, because they would not have the instruction set's features enabled.
                for (index, four) in fours.iter().enumerate() {
                    // The next rows are prefetched, because the CPU cannot predict where they are.
                    let next = rows.get(4 * (index + 1)..).unwrap_or_default();
                    add_some::<L, 4>(layout, four, next, sums);
                }
                for row in rest {
                    add_some::<L, 1>(layout, std::array::from_ref(row), &[], sums);
                }
            }
        });
    }
}

/// Adds several rows at once, so that sums are read and written once for all of them.
///
/// # Safety
/// Rows and sums must have the layout's lengths, and the CPU must have the instruction set.
#[inline(always)]
unsafe fn add_some<L: Lanes, const N: usize>(
    layout: RowLayout,
    rows: &[(&[f32], f32); N],
    next: &[(&[f32], f32)],
    sums: &mut [f32],
) {
    for line in (0..layout.words()).step_by(16) {
        for (row, _) in next.iter().take(N) {
            prefetch(row.as_ptr().wrapping_add(line));
        }
    }
    let parts = layout.span / 16;
    for (span, sums) in sums.chunks_exact_mut(layout.span).enumerate() {
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let mut factors = [L::splat(0.0); N];
            let mut added = 0.0;
            for (factor, (row, weight)) in factors.iter_mut().zip(rows) {
                *factor = L::splat(weight * row.get_unchecked(layout.scales() + span));
                if layout.has_minima {
                    added += weight * row.get_unchecked(layout.minima() + span);
                }
            }
            for part in 0..parts {
                let sum = sums.as_mut_ptr().add(16 * part);
                let mut lanes = L::load(sum).add(L::splat(added));
                for (factor, (row, _)) in factors.into_iter().zip(rows) {
                    let quants = row.as_ptr().cast::<i8>().add(span * layout.span + 16 * part);
                    lanes = L::load_i8(quants).mul_add(factor, lanes);
                }
                lanes.store(sum);
            }
        }
    }
}

impl Packed<'_> {
    /// Copies a row to `out`, in the layout of [`RowLayout::of`].
    pub(crate) fn copy_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        let layout = RowLayout::of(self);
        assert!(row < self.rows && out.len() == layout.words(), "row {row} of {}", self.rows);
        let (tile, row) = (self.tile(row / ROWS), row % ROWS);
        for block in 0..tile.blocks {
            // SAFETY: the block is one of the tile's; the CPU has the instruction set.
            let quants: [i8; BLOCK] = unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Bw | Isa::Avx512 => {
                        use x86::quants;
                        let block = tile.words.cast::<u8>().add(block * self.form.block_bytes());
                        super::with_form!(self.form, quants::<_>(block, row))
                    }
                    _ => portable::quants_of_row(self.form, tile, block, row),
                }
            };
            // SAFETY: `out` has a byte for each column.
            unsafe { out.as_mut_ptr().cast::<[i8; BLOCK]>().add(block).write_unaligned(quants) };
            let halves = BLOCK / layout.span;
            for half in 0..halves {
                // SAFETY: the block is one of the tile's.
                let (scale, minimum) =
                    unsafe { portable::scale_and_minimum(self.form, tile, block, half, row) };
                out[layout.scales() + halves * block + half] = scale;
                if layout.has_minima {
                    out[layout.minima() + block] = minimum;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::{BLOCK, PackedForm};

    /// The quants of a row of a block, minus the form's offset, in the order of columns.
    ///
    /// # Safety
    /// The block must be whole, `row` below 16, and the CPU must have the instruction set.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn quants<const FORM: usize>(block: *const u8, row: usize) -> [i8; BLOCK] {
        let form = const { PackedForm::ALL[FORM] };
        // SAFETY: the caller passes a whole block.
        let word = |at: usize| unsafe { block.add(at).cast::<i32>().read_unaligned() };
        let quants = if form.bits() == 8 {
            let four = |first: usize| {
                let [a, b, c, d] = [0, 1, 2, 3].map(|group| word(64 * (first + group) + 4 * row));
                _mm_setr_epi32(a, b, c, d)
            };
            _mm256_set_m128i(four(4), four(0))
        } else {
            let [a, b, c, d] = [0, 1, 2, 3].map(|chunk| word(64 * chunk + 4 * row));
            let (both, mask) = (_mm_setr_epi32(a, b, c, d), _mm_set1_epi8(15));
            let (low, high) = (_mm_and_si128(both, mask), _mm_and_si128(_mm_srli_epi16::<4>(both), mask));
            let mut quants = _mm256_set_m128i(_mm_unpackhi_epi32(low, high), _mm_unpacklo_epi32(low, high));
            // Bit k of 32 belongs to byte k: each byte tests its own bit in the byte of the mask that holds it.
            let holder =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            for plane in 0..form.planes() {
                let mut bits = 0u32;
                for group in 0..8 {
                    let word = word(256 + 64 * plane + 8 * group + 4 * (row / 8)) as u32;
                    bits |= (word >> (4 * (row % 8)) & 15) << (4 * group);
                }
                let spread =
                    _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), holder), own);
                let set = _mm256_and_si256(_mm256_cmpeq_epi8(spread, own), _mm256_set1_epi8(16 << plane));
                quants = _mm256_or_si256(quants, set);
            }
            quants
        };
        let mut out = [0; BLOCK];
        let signed = _mm256_sub_epi8(quants, _mm256_set1_epi8(form.offset() as u8 as i8));
        // SAFETY: `out` has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), signed) };
        out
    }
}
