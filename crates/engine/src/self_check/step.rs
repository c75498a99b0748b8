//! Checks that a device samples and mixes as the host does.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use moi::{InputRule, Support};
use moi_models::{CausalLm, Decoder, Mixing, has_gpu_kernels};

use crate::{
    KernelSampler, Sampler, Sampling,
    pending_step::{PendingStep, on_host},
    rows::Rows,
    token_chooser::TokenChooser,
};

/// One row of every kind that a device can decide.
fn cases() -> Option<Vec<TokenChooser>> {
    let drawn =
        Sampling { temperature: 0.8.into(), top_p: 0.9.into(), min_p: 0.01.into(), ..Sampling::default() };
    let rules = [
        (InputRule::TOKEN, Sampling::default()),
        (InputRule::moi(1.0, Support::Full).ok()?, drawn.clone()),
        (InputRule::moi(1.0, Support::TopK(20)).ok()?, Sampling { top_k: 40.into(), ..drawn.clone() }),
        (InputRule::direct(Support::Full).ok()?, Sampling { top_p: 1.0.into(), min_p: 0.0.into(), ..drawn }),
    ];
    let case = |(rule, sampling)| {
        Some(TokenChooser::plain(rule, Sampler::new(sampling, 7).ok()?).ok()?.reporting(3, 0))
    };
    rules.into_iter().map(case).collect()
}

/// How far the device's results for some logits are off, relative to the largest value of an input; 0 if the host
/// does all of it, infinity if the device samples another token.
pub(super) fn error<B: Backend>(model: &Decoder<B>, device: &B::Device) -> f32 {
    if !has_gpu_kernels::<B>() {
        return 0.0;
    }
    compare::<B>(model, device).unwrap_or(f32::INFINITY)
}

fn compare<B: Backend>(model: &Decoder<B>, device: &B::Device) -> Option<f32> {
    let mut cases = cases()?;
    let vocab = model.embedding().dims()[0];
    // Spread over ten nats, no two alike.
    let logits: Vec<f32> = (0..cases.len() * vocab).map(|i| (i * 7919 % 10_007) as f32 / 1000.0).collect();
    let data = TensorData::new(logits.clone(), [cases.len(), vocab]);
    let logits_there = Tensor::<B, 2>::from_data(data, (device, DType::F32));
    let uniforms: Vec<f64> = cases.iter_mut().map(|case| case.sampler.draw()).collect();
    let mut cases: Vec<&mut TokenChooser> = cases.iter_mut().collect();
    // With a tolerance of 0 every row of the table is read, as on the host.
    let table = Rows { embedding: model.embedding(), mixing: &Mixing::new(0.0, model.kernels()) };
    let Some(launched) = PendingStep::on_device(&KernelSampler, &table, &logits_there, &mut cases, &uniforms)
    else {
        return Some(0.0);
    };
    let (outcomes, inputs) = launched.wait(|_| 0).ok()?;
    let (on_host, inputs_of_host) = on_host(&table, logits_there, &mut cases, &uniforms).ok()?;
    let numbers = |tensor: Tensor<B, 2>| Some(tensor.try_into_data().ok()?.iter::<f32>().collect::<Vec<_>>());
    let (found, expected) = (numbers(inputs)?, numbers(inputs_of_host)?);
    let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let mut worst = found.iter().zip(&expected).fold(0.0f32, |max, (a, b)| {
        let off = (a - b).abs() / largest;
        if off <= max { max } else { off }
    });
    for (expected, found) in on_host.iter().zip(&outcomes) {
        let ((sampled, mix), found) = (expected.as_ref().ok()?, found.as_ref().ok()?);
        if found.0.token != sampled.token {
            return None;
        }
        for off in [found.1.entropy - mix.entropy, found.1.gate - mix.gate] {
            worst = if off.abs() <= worst { worst } else { off.abs() };
        }
    }
    Some(worst)
}
