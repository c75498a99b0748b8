//! What the benchmarks share: inputs that are random but the same in every run, and models of given shapes.

#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up must end")]

use burn::tensor::{Tensor, TensorData, backend::Backend};
use moi_models::{Architecture, Decoder};

/// Values of a fixed stream, roughly normal with the given spread.
pub fn noise<B: Backend, const D: usize>(shape: [usize; D], spread: f32, device: &B::Device) -> Tensor<B, D> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        // xorshift64: benchmarks need no better.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| (uniform() + uniform() + uniform()) * 2.0 * spread).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A Llama of these sizes, its weights zero: they cost what others cost.
pub fn llama<B: Backend>(
    layers: usize,
    d: usize,
    inner: usize,
    heads: [usize; 2],
    device: &B::Device,
) -> Decoder<B> {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": d, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads[0], "num_key_value_heads": heads[1],
        "max_position_embeddings": 4096,
    });
    Architecture::from_config(&config).expect("a valid config").config.init(device)
}
