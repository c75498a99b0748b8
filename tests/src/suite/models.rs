//! Tests of golden logits, whole, with a cache and in chunks, in float32 and in the half-precision types of a device.

use burn::tensor::{FloatDType, backend::Backend};
use moi_backends::{DeviceName, FloatType, Job, float_types};
use moi_engine::{Engine, SelfCheck, TokenEvent};
use moi_models::{Activations, CausalLm, Decoder, ForwardBatch, PackedForm};
use moi_pretrained::WeightForm;

use super::{LOGIT_ERROR, checkpoints, ids, load};
use crate::{
    batch::{assert_alike, requests, together},
    golden::Golden,
    relative_error, values,
};

/// Number of cached steps after the prefill.
const STEPS: usize = 24;

/// Logits of inputs that run in pieces through a cache.
fn logits<B: Backend>(model: &Decoder<B>, pieces: &[&[u32]], device: &B::Device) -> Vec<f32> {
    let mut pool = model.new_pool(device);
    let mut table = pool.table();
    // Rotary frequencies may depend on the length of the whole sequence.
    table.set_sequence_length(pieces.iter().map(|piece| piece.len()).sum());
    let of = |piece: &&[u32]| {
        let hidden =
            model.forward(ForwardBatch::one(model.embed(ids(piece, device)), &mut table), &mut pool).unwrap();
        values(model.logits(hidden))
    };
    pieces.iter().flat_map(of).collect()
}

/// Ways to run a prompt: at once, a part of it followed by single steps, and in chunks.
fn ways(golden: &Golden) -> [(&'static str, Vec<&[u32]>); 3] {
    let tokens = &golden.cases.tokens;
    let (prefill, rest) = tokens.split_at(tokens.len() - STEPS);
    let cached = std::iter::once(prefill).chain(rest.chunks(1)).collect();
    [("full", vec![&tokens[..]]), ("cached", cached), ("chunked", tokens.chunks(7).collect())]
}

/// Compares float32 logits with transformers.
#[derive(Debug)]
pub(super) struct Logits(pub(super) DeviceName);

impl Job for Logits {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for name in checkpoints() {
            let (golden, model) = load::<B>(name, WeightForm::F32, device);
            for (way, pieces) in ways(&golden) {
                let error = relative_error(&logits(&model, &pieces, device), &golden.logits);
                println!("{}: {name}, {way}: {error:.1e}", self.0);
                assert!(error <= LOGIT_ERROR, "{}: {name}, {way}: {error}", self.0);
            }
        }
    }
}

/// Models and the forms they are packed to. Together these cover every feature of the packed forms.
const PACKED: &[(&str, PackedForm)] = &[
    ("llama3-rope", PackedForm::Q8_0),
    ("gemma2", PackedForm::Q4_0),
    ("gpt2-scales", PackedForm::Q4_1),
    ("qwen3-moe", PackedForm::Q8_0),
];

/// Tests packed weights without rounded activations: logits in every way, and the steps of requests of all kinds.
#[derive(Debug)]
pub(super) struct PackedWeights;

impl Job for PackedWeights {
    type Output = Vec<(Vec<Vec<f32>>, Vec<Vec<TokenEvent>>)>;

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        let of = |&(name, form): &(&str, PackedForm)| {
            let (golden, model) = load::<B>(name, WeightForm::Packed(form), device);
            let model = model.with_activations(Activations::F32);
            let all = ways(&golden).map(|(_, pieces)| logits(&model, &pieces, device));
            (all.into(), together(&Engine::new(model, device.clone()), requests(&golden)))
        };
        PACKED.iter().map(of).collect()
    }
}

/// Compares packed weights on a device with those on the CPU.
pub(super) fn packed_alike(
    device: DeviceName,
    found: &<PackedWeights as Job>::Output,
    expected: &<PackedWeights as Job>::Output,
) {
    for ((name, form), (found, expected)) in PACKED.iter().zip(found.iter().zip(expected)) {
        for (found, expected) in found.0.iter().zip(&expected.0) {
            let error = relative_error(found, expected);
            println!("{device}: {name} in {form:?}: {error:.1e} from the CPU");
            assert!(error <= LOGIT_ERROR, "{device}: {name} in {form:?}: {error}");
        }
        assert_eq!(found.1.len(), expected.1.len());
        for (row, (found, expected)) in found.1.iter().zip(&expected.1).enumerate() {
            // Mixtures feed the rounding differences between two devices back.
            assert_alike(row, found, expected, 1e-3);
        }
    }
}

