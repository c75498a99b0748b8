//! Weights of 4-bit floats with scales.

use std::sync::Arc;

use super::{
    CodeType, Codes, NamedTensor, QuantisedFormat, Stored, TensorError, about,
    codes::{E2M1, e4m3, e8m0},
    expect_shape, named_tensor, number,
};
use crate::made::MadeRows;

/// The number of values with one scale in MXFP4 and in NVFP4.
const MXFP4_BLOCK: usize = 32;
const NVFP4_BLOCK: usize = 16;

#[derive(Debug)]
struct Blocks {
    codes: Codes,
    scales: Codes,
    /// The number of values with one scale.
    block: usize,
    scale: fn(u8) -> f32,
    /// A factor on all values.
    factor: f32,
}

impl MadeRows for Blocks {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let len = self.scales.row(row).len();
        let all = &self.codes.bytes()[row * len * self.block / 2..][..len * self.block / 2];
        for (codes, &scale) in all.chunks(self.block / 2).zip(self.scales.row(row)) {
            let scale = (self.scale)(scale) * self.factor;
            // The low half of a byte is the first value.
            let pair = |&byte: &u8| [byte & 15, byte >> 4].map(|code| E2M1[usize::from(code)] * scale);
            values.extend(codes.iter().flat_map(pair));
        }
    }

    fn num_bytes(&self) -> usize {
        self.codes.range.len() + self.scales.range.len()
    }

    fn release(&self) {
        self.codes.source.release(&self.codes.range);
        self.scales.source.release(&self.scales.range);
    }
}

/// Composes gpt-oss' tensors: `X_blocks` `[experts, out, blocks, 16]` and `X_scales` `[experts, out, blocks]` are the
/// weights of the experts, in which rows of gate and up alternate.
pub(super) fn compose_mxfp4(stored: &mut Stored) -> Result<Vec<NamedTensor>, TensorError> {
    let mut all = Vec::new();
    for stack in stored.modules("_blocks") {
        let codes = stored.take_codes(&stack, "_blocks")?;
        let scales = stored.take_codes(&stack, "_scales")?;
        let is_bytes = codes.kind == CodeType::U8 && scales.kind == CodeType::U8;
        let &[count, rows, blocks, 16] = &codes.shape[..] else {
            let what = format!("has shape {:?}, expected [experts, out, blocks, 16]", codes.shape);
            return Err((format!("{stack}_blocks"), what));
        };
        if !is_bytes || count > crate::checkpoint::MAX_EXPERTS || codes.shape.contains(&0) {
            let what = format!("{:?} of {:?} is no stack of experts in MXFP4", codes.kind, codes.shape);
            return Err((format!("{stack}_blocks"), what));
        }
        expect_shape(&stack, "_scales", &scales.shape, &[count, rows, blocks])?;
        let shape = vec![count, rows, blocks * MXFP4_BLOCK];
        let made_of = Blocks { codes: codes.clone(), scales, block: MXFP4_BLOCK, scale: e8m0, factor: 1.0 };
        let (_, tensor) =
            named_tensor(stack.clone(), QuantisedFormat::Mxfp4, shape, Arc::new(made_of), &codes);
        let experts = single_experts(&stack, &tensor, count, rows);
        all.extend(experts.ok_or_else(|| (format!("{stack}_blocks"), "is no stack of experts".to_owned()))?);
    }
    Ok(all)
}

fn single_experts(
    stack: &str,
    tensor: &crate::LazyTensor,
    count: usize,
    rows: usize,
) -> Option<Vec<NamedTensor>> {
    let (prefix, map) = stack.rsplit_once(".experts.")?;
    let mut all = Vec::new();
    for index in 0..count {
        let expert = tensor.matrix(index)?;
        let name = |map: &str| format!("{prefix}.experts.{index}.{map}.weight");
        match map {
            "down_proj" => all.push((name(map), expert)),
            "gate_up_proj" if rows.is_multiple_of(2) => {
                all.push((name("gate_proj"), expert.every(2, 0)?));
                all.push((name("up_proj"), expert.every(2, 1)?));
            }
            _ => return None,
        }
    }
    Some(all)
}

/// Composes ModelOpt's `weight`, `weight_scale` and `weight_scale_2`, or compressed-tensors' `weight_packed`,
/// `weight_scale` and `weight_global_scale`, which is a divisor.
pub(super) fn compose_nvfp4(stored: &mut Stored) -> Result<Vec<NamedTensor>, TensorError> {
    let mut all = Vec::new();
    let spellings = [(".weight_scale_2", ".weight", false), (".weight_global_scale", ".weight_packed", true)];
    for (global, packed, divides) in spellings {
        for module in stored.modules(global) {
            let codes = stored.take_codes(&module, packed)?;
            let scales = stored.take_codes(&module, ".weight_scale")?;
            let factor = number(&stored.take_floats(&module, global)?)
                .ok_or_else(|| (format!("{module}{global}"), "is no single number".to_owned()))?;
            let [rows, bytes] = codes.matrix(&[CodeType::U8]).map_err(about(&module, packed))?;
            let columns = bytes * 2;
            scales.matrix(&[CodeType::F8E4M3]).map_err(about(&module, ".weight_scale"))?;
            expect_shape(&module, ".weight_scale", &scales.shape, &[rows, columns.div_ceil(NVFP4_BLOCK)])?;
            if !columns.is_multiple_of(NVFP4_BLOCK) {
                let what = format!("has {columns} columns, no whole number of blocks of {NVFP4_BLOCK}");
                return Err((format!("{module}{packed}"), what));
            }
            let factor = if divides { factor.recip() } else { factor };
            let blocks = Blocks { codes: codes.clone(), scales, block: NVFP4_BLOCK, scale: e4m3, factor };
            let name = format!("{module}.weight");
            all.push(named_tensor(
                name,
                QuantisedFormat::Nvfp4,
                vec![rows, columns],
                Arc::new(blocks),
                &codes,
            ));
        }
    }
    Ok(all)
}
