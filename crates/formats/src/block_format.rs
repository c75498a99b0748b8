//! ggml's block formats and their decoding to float32, as `ggml-common.h` and `ggml-quants.c` define them.

use half::f16;

use crate::{PackedForm, iq_blocks, k_blocks, ternary_blocks};

/// A block format of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs, reason = "the format's own names")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
}

impl BlockFormat {
    /// All block formats.
    pub const ALL: [Self; 23] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ1_S,
        Self::IQ1_M,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ2_S,
        Self::IQ3_XXS,
        Self::IQ3_S,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::TQ1_0,
        Self::TQ2_0,
        Self::MXFP4,
        Self::NVFP4,
    ];

    /// ggml's number, the name, the number of values in a block, and the bytes of a block.
    fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q5_1 => (7, "Q5_1", 32, 24),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q2_K => (10, "Q2_K", 256, 84),
            Self::Q3_K => (11, "Q3_K", 256, 110),
            Self::Q4_K => (12, "Q4_K", 256, 144),
            Self::Q5_K => (13, "Q5_K", 256, 176),
            Self::Q6_K => (14, "Q6_K", 256, 210),
            Self::IQ1_S => (19, "IQ1_S", 256, 50),
            Self::IQ1_M => (29, "IQ1_M", 256, 56),
            Self::IQ2_XXS => (16, "IQ2_XXS", 256, 66),
            Self::IQ2_XS => (17, "IQ2_XS", 256, 74),
            Self::IQ2_S => (22, "IQ2_S", 256, 82),
            Self::IQ3_XXS => (18, "IQ3_XXS", 256, 98),
            Self::IQ3_S => (21, "IQ3_S", 256, 110),
            Self::IQ4_NL => (20, "IQ4_NL", 32, 18),
            Self::IQ4_XS => (23, "IQ4_XS", 256, 136),
            Self::TQ1_0 => (34, "TQ1_0", 256, 54),
            Self::TQ2_0 => (35, "TQ2_0", 256, 66),
            Self::MXFP4 => (39, "MXFP4", 32, 17),
            Self::NVFP4 => (40, "NVFP4", 64, 36),
        }
    }

    /// ggml's number of the type.
    pub fn ggml_type(self) -> u32 {
        self.facts().0
    }

    /// ggml's name of the format.
    pub fn name(self) -> &'static str {
        self.facts().1
    }

    /// The number of values in a block, and the bytes of a block.
    pub fn size(self) -> (usize, usize) {
        let (_, _, values, bytes) = self.facts();
        (values, bytes)
    }

    /// A one-line description, for formats that can be [encoded](Self::encode).
    pub fn help(self) -> Option<&'static str> {
        match self {
            Self::Q8_0 => Some("8 bits and a scale for 32 values"),
            Self::Q4_0 => Some("4 bits and a scale for 32 values"),
            Self::Q4_1 => Some("4 bits, a scale and a minimum for 32 values"),
            _ => None,
        }
    }

    /// The form in which weights of this format are held packed in memory, if there is one.
    pub fn packed(self) -> Option<PackedForm> {
        PackedForm::ALL.into_iter().find(|form| form.format() == self)
    }

    /// Appends the values of whole blocks to `out`.
    pub fn decode(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::Q4_0 => each(bytes, |block| q4_0(block, out)),
            Self::Q4_1 => each(bytes, |block| q4_1(block, out)),
            Self::Q5_0 => each(bytes, |block| q5_0(block, out)),
            Self::Q5_1 => each(bytes, |block| q5_1(block, out)),
            Self::Q8_0 => each(bytes, |block| q8_0(block, out)),
            Self::Q2_K => each(bytes, |block| k_blocks::q2_k(block, out)),
            Self::Q3_K => each(bytes, |block| k_blocks::q3_k(block, out)),
            Self::Q4_K => each(bytes, |block| k_blocks::q4_k(block, out)),
            Self::Q5_K => each(bytes, |block| k_blocks::q5_k(block, out)),
            Self::Q6_K => each(bytes, |block| k_blocks::q6_k(block, out)),
            Self::IQ1_S => each(bytes, |block| iq_blocks::iq1_s(block, out)),
            Self::IQ1_M => each(bytes, |block| iq_blocks::iq1_m(block, out)),
            Self::IQ2_XXS => each(bytes, |block| iq_blocks::iq2_xxs(block, out)),
            Self::IQ2_XS => each(bytes, |block| iq_blocks::iq2_xs(block, out)),
            Self::IQ2_S => each(bytes, |block| iq_blocks::iq2_s(block, out)),
            Self::IQ3_XXS => each(bytes, |block| iq_blocks::iq3_xxs(block, out)),
            Self::IQ3_S => each(bytes, |block| iq_blocks::iq3_s(block, out)),
            Self::IQ4_NL => each(bytes, |block| iq4_nl(block, out)),
            Self::IQ4_XS => each(bytes, |block| iq4_xs(block, out)),
            Self::TQ1_0 => each(bytes, |block| ternary_blocks::tq1_0(block, out)),
            Self::TQ2_0 => each(bytes, |block| ternary_blocks::tq2_0(block, out)),
            Self::MXFP4 => each(bytes, |block| mxfp4(block, out)),
            Self::NVFP4 => each(bytes, |block| ternary_blocks::nvfp4(block, out)),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], mut decode: impl FnMut(&[u8; N])) {
    bytes.as_chunks::<N>().0.iter().for_each(&mut decode);
}

