//! The CPU kernels on slices, without tensors. `cargo bench -p moi-benches --bench kernels`
//!
//! The throughput counts the bytes that are read: weights, keys and values, logits, a table. Matrices of 576 rows of
//! 1536 values stay in a CPU's cache; those of 18432 rows do not, and their throughput compares with the memory
//! bandwidth. `MOI_KERNELS` set to `avx2`, `neon` or `portable` measures a narrower instruction set than the CPU has.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use std::{hint::black_box, time::Duration};

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use half::{bf16, f16};
use moi_benches::{floats, packed_bytes, words};
use moi_kernels::{
    AttentionSizes, AttentionSpan, BlockPlace, CACHE_BLOCK, CachedBlocks, Dense, Float, Packed, PackedForm,
    QuantizedRows, Rounding, Table, Visible, attend, dense_products, distribution, weighted_sums,
};

/// Columns of matrices, a whole number of blocks of every form.
const COLUMNS: usize = 1536;
/// Rows of matrices, and rows of activations.
const SIZES: [(usize, usize); 3] = [(576, 1), (576, 64), (18_432, 1)];
/// SmolLM2's vocabulary and width.
const VOCABULARY: usize = 49_152;
const WIDTH: usize = 576;

fn group<'c>(c: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    group
}

/// The parts of a packed matrix.
struct Parts {
    form: PackedForm,
    dims: [usize; 2],
    words: Vec<i32>,
    scales: Vec<f16>,
    minima: Vec<f16>,
}

impl Parts {
    fn new(form: PackedForm, [rows, columns]: [usize; 2]) -> Self {
        let numbers = vec![f16::from_f32(1e-3); form.num_scales(rows, columns)];
        Self {
            form,
            dims: [rows, columns],
            words: words(form.quant_bytes(rows, columns) / 4),
            minima: if form.has_minima() { numbers.clone() } else { Vec::new() },
            scales: numbers,
        }
    }

    fn view(&self) -> Packed<'_> {
        Packed::new(self.form, self.dims, &self.words, &self.scales, &self.minima).unwrap()
    }

    fn bytes(&self) -> Throughput {
        Throughput::BytesDecimal(packed_bytes(self.form, self.dims[0], self.dims[1]) as u64)
    }
}

fn packed_products(c: &mut Criterion) {
    for (rows, n) in SIZES {
        let x = floats(n * COLUMNS, 1.0);
        let matrices: Vec<Parts> =
            PackedForm::ALL.into_iter().map(|form| Parts::new(form, [rows, COLUMNS])).collect();
        let mut out = vec![Vec::new()];

        for (name, rounding) in [("int8", Rounding::Int8), ("int16", Rounding::Int16)] {
            let rounded = QuantizedRows::new(&x, COLUMNS, rounding);
            let mut group = group(c, &format!("products_int8, {name}, {rows} x {COLUMNS}, n {n}"));
            for parts in &matrices {
                group.throughput(parts.bytes());
                group.bench_function(parts.form.name(), |b| {
                    b.iter(|| {
                        Packed::products_int8(&[parts.view()], &rounded, &mut out);
                        black_box(&out);
                    });
                });
            }
            group.finish();
        }

        let mut group = group(c, &format!("products_f32, {rows} x {COLUMNS}, n {n}"));
        for parts in &matrices {
            group.throughput(parts.bytes());
            group.bench_function(parts.form.name(), |b| {
                b.iter(|| {
                    Packed::products_f32(&[parts.view()], &x, &mut out);
                    black_box(&out);
                });
            });
        }
        group.finish();
    }
}

