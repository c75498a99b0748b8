//! Weights of integers of few bits in 32-bit words, with scales and zero points for groups of inputs.

use std::sync::Arc;

use super::{
    CodeType, Codes, NamedTensor, Quantisation, QuantisedFormat, Stored, TensorError, about, expect_shape,
    named_tensor, scales_of,
};
use crate::{LazyTensor, made::MadeRows};

const WORDS: &[CodeType] = &[CodeType::I32, CodeType::U32];

/// The output to which each of the eight codes in an AWQ word belongs.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// A weight whose rows are inputs, `[in, out]`: AWQ and GPTQ.
#[derive(Debug)]
struct ByInput {
    format: QuantisedFormat,
    codes: Codes,
    zeros: Codes,
    /// `[groups, out]`.
    scales: LazyTensor,
    /// The group of each input.
    groups: Vec<usize>,
    bits: usize,
    zero_plus: i32,
}

impl ByInput {
    fn code(&self, word: u32, at: usize) -> i32 {
        (word >> (self.bits * at) & ((1 << self.bits) - 1)) as i32
    }

    /// The codes of words in the order of the outputs.
    fn spread(&self, words: impl Iterator<Item = u32>) -> Vec<i32> {
        let each = 32 / self.bits;
        let mut all = Vec::new();
        for word in words {
            let first = all.len();
            all.resize(first + each, 0);
            for (at, &ordered) in AWQ_ORDER.iter().enumerate().take(each) {
                let output = if self.format == QuantisedFormat::Awq { ordered } else { at };
                all[first + output] = self.code(word, at);
            }
        }
        all
    }
}

impl MadeRows for ByInput {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let group = self.groups[row];
        let codes = match self.format {
            QuantisedFormat::Awq => self.spread(self.codes.words(row)),
            _ => {
                let each = 32 / self.bits;
                self.codes.words(row / each).map(|word| self.code(word, row % each)).collect()
            }
        };
        let zeros = self.spread(self.zeros.words(group));
        let all = codes.iter().zip(&zeros).zip(scales_of(&self.scales, group));
        values.extend(all.map(|((code, zero), scale)| (code - (zero + self.zero_plus)) as f32 * scale));
    }

    fn num_bytes(&self) -> usize {
        self.codes.range.len() + self.zeros.range.len() + self.scales.num_bytes()
    }

    fn release(&self) {
        self.codes.source.release(&self.codes.range);
    }
}

pub(super) fn compose_awq(stored: &mut Stored) -> Result<Vec<NamedTensor>, TensorError> {
    let mut all = Vec::new();
    for module in stored.modules(".qweight") {
        let codes = stored.take_codes(&module, ".qweight")?;
        let [inputs, words] = codes.matrix(WORDS).map_err(about(&module, ".qweight"))?;
        let parts = Parts { inputs, outputs: words * 8, bits: 4, groups: None, zero_plus: 0 };
        all.push(by_input(stored, &module, codes, QuantisedFormat::Awq, parts)?);
    }
    Ok(all)
}

pub(super) fn compose_gptq(stored: &mut Stored, how: &Quantisation) -> Result<Vec<NamedTensor>, TensorError> {
    let mut all = Vec::new();
    for module in stored.modules(".qweight") {
        let codes = stored.take_codes(&module, ".qweight")?;
        let [words, outputs] = codes.matrix(WORDS).map_err(about(&module, ".qweight"))?;
        let inputs = words * (32 / how.bits);
        let groups = match stored.codes.remove(&format!("{module}.g_idx")) {
            Some(list) => Some(group_list(&list, inputs).map_err(about(&module, ".g_idx"))?),
            None => None,
        };
        let parts = Parts { inputs, outputs, bits: how.bits, groups, zero_plus: how.zero_plus };
        all.push(by_input(stored, &module, codes, QuantisedFormat::Gptq, parts)?);
    }
    Ok(all)
}

fn group_list(list: &Codes, inputs: usize) -> Result<Vec<usize>, String> {
    if list.shape != [inputs] || !WORDS.contains(&list.kind) {
        return Err(format!("has shape {:?}, expected a group for each of {inputs} inputs", list.shape));
    }
    let words = list.bytes().as_chunks::<4>().0.iter().map(|&word| i32::from_le_bytes(word));
    words.map(|group| usize::try_from(group).map_err(|_| format!("names group {group}"))).collect()
}

struct Parts {
    inputs: usize,
    outputs: usize,
    bits: usize,
    groups: Option<Vec<usize>>,
    zero_plus: i32,
}

fn by_input(
    stored: &mut Stored,
    module: &str,
    codes: Codes,
    format: QuantisedFormat,
    parts: Parts,
) -> Result<NamedTensor, TensorError> {
    let Parts { inputs, outputs, bits, groups, zero_plus } = parts;
    let zeros = stored.take_codes(module, ".qzeros")?;
    let scales = stored.take_floats(module, ".scales")?;
    let &[count, _] = scales.shape() else {
        return Err((
            format!("{module}.scales"),
            format!("has shape {:?}, expected a matrix", scales.shape()),
        ));
    };
    expect_shape(module, ".scales", scales.shape(), &[count, outputs])?;
    zeros.matrix(WORDS).map_err(about(module, ".qzeros"))?;
    expect_shape(module, ".qzeros", &zeros.shape, &[count, outputs.div_ceil(32 / bits)])?;
    let groups = match groups {
        Some(groups) => groups,
        None if count > 0 && inputs.is_multiple_of(count) => {
            (0..inputs).map(|i| i / (inputs / count)).collect()
        }
        None => return Err((format!("{module}.scales"), format!("has {count} groups of {inputs} inputs"))),
    };
    if let Some(group) = groups.iter().find(|&&group| group >= count) {
        return Err((format!("{module}.g_idx"), format!("names group {group} of {count}")));
    }
    let rows = ByInput { format, codes: codes.clone(), zeros, scales, groups, bits, zero_plus };
    let (name, tensor) =
        named_tensor(format!("{module}.weight"), format, vec![inputs, outputs], Arc::new(rows), &codes);
    match tensor.transpose() {
        Some(tensor) => Ok((name, tensor)),
        None => Err((name, "is no matrix".to_owned())),
    }
}

