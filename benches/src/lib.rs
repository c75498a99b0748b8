//! Shared parts of the benchmarks: cases that run on every backend of the build, inputs that are random but the same
//! in every run, and models of given shapes.
//!
//! `cargo bench -p moi-benches --features vulkan --bench product` compares backends: it has a group for each case,
//! with an entry for each device. Options of criterion follow after `--`, such as a part of the names to run:
//! `-- q8_0`.

#![allow(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot be set up or fails must end")]

use std::{hint::black_box, sync::OnceLock, time::Duration};

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Int, Tensor, TensorData, backend::Backend},
};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use moi_backends::{DeviceName, Job, Kind};
use moi_models::{Activations, Architecture, Decoder, PackedForm, scales_dtype};

/// A case that is measured on every backend.
pub trait Case {
    /// Whether the case differs from the others on this backend.
    fn applies<B: Backend>(&self) -> bool {
        true
    }

    /// Sets the case up. The returned function is measured; it must not return before the device has finished: see
    /// [`finish`].
    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut();
}

/// Measures a group that has an entry for each device.
pub fn compare(c: &mut Criterion, group: &str, throughput: Throughput, case: &impl Case) {
    let mut group = c.benchmark_group(group);
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group.throughput(throughput);
    for &name in devices() {
        let entry = Entry { group: &mut group, name, case };
        moi_backends::run(name, entry).unwrap_or_else(|error| panic!("{error}"));
    }
    group.finish();
}

struct Entry<'a, 'c, C> {
    group: &'a mut BenchmarkGroup<'c, WallTime>,
    name: DeviceName,
    case: &'a C,
}

impl<C: Case> Job for Entry<'_, '_, C> {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        let Self { group, name, case } = self;
        if !case.applies::<B>() {
            return;
        }
        // Criterion calls this for every sample, and not at all if the name is filtered out.
        let mut prepared = None;
        group.bench_function(name.to_string(), |bencher| {
            let measured = prepared.get_or_insert_with(|| case.prepare::<B>(device));
            bencher.iter(measured);
        });
    }
}

/// The first device of each kind in this build. For those that are absent or do not work, a line on stderr gives the
/// reason.
fn devices() -> &'static [DeviceName] {
    static DEVICES: OnceLock<Vec<DeviceName>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let mut names: Vec<DeviceName> =
            Kind::ALL.into_iter().filter(|kind| kind.is_compiled()).map(DeviceName::from).collect();
        names.retain(|&name| match moi_backends::start(name) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("{name} is left out: {error}");
                false
            }
        });
        names
    })
}

/// Waits until the device has computed `result`.
pub fn finish<B: Backend, const D: usize>(result: Tensor<B, D>, device: &B::Device) {
    B::sync(device).expect("the device works");
    black_box(result);
}

/// A fixed stream of bits by xorshift64, which is good enough for benchmarks.
fn bits() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Values of a fixed stream, roughly normal with the given spread.
pub fn floats(len: usize, spread: f32) -> Vec<f32> {
    let mut bits = bits();
    let mut uniform = || (bits() >> 40) as f32 / (1 << 24) as f32 - 0.5;
    (0..len).map(|_| (uniform() + uniform() + uniform()) * 2.0 * spread).collect()
}

/// Words of a fixed stream.
pub fn words(len: usize) -> Vec<i32> {
    let mut bits = bits();
    (0..len).map(|_| (bits() >> 32) as i32).collect()
}

/// [`floats`] as a tensor.
pub fn noise<B: Backend, const D: usize>(shape: [usize; D], spread: f32, device: &B::Device) -> Tensor<B, D> {
    let values = floats(shape.iter().product(), spread);
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Fills a module with random parameters. Zeros would be too fast to read: memory that was never written is a single
/// page, which stays in a cache.
pub fn randomized<B: Backend, M: Module<B>>(module: M, device: &B::Device) -> M {
    module.map(&mut Random::<B> { device, path: Vec::new() })
}

struct Random<'a, B: Backend> {
    device: &'a B::Device,
    path: Vec<String>,
}

