//! ggml's "K" formats: blocks of 256 values in parts of 16 or 32, each part with a small scale.

use crate::block_format::half;

/// 16 bytes of 4-bit scales s and minima m, 64 bytes of 2-bit q, f16 d, f16 dmin: x = d s q - dmin m.
pub(crate) fn q2_k(block: &[u8; 84], out: &mut Vec<f32>) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half(block, 80), half(block, 82));
    for (part, &both) in scales.iter().enumerate() {
        let (scale, min) = (d * f32::from(both & 15), dmin * f32::from(both >> 4));
        let (bytes, shift) = two_bits(quants, part);
        out.extend(bytes.iter().map(|&q| scale * f32::from(q >> shift & 3) - min));
    }
}

/// The 16 bytes that hold the two bits of each value in a part of 16 values, and the shift of these bits. Each run of
/// 32 bytes holds 128 values, 32 for each pair of bits.
fn two_bits(quants: &[u8], part: usize) -> (&[u8], usize) {
    let (run, pair, half) = (part / 8, part % 8 / 2, part % 2);
    (&quants[32 * run + 16 * half..][..16], 2 * pair)
}

/// 32 bytes of third bits h, 64 bytes of 2-bit q, sixteen 6-bit scales s in 12 bytes, f16 d:
/// x = d (s - 32) (q - 4 (1 - h)).
pub(crate) fn q3_k(block: &[u8; 110], out: &mut Vec<f32>) {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for part in 0..16 {
        // The four low bits of each scale are in eight bytes, the two high bits in four bytes.
        let low = scales[part % 8] >> (4 * (part / 8)) & 15;
        let scale = low | (scales[8 + part % 4] >> (2 * (part / 4)) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        let (bytes, shift) = two_bits(quants, part);
        let (bits, bit) = (&high[16 * (part % 2)..][..16], part / 2);
        out.extend(bytes.iter().zip(bits).map(|(&q, &h)| {
            let lowered = if h >> bit & 1 == 1 { 0.0 } else { 4.0 };
            scale * (f32::from(q >> shift & 3) - lowered)
        }));
    }
}

/// The scale and minimum of a part of 32 values: eight of each, with 6 bits, in 12 bytes.
fn scale_and_min(bytes: &[u8], part: usize) -> (f32, f32) {
    let (scale, min) = match part {
        0..4 => (bytes[part] & 63, bytes[part + 4] & 63),
        _ => (
            bytes[part + 4] & 15 | (bytes[part - 4] >> 6) << 4,
            bytes[part + 4] >> 4 | (bytes[part] >> 6) << 4,
        ),
    };
    (f32::from(scale), f32::from(min))
}

/// f16 d, f16 dmin, 12 bytes of scales and minima, 128 bytes of nibbles: x = d s q - dmin m.
pub(crate) fn q4_k(block: &[u8; 144], out: &mut Vec<f32>) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for part in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], part);
        let (scale, min) = (d * scale, dmin * min);
        // The low nibbles of 32 bytes come before their high nibbles.
        let (quants, shift) = (&block[16 + 32 * (part / 2)..][..32], 4 * (part % 2));
        out.extend(quants.iter().map(|&q| scale * f32::from(q >> shift & 15) - min));
    }
}

/// The format of `q4_k` with 32 bytes of fifth bits before the nibbles.
pub(crate) fn q5_k(block: &[u8; 176], out: &mut Vec<f32>) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for part in 0..8 {
        let (scale, min) = scale_and_min(&block[4..16], part);
        let (scale, min) = (d * scale, dmin * min);
        let (quants, shift) = (&block[48 + 32 * (part / 2)..][..32], 4 * (part % 2));
        out.extend(quants.iter().zip(&block[16..48]).map(|(&q, &h)| {
            let q = q >> shift & 15 | (h >> part & 1) << 4;
            scale * f32::from(q) - min
        }));
    }
}

/// 128 bytes of low nibbles, 64 bytes of two high bits, 16 i8 scales s, f16 d: x = d s (q - 32).
pub(crate) fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for part in 0..8 {
        // 128 values take 64 bytes of nibbles and 32 bytes of high bits.
        let (run, quarter) = (part / 4, part % 4);
        let low = &low[64 * run + 32 * (quarter % 2)..][..32];
        let (low_shift, high_shift) = (4 * (quarter / 2), 2 * quarter);
        for (i, (&l, &h)) in low.iter().zip(&high[32 * run..][..32]).enumerate() {
            let q = l >> low_shift & 15 | (h >> high_shift & 3) << 4;
            let scale = scales[8 * run + 2 * quarter + i / 16] as i8;
            out.push(d * f32::from(scale) * (f32::from(q) - 32.0));
        }
    }
}
