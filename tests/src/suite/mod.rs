//! The parity suite: what every device must compute, generic over the backend.
//!
//! It runs on every device that the build supports and the machine has, or on those in `MOI_TEST_DEVICES`
//! (`cuda,vulkan:1`), and prints what it measures. Kernels are compiled anew unless `MOI_TEST_KERNELS` names a
//! directory for them.

mod decodes;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod launches;
mod models;
mod ops;
mod options;
mod products;
mod ragged;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi_backends::{DeviceName, Job, Kind, Request, found, run};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};

#[cfg(feature = "gpu")]
pub use launches::few_launches;
pub use options::options;

use crate::golden::Golden;
use decodes::{Batches, GreedyDecodes, seeded};
use models::{BrokenNumbers, Halves, Logits, PackedWeights, SelfChecks, packed_alike};
use ops::Mixing;
use ragged::RaggedBatches;

/// Between them these use every option of the decoder that a golden checkpoint uses, but for how rotary positions
/// are stretched, which the host computes.
pub const CHECKPOINTS: &[&str] = &[
    "llama3-rope",
    "gemma2",
    "qwen3-moe",
    "qwen3-moe-dense",
    "phi3-longrope",
    "phi3-longrope-beyond",
    "gpt-neox",
    "gpt2-scales",
    "olmo2",
    "granite",
    "nemotron-nas",
    "ministral3",
    "exaone4",
    "gpt-oss",
    "hunyuan-dense",
    "laguna",
    "muse-glimmer",
    "apertus",
    "phi",
    "opt",
    "gemma4",
    "gemma4-moe",
    "gemma4-ple",
    "qwen3-5-moe",
    "lfm2",
    "nemotron-h-moe",
    "granite-hybrid",
    "deepseek-v2",
    "deepseek-v3",
];

/// Of these the ones that between them use every kernel that a device has of its own: with `MOI_TEST_SHORT` set they are all
/// that runs, for devices in software.
const SHORT: &[&str] = &["gemma2", "qwen3-moe-dense", "gpt2-scales", "gpt-oss", "gemma4-ple"];

/// The checkpoints that this run of the suite takes.
pub fn checkpoints() -> &'static [&'static str] {
    match std::env::var_os("MOI_TEST_SHORT") {
        Some(_) => SHORT,
        None => CHECKPOINTS,
    }
}

/// Of these the ones whose decodes and launches are looked at, which take longest.
pub(crate) fn decoded_checkpoints() -> &'static [&'static str] {
    match std::env::var_os("MOI_TEST_SHORT") {
        Some(_) => &["gpt-oss"],
        None => CHECKPOINTS,
    }
}

/// max |diff| / max |logit| in float32.
pub const LOGIT_ERROR: f32 = 5e-5;

/// The devices to test.
pub fn devices() -> Vec<DeviceName> {
    if let Some(directory) = std::env::var_os("MOI_TEST_KERNELS") {
        moi_backends::keep_kernels_in(directory.into());
    }
    let devices: Vec<DeviceName> = match std::env::var("MOI_TEST_DEVICES") {
        Err(_) => Kind::ALL.into_iter().flat_map(found).map(|found| found.name).collect(),
        Ok(names) => {
            let named = |name: &str| match name.parse() {
                Ok(Request::Named(name)) => name,
                other => panic!("MOI_TEST_DEVICES: {name}: {other:?}"),
            };
            names.split(',').map(named).collect()
        }
    };
    assert!(!devices.is_empty());
    devices
}

fn on<J: Job>(device: DeviceName, part: impl Fn(DeviceName) -> J) -> J::Output {
    run(device, part(device)).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a part of the suite on each of them.
fn on_devices<J: Job>(part: impl Fn(DeviceName) -> J) {
    for device in devices() {
        on(device, &part);
    }
}

// The parts, each in a function that is not generic: the models and the engine are then compiled here for every
// backend, and tests use what was compiled.

/// The kernels of models and mixing, against loops on the host.
#[cfg(feature = "gpu")]
pub fn kernels() {
    on_devices(kernels::Kernels);
}

/// Products of small tensors as layers with states use them.
pub fn products() {
    for device in devices() {
        for (what, error) in on(device, products::Products) {
            assert!(
                what.starts_with("row by a row of a view: heads") || error < 1e-5,
                "{device}: {what}: {error}"
            );
        }
    }
}

/// Mixing, against the formulas.
pub fn mixing() {
    on_devices(Mixing);
}

/// Logits, against what transformers computes.
pub fn logits() {
    on_devices(Logits);
}

/// Half precision, against float32.
pub fn halves() {
    if !is_short("half precision") {
        on_devices(Halves);
    }
}

/// Where NaN and infinity are said to come from.
pub fn broken_numbers() {
    if !is_short("broken numbers") {
        on_devices(|_| BrokenNumbers);
    }
}

/// Whether a part is left to the whole suite, which says so.
fn is_short(part: &str) -> bool {
    let short = std::env::var_os("MOI_TEST_SHORT").is_some();
    if short {
        println!("{part}: left to the whole suite, as MOI_TEST_SHORT is set");
    }
    short
}

/// The checks that the binary makes of a device.
pub fn self_checks() {
    on_devices(SelfChecks);
}

/// Greedy decodes, against those of transformers.
pub fn greedy_decodes() {
    on_devices(GreedyDecodes);
}

/// Requests together, against each alone and against the CPU with the same seeds.
pub fn batches() {
    let expected = on(moi_backends::cpu(), Batches);
    for device in devices() {
        seeded(device, &on(device, Batches), &expected);
    }
}

/// Sequences of different lengths in one pass, against transformers; and those that are parked, against each alone.
pub fn ragged_batches() {
    on_devices(RaggedBatches);
}

/// Models with packed weights, against the CPU.
pub fn packed_weights() {
    let expected = on(moi_backends::cpu(), |_| PackedWeights);
    for device in devices() {
        packed_alike(device, &on(device, |_| PackedWeights), &expected);
    }
}

/// A golden checkpoint and its model on a device.
pub fn load<B: Backend>(name: &str, form: WeightForm, device: &B::Device) -> (Golden, Decoder<B>) {
    let golden = Golden::read(name);
    let decoder = Pretrained::open(&golden.path).unwrap().load::<B>(device, form, |_| {}).unwrap();
    (golden, decoder)
}

pub(crate) fn ids<B: Backend>(ids: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let data: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    Tensor::from_data(TensorData::new(data, [ids.len()]), device)
}
