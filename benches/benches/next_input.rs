//! The input layer alone, by rule and batch size, on a table of 49152 x 576 in float32, on all backends of the build.
//! `cargo bench -p moi-benches --bench next_input`

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use std::hint::black_box;

use burn::tensor::{Int, Tensor, backend::Backend};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moi::{EmbeddingRows, InputRule, Support, next_inputs};
use moi_benches::{Case, compare, finish, noise, randomized};
use moi_models::{Embedding, Mixing, default_kernels};

/// The sizes of SmolLM2's embedding table.
const VOCABULARY: usize = 49_152;
const WIDTH: usize = 576;

/// An embedding as the engine passes it to the input layer.
struct Rows<B: Backend>(Embedding<B>, Mixing<B>);

impl<B: Backend> EmbeddingRows<B> for Rows<B> {
    fn dims(&self) -> [usize; 2] {
        self.0.dims()
    }

    fn rows(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.1.rows(&self.0, tokens)
    }

    fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        self.1.weighted_sum(&self.0, weights)
    }

    fn distribution(
        &self,
        logits: &Tensor<B, 2>,
        probabilities: bool,
    ) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
        self.1.distribution(logits, probabilities)
    }
}

struct NextInput {
    rule: InputRule,
    batch: usize,
}

impl Case for NextInput {
    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut() {
        let table = randomized::<B, _>(Embedding::<B>::new(VOCABULARY, WIDTH, 1.0, device), device);
        let table = Rows(table, Mixing::new(0.0, default_kernels()));
        // These logits give nearly all tokens a weight; with a model's own distributions, most of the table is not
        // read.
        let logits = noise::<B, 2>([self.batch, VOCABULARY], 3.0, device);
        let tokens = Tensor::<B, 1, Int>::arange(0..self.batch as i64, device);
        let rules = vec![self.rule; self.batch];
        move || {
            let mixed = next_inputs(logits.clone(), tokens.clone(), &table, &rules, 5).unwrap();
            let inputs = mixed.inputs.clone();
            // The generation loop reads this back at each step.
            black_box(mixed.into_rows());
            finish(inputs, device);
        }
    }
}

fn next_input(c: &mut Criterion) {
    let rules = [
        ("token", InputRule::TOKEN),
        ("moi support 20", InputRule::moi(1.0, Support::TopK(20)).unwrap()),
        ("moi support full", InputRule::moi(1.0, Support::Full).unwrap()),
    ];
    for batch in [1, 8] {
        for (name, rule) in rules {
            let rows = Throughput::Elements(batch as u64);
            compare(c, &format!("next input, {name}, batch {batch}"), rows, &NextInput { rule, batch });
        }
    }
}

criterion_group!(benches, next_input);
criterion_main!(benches);