/// With a margin below this share of the largest logit, another argmax is accepted in 16 bits.
const MARGIN: f32 = 5e-3;
/// Largest allowed mean divergence over the positions, in nats.
const DIVERGENCE: f64 = 1e-3;
/// Largest allowed divergence at one position, in nats.
const WORST_DIVERGENCE: f64 = 1e-2;

/// Compares float16 and bfloat16, if the device supports them, with transformers in float32.
#[derive(Debug)]
pub(super) struct Halves(pub(super) DeviceName);

impl Job for Halves {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for kind in float_types::<B>(device).into_iter().filter(|&kind| kind != FloatType::F32) {
            for name in checkpoints() {
                let (golden, model) = load::<B>(name, WeightForm::Float(kind.dtype()), device);
                for (way, pieces) in ways(&golden) {
                    let found = logits(&model, &pieces, device);
                    let what = format!("{}: {name} in {kind}, {way}", self.0);
                    compare(&found, &golden, &what);
                }
            }
        }
    }
}

fn compare(found: &[f32], golden: &Golden, what: &str) {
    assert!(found.iter().all(|logit| logit.is_finite()), "{what}: not all logits are finite");
    let largest = golden.logits.iter().fold(0.0f32, |max, logit| max.max(logit.abs()));
    let rows = found.chunks(golden.vocab).zip(golden.logits.chunks(golden.vocab));
    let (mut kl, mut close, mut missed) = (Vec::new(), 0, 0.0f32);
    for (position, (found, expected)) in rows.enumerate() {
        kl.push(divergence(expected, found));
        let best = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let (is, should) = (best(found), best(expected));
        // The margin of the expected token over the one that was found.
        let margin = expected[should] - expected[is];
        close += usize::from(is != should);
        missed = missed.max(margin / largest);
        assert!(margin <= MARGIN * largest, "{what}: position {position}: {is}, not {should}, by {margin}");
    }
    let mean = kl.iter().sum::<f64>() / kl.len() as f64;
    let worst = kl.iter().copied().fold(0.0, f64::max);
    let error = relative_error(found, &golden.logits);
    println!(
        "{what}: {error:.1e}; divergence {mean:.1e} nats, {worst:.1e} at worst; {close} of {} argmaxes differ, by a margin of {missed:.1e} at most",
        kl.len()
    );
    assert!(mean < DIVERGENCE && worst < WORST_DIVERGENCE, "{what}: divergence {mean}, {worst} at worst");
}

/// KL(p || q) of the softmax distributions of both, in float64.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_softmax = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&l| f64::from(l - max).exp()).sum();
        row.iter().map(|&l| f64::from(l - max) - sum.ln()).collect::<Vec<f64>>()
    };
    log_softmax(p).into_iter().zip(log_softmax(q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Runs the engine's self-check.
#[derive(Debug)]
pub(super) struct SelfChecks(pub(super) DeviceName);

/// Tests that errors report where NaN and infinity come from.
#[derive(Debug)]
pub(super) struct BrokenNumbers;

impl Job for BrokenNumbers {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        crate::broken_weights::check::<B>(device);
    }
}

impl Job for SelfChecks {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for kind in float_types::<B>(device) {
            let check = SelfCheck::run::<B>(device, kind.dtype()).unwrap();
            println!("{}: self-check in {kind}: {:.1e}, cached {:.1e}", self.0, check.whole, check.cached);
            assert!(check.is_right(), "{}: {check:?}", self.0);
            if kind.dtype() == FloatDType::F32 {
                assert!(check.whole.max(check.cached) <= SelfCheck::EXACT, "{}: {check:?}", self.0);
            }
        }
    }
}