/// A weight whose rows are outputs, `[out, in]`: compressed-tensors.
#[derive(Debug)]
struct ByOutput {
    codes: Codes,
    /// `[out, groups]`.
    scales: LazyTensor,
    /// Zero points packed along the outputs, `[out / 8, groups]`; if absent, half of the codes' range.
    zeros: Option<Codes>,
    columns: usize,
    bits: usize,
}

impl MadeRows for ByOutput {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let (each, mask) = (32 / self.bits, (1u32 << self.bits) - 1);
        let scales = scales_of(&self.scales, row);
        let group = self.columns.div_ceil(scales.len().max(1)).max(1);
        let zero = |at: usize| match &self.zeros {
            Some(zeros) => (zeros.word(row / each, at) >> (self.bits * (row % each)) & mask) as i32,
            None => 1 << (self.bits - 1),
        };
        let codes =
            self.codes.words(row).flat_map(|word| (0..each).map(move |at| word >> (self.bits * at) & mask));
        let zeros: Vec<i32> = (0..scales.len()).map(zero).collect();
        let codes = codes.take(self.columns).enumerate();
        values.extend(codes.map(|(at, code)| (code as i32 - zeros[at / group]) as f32 * scales[at / group]));
    }

    fn num_bytes(&self) -> usize {
        let zeros = self.zeros.as_ref().map_or(0, |zeros| zeros.range.len());
        self.codes.range.len() + self.scales.num_bytes() + zeros
    }

    fn release(&self) {
        self.codes.source.release(&self.codes.range);
    }
}

pub(super) fn compose_packed(
    stored: &mut Stored,
    how: &Quantisation,
) -> Result<Vec<NamedTensor>, TensorError> {
    let mut all = Vec::new();
    let each = 32 / how.bits;
    for module in stored.modules(".weight_packed") {
        let codes = stored.take_codes(&module, ".weight_packed")?;
        let scales = stored.take_floats(&module, ".weight_scale")?;
        let zeros = stored.codes.remove(&format!("{module}.weight_zero_point"));
        let shape = stored.codes.remove(&format!("{module}.weight_shape"));
        if stored.codes.contains_key(&format!("{module}.weight_g_idx")) {
            let what = "orders the inputs, which is not supported for compressed-tensors".to_owned();
            return Err((format!("{module}.weight_g_idx"), what));
        }
        let [rows, words] = codes.matrix(WORDS).map_err(about(&module, ".weight_packed"))?;
        let columns = columns(shape.as_ref(), rows, words * each).map_err(about(&module, ".weight_shape"))?;
        if words != columns.div_ceil(each) {
            let what = format!("has {words} words a row, no {columns} values of {} bits", how.bits);
            return Err((format!("{module}.weight_packed"), what));
        }
        let &[count, groups] = scales.shape() else {
            return Err((format!("{module}.weight_scale"), format!("has shape {:?}", scales.shape())));
        };
        expect_shape(&module, ".weight_scale", scales.shape(), &[rows, groups.max(1)])?;
        if !columns.is_multiple_of(groups) {
            let what = format!("has {groups} groups of {columns} values");
            return Err((format!("{module}.weight_scale"), what));
        }
        if let Some(zeros) = &zeros {
            zeros.matrix(WORDS).map_err(about(&module, ".weight_zero_point"))?;
            expect_shape(&module, ".weight_zero_point", &zeros.shape, &[count.div_ceil(each), groups])?;
        }
        let packed = ByOutput { codes: codes.clone(), scales, zeros, columns, bits: how.bits };
        let name = format!("{module}.weight");
        all.push(named_tensor(name, QuantisedFormat::Packed, vec![rows, columns], Arc::new(packed), &codes));
    }
    Ok(all)
}

/// The columns of a matrix whose last word may be padded.
fn columns(shape: Option<&Codes>, rows: usize, most: usize) -> Result<usize, String> {
    let Some(shape) = shape else { return Ok(most) };
    let numbers: Vec<i64> = match shape.kind {
        CodeType::I64 => shape.bytes().as_chunks::<8>().0.iter().map(|&n| i64::from_le_bytes(n)).collect(),
        CodeType::I32 => {
            shape.bytes().as_chunks::<4>().0.iter().map(|&n| i32::from_le_bytes(n).into()).collect()
        }
        other => return Err(format!("has type {other:?}")),
    };
    match numbers[..] {
        [found, columns] if found == rows as i64 && columns > 0 && columns <= most as i64 => {
            Ok(columns as usize)
        }
        _ => Err(format!("says {numbers:?}, for {rows} rows of at most {most} values")),
    }
}