fn products_of_floats(c: &mut Criterion) {
    for (rows, n) in SIZES {
        let x = floats(n * COLUMNS, 1.0);
        let single = floats(rows * COLUMNS, 0.02);
        let half: Vec<f16> = single.iter().map(|&value| f16::from_f32(value)).collect();
        let brain: Vec<bf16> = single.iter().map(|&value| bf16::from_f32(value)).collect();
        let mut out = vec![Vec::new()];
        let mut group = group(c, &format!("dense_products, {rows} x {COLUMNS}, n {n}"));
        let types = [
            ("f32", 4, Float::F32(&single)),
            ("f16", 2, Float::F16(&half)),
            ("bf16", 2, Float::Bf16(&brain)),
        ];
        for (name, size, values) in types {
            let matrix = Dense::new(values, [rows, COLUMNS]).unwrap();
            group.throughput(Throughput::BytesDecimal((size * rows * COLUMNS) as u64));
            group.bench_function(name, |b| {
                b.iter(|| {
                    dense_products(&[matrix], &x, &mut out);
                    black_box(&out);
                });
            });
        }
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    let (heads, kv_heads, head_dim) = (9, 3, 64);
    for (columns, seq) in [(512, 1), (4096, 1), (512, 64)] {
        let q = floats(seq * heads * head_dim, 0.1);
        let single = floats(kv_heads * columns * head_dim, 1.0);
        let half: Vec<f16> = single.iter().map(|&value| f16::from_f32(value)).collect();
        let (single_values, half_values) = (single.clone(), half.clone());
        let sizes = AttentionSizes { heads, kv_heads, head_dim, softcap: None, window: None, sinks: None };
        let blocks =
            (0..columns / CACHE_BLOCK).map(|index| BlockPlace { slab: 0, index }).collect::<Vec<_>>();
        let visible = Visible::Causal;
        let span = AttentionSpan {
            len: seq,
            past: columns - seq,
            blocks: &blocks,
            first_block: 0,
            visible: &visible,
        };
        let mut group = group(c, &format!("attend, {columns} columns, seq {seq}"));
        let cached = |keys, values| CachedBlocks { keys: vec![keys], values: vec![values] };
        let types = [
            ("f32", 4, cached(Float::F32(&single), Float::F32(&single_values))),
            ("f16", 2, cached(Float::F16(&half), Float::F16(&half_values))),
        ];
        for (name, size, cached) in types {
            group.throughput(Throughput::BytesDecimal((2 * size * kv_heads * columns * head_dim) as u64));
            let spans = std::slice::from_ref(&span);
            group.bench_function(name, |b| b.iter(|| attend(&sizes, &q, &cached, spans)));
        }
        group.finish();
    }
}

fn distributions(c: &mut Criterion) {
    let logits = floats(VOCABULARY, 3.0);
    let mut group = group(c, &format!("distribution, {VOCABULARY}"));
    group.throughput(Throughput::BytesDecimal(4 * VOCABULARY as u64));
    for (name, probabilities) in [("entropy alone", false), ("with probabilities", true)] {
        group.bench_function(name, |b| b.iter(|| distribution(&logits, probabilities)));
    }
    group.finish();
}

fn mixtures(c: &mut Criterion) {
    // These weights are so evenly spread that nearly all rows are read.
    let weights = distribution(&floats(VOCABULARY, 3.0), true).probability;
    let dims = [VOCABULARY, WIDTH];
    let values = floats(VOCABULARY * WIDTH, 0.02);
    let mut group = group(c, &format!("weighted_sums, {VOCABULARY} x {WIDTH}"));
    let table = Table::Dense(Dense::new(Float::F32(&values), dims).unwrap());
    group.throughput(Throughput::BytesDecimal(4 * values.len() as u64));
    group.bench_function("f32", |b| b.iter(|| weighted_sums(&table, &weights)));
    for form in [PackedForm::Q8_0, PackedForm::Q4_1] {
        let parts = Parts::new(form, dims);
        let table = Table::Packed(parts.view());
        group.throughput(parts.bytes());
        group.bench_function(form.name(), |b| b.iter(|| weighted_sums(&table, &weights)));
    }
    group.finish();
}

criterion_group!(benches, packed_products, products_of_floats, attention, distributions, mixtures);
criterion_main!(benches);
