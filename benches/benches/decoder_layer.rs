//! One decoder layer, a prompt of 64 and one step behind a cache, at the sizes of SmolLM2-135M and Llama-3.2-1B, on all
//! backends of the build. `cargo bench -p moi-benches --bench decoder_layer`

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use burn::tensor::backend::Backend;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moi_benches::{Case, LARGE, SMALL, Sizes, Weights, compare, finish, noise};
use moi_models::{Activations, CausalLm, PackedForm};

/// Positions of the prompt.
const PROMPT: usize = 64;
/// Positions in the cache before the steps, and how many steps it is used for.
const CACHED: usize = 512;
const STEPS: usize = 256;

struct Prefill {
    sizes: Sizes,
    weights: Weights,
}

impl Case for Prefill {
    fn applies<B: Backend>(&self) -> bool {
        self.weights.applies::<B>()
    }

    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut() {
        let model = self.sizes.layer::<B>(self.weights, device);
        let prompt = noise::<B, 3>([1, PROMPT, self.sizes.d], 1.0, device);
        move || finish(model.forward(prompt.clone(), &mut model.new_cache(1)).unwrap(), device)
    }
}

struct Step {
    sizes: Sizes,
    weights: Weights,
}

impl Case for Step {
    fn applies<B: Backend>(&self) -> bool {
        self.weights.applies::<B>()
    }

    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut() {
        let model = self.sizes.layer::<B>(self.weights, device);
        let mut filled = model.new_cache(1);
        model.forward(noise::<B, 3>([1, CACHED, self.sizes.d], 1.0, device), &mut filled).unwrap();
        let input = noise::<B, 3>([1, 1, self.sizes.d], 1.0, device);
        let mut cache = filled.clone();
        move || {
            // A copy has two owners, and the first step behind it moves the cache: one in 256.
            if cache.len() >= CACHED + STEPS {
                cache = filled.clone();
            }
            finish(model.forward(input.clone(), &mut cache).unwrap(), device);
        }
    }
}

fn decoder_layer(c: &mut Criterion) {
    let all = [
        (SMALL, Weights::Dense),
        (SMALL, Weights::Packed(PackedForm::Q8_0, Activations::F32)),
        (SMALL, Weights::Packed(PackedForm::Q8_0, Activations::Mixed)),
        (SMALL, Weights::Packed(PackedForm::Q4_1, Activations::Mixed)),
        (SMALL, Weights::Packed(PackedForm::Q4_1, Activations::Int8)),
        (LARGE, Weights::Dense),
    ];
    for (sizes, weights) in all {
        let name = format!("{}, {}", sizes.name, weights.name());
        let positions = Throughput::Elements(PROMPT as u64);
        compare(c, &format!("layer of {name}, prefill {PROMPT}"), positions, &Prefill { sizes, weights });
        let bytes = Throughput::BytesDecimal(sizes.layer_bytes(weights));
        compare(c, &format!("layer of {name}, step behind {CACHED}"), bytes, &Step { sizes, weights });
    }
}

criterion_group!(benches, decoder_layer);
criterion_main!(benches);
