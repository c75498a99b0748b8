//! Compares a result with its source.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi_checkpoint::LazyTensor;
use moi_models::{CausalLm, Decoder};
use moi_pretrained::{Pretrained, WeightForm};

use crate::{ConvertError, encode::encode, source::Source};

/// The number of tokens in the prompt whose logits are compared.
const PROMPT: usize = 16;

/// The tolerance for logits of equal parameters, which can differ by the order in which products are summed.
const EXACT: f32 = 1e-5;

/// The result of the comparison.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    /// The number of parameters compared; each is exactly the source's parameter converted to the new type.
    pub parameters: usize,
    /// The number of parameters that were rounded to the new type.
    pub rounded: usize,
    /// The largest difference of the logits of a fixed prompt, relative to the largest logit; `None` if the source's
    /// own logits are not all finite, as with broken weights.
    pub logit_error: Option<f32>,
}

/// Compares every parameter of the result with the source's, value for value, and the logits of both.
pub(crate) fn verify<B: Backend>(
    source: &Source,
    made: &Pretrained,
    device: &B::Device,
) -> Result<Verified, ConvertError> {
    let (before, after) = (source.pretrained.parameters()?, made.parameters()?);
    let mut rounded = 0;
    for (name, made) in after.tensors() {
        let source = before
            .tensors()
            .get(name)
            .ok_or_else(|| ConvertError::Differs(format!("tensor `{name}` is not in the source")))?;
        rounded += usize::from(compare(name, source, made)?);
    }
    let logit_error = compare_logits::<B>(&source.pretrained, made, device)?;
    if let Some(logit_error) = logit_error.filter(|&error| rounded == 0 && error > EXACT) {
        let what = format!("equal parameters give logits that are off by {logit_error:.1e}");
        return Err(ConvertError::Differs(what));
    }
    Ok(Verified { parameters: after.tensors().len(), rounded, logit_error })
}

/// Compares two tensors some rows at a time; returns whether any value was rounded.
fn compare(name: &str, source: &LazyTensor, made: &LazyTensor) -> Result<bool, ConvertError> {
    const ROWS: usize = 1024;
    let differs = |what: &str| Err(ConvertError::Differs(format!("tensor `{name}`: {what}")));
    if source.shape() != made.shape() {
        return differs(&format!("shape {:?} instead of {:?}", made.shape(), source.shape()));
    }
    let mut rounded = false;
    for start in (0..source.num_rows()).step_by(ROWS) {
        let len = ROWS.min(source.num_rows() - start);
        let (Some(before), Some(after)) = (source.slice_rows(start, len), made.slice_rows(start, len)) else {
            return differs("its rows cannot be taken apart");
        };
        let (before_values, after_values) = (before.read(), after.read());
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        if bits(&before_values) == bits(&after_values) {
            continue;
        }
        // GGUF stores Gemma's norms with 1 added, and the logarithms of decay rates as their exponentials, so that
        // reading them back can round the last bits.
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 4.0 * f32::EPSILON * a.abs().max(1.0);
        if made.is_computed() && before_values.iter().zip(&after_values).all(close) {
            continue;
        }
        rounded = true;
        // Blocks are encoded along stored rows; transposed tensors are stored as floats.
        let mut expected = Vec::new();
        encode(name, &before, made.storage(), |bytes| {
            expected.extend_from_slice(bytes);
            Ok(())
        })?;
        let mut values = Vec::with_capacity(before_values.len());
        made.storage().decode(&expected, &mut values);
        let same =
            |pair: (&f32, &f32)| pair.0.to_bits() == pair.1.to_bits() || (made.is_computed() && close(pair));
        if !values.iter().zip(&after_values).all(same) {
            return differs("its values are not the source's in the new type");
        }
    }
    source.release();
    made.release();
    Ok(rounded)
}

/// Compares the logits of a fixed prompt from both models in float32: the largest difference relative to the largest
/// logit, if the source's logits are all finite.
fn compare_logits<B: Backend>(
    source: &Pretrained,
    made: &Pretrained,
    device: &B::Device,
) -> Result<Option<f32>, ConvertError> {
    let before = logits(&source.load::<B>(device, WeightForm::F32, |_| {})?, device)?;
    let after = logits(&made.load::<B>(device, WeightForm::F32, |_| {})?, device)?;
    let largest = before.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let difference = before.iter().zip(&after).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    let are_finite = |logits: &[f32]| logits.iter().all(|logit| logit.is_finite());
    match (are_finite(&before), are_finite(&after) && before.len() == after.len()) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(if largest > 0.0 { difference / largest } else { difference })),
        (true, false) => Err(ConvertError::Differs("its logits are no numbers".into())),
    }
}

fn logits<B: Backend>(decoder: &Decoder<B>, device: &B::Device) -> Result<Vec<f32>, ConvertError> {
    let config = decoder.config();
    let count = PROMPT.min(config.context_length);
    let ids: Vec<i64> = (0..count).map(|i| ((i * 7919 + 11) % config.vocab_size) as i64).collect();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), device);
    let hidden = decoder
        .forward_whole(decoder.embed(ids))
        .map_err(|error| ConvertError::Differs(error.to_string()))?;
    Ok(decoder.logits(hidden).into_data().iter::<f32>().collect())
}
