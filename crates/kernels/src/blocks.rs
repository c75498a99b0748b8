//! Repacks ggml's quantized blocks into tiles.

use half::f16;

use crate::{
    BLOCK, PackedForm, ROWS,
    pool::{self, Shared},
};

/// The parts of a packed matrix; [`PackedForm`] documents their layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedParts {
    /// Quants and small scales, four bytes per word, the first byte in the lowest bits.
    pub words: Vec<i32>,
    /// Block scales.
    pub scales: Vec<f16>,
    /// Block minima, if the form has them.
    pub minima: Vec<f16>,
}

/// Packs a matrix `[rows, columns]` of blocks as ggml stores them, row by row. Returns `None` if the number of bytes
/// does not match the shape, or a row is not a whole number of blocks.
pub fn pack(form: PackedForm, blocks: &[u8], rows: usize, columns: usize) -> Option<PackedParts> {
    let [words, scales, minima] = form.lengths(rows, columns);
    let [scales, minima] = [scales, minima].map(|len| vec![f16::ZERO; len]);
    let mut parts = PackedParts { words: vec![0; words], scales, minima };
    pack_into(form, blocks, [rows, columns], &mut parts.words, &mut parts.scales, &mut parts.minima)
        .then_some(parts)
}

/// Packs a matrix as [`pack`] does, but into buffers of this shape's [`lengths`](PackedForm::lengths), which must
/// hold zeros. Returns false if the lengths do not match.
pub fn pack_into(
    form: PackedForm,
    blocks: &[u8],
    [rows, columns]: [usize; 2],
    words: &mut [i32],
    scales: &mut [f16],
    minima: &mut [f16],
) -> bool {
    let (values, bytes) = form.format().size();
    if !columns.is_multiple_of(values)
        || blocks.len() != rows * (columns / values) * bytes
        || [words.len(), scales.len(), minima.len()] != form.lengths(rows, columns)
    {
        return false;
    }
    let row_bytes = columns / values * bytes;
    let tile_words = form.quant_bytes(ROWS, columns) / 4;
    let tile_scales = form.num_scales(ROWS, columns);
    let (words, scales, minima) = (Shared::new(words), Shared::new(scales), Shared::new(minima));
    let tile_minima = if form.has_minima() { tile_scales } else { 0 };
    pool::run_ranges(rows.div_ceil(ROWS), 1, |first, end| {
        for tile in first..end {
            // SAFETY: each tile has a part of its own in each buffer.
            let mut out = unsafe {
                Tile {
                    words: words.slice(tile * tile_words, tile_words),
                    scales: scales.slice(tile * tile_scales, tile_scales),
                    minima: minima.slice(tile * tile_minima, tile_minima),
                    form,
                }
            };
            for row in 0..ROWS.min(rows - tile * ROWS) {
                let start = (tile * ROWS + row) * row_bytes;
                let blocks = blocks[start..start + row_bytes].chunks_exact(bytes);
                blocks.enumerate().for_each(|(index, block)| out.put(row, index, block));
            }
        }
    });
    true
}

struct Tile<'a> {
    words: &'a mut [i32],
    scales: &'a mut [f16],
    minima: &'a mut [f16],
    form: PackedForm,
}

/// 32 quants, four per word.
type Quants = [u32; BLOCK / 4];

const LOW: u32 = 0x0f0f_0f0f;

