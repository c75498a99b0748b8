//! Tests quantised weights of other programs, which are packed here as their formats are described, and read back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{fs, path::Path};

use moi_checkpoint::{
    CheckpointError, Quantisation, QuantisedFormat, open_quantised_safetensors, open_safetensors,
};
use safetensors::{Dtype, tensor::TensorView};

/// A tensor of a file: its name, type, shape and bytes.
type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn file(directory: &Path, tensors: &[Stored]) {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(directory.join("model.safetensors"), bytes).unwrap();
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Packs codes of this many bits, row by row, into 32-bit words from the lowest bits up.
fn packed(codes: &[u32], columns: usize, bits: usize) -> Vec<u32> {
    let pack = |row: &[u32]| {
        let mut words = vec![0u32; (row.len() * bits).div_ceil(32)];
        for (at, &code) in row.iter().enumerate() {
            for bit in 0..bits {
                words[(at * bits + bit) / 32] |= (code >> bit & 1) << ((at * bits + bit) % 32);
            }
        }
        words
    };
    codes.chunks(columns).flat_map(pack).collect()
}

/// Pseudo-random numbers below a bound.
fn codes(count: usize, below: u32) -> Vec<u32> {
    (0..count as u32).map(|at| (at * 7919 + at / 3) % 251 % below).collect()
}

fn read(tensors: &[Stored], how: &Quantisation, name: &str) -> (Vec<usize>, Vec<f32>) {
    let directory = tempfile::tempdir().unwrap();
    file(directory.path(), tensors);
    let checkpoint = open_quantised_safetensors(directory.path(), how).unwrap();
    let tensor = &checkpoint.tensors()[name];
    // If the tensor has rows, reading in pieces must give the same values.
    if let Some(pieces) = tensor.pieces() {
        assert_eq!(pieces.iter().flat_map(|piece| piece.read()).collect::<Vec<_>>(), tensor.read());
    }
    (tensor.shape().to_vec(), tensor.read())
}

fn scales(count: usize) -> Vec<f32> {
    (0..count).map(|at| 0.25 + at as f32 / 8.0).collect()
}

#[test]
fn gptq_with_groups_in_any_order() {
    let (inputs, outputs, groups) = (16, 8, 4);
    for (bits, zero_plus) in [(4, 1), (8, 0)] {
        let each = 32 / bits;
        let of_codes = codes(inputs * outputs, 1 << bits);
        let of_zeros = codes(groups * outputs, (1 << bits) - 1);
        let of_groups: Vec<u32> = (0..inputs as u32).map(|input| input % groups as u32).collect();
        // The codes are packed along the inputs: each word belongs to one output.
        let mut qweight = vec![0u32; inputs / each * outputs];
        for input in 0..inputs {
            for output in 0..outputs {
                qweight[input / each * outputs + output] |=
                    of_codes[input * outputs + output] << (bits * (input % each));
            }
        }
        let scale = scales(groups * outputs);
        let tensors = [
            ("a.qweight", Dtype::I32, vec![inputs / each, outputs], words(&qweight)),
            ("a.qzeros", Dtype::I32, vec![groups, outputs / each], words(&packed(&of_zeros, outputs, bits))),
            ("a.scales", Dtype::F32, vec![groups, outputs], floats(&scale)),
            ("a.g_idx", Dtype::I32, vec![inputs], words(&of_groups)),
        ];
        let how = Quantisation { bits, zero_plus, ..Quantisation::new(QuantisedFormat::Gptq) };
        let (shape, found) = read(&tensors, &how, "a.weight");
        assert_eq!(shape, [outputs, inputs]);
        for (at, &value) in found.iter().enumerate() {
            let (output, input) = (at / inputs, at % inputs);
            let group = of_groups[input] as usize;
            let zero = of_zeros[group * outputs + output] as i32 + zero_plus;
            let expected =
                (of_codes[input * outputs + output] as i32 - zero) as f32 * scale[group * outputs + output];
            assert_eq!(value, expected, "{bits} bits, output {output}, input {input}");
        }
    }
}

#[test]
fn compressed_tensors_with_zeros_and_without() {
    let (rows, columns, groups) = (16, 10, 2);
    for (bits, has_zeros) in [(4, true), (4, false), (8, true), (8, false)] {
        let (each, group) = (32 / bits, columns / groups);
        let of_codes = codes(rows * columns, 1 << bits);
        let of_zeros = codes(groups * rows, 1 << bits);
        let scale = scales(rows * groups);
        let shape: Vec<u8> =
            [rows as i64, columns as i64].iter().flat_map(|size| size.to_le_bytes()).collect();
        let words_of_row = columns.div_ceil(each);
        let mut tensors = vec![
            (
                "a.weight_packed",
                Dtype::I32,
                vec![rows, words_of_row],
                words(&packed(&of_codes, columns, bits)),
            ),
            ("a.weight_scale", Dtype::F32, vec![rows, groups], floats(&scale)),
            ("a.weight_shape", Dtype::I64, vec![2], shape),
        ];
        if has_zeros {
            // The zero points are packed along the outputs.
            let mut zeros = vec![0u32; rows / each * groups];
            for row in 0..rows {
                for at in 0..groups {
                    zeros[row / each * groups + at] |= of_zeros[row * groups + at] << (bits * (row % each));
                }
            }
            tensors.push(("a.weight_zero_point", Dtype::I32, vec![rows / each, groups], words(&zeros)));
        }
        let how = Quantisation { bits, ..Quantisation::new(QuantisedFormat::Packed) };
        let (found_shape, found) = read(&tensors, &how, "a.weight");
        assert_eq!(found_shape, [rows, columns]);
        for (at, &value) in found.iter().enumerate() {
            let (row, group) = (at / columns, at % columns / group);
            let zero = if has_zeros { of_zeros[row * groups + group] as i32 } else { 1 << (bits - 1) };
            assert_eq!(value, (of_codes[at] as i32 - zero) as f32 * scale[row * groups + group]);
        }
    }
}

#[test]
fn mlx_of_all_bits_and_stacks() {
    for bits in [2, 3, 4, 5, 6, 8] {
        let (experts, rows, columns, group) = (2, 3, 64, 32);
        let count = experts * rows * columns;
        let of_codes = codes(count, 1 << bits);
        let (scale, bias) = (scales(count / group), scales(count / group));
        let groups = columns / group;
        let tensors = [
            (
                "a.switch_mlp.up_proj.weight",
                Dtype::U32,
                vec![experts, rows, columns * bits / 32],
                words(&packed(&of_codes, columns, bits)),
            ),
            ("a.switch_mlp.up_proj.scales", Dtype::F32, vec![experts, rows, groups], floats(&scale)),
            ("a.switch_mlp.up_proj.biases", Dtype::F32, vec![experts, rows, groups], floats(&bias)),
        ];
        let how = Quantisation {
            group_sizes: [("a.switch_mlp.up_proj".to_owned(), group)].into(),
            ..Quantisation::new(QuantisedFormat::Mlx)
        };
        let (shape, found) = read(&tensors, &how, "a.experts.1.up_proj.weight");
        assert_eq!(shape, [rows, columns]);
        for (at, &value) in found.iter().enumerate() {
            let at = at + rows * columns;
            assert_eq!(value, of_codes[at] as f32 * scale[at / group] + bias[at / group], "{bits} bits");
        }
    }
}

#[test]
fn eight_bits_with_scales_of_all_kinds() {
    let (rows, columns) = (3, 5);
    let bytes: Vec<u8> = codes(rows * columns, 127).into_iter().map(|code| code as u8).collect();
    let one = |at: usize| 0.5 + at as f32;
    for (part, shape, count) in [
        (".weight_scale", vec![], 1),
        (".weight_scale", vec![rows], rows),
        (".weight_scale", vec![rows, 1], rows),
        (".weight_scale_inv", vec![2, 3], 6),
    ] {
        let scale: Vec<f32> = (0..count).map(one).collect();
        let how = Quantisation { block: [2, 2], ..Quantisation::new(QuantisedFormat::Int8) };
        let name: &'static str =
            if part == ".weight_scale" { "a.weight_scale" } else { "a.weight_scale_inv" };
        let tensors = [
            ("a.weight", Dtype::I8, vec![rows, columns], bytes.clone()),
            (name, Dtype::F32, shape.clone(), floats(&scale)),
            // This scale belongs to activations, which are not quantised here.
            ("a.input_scale", Dtype::F32, vec![1], floats(&[3.0])),
        ];
        let (_, found) = read(&tensors, &how, "a.weight");
        for (at, &value) in found.iter().enumerate() {
            let scale = match count {
                1 => 0.5,
                6 => one(at / columns / 2 * 3 + at % columns / 2),
                _ => one(at / columns),
            };
            assert_eq!(value, f32::from(bytes[at] as i8) * scale, "{shape:?}");
        }
    }
}

/// Parts that do not fit are named with what was found; without a quantisation in the config, codes are no weights.
#[test]
fn parts_that_do_not_fit_are_refused() {
    let refused = |tensors: &[Stored], format: Option<QuantisedFormat>, parts: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        file(directory.path(), tensors);
        let opened = match format {
            Some(format) => open_quantised_safetensors(directory.path(), &Quantisation::new(format)),
            None => open_safetensors(directory.path()),
        };
        let error: CheckpointError = opened.unwrap_err();
        let said = error.to_string();
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?}: {said}");
    };
    let codes = ("a.weight", Dtype::F8_E4M3, vec![4, 4], vec![0; 16]);
    let scale = |shape: Vec<usize>| {
        let count = shape.iter().product();
        ("a.weight_scale_inv", Dtype::F32, shape, floats(&vec![1.0; count]))
    };
    refused(
        &[codes.clone(), scale(vec![3, 1])],
        Some(QuantisedFormat::Fp8),
        &["a.weight_scale_inv", "[3, 1]", "FP8"],
    );
    refused(&[scale(vec![1, 1])], Some(QuantisedFormat::Fp8), &["a.weight", "missing"]);
    refused(std::slice::from_ref(&codes), None, &["a.weight", "F8_E4M3", "quantised"]);
    // These codes have no scale.
    refused(&[codes], Some(QuantisedFormat::Fp8), &["a.weight", "F8_E4M3"]);
    let word = |name, shape: Vec<usize>| {
        (name, Dtype::I32, shape.clone(), vec![0; 4 * shape.iter().product::<usize>()])
    };
    let float = |name, shape: Vec<usize>| {
        (name, Dtype::F32, shape.clone(), vec![0; 4 * shape.iter().product::<usize>()])
    };
    let awq = |zeros: Vec<usize>, scales: Vec<usize>| {
        [word("a.qweight", vec![8, 2]), word("a.qzeros", zeros), float("a.scales", scales)]
    };
    refused(&awq(vec![2, 1], vec![2, 16]), Some(QuantisedFormat::Awq), &["a.qzeros", "[2, 1]", "[2, 2]"]);
    refused(&awq(vec![3, 2], vec![3, 16]), Some(QuantisedFormat::Awq), &["a.scales", "3 groups of 8"]);
    refused(&awq(vec![2, 2], vec![32]), Some(QuantisedFormat::Awq), &["a.scales", "[32]"]);
    let mut gptq =
        vec![word("a.qweight", vec![1, 8]), word("a.qzeros", vec![2, 1]), float("a.scales", vec![2, 8])];
    gptq.push(("a.g_idx", Dtype::I32, vec![8], words(&[0, 1, 2, 0, 0, 0, 0, 0])));
    refused(&gptq, Some(QuantisedFormat::Gptq), &["a.g_idx", "group 2 of 2"]);
    let mlx = [
        ("a.weight", Dtype::U32, vec![2, 7], vec![0; 56]),
        float("a.scales", vec![2, 1]),
        float("a.biases", vec![2, 1]),
    ];
    refused(&mlx, Some(QuantisedFormat::Mlx), &["a.weight", "does not fit its scales"]);
    let blocks = [
        ("m.experts.down_proj_blocks", Dtype::U8, vec![1, 2, 1, 16], vec![0; 32]),
        ("m.experts.down_proj_scales", Dtype::U8, vec![1, 2, 2], vec![0; 4]),
    ];
    refused(&blocks, Some(QuantisedFormat::Mxfp4), &["down_proj_scales", "[1, 2, 2]"]);
}
