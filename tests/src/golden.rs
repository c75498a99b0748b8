//! The tiny golden checkpoints.

use std::{fs, path::PathBuf};

use burn::tensor::backend::Backend;
use moi_engine::{Engine, InputRule, Prompt, Request, Support, TokenEvent};
use moi_models::{Decoder, DecoderConfig, FeedForwardKind};
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::steps;

/// A checkpoint, and the results that transformers computes with it.
#[derive(Debug)]
pub struct Golden {
    /// The directory, in Hugging Face layout.
    pub path: PathBuf,
    /// Inputs, and greedy decodes.
    pub cases: Cases,
    /// The logits `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// The logits of the batch, `[2, 20, vocab]`.
    pub batch_logits: Vec<f32>,
    /// The logits of the long input, `[long, vocab]`, if there is one.
    pub long_logits: Vec<f32>,
    /// The size of the vocabulary.
    pub vocab: usize,
}

/// The contents of `golden.json`.
#[derive(Debug, Deserialize)]
pub struct Cases {
    /// The input of the full forward pass.
    pub tokens: Vec<u32>,
    /// The two rows of the batch.
    pub batch: [Vec<u32>; 2],
    /// A long input that is longer than one chunk, for models with recurrent states.
    #[serde(default)]
    pub long: Vec<u32>,
    /// Greedy decodes.
    pub runs: Vec<Run>,
}

/// A greedy decode under a rule.
#[derive(Debug, Deserialize)]
pub struct Run {
    rule: String,
    beta: Option<f64>,
    support: Option<Support>,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// The generated steps.
    pub steps: Vec<GoldenStep>,
}

/// A step of a decode.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct GoldenStep {
    /// The argmax.
    pub token: u32,
    /// The entropy, divided by ln of the support's size.
    pub entropy: f64,
    /// 0 for token, 1 for direct.
    pub gate: f64,
    /// The largest logit minus the second largest.
    pub margin: f64,
}

impl Run {
    /// The number of tokens in the support, or 0 for the whole vocabulary.
    fn support_size(&self) -> usize {
        match self.support {
            Some(Support::TopK(size)) => size,
            _ => 0,
        }
    }

    /// The rule as an `InputRule`.
    pub fn rule(&self) -> InputRule {
        let support = self.support.unwrap_or_default();
        match self.rule.as_str() {
            "token" => InputRule::TOKEN,
            "moi" => InputRule::moi(self.beta.unwrap(), support).unwrap(),
            "direct" => InputRule::direct(support).unwrap(),
            other => panic!("golden rule {other}"),
        }
    }
}

impl Golden {
    /// Reads `golden/tiny/NAME`.
    pub fn read(name: &str) -> Self {
        let path = crate::golden_directory().join("tiny").join(name);
        let cases: Cases = serde_json::from_slice(&fs::read(path.join("golden.json")).unwrap()).unwrap();
        let bytes = fs::read(path.join("golden.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let read = |name| {
            let view = tensors.tensor(name).unwrap();
            let values = view.data().as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word));
            (values.collect::<Vec<f32>>(), *view.shape().last().unwrap())
        };
        let (logits, vocab) = read("logits");
        let (batch_logits, _) = read("batch_logits");
        let long_logits = if cases.long.is_empty() { Vec::new() } else { read("long_logits").0 };
        Self { path, cases, logits, batch_logits, long_logits, vocab }
    }
}

/// Largest allowed difference of entropies and gates.
pub const TOLERANCE: f64 = 1e-3;
/// With a margin below this, either of the two tokens is accepted.
pub const MARGIN: f64 = 1e-3;

/// Compares a decode token for token. It ends early only at a step whose margin allows another token. Returns the
/// number of compared steps and the largest difference of an entropy.
pub fn compare(found: &[TokenEvent], expected: &[GoldenStep], what: &str) -> (usize, f64) {
    differing(found, expected, what).unwrap_or_else(|error| panic!("{error}"))
}

