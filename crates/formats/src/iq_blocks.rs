//! ggml's "IQ" formats of 1 to 3 bits: blocks of 256 values. An index selects a code word of eight or four magnitudes
//! (`grids.rs`), which sign bits and a small scale for 16 or 32 values turn into values.
//!
//! The products are computed in the order of `ggml-quants.c` and of the `gguf` package, so that results are
//! bit-identical.

use crate::{block_format::half, grids};

/// Magnitudes in the code words of IQ2 formats; the last entry is never used.
const IQ2_VALUES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Magnitudes in the code words of IQ3_XXS.
const IQ3_XXS_VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Values in the code words of IQ1 formats; the last entry is never used.
const IQ1_VALUES: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
/// The number added to or subtracted from the values of IQ1 formats.
const IQ1_DELTA: f32 = 0.125;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Nibble number `at`, counting the low nibble of each byte before the high one.
fn nibble(bytes: &[u8], at: usize) -> u8 {
    bytes[at / 2] >> (4 * (at % 2)) & 15
}

/// Extends seven sign bits to eight: the last one makes the number of minus signs even.
fn eight_signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() as u8 & 1) << 7)
}

/// The value, negated if bit `at` of `signs` is set.
fn signed(value: f32, signs: u8, at: usize) -> f32 {
    if signs >> at & 1 == 1 { -value } else { value }
}

/// Appends the eight values of an IQ2 code word.
fn iq2_word(word: u16, signs: u8, scale: f32, out: &mut Vec<f32>) {
    out.extend((0..8).map(|i| {
        let magnitude = IQ2_VALUES[usize::from(word >> (2 * i) & 3)];
        signed(scale * magnitude, signs, i)
    }));
}

/// f16 d, then for each 32 values four indices into the table, four times seven sign bits and a 4-bit scale s: x = d
/// (s + 1/2) / 4 v.
pub(crate) fn iq2_xxs(block: &[u8; 66], out: &mut Vec<f32>) {
    let d = half(block, 0);
    for group in block[2..].chunks_exact(8) {
        let bits = u32_at(group, 4);
        let scale = d * (0.5 + (bits >> 28) as f32) * 0.25;
        for (part, &place) in group[..4].iter().enumerate() {
            let word = grids::IQ2_XXS[usize::from(place)];
            iq2_word(word, eight_signs(bits >> (7 * part)), scale, out);
        }
    }
}

/// f16 d, 32 u16 with an index into the table (nine bits) and seven sign bits, sixteen 4-bit scales s: x = d (s +
/// 1/2) / 4 v.
pub(crate) fn iq2_xs(block: &[u8; 74], out: &mut Vec<f32>) {
    let d = half(block, 0);
    for part in 0..32 {
        let bits = u16_at(block, 2 + 2 * part);
        let scale = d * (0.5 + f32::from(nibble(&block[66..], part / 2))) * 0.25;
        let word = grids::IQ2_XS[usize::from(bits & 511)];
        iq2_word(word, eight_signs(u32::from(bits >> 9)), scale, out);
    }
}

