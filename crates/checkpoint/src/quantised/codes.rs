//! Decodes small floats and integers.

/// The values of 4-bit floats with a sign, two exponent bits and one fraction bit (E2M1).
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The value of an 8-bit float with four exponent bits and three fraction bits (E4M3, without infinities).
pub(crate) fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7) / 8.0);
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-6),
        _ => (1.0 + fraction) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { size } else { -size }
}

/// The value of an 8-bit power of 2 (E8M0).
pub(crate) fn e8m0(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        _ => 2f32.powi(i32::from(code) - 127),
    }
}

/// Codes of `bits` bits that are packed without gaps, from the lowest bit of the first byte on.
pub(crate) fn stream(bytes: &[u8], bits: usize) -> impl Iterator<Item = u32> {
    let count = bytes.len() * 8 / bits;
    (0..count).map(move |at| {
        let first = at * bits;
        let byte = |offset: usize| u32::from(bytes.get(first / 8 + offset).copied().unwrap_or(0));
        (byte(0) | byte(1) << 8) >> (first % 8) & ((1 << bits) - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_floats() {
        let found = [0x00, 0x01, 0x08, 0x38, 0x3c, 0x7e, 0xb8, 0x80].map(e4m3);
        assert_eq!(found, [0.0, 2f32.powi(-9), 2f32.powi(-6), 1.0, 1.5, 448.0, -1.0, -0.0]);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        assert_eq!([127, 128, 0].map(e8m0), [1.0, 2.0, 2f32.powi(-127)]);
    }

    #[test]
    fn codes_cross_bytes() {
        // Codes of 3 bits: 1, 2, 3, 4, 5, 6, 7, 0 from the lowest on.
        let word: u32 = (0..8).map(|at| ((at + 1) % 8) << (3 * at)).sum();
        let bytes = &word.to_le_bytes()[..3];
        assert_eq!(stream(bytes, 3).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 0]);
        assert_eq!(stream(&[0x21, 0x43], 4).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(stream(&[7, 9], 8).collect::<Vec<_>>(), [7, 9]);
    }
}
