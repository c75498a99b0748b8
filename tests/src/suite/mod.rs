//! The parity suite: results that every device must reproduce, generic over the backend.
//!
//! It runs on every device that the build supports and the machine has, or on those in `MOI_TEST_DEVICES`
//! (`cuda,vulkan:1`), and prints its measurements. It compiles all kernels, unless `MOI_TEST_KERNELS` names a
//! directory to cache them in.

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
use moi_backends::{DeviceName, DeviceRequest, Job, Kind, found, run};
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

/// Together, these checkpoints use every decoder option of all golden checkpoints, except the scaling of rotary
/// positions, which the host computes.
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

/// The checkpoints of a short run, which `MOI_TEST_SHORT` selects for software devices. Together they use every
/// kernel that a device has.
const SHORT: &[&str] = &["gemma2", "qwen3-moe-dense", "gpt2-scales", "gpt-oss", "gemma4-ple"];

/// The checkpoints of this run.
pub fn checkpoints() -> &'static [&'static str] {
    match std::env::var_os("MOI_TEST_SHORT") {
        Some(_) => SHORT,
        None => CHECKPOINTS,
    }
}

/// The checkpoints of the tests of decodes and launches, which take longest.
pub(crate) fn decoded_checkpoints() -> &'static [&'static str] {
    match std::env::var_os("MOI_TEST_SHORT") {
        Some(_) => &["gpt-oss"],
        None => CHECKPOINTS,
    }
}

/// Largest allowed max |diff| / max |logit| in float32.
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
                Ok(DeviceRequest::Named(name)) => name,
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

/// Runs a part of the suite on each device.
fn on_devices<J: Job>(part: impl Fn(DeviceName) -> J) {
    for device in devices() {
        on(device, &part);
    }
}

// Each part is a non-generic function, so that this crate compiles the models and the engine for every backend once,
// and the tests reuse the compiled code.

/// Tests the kernels of models and mixing against loops on the host.
#[cfg(feature = "gpu")]
pub fn kernels() {
    on_devices(kernels::Kernels);
}

/// Tests the products of small tensors that recurrent layers use.
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

/// Tests mixing against the formulas.
pub fn mixing() {
    on_devices(Mixing);
}

/// Tests logits against transformers.
pub fn logits() {
    on_devices(Logits);
}

/// Tests half precision against float32.
pub fn halves() {
    if !is_short("half precision") {
        on_devices(Halves);
    }
}

/// Tests that errors report where NaN and infinity come from.
pub fn broken_numbers() {
    if !is_short("broken numbers") {
        on_devices(|_| BrokenNumbers);
    }
}

/// Whether a short run skips this part; it prints a note then.
fn is_short(part: &str) -> bool {
    let short = std::env::var_os("MOI_TEST_SHORT").is_some();
    if short {
        println!("{part}: left to the whole suite, as MOI_TEST_SHORT is set");
    }
    short
}

/// Runs the self-checks of the binary on each device.
pub fn self_checks() {
    on_devices(SelfChecks);
}

/// Tests greedy decodes against transformers.
pub fn greedy_decodes() {
    on_devices(GreedyDecodes);
}

/// Tests requests together against each alone, and against the CPU with the same seeds.
pub fn batches() {
    let expected = on(moi_backends::cpu(), Batches);
    for device in devices() {
        seeded(device, &on(device, Batches), &expected);
    }
}

/// Tests sequences of different lengths in one pass against transformers, and parked sequences against each alone.
pub fn ragged_batches() {
    on_devices(RaggedBatches);
}

/// Tests models with packed weights against the CPU.
pub fn packed_weights() {
    let expected = on(moi_backends::cpu(), |_| PackedWeights);
    for device in devices() {
        packed_alike(device, &on(device, |_| PackedWeights), &expected);
    }
}

/// Loads a golden checkpoint on a device.
pub fn load<B: Backend>(name: &str, form: WeightForm, device: &B::Device) -> (Golden, Decoder<B>) {
    let golden = Golden::read(name);
    let decoder = Pretrained::open(&golden.path).unwrap().load::<B>(device, form, |_| {}).unwrap();
    (golden, decoder)
}

pub(crate) fn ids<B: Backend>(ids: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let data: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    Tensor::from_data(TensorData::new(data, [ids.len()]), device)
}
