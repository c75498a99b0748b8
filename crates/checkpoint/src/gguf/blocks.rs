//! Block formats of ggml: their bytes to float32, as `ggml-common.h` and `ggml-quants.c` define them.

use half::f16;

/// Values in a block of every format here.
pub(crate) const LEN: usize = 32;

fn scale(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// f16 d, 32 i8 q: x = d q.
pub(crate) fn q8_0(bytes: &[u8], out: &mut Vec<f32>) {
    for block in bytes.as_chunks::<34>().0 {
        let d = scale(block, 0);
        out.extend(block[2..].iter().map(|&q| d * f32::from(q as i8)));
    }
}

/// f16 d, 16 bytes of nibbles: x = d (q - 8); low nibbles are the first half of the block.
pub(crate) fn q4_0(bytes: &[u8], out: &mut Vec<f32>) {
    for block in bytes.as_chunks::<18>().0 {
        let d = scale(block, 0);
        let value = |q: u8| d * (f32::from(q) - 8.0);
        out.extend(block[2..].iter().map(|&q| value(q & 15)));
        out.extend(block[2..].iter().map(|&q| value(q >> 4)));
    }
}

/// f16 d, f16 m, 16 bytes of nibbles: x = d q + m; low nibbles are the first half of the block.
pub(crate) fn q4_1(bytes: &[u8], out: &mut Vec<f32>) {
    for block in bytes.as_chunks::<20>().0 {
        let (d, m) = (scale(block, 0), scale(block, 2));
        let value = |q: u8| d * f32::from(q) + m;
        out.extend(block[4..].iter().map(|&q| value(q & 15)));
        out.extend(block[4..].iter().map(|&q| value(q >> 4)));
    }
}