/// f16 d, 32 bytes of indices, 32 bytes of sign bits, two high bits of each index, sixteen 4-bit scales s: x = d (s +
/// 1/2) / 4 v.
pub(crate) fn iq2_s(block: &[u8; 82], out: &mut Vec<f32>) {
    let d = half(block, 0);
    let (places, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for part in 0..32 {
        let above = usize::from(high[part / 4] >> (2 * (part % 4)) & 3);
        let scale = d * (0.5 + f32::from(nibble(scales, part / 2))) * 0.25;
        let word = grids::IQ2_S[usize::from(places[part]) | above << 8];
        iq2_word(word, signs[part], scale, out);
    }
}

/// Appends the four values of an IQ3 code word, whose signs begin at bit `from`.
fn iq3_word(word: u16, value: impl Fn(u16) -> f32, signs: u8, from: usize, scale: f32, out: &mut Vec<f32>) {
    out.extend((0..4).map(|i| signed(scale * value(word >> (3 * i) & 7), signs, from + i)));
}

/// f16 d, 64 bytes of indices, then for each 32 values four times seven sign bits and a 4-bit scale s: x = d (s +
/// 1/2) / 2 v.
pub(crate) fn iq3_xxs(block: &[u8; 98], out: &mut Vec<f32>) {
    let d = half(block, 0);
    for (group, places) in block[2..66].chunks_exact(8).enumerate() {
        let bits = u32_at(block, 66 + 4 * group);
        let scale = d * (0.5 + (bits >> 28) as f32) * 0.5;
        for (part, &place) in places.iter().enumerate() {
            let signs = eight_signs(bits >> (7 * (part / 2)));
            let word = grids::IQ3_XXS[usize::from(place)];
            iq3_word(word, |v| IQ3_XXS_VALUES[usize::from(v)], signs, 4 * (part % 2), scale, out);
        }
    }
}

/// f16 d, 64 bytes of indices, a high bit of each, 32 bytes of sign bits, eight 4-bit scales s: x = d (2 s + 1) v.
pub(crate) fn iq3_s(block: &[u8; 110], out: &mut Vec<f32>) {
    let d = half(block, 0);
    let (places, high, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    for (part, &place) in places.iter().enumerate() {
        let above = usize::from(high[part / 8] >> (part % 8) & 1);
        let scale = d * f32::from(1 + 2 * nibble(scales, part / 8));
        let word = grids::IQ3_S[usize::from(place) | above << 8];
        iq3_word(word, |v| f32::from(2 * v + 1), signs[part / 2], 4 * (part % 2), scale, out);
    }
}

/// Appends the eight values of an IQ1 code word: x = scale (v + delta).
fn iq1_word(place: usize, delta: f32, scale: f32, out: &mut Vec<f32>) {
    let word = grids::IQ1[place];
    out.extend((0..8).map(|i| scale * (IQ1_VALUES[usize::from(word >> (2 * i) & 3)] + delta)));
}

/// f16 d, 32 bytes of indices, then for each 32 values three high bits of each of four indices, a 3-bit scale s and
/// the sign of delta: x = d (2 s + 1) (v + delta).
pub(crate) fn iq1_s(block: &[u8; 50], out: &mut Vec<f32>) {
    let d = half(block, 0);
    for (group, places) in block[2..34].chunks_exact(4).enumerate() {
        let bits = u16_at(block, 34 + 2 * group);
        let scale = d * f32::from(2 * (bits >> 12 & 7) + 1);
        let delta = if bits & 0x8000 == 0 { IQ1_DELTA } else { -IQ1_DELTA };
        for (part, &place) in places.iter().enumerate() {
            let above = usize::from(bits >> (3 * part) & 7);
            iq1_word(usize::from(place) | above << 8, delta, scale, out);
        }
    }
}

/// 32 bytes of indices, a nibble for each with three high bits and the sign of delta, four u16 of four 3-bit scales s
/// each. The highest nibbles of the u16 make the f16 d: x = d (2 s + 1) (v + delta).
pub(crate) fn iq1_m(block: &[u8; 56], out: &mut Vec<f32>) {
    let (places, high) = (&block[..32], &block[32..48]);
    let scale_bits: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
    let d = scale_bits.iter().enumerate().fold(0u16, |d, (i, bits)| d | (bits >> 12) << (4 * i));
    let d = half(&d.to_le_bytes(), 0);
    for (part, &place) in places.iter().enumerate() {
        // Two code words share a scale.
        let pair = part / 2;
        let scale = d * f32::from(2 * (scale_bits[pair / 4] >> (3 * (pair % 4)) & 7) + 1);
        let above = nibble(high, part);
        let delta = if above & 8 == 0 { IQ1_DELTA } else { -IQ1_DELTA };
        iq1_word(usize::from(place) | usize::from(above & 7) << 8, delta, scale, out);
    }
}
