//! One decoder layer, for a prompt of 64 positions and for one step after 512 cached positions, at the sizes of
//! SmolLM2-135M and Llama-3.2-1B, on all backends of the build. `cargo bench -p moi-benches --bench decoder_layer`

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use burn::tensor::backend::Backend;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moi_benches::{Case, LARGE, SMALL, Sizes, Weights, compare, finish, noise};
use moi_models::{Activations, CausalLm, ForwardBatch, PackedForm};

/// Positions of the prompt.
const PROMPT: usize = 64;
/// Positions in the cache before the steps, and the number of steps until it is reset.
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
        let prompt = noise::<B, 2>([PROMPT, self.sizes.d], 1.0, device);
        move || finish(model.forward_whole(prompt.clone()).unwrap(), device)
    }
}

struct DecodeStep {
    sizes: Sizes,
    weights: Weights,
}

impl Case for DecodeStep {
    fn applies<B: Backend>(&self) -> bool {
        self.weights.applies::<B>()
    }

    fn prepare<B: Backend>(&self, device: &B::Device) -> impl FnMut() {
        let model = self.sizes.layer::<B>(self.weights, device);
        let (mut pool, device) = (model.new_pool(device), device.clone());
        let mut filled = pool.table();
        let prompt = noise::<B, 2>([CACHED, self.sizes.d], 1.0, &device);
        model.forward(ForwardBatch::one(prompt, &mut filled), &mut pool).unwrap();
        let input = noise::<B, 2>([1, self.sizes.d], 1.0, &device);
        let mut sequence = filled.clone();
        move || {
            // A fork copies its last block at its first step, which is one of 256.
            if sequence.len() >= CACHED + STEPS {
                sequence = filled.clone();
            }
            let batch = ForwardBatch::one(input.clone(), &mut sequence);
            finish(model.forward(batch, &mut pool).unwrap(), &device);
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
        compare(c, &format!("layer of {name}, step behind {CACHED}"), bytes, &DecodeStep { sizes, weights });
    }
}

criterion_group!(benches, decoder_layer);
criterion_main!(benches);
