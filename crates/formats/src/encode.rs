//! Encodes float32 in ggml's blocks of 32, rounding like ggml's reference code in `ggml-quants.c`.

use half::f16;

use crate::BlockFormat;

const LEN: usize = 32;

impl BlockFormat {
    /// Whether [`BlockFormat::encode`] supports the format.
    pub fn can_encode(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0 | Self::Q4_1)
    }

    /// Encodes `values`, whose number must be a multiple of 32; `None` for a format that cannot be encoded.
    pub fn encode(self, values: &[f32]) -> Option<Vec<u8>> {
        let encode = match self {
            Self::Q8_0 => q8_0,
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            _ => return None,
        };
        let mut bytes = Vec::with_capacity(values.len() / LEN * self.size().1);
        values.as_chunks::<LEN>().0.iter().for_each(|block| encode(block, &mut bytes));
        Some(bytes)
    }
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn half(value: f32, bytes: &mut Vec<u8>) {
    bytes.extend(f16::from_f32(value).to_le_bytes());
}

/// d = max |x| / 127; q = x / d, rounded half away from zero.
fn q8_0(block: &[f32; LEN], bytes: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let d = largest / 127.0;
    let id = inverse(d);
    half(d, bytes);
    bytes.extend(block.iter().map(|x| (x * id).round() as i8 as u8));
}

/// Packs quants as nibbles; the low nibbles hold the first half of the block.
fn nibbles(block: &[f32; LEN], quant: impl Fn(f32) -> f32, bytes: &mut Vec<u8>) {
    let quant = |x: f32| (quant(x) as u8).min(15);
    let (low, high) = block.split_at(LEN / 2);
    bytes.extend(low.iter().zip(high).map(|(&low, &high)| quant(low) | quant(high) << 4));
}

/// d = the value of largest magnitude / -8; q = x / d + 8, rounded.
fn q4_0(block: &[f32; LEN], bytes: &mut Vec<u8>) {
    let largest = block.iter().fold(0.0f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    let d = largest / -8.0;
    let id = inverse(d);
    half(d, bytes);
    nibbles(block, |x| x * id + 8.5, bytes);
}

/// m = the smallest value, d = (the largest value - m) / 15; q = (x - m) / d, rounded.
fn q4_1(block: &[f32; LEN], bytes: &mut Vec<u8>) {
    let (min, max) = block.iter().fold((f32::MAX, f32::MIN), |(min, max), &x| (min.min(x), max.max(x)));
    let d = (max - min) / 15.0;
    let id = inverse(d);
    half(d, bytes);
    half(min, bytes);
    nibbles(block, |x| (x - min) * id + 0.5, bytes);
}
