//! Products of activations with one matrix, `[n, 576]` times the transpose of `[1536, 576]`, on all backends of the
//! build. `cargo bench -p moi-benches --bench product`
//!
//! The throughput counts the bytes of the weights. A single matrix stays in a CPU's cache; the benchmark `kernels`
//! also reads from memory.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use burn::tensor::backend::Backend;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moi_benches::{Case, SMALL, Weights, compare, finish, noise};
use moi_models::{Activations, FeedForward, PackedForm, default_kernels};

struct Product {
    weights: Weights,
    n: usize,
}

impl Case for Product {
    fn applies<B: Backend>(&self) -> bool {
        self.weights.applies::<B>()
    }

    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut() {
        let decoder = SMALL.layer::<B>(self.weights, device);
        let Some(FeedForward::Mlp(mlp)) = &decoder.model.layers[0].mlp else { unreachable!("a Llama") };
        let matrix = mlp.up_proj.weight.clone();
        let x = noise::<B, 2>([self.n, SMALL.d], 1.0, device);
        let kernels = default_kernels::<B>();
        move || finish(kernels.logits(&matrix, x.clone()), device)
    }
}

fn product(c: &mut Criterion) {
    let all = [
        Weights::Dense,
        Weights::Packed(PackedForm::Q8_0, Activations::F32),
        Weights::Packed(PackedForm::Q8_0, Activations::Int8),
        Weights::Packed(PackedForm::Q4_1, Activations::F32),
        Weights::Packed(PackedForm::Q4_1, Activations::Int8),
    ];
    for n in [1, 64] {
        for weights in all {
            let group = format!("product, {}, n {n}", weights.name());
            let bytes = Throughput::BytesDecimal(weights.bytes(SMALL.inner, SMALL.d));
            compare(c, &group, bytes, &Product { weights, n });
        }
    }
}

criterion_group!(benches, product);
criterion_main!(benches);
