use proptest::prelude::*;

use super::*;
use crate::{Rounding, pack};

/// ggml blocks with arbitrary quants and with scales of every magnitude: nearly all byte values are allowed.
fn blocks(form: PackedForm, rows: usize, columns: usize, bytes: impl Fn(usize) -> u8) -> Vec<u8> {
    let (values, size) = form.format().size();
    let mut blocks: Vec<u8> = (0..rows * columns / values * size).map(bytes).collect();
    for block in blocks.chunks_mut(size) {
        let numbers: &[usize] = match form {
            PackedForm::Q6_K => &[208],
            _ if form.has_minima() => &[0, 2],
            _ => &[0],
        };
        for &at in numbers {
            // Any sign and fraction are allowed, and exponents from the smallest to 2^3.
            block[at + 1] = block[at + 1] & 0x83 | (block[at + 1] >> 2 & 31).min(18) << 2;
        }
    }
    blocks
}

fn random(seed: u64) -> impl Fn(usize) -> u8 {
    move |i| {
        let x = (i as u64 ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((x ^ x >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as u8
    }
}

/// The values of a block, as ggml's own code computes them.
fn values(form: PackedForm, block: &[u8]) -> Vec<f32> {
    let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let nibble = |bytes: &[u8], i: usize| u32::from(bytes[i % 16] >> (4 * (i / 16)) & 15);
    let k_scale = |part: usize| {
        let b = &block[4..16];
        match part {
            0..4 => (b[part] & 63, b[part + 4] & 63),
            _ => (b[part + 4] & 15 | b[part - 4] >> 6 << 4, b[part + 4] >> 4 | b[part] >> 6 << 4),
        }
    };
    let value = |i: usize| match form {
        PackedForm::Q8_0 => half(0) * f32::from(block[2 + i] as i8),
        PackedForm::Q4_0 => half(0) * (nibble(&block[2..], i) as f32 - 8.0),
        PackedForm::Q4_1 => half(0) * nibble(&block[4..], i) as f32 + half(2),
        PackedForm::Q5_0 | PackedForm::Q5_1 => {
            let at = if form == PackedForm::Q5_0 { 2 } else { 4 };
            let fifth = u32::from(block[at + i / 8] >> (i % 8) & 1) << 4;
            let quant = (nibble(&block[at + 4..], i) | fifth) as f32;
            if form == PackedForm::Q5_0 { half(0) * (quant - 16.0) } else { half(0) * quant + half(2) }
        }
        PackedForm::Q4_K | PackedForm::Q5_K => {
            let (part, within) = (i / 32, i % 32);
            let at = if form == PackedForm::Q4_K { 16 } else { 48 };
            let mut quant = block[at + 32 * (part / 2) + within] >> (4 * (part % 2)) & 15;
            if form == PackedForm::Q5_K {
                quant |= (block[16 + within] >> part & 1) << 4;
            }
            let (scale, min) = k_scale(part);
            half(0) * f32::from(scale) * f32::from(quant) - half(2) * f32::from(min)
        }
        PackedForm::Q6_K => {
            let (part, within) = (i / 32, i % 32);
            let (run, quarter) = (part / 4, part % 4);
            let low = block[64 * run + 32 * (quarter % 2) + within] >> (4 * (quarter / 2)) & 15;
            let high = block[128 + 32 * run + within] >> (2 * quarter) & 3;
            let scale = block[192 + 8 * run + 2 * quarter + within / 16] as i8;
            half(208) * f32::from(scale) * (f32::from(low | high << 4) - 32.0)
        }
    };
    (0..form.format().size().0).map(value).collect()
}

/// All sets that this CPU has, and AVX-VNNI where it has the same instruction in AVX-512's encoding.
fn tested() -> Vec<Isa> {
    let mut all = Isa::available();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && !all.contains(&Isa::AvxVnni)
    {
        all.push(Isa::AvxVnni);
    }
    all
}

/// Checks a matrix of these blocks: its values `[rows, columns]`, and its products with `n` rows of activations.
fn check(form: PackedForm, [rows, columns]: [usize; 2], n: usize, bytes: impl Fn(usize) -> u8, x: &[f32]) {
    let blocks = blocks(form, rows, columns, bytes);
    let expected: Vec<f32> =
        blocks.chunks(form.format().size().1).flat_map(|block| values(form, block)).collect();
    let parts = pack(form, &blocks, rows, columns).unwrap();
    let packed = Packed::new(form, [rows, columns], &parts.words, &parts.scales, &parts.minima).unwrap();

    let mut found = Vec::new();
    packed.rows(&(0..rows).collect::<Vec<_>>(), &mut found);
    assert_eq!(found, expected, "{form:?}: rows");

    let quantized =
        [Rounding::Int8, Rounding::Int16].map(|rounding| QuantizedRows::new(x, columns, rounding));
    for isa in tested() {
        for tile in 0..packed.tiles() {
            let mut wide = vec![[0.0; ROWS]; columns];
            packed.unpack_on(isa, tile, 0, &mut wide);
            for (column, wide) in wide.iter().enumerate() {
                for (row, value) in wide.iter().enumerate().take(rows - (tile * ROWS).min(rows)) {
                    let expected = expected.get((tile * ROWS + row) * columns + column);
                    assert!(expected.is_none_or(|e| e == value), "{form:?} {isa:?}: {value} {expected:?}");
                }
            }
        }
        let mut out = vec![Vec::new(); 2];
        for quantized in &quantized {
            Packed::products_int8_on(isa, &[packed, packed], quantized, &mut out);
            compare(form, isa, &expected, &quantized.values(), [rows, columns], n, &out);
        }
        Packed::products_f32_on(isa, &[packed, packed], x, &mut out);
        compare(form, isa, &expected, x, [rows, columns], n, &out);
        check_weighted(&packed, isa, &expected, [rows, columns]);
    }
}

/// Checks weighted sums of all rows.
fn check_weighted(packed: &Packed<'_>, isa: Isa, values: &[f32], [rows, columns]: [usize; 2]) {
    let weight = |row: usize| if row < rows { (1 + row % 5) as f32 * 0.01 } else { 0.0 };
    let tiles: Vec<(usize, [f32; ROWS])> = (0..packed.tiles())
        .map(|tile| (tile, std::array::from_fn(|row| weight(tile * ROWS + row))))
        .collect();
    let rows_alone: Vec<(u32, f32)> = (0..rows).map(|row| (row as u32, weight(row))).collect();
    let (mut sums, mut alone) = (vec![0.0; columns], vec![0.0; columns]);
    packed.add_weighted(isa, &tiles, &mut sums);
    let layout = RowLayout::of(packed);
    for rows in rows_alone.chunks(7) {
        let copies: Vec<(Vec<f32>, f32)> = rows
            .iter()
            .map(|&(row, weight)| {
                let mut copy = vec![0.0; layout.words()];
                packed.copy_row(isa, row as usize, &mut copy);
                (copy, weight)
            })
            .collect();
        let copies: Vec<(&[f32], f32)> =
            copies.iter().map(|(copy, weight)| (copy.as_slice(), *weight)).collect();
        layout.add(isa, &copies, &mut alone);
    }
    for (index, sum) in sums.iter().chain(&alone).enumerate() {
        let column = index % columns;
        let terms = (0..rows).map(|row| f64::from(weight(row)) * f64::from(values[row * columns + column]));
        let (expected, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        // A minimum and a scaled quant may cancel each other.
        let largest = values.iter().fold(0.0f64, |a, b| a.max(f64::from(b.abs())));
        let allowed = 1e-6 * size + 1e-6 * largest + 1e-30;
        assert!((f64::from(*sum) - expected).abs() <= allowed, "{isa:?}: {sum}, expected {expected}");
    }
}

/// Compares with sums in float64, within the rounding errors of float32 sums of these terms.
fn compare(
    form: PackedForm,
    isa: Isa,
    weights: &[f32],
    x: &[f32],
    [rows, columns]: [usize; 2],
    n: usize,
    out: &[Vec<f32>],
) {
    assert_eq!(out[0], out[1]);
    assert_eq!(out[0].len(), n * rows);
    for (index, &found) in out[0].iter().enumerate() {
        let (at, row) = (index / rows, index % rows);
        let pairs = x[at * columns..][..columns].iter().zip(&weights[row * columns..][..columns]);
        let (mut sum, mut size, mut largest) = (0.0, 0.0, 0.0f64);
        for (&x, &w) in pairs {
            let product = f64::from(x) * f64::from(w);
            sum += product;
            size += product.abs();
            largest = largest.max(f64::from(w).abs());
        }
        // A minimum and a scaled quant may cancel: each may be as large as the largest weight, or three times that.
        let inputs: f64 = x[at * columns..][..columns].iter().map(|&x| f64::from(x).abs()).sum();
        let allowed = 1e-6 * size + 2e-6 * largest * inputs + 1e-30;
        assert!(
            (f64::from(found) - sum).abs() <= allowed,
            "{form:?} {isa:?} row {row}: {found}, expected {sum}"
        );
    }
}

fn inputs(n: usize, columns: usize, scale: f32) -> Vec<f32> {
    let bytes = random(99);
    (0..n * columns).map(|i| (f32::from(bytes(i)) - 127.5) * scale * (1.0 + (i % 7) as f32)).collect()
}

#[test]
fn every_form_on_every_instruction_set_agrees_with_ggmls_definition() {
    for form in PackedForm::ALL {
        for (rows, n) in [(1, 1), (16, 3), (37, 2), (64, 17)] {
            let columns = 2 * form.span();
            check(form, [rows, columns], n, random(rows as u64), &inputs(n, columns, 0.01));
        }
    }
}

#[test]
fn extreme_bytes_and_activations_are_right_too() {
    for form in PackedForm::ALL {
        let columns = form.span();
        for byte in [0u8, 0x7f, 0x80, 0x88, 0xff] {
            for x in [0.0f32, 1.0, -1.0, 1e-20, 3e4] {
                let mut inputs = vec![x; 2 * columns];
                inputs[columns / 2] = -2.0 * x;
                check(form, [17, columns], 2, |_| byte, &inputs);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_bytes_are_right(seed: u64, which in 0usize..8, rows in 1usize..40, n in 1usize..12, spans in 1usize..4, scale in 1e-3f32..1e2) {
        let form = PackedForm::ALL[which];
        let columns = spans * form.span();
        check(form, [rows, columns], n, random(seed), &inputs(n, columns, scale));
    }
}

#[test]
fn parts_of_other_lengths_are_refused() {
    let parts = pack(PackedForm::Q4_1, &[0; 20 * 2 * 3], 3, 64).unwrap();
    let new =
        |words: &[i32]| Packed::new(PackedForm::Q4_1, [3, 64], words, &parts.scales, &parts.minima).is_some();
    assert!(new(&parts.words) && !new(&parts.words[1..]));
    assert!(pack(PackedForm::Q4_1, &[0; 21], 1, 32).is_none());
    assert!(pack(PackedForm::Q4_K, &[0; 144], 1, 128).is_none());
}