/// As [`compare`], but returns the difference as an error.
fn differing(found: &[TokenEvent], expected: &[GoldenStep], what: &str) -> Result<(usize, f64), String> {
    let mut worst = 0.0f64;
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        if f.token != e.token {
            return match e.margin < MARGIN {
                true => Ok((i, worst)),
                false => Err(format!(
                    "{what}: step {i} gave {} instead of {} (margin {})",
                    f.token, e.token, e.margin
                )),
            };
        }
        let entropy = (f64::from(f.entropy) - e.entropy).abs();
        let gate = (f64::from(f.gate) - e.gate).abs();
        if !(entropy <= TOLERANCE && gate <= TOLERANCE) {
            return Err(format!("{what}: step {i}: entropy off by {entropy}, gate by {gate}"));
        }
        worst = worst.max(entropy);
    }
    match found.len() >= expected.len() {
        true => Ok((expected.len(), worst)),
        false => Err(format!("{what}: {} steps instead of {}", found.len(), expected.len())),
    }
}

/// The request of a run, listing the tokens of its support and one more.
fn listing<B: Backend>(mut request: Request<B>, run: &Run) -> Request<B> {
    request.logprobs = run.support_size() + 1;
    request
}

/// The number of steps up to the first one whose support rounding could change, because two tokens at its border are
/// tied. From there on, another next input is correct as well.
fn certain(found: &[TokenEvent], run: &Run) -> usize {
    const NATS: f64 = 1e-5;
    let has_tie = |step: &TokenEvent| match step.likeliest.get(run.support_size().wrapping_sub(1)..) {
        Some([(_, last), (_, next)]) => last - next < NATS,
        _ => false,
    };
    let tie = found.iter().position(has_tie);
    tie.map_or(run.steps.len(), |tie| (tie + 1).min(run.steps.len()))
}

/// The number of steps of a mixture-of-experts run before its first wrong step, if the difference had grown beyond
/// rounding before. The router is then close enough to a tie that it may pick other experts. Returns all steps if the
/// wrong step comes too early for that.
fn up_to_a_flip(found: &[TokenEvent], run: &Run) -> usize {
    const GROWN: f64 = 5e-6;
    let off = |(f, e): (&TokenEvent, &GoldenStep)| (f64::from(f.entropy) - e.entropy).abs();
    let all: Vec<f64> = found.iter().zip(&run.steps).map(off).collect();
    let is_other = |at: &usize| all[*at] > TOLERANCE || found[*at].token != run.steps[*at].token;
    let flip = (0..all.len()).find(is_other).unwrap_or(run.steps.len());
    let has_grown = all[..flip].iter().any(|&off| off > GROWN);
    if has_grown && flip * 2 >= run.steps.len() { flip } else { run.steps.len() }
}

fn has_experts(config: &DecoderConfig) -> bool {
    let is_one = |kind: &FeedForwardKind| {
        matches!(kind, FeedForwardKind::Experts(_) | FeedForwardKind::MlpAndExperts(..))
    };
    config.layers.iter().any(|layer| layer.feed_forward.as_ref().is_some_and(is_one))
}

/// Decodes all golden runs greedily under their rules, with whole prompts and in chunks, and compares them.
pub fn check_decodes<B: Backend>(golden: &Golden, model: &Decoder<B>, device: &B::Device, name: &str) {
    for chunk in [512, 4] {
        let engine = Engine::new(model.clone(), device.clone()).with_prefill_chunk(chunk);
        for run in &golden.cases.runs {
            let mut request = Request::new(Prompt::Ids(run.prompt.clone()));
            request.rule = run.rule();
            request.stop.max_tokens = Some(run.steps.len());
            let what = format!("{name}: {}, chunks of {chunk}", run.rule());
            let found = steps(&engine, request.clone());
            let expected = match differing(&found, &run.steps, &what) {
                Ok(_) => &run.steps[..],
                Err(_) if has_experts(model.config()) && up_to_a_flip(&found, run) < run.steps.len() => {
                    &run.steps[..up_to_a_flip(&found, run)]
                }
                // The list of the most likely tokens shows whether rounding decided about the support. The host
                // computes that list.
                Err(_) => &run.steps[..certain(&steps(&engine, listing(request, run)), run)],
            };
            let (compared, worst) = compare(&found, expected, &what);
            println!("{what}: {compared} of {} steps, entropy off by {worst:.1e}", run.steps.len());
            assert!(compared > 0, "{what}: nothing was compared");
        }
    }
}
