//! The input layer alone: by vocabulary, support and batch. `cargo bench -p moi-benches --bench next_input`

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use burn::tensor::{Int, Tensor, backend::Backend};
use burn_flex::Flex;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moi::{InputRule, Support, next_inputs};
use moi_benches::noise;

fn rules() -> [(&'static str, InputRule); 4] {
    [
        ("token", InputRule::Token),
        ("moi support 20", InputRule::moi(1.0, Support::TopK(20)).unwrap()),
        ("moi support 1000", InputRule::moi(1.0, Support::TopK(1000)).unwrap()),
        ("moi support full", InputRule::moi(1.0, Support::Full).unwrap()),
    ]
}

fn next_input<B: Backend>(c: &mut Criterion) {
    let device = B::Device::default();
    // SmolLM2-135M and Qwen2.5-0.5B: vocabulary and width.
    for (vocab, d) in [(49_152, 576), (151_936, 896)] {
        let table = noise::<B, 2>([vocab, d], 0.1, &device);
        for batch in [1, 8] {
            let mut group = c.benchmark_group(format!("next input, {vocab} x {d}, batch {batch}"));
            group.sample_size(20).throughput(Throughput::Elements(batch as u64));
            let logits = noise::<B, 2>([batch, vocab], 3.0, &device);
            let tokens = Tensor::<B, 1, Int>::arange(0..batch as i64, &device);
            for (name, rule) in rules() {
                let rules = vec![rule; batch];
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter(|| {
                        let mixed = next_inputs(logits.clone(), tokens.clone(), &table, &rules, 5).unwrap();
                        (mixed.inputs.clone().into_data(), mixed.into_rows())
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, next_input::<Flex>);
criterion_main!(benches);
