//! Every device that this build supports and this machine has, against what transformers computes: five
//! architectures that between them use every kind of norm, position, window, cap and feed-forward block.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi_backends::{DeviceName, Job, Kind, found, run};
use moi_models::CausalLm;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{golden::Golden, relative_error, values};

const CHECKPOINTS: &[&str] = &["llama3-rope", "gemma2", "qwen3-moe", "phi3-longrope", "gpt-neox"];

/// max |diff| / max |logit| in float32.
const LOGIT_ERROR: f32 = 5e-5;

/// Cached steps behind a prefill.
const STEPS: usize = 24;

struct Logits(DeviceName);

impl Job for Logits {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for name in CHECKPOINTS {
            let golden = Golden::read(name);
            let pretrained = Pretrained::open(&golden.path).unwrap();
            let model = pretrained.load::<B>(device, WeightForm::F32, |_| {}).unwrap();
            let logits = |pieces: &[&[u32]]| {
                let mut cache = model.new_cache(1);
                let of = |piece: &&[u32]| {
                    let ids: Vec<i64> = piece.iter().map(|&id| id.into()).collect();
                    let ids = TensorData::new(ids, [1, piece.len()]);
                    let ids = Tensor::<B, 2, Int>::from_data(ids, device);
                    values(model.logits(model.forward(model.embed(ids), &mut cache).unwrap()))
                };
                pieces.iter().flat_map(of).collect::<Vec<f32>>()
            };
            let tokens = &golden.cases.tokens;
            let (prefill, rest) = tokens.split_at(tokens.len() - STEPS);
            let cached: Vec<&[u32]> = std::iter::once(prefill).chain(rest.chunks(1)).collect();
            let chunked: Vec<&[u32]> = tokens.chunks(7).collect();
            for (way, pieces) in [("full", vec![&tokens[..]]), ("cached", cached), ("chunked", chunked)] {
                let error = relative_error(&logits(&pieces), &golden.logits);
                println!("{}: {name}, {way}: {error:.1e}", self.0);
                assert!(error <= LOGIT_ERROR, "{}: {name}, {way}: {error}", self.0);
            }
        }
    }
}

#[test]
fn every_device_computes_what_transformers_does() {
    let devices: Vec<_> = Kind::ALL.into_iter().flat_map(found).map(|found| found.name).collect();
    assert!(!devices.is_empty());
    for device in devices {
        run(device, Logits(device)).unwrap();
    }
}