impl<B: Backend> ModuleMapper<B> for Random<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape: [usize; D] = param.lazy_shape().dims();
        let of_blocks = self.path.last().is_some_and(|name| ["scales", "minima"].contains(&name.as_str()));
        let values = match of_blocks {
            true => {
                let values = TensorData::new(vec![1e-3f32; shape.iter().product()], shape);
                let values = Tensor::<B, D>::from_data(values, (self.device, DType::F32));
                // Scales are in the type that loaders use, because kernels take no other.
                values.cast(DType::from(scales_dtype::<B>(self.device)))
            }
            false => noise::<B, D>(shape, 0.02, self.device),
        };
        Param::initialized(param.id, values)
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<B, D, Int>>) -> Param<Tensor<B, D, Int>> {
        let shape: [usize; D] = param.lazy_shape().dims();
        let values = TensorData::new(words(shape.iter().product()), shape);
        Param::initialized(param.id, Tensor::from_data(values, (self.device, DType::I32)))
    }
}

/// The form of the weights, and for packed ones what activations are quantized to.
#[derive(Clone, Copy, Debug)]
pub enum Weights {
    /// Weights in float32.
    Dense,
    /// Weights in quantized blocks.
    Packed(PackedForm, Activations),
}

impl Weights {
    /// The name in names of groups.
    pub fn name(self) -> String {
        match self {
            Self::Dense => "f32".to_owned(),
            Self::Packed(form, activations) => {
                format!("{}, activations {activations:?}", form.name()).to_lowercase()
            }
        }
    }

    /// Whether the backend has products of this kind: without kernels, activations are not quantized.
    pub fn applies<B: Backend>(self) -> bool {
        match self {
            Self::Dense | Self::Packed(_, Activations::F32) => true,
            Self::Packed(..) => moi_models::default_kernels::<B>().rounds_activations(),
        }
    }

    /// Size of a matrix in bytes, with scales in float16.
    pub fn bytes(self, rows: usize, columns: usize) -> u64 {
        let bytes = match self {
            Self::Dense => 4 * rows * columns,
            Self::Packed(form, _) => packed_bytes(form, rows, columns),
        };
        bytes as u64
    }
}

/// Size of a packed matrix in bytes, with scales in float16.
pub fn packed_bytes(form: PackedForm, rows: usize, columns: usize) -> usize {
    let numbers = if form.has_minima() { 2 } else { 1 };
    form.quant_bytes(rows, columns) + 2 * numbers * form.num_scales(rows, columns)
}

/// Sizes of a Llama model.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// The name of the model with these sizes.
    pub name: &'static str,
    /// Width of the residual stream.
    pub d: usize,
    /// Inner width of the feed-forward block.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
}

/// The sizes of SmolLM2-135M.
pub const SMALL: Sizes = Sizes { name: "SmolLM2-135M", d: 576, inner: 1536, heads: 9, kv_heads: 3 };
/// The sizes of Llama-3.2-1B.
pub const LARGE: Sizes = Sizes { name: "Llama-3.2-1B", d: 2048, inner: 8192, heads: 32, kv_heads: 8 };

impl Sizes {
    /// A model of one layer with random weights, whose vocabulary is so small that it does not count.
    pub fn layer<B: Backend>(&self, weights: Weights, device: &B::Device) -> Decoder<B> {
        let config = serde_json::json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": self.d, "intermediate_size": self.inner,
            "num_hidden_layers": 1, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": 4096,
        });
        let config = Architecture::from_config(&config).expect("a valid config").config;
        let decoder = config.init::<B>(device);
        let decoder = match weights {
            Weights::Dense => decoder,
            Weights::Packed(form, activations) => {
                decoder.packed(|_| Some(form), device).with_activations(activations)
            }
        };
        randomized::<B, _>(decoder, device)
    }

    /// Size of the layer's matrices in bytes.
    pub fn layer_bytes(&self, weights: Weights) -> u64 {
        let (d, inner) = (self.d, self.inner);
        let kv = d / self.heads * self.kv_heads;
        let shapes = [[d, d], [kv, d], [kv, d], [d, d], [inner, d], [inner, d], [d, inner]];
        shapes.into_iter().map(|[rows, columns]| weights.bytes(rows, columns)).sum()
    }
}
