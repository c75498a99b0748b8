//! What the benchmarks share: cases that every backend of the build runs beside the others, inputs that are random but
//! the same in every run, and models of given shapes.
//!
//! `cargo bench -p moi-benches --features vulkan --bench product` compares backends: a group for each case, an entry in
//! it for each device. Behind `--` stands what criterion takes, for one a part of the names to run: `-- q8_0`.

#![allow(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot be set up or fails must end")]

use std::{hint::black_box, sync::OnceLock, time::Duration};

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Int, Tensor, TensorData, backend::Backend},
};
use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use moi_backends::{DeviceName, Job, Kind};
use moi_models::{Activations, Architecture, Decoder, PackedForm, scales_dtype};

/// What is measured on every backend.
pub trait Case {
    /// Whether it is a case of its own on this backend.
    fn applies<B: Backend>(&self) -> bool {
        true
    }

    /// Sets it up. What is returned is measured, and must not return before the device has finished: see [`finish`].
    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut();
}

/// A group with an entry for each device.
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
        // Criterion calls for every sample, and not at all where the name was not asked for.
        let mut prepared = None;
        group.bench_function(name.to_string(), |bencher| {
            let measured = prepared.get_or_insert_with(|| case.prepare::<B>(device));
            bencher.iter(measured);
        });
    }
}

/// The first device of each kind in this build; of those that are absent or do not work a line on stderr says why.
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

/// Waits until the device has computed this.
pub fn finish<B: Backend, const D: usize>(result: Tensor<B, D>, device: &B::Device) {
    B::sync(device).expect("the device works");
    black_box(result);
}

/// A fixed stream of bits: xorshift64, benchmarks need no better.
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

/// A module with random parameters. Zeros would not do: memory that was never written is one page, which a cache holds.
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
                // As loaders do: kernels take no other type.
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

/// How weights are held, and what activations are rounded to beside packed ones.
#[derive(Clone, Copy, Debug)]
pub enum Weights {
    /// As float32.
    Dense,
    /// In blocks.
    Packed(PackedForm, Activations),
}

impl Weights {
    /// For the names of groups.
    pub fn name(self) -> String {
        match self {
            Self::Dense => "f32".to_owned(),
            Self::Packed(form, activations) => {
                format!("{}, activations {activations:?}", form.name()).to_lowercase()
            }
        }
    }

    /// Whether the backend has products of this sort: without kernels activations are rounded to nothing.
    pub fn applies<B: Backend>(self) -> bool {
        match self {
            Self::Dense | Self::Packed(_, Activations::F32) => true,
            Self::Packed(..) => moi_models::default_kernels::<B>().rounds_activations(),
        }
    }

    /// Bytes of a matrix, with scales in float16.
    pub fn bytes(self, rows: usize, columns: usize) -> u64 {
        let bytes = match self {
            Self::Dense => 4 * rows * columns,
            Self::Packed(form, _) => packed_bytes(form, rows, columns),
        };
        bytes as u64
    }
}

/// Bytes of a packed matrix, with scales in float16.
pub fn packed_bytes(form: PackedForm, rows: usize, columns: usize) -> usize {
    let numbers = if form.has_minima() { 2 } else { 1 };
    form.quant_bytes(rows, columns) + 2 * numbers * form.num_scales(rows, columns)
}

/// Sizes of a Llama.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Whose they are.
    pub name: &'static str,
    /// Width of the residual stream.
    pub d: usize,
    /// Inner width of the feed-forward block.
    pub inner: usize,
    /// Of queries.
    pub heads: usize,
    /// Of keys and values.
    pub kv_heads: usize,
}

/// SmolLM2-135M.
pub const SMALL: Sizes = Sizes { name: "SmolLM2-135M", d: 576, inner: 1536, heads: 9, kv_heads: 3 };
/// Llama-3.2-1B.
pub const LARGE: Sizes = Sizes { name: "Llama-3.2-1B", d: 2048, inner: 8192, heads: 32, kv_heads: 8 };

impl Sizes {
    /// One layer with a vocabulary of no size to speak of, its weights random.
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

    /// Bytes of the layer's matrices.
    pub fn layer_bytes(&self, weights: Weights) -> u64 {
        let (d, inner) = (self.d, self.inner);
        let kv = d / self.heads * self.kv_heads;
        let shapes = [[d, d], [kv, d], [kv, d], [d, d], [inner, d], [inner, d], [d, inner]];
        shapes.into_iter().map(|[rows, columns]| weights.bytes(rows, columns)).sum()
    }
}