pub(crate) fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Decodes the low nibbles of some bytes, then the high ones.
pub(crate) fn nibbles(bytes: &[u8], value: impl Fn(usize, u8) -> f32, out: &mut Vec<f32>) {
    out.extend(bytes.iter().enumerate().map(|(i, &q)| value(i, q & 15)));
    out.extend(bytes.iter().enumerate().map(|(i, &q)| value(bytes.len() + i, q >> 4)));
}

/// f16 d, 32 i8 q: x = d q.
fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let d = half(block, 0);
    out.extend(block[2..].iter().map(|&q| d * f32::from(q as i8)));
}

/// f16 d, 16 bytes of nibbles: x = d (q - 8).
fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let d = half(block, 0);
    nibbles(&block[2..], |_, q| d * (f32::from(q) - 8.0), out);
}

/// f16 d, f16 m, 16 bytes of nibbles: x = d q + m.
fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], |_, q| d * f32::from(q) + m, out);
}

/// The fifth bit of value `i`, shifted to its place.
fn fifth(bits: u32, i: usize) -> u8 {
    ((bits >> i) as u8 & 1) << 4
}

/// f16 d, 32 fifth bits, 16 bytes of nibbles: x = d (q - 16).
fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let (d, bits) = (half(block, 0), u32::from_le_bytes([block[2], block[3], block[4], block[5]]));
    nibbles(&block[6..], |i, q| d * (f32::from(q | fifth(bits, i)) - 16.0), out);
}

/// f16 d, f16 m, 32 fifth bits, 16 bytes of nibbles: x = d q + m.
fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let (d, m) = (half(block, 0), half(block, 2));
    let bits = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], |i, q| d * f32::from(q | fifth(bits, i)) + m, out);
}

/// The values for which IQ4 nibbles stand.
const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// f16 d, 16 bytes of nibbles: x = d v(q).
fn iq4_nl(block: &[u8; 18], out: &mut Vec<f32>) {
    let d = half(block, 0);
    nibbles(&block[2..], |_, q| d * f32::from(IQ4_VALUES[usize::from(q)]), out);
}

/// f16 d, eight 6-bit scales s (two high bits each in a u16, four low ones in four bytes), 128 bytes of
/// nibbles: x = d (s - 32) v(q).
fn iq4_xs(block: &[u8; 136], out: &mut Vec<f32>) {
    let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (part, quants) in block[8..].chunks_exact(16).enumerate() {
        let low = block[4 + part / 2] >> (4 * (part % 2)) & 15;
        let scale = low | (((high >> (2 * part)) as u8 & 3) << 4);
        let d = d * (f32::from(scale) - 32.0);
        nibbles(quants, |_, q| d * f32::from(IQ4_VALUES[usize::from(q)]), out);
    }
}

/// The doubled values of a 4-bit float with 2 exponent bits and 1 fraction bit.
pub(crate) const FP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// An exponent e, 16 bytes of nibbles: x = 2^(e - 128) v(q), where v are the doubled values.
fn mxfp4(block: &[u8; 17], out: &mut Vec<f32>) {
    let e = u32::from(block[0]);
    // Below 2 the power is subnormal.
    let d = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    nibbles(&block[1..], |_, q| d * f32::from(FP4_VALUES[usize::from(q)]), out);
}
