//! How far a device's next-token distributions are from those of float32 on the CPU, for the same tokens.
//!
//! The reference is computed by a process of its own. It continues a text with the most likely tokens, and writes the
//! prompt, the tokens and all logits to a file. After its measurements, the process of each group reads that file,
//! feeds the same tokens to its model (whatever the model itself would have chosen), and compares its distributions
//! with those of the file. The prompt runs at once and the tokens one by one, so that the comparison covers the
//! kernels for prompts and those for generation.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi_engine::Engine;
use moi_models::{CausalLm, Decoder, ForwardBatch, with_values};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::timing::id;

/// Number of tokens that are compared, unless the model's context has room for fewer.
const TOKENS: usize = 128;
/// Largest number of tokens in the prompt.
const PROMPT: usize = 128;
/// Largest number of positions that a comparison needs.
pub(super) const POSITIONS: usize = PROMPT + TOKENS;

/// The text to continue. It is ordinary text, because the distributions after unrelated tokens are much flatter.
const TEXT: &str = "\
A lighthouse is a tower with a bright light at the top, built on the coast to guide ships at night. The first ones were \
fires on hills. Later, keepers lived in the towers: they trimmed the wicks, wound the clockwork that turned the lens, and \
wrote down the weather every few hours. Today most of the lights run on their own, and the keepers' houses have become \
museums. One keeper's diary from the winter of 1887 begins like this:";

/// The comparison of a device and a type with the reference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Accuracy {
    /// The mean over the tokens of KL(reference || device), in nats.
    pub(super) kl_mean: f64,
    /// The largest KL divergence of a token, in nats.
    pub(super) kl_max: f64,
    /// The index, from 0, of the first token that is not the device's most likely one. Up to that token, a greedy
    /// generation on the device equals that of the reference.
    pub(super) first_difference: Option<usize>,
    pub(super) tokens_compared: usize,
    /// The name of the reference.
    pub(super) reference: String,
}

/// Computes the reference and writes it.
///
/// # Errors
/// If the device fails, the logits are not finite, or the file cannot be written.
pub(super) fn write<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    device: &B::Device,
    path: &Path,
) -> Result<()> {
    let limit = limit(engine.model());
    let prompt = prompt(engine, limit)?;
    let count = TOKENS.min(limit.saturating_sub(prompt.len()));
    ensure!(count > 0, "a context of {limit} tokens is too short for --compare-devices");
    let (mut tokens, mut logits) = (Vec::<u32>::new(), Vec::<u8>::new());
    walk(engine, device, &prompt, count, |of_token| {
        let token = likeliest(of_token)?;
        tokens.push(token);
        logits.extend(of_token.iter().flat_map(|logit| logit.to_le_bytes()));
        Ok(token)
    })?;
    let [prompt, tokens] =
        [&prompt, &tokens].map(|ids| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    let vocab = logits.len() / size_of::<f32>() / count;
    let views = [
        ("prompt", TensorView::new(Dtype::U32, vec![prompt.len() / size_of::<u32>()], &prompt)?),
        ("tokens", TensorView::new(Dtype::U32, vec![count], &tokens)?),
        ("logits", TensorView::new(Dtype::F32, vec![count, vocab], &logits)?),
    ];
    safetensors::serialize_to_file(views, None, path)
        .with_context(|| format!("the reference cannot be written to {}", path.display()))
}

/// Compares a device with the reference.
///
/// # Errors
/// If the device fails, its logits are not finite, or the file cannot be read or is of another model.
pub(super) fn compare<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    device: &B::Device,
    path: &Path,
) -> Result<Accuracy> {
    let cannot = || format!("the reference {} cannot be read", path.display());
    let bytes = fs::read(path).with_context(cannot)?;
    let tensors = SafeTensors::deserialize(&bytes).with_context(cannot)?;
    let [prompt, tokens, logits] = ["prompt", "tokens", "logits"].map(|name| tensors.tensor(name));
    let [prompt, tokens] = [ids(&prompt.with_context(cannot)?), ids(&tokens.with_context(cannot)?)];
    let logits = logits.with_context(cannot)?;
    ensure!(!prompt.is_empty() && !tokens.is_empty(), "the reference {} is empty", path.display());
    // Each row holds the logits of one token, as bytes.
    let mut rows = logits.data().chunks_exact((logits.data().len() / tokens.len()).max(1));
    let mut comparison = Comparison::default();
    walk(engine, device, &prompt, tokens.len(), |found| {
        let row = rows.next().context("the reference has fewer logits than tokens")?;
        let expected: Vec<f32> =
            row.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let token = tokens[comparison.divergences.len()];
        comparison.add(&expected, found, token)?;
        Ok(token)
    })?;
    Ok(comparison.finish())
}

