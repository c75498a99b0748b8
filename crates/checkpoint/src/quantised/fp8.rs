//! Weights of 8 bits, with a scale for each block, each row or the whole tensor.

use std::sync::Arc;

use super::{
    CodeType, Codes, NamedTensor, Quantisation, QuantisedFormat, Stored, TensorError, about, codes::e4m3,
    named_tensor, scales_of,
};
use crate::{LazyTensor, made::MadeRows};

#[derive(Debug)]
struct Scaled {
    codes: Codes,
    scales: Scales,
}

#[derive(Debug)]
enum Scales {
    One(f32),
    /// A scale for each row, `[rows, 1]`.
    Rows(LazyTensor),
    /// A scale for each block, `[rows / height, columns / width]`, rounded up.
    Blocks {
        scales: LazyTensor,
        height: usize,
        width: usize,
    },
}

impl MadeRows for Scaled {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let codes = self.codes.row(row);
        let value =
            |&code: &u8| if self.codes.kind == CodeType::I8 { f32::from(code as i8) } else { e4m3(code) };
        match &self.scales {
            Scales::One(scale) => values.extend(codes.iter().map(|code| value(code) * scale)),
            Scales::Rows(scales) => {
                let scale = scales_of(scales, row).first().copied().unwrap_or(f32::NAN);
                values.extend(codes.iter().map(|code| value(code) * scale));
            }
            Scales::Blocks { scales, height, width } => {
                let scales = scales_of(scales, row / height);
                let blocks = codes.chunks(*width).zip(scales);
                values.extend(
                    blocks.flat_map(|(codes, scale)| codes.iter().map(move |code| value(code) * scale)),
                );
            }
        }
    }

    fn num_bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::One(_) => 4,
            Scales::Rows(scales) | Scales::Blocks { scales, .. } => scales.num_bytes(),
        };
        self.codes.range.len() + scales
    }

    fn release(&self) {
        self.codes.source.release(&self.codes.range);
    }
}

pub(super) fn compose(stored: &mut Stored, how: &Quantisation) -> Result<Vec<NamedTensor>, TensorError> {
    let mut all = Vec::new();
    for part in [".weight_scale_inv", ".weight_scale"] {
        for module in stored.modules(part) {
            let codes = stored.take_codes(&module, ".weight")?;
            let scales = stored.take_floats(&module, part)?;
            let [rows, columns] =
                codes.matrix(&[CodeType::F8E4M3, CodeType::I8]).map_err(about(&module, ".weight"))?;
            let [height, width] = how.block.map(|size| size.max(1));
            let blocks = [rows.div_ceil(height), columns.div_ceil(width)];
            let scales = match scales.shape() {
                [] | [1] => Scales::One(scales.read().first().copied().unwrap_or(f32::NAN)),
                &[count, 1] if count == rows && part == ".weight_scale" => Scales::Rows(scales),
                &[count] if count == rows && part == ".weight_scale" => Scales::Rows(scales),
                shape if *shape == blocks => Scales::Blocks { scales, height, width },
                shape => {
                    let what =
                        format!("has shape {shape:?}, expected one scale, {rows} of them, or {blocks:?}");
                    return Err((format!("{module}{part}"), what));
                }
            };
            let format =
                if codes.kind == CodeType::I8 { QuantisedFormat::Int8 } else { QuantisedFormat::Fp8 };
            let scaled = Arc::new(Scaled { codes: codes.clone(), scales });
            all.push(named_tensor(format!("{module}.weight"), format, vec![rows, columns], scaled, &codes));
        }
    }
    Ok(all)
}
