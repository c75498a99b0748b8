//! NVFP4, and ggml's ternary formats: blocks of 256 values, each of which is -d, 0 or d.

use crate::block_format::{FP4_VALUES, half, nibbles};

/// 48 bytes of five base-3 digits and 4 bytes of four, f16 d: x = d (digit - 1). A byte is the fraction `0.digits` in
/// 256ths, rounded up; multiplying it by 3 moves its next digit into the integer part.
pub(crate) fn tq1_0(block: &[u8; 54], out: &mut Vec<f32>) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half(block, 52);
    let mut digits = |bytes: &[u8], count: usize| {
        for power in &POWERS[..count] {
            out.extend(bytes.iter().map(|byte| {
                let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                d * (f32::from(digit) - 1.0)
            }));
        }
    };
    digits(&block[..32], 5);
    digits(&block[32..48], 5);
    digits(&block[48..52], 4);
}

/// 64 bytes of four 2-bit q, f16 d: x = d (q - 1).
pub(crate) fn tq2_0(block: &[u8; 66], out: &mut Vec<f32>) {
    let d = half(block, 64);
    for bytes in block[..64].chunks_exact(32) {
        for shift in [0, 2, 4, 6] {
            out.extend(bytes.iter().map(|&q| d * (f32::from(q >> shift & 3) - 1.0)));
        }
    }
}

/// Four scales, each an unsigned float with 4 exponent bits and 3 fraction bits, and 8 bytes of nibbles for each
/// scale: x = scale v(q) / 2, where v are the doubled values.
pub(crate) fn nvfp4(block: &[u8; 36], out: &mut Vec<f32>) {
    for (&scale, quants) in block[..4].iter().zip(block[4..].chunks_exact(8)) {
        let d = half_of_e4m3(scale);
        nibbles(quants, |_, q| d * f32::from(FP4_VALUES[usize::from(q)]), out);
    }
}

/// Half of the value of an unsigned E4M3 float; 0x7f, which is NaN, counts as 0.
fn half_of_e4m3(bits: u8) -> f32 {
    let (exponent, fraction) = (u32::from(bits >> 3 & 15), f32::from(bits & 7));
    let value = match exponent {
        _ if bits == 0x7f => 0.0,
        0 => fraction / 512.0,
        // 2^(exponent - 7), from the bits of a float32.
        _ => (1.0 + fraction / 8.0) * f32::from_bits((exponent + 120) << 23),
    };
    value * 0.5
}