fn ids(view: &TensorView<'_>) -> Vec<u32> {
    view.data().as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

/// The number of positions that a sequence can have without any being computed again.
fn limit<B: Backend>(model: &Decoder<B>) -> usize {
    let context = model.context_length();
    model.recompute_beyond().map_or(context, |most| most.min(context))
}

/// The prompt: the text if the model has a tokenizer, else the token ids of the speed measurements.
fn prompt<B: Backend>(engine: &Engine<B, Decoder<B>>, limit: usize) -> Result<Vec<u32>> {
    let vocab = engine.model().embedding().dims()[0];
    let mut ids = match engine.tokenizer() {
        Some(tokenizer) => tokenizer.encode(TEXT, true)?,
        None => Vec::new(),
    };
    if ids.is_empty() || ids.iter().any(|&id| id as usize >= vocab) {
        ids = (0..PROMPT).map(|position| id(0, position, vocab)).collect();
    }
    // Keep half of a small context free for the compared tokens.
    ids.truncate(PROMPT.min((limit / 2).max(1)));
    Ok(ids)
}

/// Runs a prompt at once and then tokens one by one, as a generation does. `next` gets the logits of each token and
/// returns the token to feed.
fn walk<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    device: &B::Device,
    prompt: &[u32],
    tokens: usize,
    mut next: impl FnMut(&[f32]) -> Result<u32>,
) -> Result<()> {
    let model = engine.model();
    let mut pool = model.new_pool(device);
    let mut table = pool.table();
    table.set_sequence_length(prompt.len());
    let mut ids: Vec<i64> = prompt.iter().map(|&id| id.into()).collect();
    for _ in 0..tokens {
        let positions = ids.len();
        let fed = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [positions]), device);
        let hidden = model.forward(ForwardBatch::one(model.embed(fed), &mut table), &mut pool)?;
        let logits = model.logits(hidden.narrow(0, positions - 1, 1));
        ids = vec![i64::from(with_values(&logits, &mut next)?)];
    }
    Ok(())
}

/// The token of greedy sampling: the one with the largest logit, or the first of equal ones.
fn likeliest(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (token, &logit) in logits.iter().enumerate() {
        ensure!(!logit.is_nan(), "the logit of token {token} is NaN");
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((token, logit));
        }
    }
    let (token, _) =
        best.filter(|(_, logit)| logit.is_finite()).context("the largest logit is not finite")?;
    Ok(token as u32)
}

/// KL(expected || found) of the distributions of these logits, in nats and in float64.
fn divergence(expected: &[f32], found: &[f32]) -> f64 {
    let [expected_sum, found_sum] = [expected, found].map(log_sum);
    let pairs = expected.iter().zip(found).map(|(&expected, &found)| {
        let [expected, found] = [f64::from(expected) - expected_sum, f64::from(found) - found_sum];
        // A token without probability adds nothing, however unlikely it is in the other distribution.
        if expected == f64::NEG_INFINITY { 0.0 } else { expected.exp() * (expected - found) }
    });
    pairs.sum()
}

/// The logarithm of the sum of the exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// The results of a comparison so far.
#[derive(Debug, Default)]
struct Comparison {
    /// The KL divergence of each token so far, in nats.
    divergences: Vec<f64>,
    first_difference: Option<usize>,
}

