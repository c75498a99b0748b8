//! Decoding: golden greedy decodes, rows of a batch, and sampling with a seed.

use burn::tensor::backend::Backend;
use moi_backends::{DeviceName, Job};
use moi_engine::{Engine, Step};
use moi_pretrained::WeightForm;

use super::{decoded_checkpoints, load};
use crate::{
    batch::{assert_alike, assert_same, joining, of_the_host, requests, together},
    golden, steps,
};

/// All greedy decodes of transformers, prompts at once and in chunks.
#[derive(Debug)]
pub(super) struct GreedyDecodes(pub(super) DeviceName);

impl Job for GreedyDecodes {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for name in decoded_checkpoints() {
            let (golden, model) = load::<B>(name, WeightForm::F32, device);
            golden::check_decodes(&golden, &model, device, &format!("{}: {name}", self.0));
        }
    }
}

/// Models whose layers batch differently: positions turned, learned and none, windows, experts.
const BATCHED: &[&str] = &["llama3-rope", "gemma2", "qwen3-moe", "gpt2-scales"];

/// Rows that a device decides by itself; the host's are behind them.
const DEVICE_ROWS: usize = 6;

/// Rows of different prompts, rules, samplings and lengths, together as alone; gives the steps of all.
#[derive(Debug)]
pub(super) struct Batches(pub(super) DeviceName);

impl Job for Batches {
    type Output = Vec<Vec<Vec<Step>>>;

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        let of = |name: &&str| {
            let (golden, model) = load::<B>(name, WeightForm::F32, device);
            let engine = Engine::new(model, device.clone());
            let mut together = together(&engine, requests(&golden));
            for (row, request) in requests(&golden).into_iter().enumerate() {
                assert_same(row, &together[row], &steps(&engine, request));
            }
            // One that is given up leaves nothing behind that the next could meet.
            for request in requests(&golden) {
                let mut given_up = engine.generate(request).unwrap();
                drop(given_up.next());
                drop(given_up);
            }
            assert_same(0, &together[0], &steps(&engine, requests(&golden).swap_remove(0)));
            // The host's rows join those that the device decides by itself.
            let device_rows = together.len();
            assert_eq!(device_rows, DEVICE_ROWS);
            let joined = joining(&engine, requests(&golden), of_the_host(&golden));
            for (row, request) in of_the_host(&golden).into_iter().enumerate() {
                assert_same(device_rows + row, &joined[device_rows + row], &steps(&engine, request));
            }
            together.extend(joined.into_iter().skip(device_rows));
            let tokens: usize = together.iter().map(Vec::len).sum();
            println!("{}: {name}: {tokens} tokens of {} rows together as alone", self.0, together.len());
            together
        };
        BATCHED.iter().map(of).collect()
    }
}

/// The sampled tokens of a seed are the same on a device as on the CPU, and so are entropies and gates.
pub(super) fn seeded(device: DeviceName, found: &[Vec<Vec<Step>>], expected: &[Vec<Vec<Step>>]) {
    assert_eq!(found.len(), expected.len());
    for (name, (found, expected)) in BATCHED.iter().zip(found.iter().zip(expected)) {
        assert_eq!(found.len(), expected.len());
        for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
            // The host's rules feed nearly all of their own rounding back, step after step.
            let bound = if row < DEVICE_ROWS { 1e-4 } else { 1e-3 };
            assert_alike(row, found, expected, bound);
        }
        println!("{device}: {name}: the tokens of a seed are the CPU's");
    }
}
