//! MLX's weights: codes of few bits in a stream, each multiplied by its group's scale and added to the group's bias.

use std::sync::Arc;

use super::{
    CodeType, Codes, NamedTensor, Quantisation, QuantisedFormat, Stored, TensorError, codes::stream,
    expect_shape, named_tensor, scales_of,
};
use crate::{LazyTensor, made::MadeRows};

#[derive(Debug)]
struct Affine {
    codes: Codes,
    /// `[out, groups]`, as are the biases.
    scales: LazyTensor,
    biases: LazyTensor,
    group: usize,
    bits: usize,
}

impl MadeRows for Affine {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let (scales, biases) = (scales_of(&self.scales, row), scales_of(&self.biases, row));
        let codes = stream(self.codes.row(row), self.bits).enumerate();
        values
            .extend(codes.map(|(at, code)| code as f32 * scales[at / self.group] + biases[at / self.group]));
    }

    fn num_bytes(&self) -> usize {
        self.codes.range.len() + self.scales.num_bytes() + self.biases.num_bytes()
    }

    fn release(&self) {
        self.codes.source.release(&self.codes.range);
    }
}

pub(super) fn compose(stored: &mut Stored, how: &Quantisation) -> Result<Vec<NamedTensor>, TensorError> {
    let mut all = Vec::new();
    for module in stored.modules(".scales") {
        let codes = stored.take_codes(&module, ".weight")?;
        let (scales, biases) =
            (stored.take_floats(&module, ".scales")?, stored.take_floats(&module, ".biases")?);
        let group = how.group_sizes.get(&module).copied().unwrap_or(how.group_size);
        let name = format!("{module}.weight");
        let wrong = |what: &str| (name.clone(), format!("{what}: {:?} of {:?}", codes.kind, codes.shape));
        let ([.., words], [.., groups]) = (&codes.shape[..], scales.shape()) else {
            return Err(wrong("is no matrix"));
        };
        if codes.shape.contains(&0) || scales.shape().contains(&0) {
            return Err(wrong("holds nothing"));
        }
        let (rows, bits) = (&codes.shape[..codes.shape.len() - 1], words * 32);
        let columns = groups * group;
        let bits = match bits.checked_div(columns) {
            Some(each @ (2..=6 | 8)) if each * columns == bits && codes.kind == CodeType::U32 => each,
            _ => return Err(wrong("does not fit its scales")),
        };
        expect_shape(&module, ".scales", scales.shape(), &[rows, &[*groups]].concat())?;
        expect_shape(&module, ".biases", biases.shape(), scales.shape())?;
        let shape = [rows, &[columns]].concat();
        let affine = Affine { codes: codes.clone(), scales, biases, group, bits };
        let (name, tensor) = named_tensor(name, QuantisedFormat::Mlx, shape, Arc::new(affine), &codes);
        all.extend(single_experts(&name, &tensor).unwrap_or_else(|| vec![(name, tensor)]));
    }
    Ok(all)
}

/// Splits a stack `X.switch_mlp.gate_proj.weight` `[experts, out, in]` into its experts.
fn single_experts(name: &str, tensor: &LazyTensor) -> Option<Vec<NamedTensor>> {
    let (prefix, map) = name.split_once(".switch_mlp.")?;
    let &[count, ..] = tensor.shape() else { return None };
    let count = Some(count).filter(|&count| count <= crate::checkpoint::MAX_EXPERTS)?;
    (0..count).map(|index| Some((format!("{prefix}.experts.{index}.{map}"), tensor.matrix(index)?))).collect()
}