impl Comparison {
    /// Adds a token of the reference, with the logits of the reference and of the device.
    fn add(&mut self, expected: &[f32], found: &[f32], token: u32) -> Result<()> {
        let index = self.divergences.len();
        let [vocab, other] = [expected.len(), found.len()];
        ensure!(vocab == other, "the reference is of another model: it has {vocab} logits, not {other}");
        if likeliest(found)? != token {
            self.first_difference.get_or_insert(index);
        }
        let divergence = divergence(expected, found);
        ensure!(divergence.is_finite(), "the distribution of token {index} cannot be compared");
        // Rounding can make the divergence of equal distributions slightly negative.
        self.divergences.push(divergence.max(0.0));
        Ok(())
    }

    fn finish(self) -> Accuracy {
        let count = self.divergences.len();
        Accuracy {
            kl_mean: self.divergences.iter().sum::<f64>() / count.max(1) as f64,
            kl_max: self.divergences.iter().copied().fold(0.0, f64::max),
            first_difference: self.first_difference,
            tokens_compared: count,
            reference: format!("{} float32", moi_backends::cpu()),
        }
    }
}

#[cfg(test)]
mod tests {
    use moi_backends::{DeviceRequest, FloatType};

    use super::*;
    use crate::{
        args::{AskedType, ModelArgs},
        backend::{Device, Job},
        bench::shape,
    };

    #[test]
    fn divergences_are_those_of_the_distributions() {
        let logits = [0.0, 1.0, -2.0];
        assert_eq!(divergence(&logits, &logits), 0.0);
        // A constant that is added to all logits does not change the distribution.
        assert!(divergence(&logits, &logits.map(|logit| logit + 7.0)).abs() < 1e-12);
        let [half, quarters] = [[1.0f32, 1.0], [1.0, 3.0]].map(|weights| weights.map(f32::ln));
        let expected = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((divergence(&half, &quarters) - expected).abs() < 1e-7);
        let never = [0.0, f32::NEG_INFINITY];
        assert!((divergence(&never, &half) - 2.0f64.ln()).abs() < 1e-7);
        assert_eq!(divergence(&half, &never), f64::INFINITY);
    }

    #[test]
    fn the_first_token_that_differs_is_told() {
        let mut comparison = Comparison::default();
        comparison.add(&[0.0, 1.0], &[0.0, 1.0], 1).unwrap();
        comparison.add(&[0.0, 1.0], &[1.0, 0.0], 1).unwrap();
        comparison.add(&[1.0, 0.0], &[0.0, 1.0], 0).unwrap();
        let refused =
            |found: &[f32]| Comparison::default().add(&[0.0, 1.0], found, 1).unwrap_err().to_string();
        assert!(refused(&[0.0, f32::NAN]).contains("NaN"));
        assert!(refused(&[0.0, f32::INFINITY]).contains("not finite"));
        assert!(refused(&[0.0]).contains("another model"));
        let found = comparison.finish();
        assert_eq!((found.first_difference, found.tokens_compared), (Some(1), 3));
        assert!(found.kl_mean > 0.0 && found.kl_max > found.kl_mean);
        assert!(found.reference.ends_with(" float32"));
        // The first of equal logits counts, as in greedy sampling.
        assert_eq!(likeliest(&[0.0, 2.0, 2.0]).unwrap(), 1);
    }

    /// Writes a reference and compares the same model with it.
    struct Same<'a>(&'a Path);

    impl Job for Same<'_> {
        type Output = Accuracy;

        fn run<B: Backend>(self, device: &B::Device) -> Result<Accuracy> {
            let args = ModelArgs {
                model: "test-tiny".to_owned(),
                revision: None,
                device: DeviceRequest::Auto,
                dtype: AskedType(Some(FloatType::F32)),
                quantize: None,
                activations: None,
                threads: None,
            };
            let shape = shape::find("test-tiny")?;
            let (engine, _) = shape.engine::<B>(&args, (Device::cpu(), device), POSITIONS)?;
            write(&engine, device, self.0)?;
            compare(&engine, device, self.0)
        }
    }

    #[test]
    fn a_device_agrees_with_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reference.safetensors");
        let accuracy = Device::cpu().run(Same(&path)).unwrap();
        assert_eq!((accuracy.first_difference, accuracy.tokens_compared), (None, TOKENS));
        assert!(accuracy.kl_max < 1e-6, "{accuracy:?}");
    }
}