fn word(bytes: &[u8], index: usize) -> u32 {
    let at = 4 * index;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn number(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

impl Tile<'_> {
    /// Writes a ggml block, the `index`-th of a row, into the tile.
    fn put(&mut self, row: usize, index: usize, block: &[u8]) {
        let at = index * ROWS + row;
        match self.form {
            PackedForm::Q8_0 => {
                self.scales[at] = number(block, 0);
                let quants = std::array::from_fn(|j| word(&block[2..], j) ^ 0x8080_8080);
                self.put_quants(row, index, &quants);
            }
            PackedForm::Q4_0 | PackedForm::Q4_1 | PackedForm::Q5_0 | PackedForm::Q5_1 => {
                self.scales[at] = number(block, 0);
                let mut rest = &block[2..];
                if self.form.has_minima() {
                    self.minima[at] = number(block, 2);
                    rest = &block[4..];
                }
                let mut fifth = 0;
                if self.form.bits() == 5 {
                    fifth = word(rest, 0);
                    rest = &rest[4..];
                }
                self.put_quants(
                    row,
                    index,
                    &std::array::from_fn(|j| {
                        let low = word(rest, j % 4) >> (4 * (j / 4)) & LOW;
                        low | spread(fifth >> (4 * j)) << 4
                    }),
                );
            }
            PackedForm::Q4_K | PackedForm::Q5_K => {
                self.scales[at] = number(block, 0);
                self.minima[at] = number(block, 2);
                let (high, low) = match self.form {
                    PackedForm::Q5_K => (Some(&block[16..48]), &block[48..]),
                    _ => (None, &block[16..]),
                };
                for part in 0..8 {
                    let quants = std::array::from_fn(|j| {
                        let low = word(&low[32 * (part / 2)..], j) >> (4 * (part % 2)) & LOW;
                        low | high.map_or(0, |high| (word(high, j) >> part & 0x0101_0101) << 4)
                    });
                    self.put_quants(row, 8 * index + part, &quants);
                    self.put_small(row, 8 * index + part, scale_and_min(&block[4..16], part));
                }
            }
            PackedForm::Q6_K => {
                self.scales[at] = number(block, 208);
                for part in 0..8 {
                    // 128 values are stored in 64 bytes of low nibbles and 32 bytes of high bits.
                    let (run, quarter) = (part / 4, part % 4);
                    let quants = std::array::from_fn(|j| {
                        let low =
                            word(&block[64 * run + 32 * (quarter % 2)..], j) >> (4 * (quarter / 2)) & LOW;
                        low | (word(&block[128 + 32 * run..], j) >> (2 * quarter) & 0x0303_0303) << 4
                    });
                    self.put_quants(row, 8 * index + part, &quants);
                    let scales = &block[192 + 8 * run + 2 * quarter..];
                    self.put_small(row, 8 * index + part, [scales[0], scales[1]]);
                }
            }
        }
    }

    fn block(&mut self, block: usize) -> &mut [i32] {
        let words = self.form.block_bytes() / 4;
        &mut self.words[block * words..][..words]
    }

    fn put_quants(&mut self, row: usize, block: usize, quants: &Quants) {
        let (bits, planes) = (self.form.bits(), self.form.planes());
        let words = self.block(block);
        if bits == 8 {
            for (group, &quants) in quants.iter().enumerate() {
                words[ROWS * group + row] = quants as i32;
            }
            return;
        }
        for chunk in 0..4 {
            let both = quants[2 * chunk] & LOW | (quants[2 * chunk + 1] & LOW) << 4;
            words[ROWS * chunk + row] = both as i32;
        }
        for plane in 0..planes {
            for (group, &quants) in quants.iter().enumerate() {
                let four = gathered(quants >> (4 + plane)) << (4 * (row % 8));
                words[64 + ROWS * plane + 2 * group + row / 8] |= four as i32;
            }
        }
    }

    fn put_small(&mut self, row: usize, block: usize, both: [u8; 2]) {
        let at = self.form.small_scales() / 4;
        let words = &mut self.block(block)[at..];
        for (half, byte) in both.into_iter().enumerate() {
            words[4 * half + row / 4] |= ((u32::from(byte)) << (8 * (row % 4))) as i32;
        }
    }
}

/// Spreads the four lowest bits to the lowest bits of four bytes.
fn spread(bits: u32) -> u32 {
    let bits = bits & 15;
    (bits | bits << 7 | bits << 14 | bits << 21) & 0x0101_0101
}

/// Gathers the lowest bits of four bytes in the four lowest bits.
fn gathered(bytes: u32) -> u32 {
    let bits = bytes & 0x0101_0101;
    (bits | bits >> 7 | bits >> 14 | bits >> 21) & 15
}

/// Scale and minimum of a sub-block of 32 values. A block has eight of each, of 6 bits, in 12 bytes.
fn scale_and_min(bytes: &[u8], part: usize) -> [u8; 2] {
    match part {
        0..4 => [bytes[part] & 63, bytes[part + 4] & 63],
        _ => [
            bytes[part + 4] & 15 | (bytes[part - 4] >> 6) << 4,
            bytes[part + 4] >> 4 | (bytes[part] >> 6) << 4,
        ],
    }
}
