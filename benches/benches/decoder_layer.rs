//! One decoder layer, prefill and decode, at the sizes of SmolLM2-135M and Llama-3.2-1B.
//! `cargo bench -p moi-benches --bench decoder_layer`

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use burn::tensor::backend::Backend;
use burn_flex::Flex;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use moi_benches::{llama, noise};
use moi_models::CausalLm;

fn decoder_layer<B: Backend>(c: &mut Criterion) {
    let device = B::Device::default();
    for (name, d, inner, heads) in
        [("SmolLM2-135M", 576, 1536, [9, 3]), ("Llama-3.2-1B", 2048, 8192, [32, 8])]
    {
        let model = llama::<B>(1, d, inner, heads, &device);
        let mut group = c.benchmark_group(format!("one layer of {name}"));
        group.sample_size(20);

        let prompt = noise::<B, 3>([1, 512, d], 1.0, &device);
        group.throughput(Throughput::Elements(512));
        group.bench_function("prefill 512", |b| {
            b.iter(|| model.forward(prompt.clone(), &mut model.new_cache(1)).unwrap().into_data());
        });

        let mut filled = model.new_cache(1);
        model.forward(prompt.clone(), &mut filled).unwrap();
        let step = noise::<B, 3>([1, 1, d], 1.0, &device);
        model.forward(step.clone(), &mut filled).unwrap();
        // Decodes in chains of 64: a fresh copy of the cache for each, made outside the measurement.
        group.throughput(Throughput::Elements(64));
        group.bench_function("decode 64 behind 512", |b| {
            b.iter_batched(
                || filled.clone(),
                |mut cache| {
                    for _ in 0..64 {
                        model.forward(step.clone(), &mut cache).unwrap().into_data();
                    }
                },
                BatchSize::LargeInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, decoder_layer::<Flex>);
criterion_main!(benches);
