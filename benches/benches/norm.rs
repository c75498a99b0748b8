//! Norms of `[n, 576]`, on all backends of the build. `cargo bench -p moi-benches --bench norm`

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use burn::tensor::backend::Backend;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moi_benches::{Case, compare, finish, noise, randomized};
use moi_models::{Norm, NormConfig, NormKind, default_kernels};

const WIDTH: usize = 576;

struct OneNorm {
    kind: NormKind,
    n: usize,
}

impl Case for OneNorm {
    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut() {
        let config = NormConfig { kind: self.kind, eps: 1e-5 };
        let norm = randomized::<B, _>(Norm::<B>::new(WIDTH, config, device), device);
        let x = noise::<B, 2>([self.n, WIDTH], 1.0, device);
        let kernels = default_kernels::<B>();
        move || finish(kernels.norm(&norm, x.clone()), device)
    }
}

fn norm(c: &mut Criterion) {
    for (name, kind) in [("rms", NormKind::Rms), ("layer", NormKind::Layer)] {
        for n in [1, 64] {
            let values = Throughput::Elements((n * WIDTH) as u64);
            compare(c, &format!("norm, {name}, n {n}"), values, &OneNorm { kind, n });
        }
    }
}

criterion_group!(benches, norm);
criterion_main!(benches);
