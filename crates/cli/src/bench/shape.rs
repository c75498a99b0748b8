//! Models of known sizes with random weights, to measure a machine without downloading the model.

use anyhow::{Result, bail};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Distribution, FloatDType, Tensor, backend::Backend},
};
use moi_engine::Engine;
use moi_models::{Architecture, Decoder, ModelError, ParameterPath, is_held_in_float32};
use moi_pretrained::WeightForm;
use serde_json::json;

use super::bandwidth::wait;
use crate::{args::ModelArgs, backend::Device};

/// The sizes from a published `config.json`.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    /// Whether lists of shapes omit it: it is for tests only.
    hidden: bool,
    model_type: &'static str,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    pub(super) context: usize,
    theta: f64,
    tied: bool,
}

const QWEN2: Shape = Shape {
    name: "",
    hidden: false,
    model_type: "qwen2",
    vocab_size: 152_064,
    hidden_size: 0,
    intermediate_size: 0,
    layers: 0,
    heads: 0,
    kv_heads: 0,
    context: 32_768,
    theta: 1e6,
    tied: false,
};

const LLAMA: Shape =
    Shape { model_type: "llama", vocab_size: 128_256, kv_heads: 8, context: 131_072, theta: 5e5, ..QWEN2 };

#[rustfmt::skip]
const SHAPES: &[Shape] = &[
    // SmolLM2-135M
    Shape { name: "smollm2-135m", vocab_size: 49_152, hidden_size: 576, intermediate_size: 1_536, layers: 30, heads: 9, kv_heads: 3, context: 8_192, theta: 1e5, tied: true, ..LLAMA },
    // SmolLM2-1.7B
    Shape { name: "smollm2-1.7b", vocab_size: 49_152, hidden_size: 2_048, intermediate_size: 8_192, layers: 24, heads: 32, kv_heads: 32, context: 8_192, theta: 1.3e5, tied: true, ..LLAMA },
    // Llama-3.2-1B
    Shape { name: "llama-1b", hidden_size: 2_048, intermediate_size: 8_192, layers: 16, heads: 32, tied: true, ..LLAMA },
    // Llama-3.1-8B
    Shape { name: "llama-8b", hidden_size: 4_096, intermediate_size: 14_336, layers: 32, heads: 32, ..LLAMA },
    // Llama-3.1-70B
    Shape { name: "llama-70b", hidden_size: 8_192, intermediate_size: 28_672, layers: 80, heads: 64, ..LLAMA },
    // Mistral-7B-v0.3
    Shape { name: "mistral-7b", model_type: "mistral", vocab_size: 32_768, hidden_size: 4_096, intermediate_size: 14_336, layers: 32, heads: 32, context: 32_768, theta: 1e6, ..LLAMA },
    // Qwen2.5-0.5B
    Shape { name: "qwen2-0.5b", vocab_size: 151_936, hidden_size: 896, intermediate_size: 4_864, layers: 24, heads: 14, kv_heads: 2, tied: true, ..QWEN2 },
    // Qwen2.5-7B
    Shape { name: "qwen2-7b", hidden_size: 3_584, intermediate_size: 18_944, layers: 28, heads: 28, kv_heads: 4, ..QWEN2 },
    // Qwen2.5-32B, QwQ-32B
    Shape { name: "qwen2-32b", hidden_size: 5_120, intermediate_size: 27_648, layers: 64, heads: 40, kv_heads: 8, ..QWEN2 },
    // For tests.
    Shape { name: "test-tiny", hidden: true, vocab_size: 256, hidden_size: 64, intermediate_size: 128, layers: 2, heads: 4, kv_heads: 2, context: 512, ..QWEN2 },
];

/// The shape of this name.
///
/// # Errors
/// If there is none; the error lists the known names.
pub(super) fn find(name: &str) -> Result<&'static Shape> {
    if let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) {
        return Ok(shape);
    }
    let names: Vec<&str> = SHAPES.iter().filter(|shape| !shape.hidden).map(|shape| shape.name).collect();
    bail!("there is no shape `{name}`; known are {}", names.join(", "))
}

impl Shape {
    fn architecture(&self) -> Result<Architecture, ModelError> {
        Architecture::from_config(&json!({
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "rope_theta": self.theta,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied,
            "sliding_window": null,
        }))
    }

    /// An engine with random weights that are created on the device, for this number of positions.
    ///
    /// # Errors
    /// If the device is known to have too little memory, cannot compute in the number type, or fails.
    pub(super) fn engine<B: Backend>(
        &self,
        args: &ModelArgs,
        (name, device): (Device, &B::Device),
        positions: usize,
    ) -> Result<(Engine<B, Decoder<B>>, WeightForm)> {
        if let Some(threads) = args.threads {
            moi_backends::set_threads(threads.into());
        }
        let form = name.weight_form::<B>(args, device)?;
        let WeightForm::Float(float) = form else { bail!(NO_PACKED_FORM) };
        let config = self.architecture()?.config;
        let decoder = config.init::<B>(device);
        let cached = config.cached_values(positions) * DType::from(float).size();
        let needed = (decoder.planned_bytes(float) + cached) as u64;
        if let Some(memory) = name.found().and_then(|found| found.memory)
            && needed > memory
        {
            let [needed, memory] = [needed, memory].map(|bytes| bytes as f64 / 1e9);
            bail!("the shape `{}` needs {needed:.2} GB, but `{name}` has {memory:.2} GB", self.name);
        }
        B::seed(device, 0);
        let decoder = decoder.map(&mut Random { float, path: ParameterPath::default() });
        wait::<B>(device)?;
        Ok((Engine::new(decoder, device.clone()), form))
    }
}

/// The error if a shape is combined with quantised weights.
pub(super) const NO_PACKED_FORM: &str =
    "--shape has random weights, which are not quantised yet; give --dtype, or --model for --quantize";

/// Fills a model with random weights: norms have weight 1 and biases are 0; other weights have a scale that keeps the
/// products of normal values at about the same size.
struct Random {
    float: FloatDType,
    path: ParameterPath,
}

impl<B: Backend> ModuleMapper<B> for Random {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (shape, device) = (param.lazy_shape(), param.lazy_device());
        let path = self.path.name();
        let single = (&device, DType::F32);
        let value = match is_held_in_float32(&path) {
            true if path.ends_with("bias") => Tensor::zeros(shape, single),
            true => Tensor::ones(shape, single),
            false => {
                let columns = shape.last().copied().unwrap_or(1).max(1);
                let reach = (3.0 / columns as f64).sqrt();
                let uniform = Distribution::Uniform(-reach, reach);
                // The values are created in one dimension, because a device may pad the rows of a tensor that is
                // created with several.
                let len = shape.iter().product::<usize>();
                Tensor::<B, 1>::random([len], uniform, (&device, DType::from(self.float))).reshape(shape)
            }
        };
        Param::initialized(param.id, value)
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_sizes_of_their_models() {
        let params = |name: &str| find(name).unwrap().architecture().unwrap().config.num_params();
        // The parameter counts of their model cards.
        for (name, expected) in [
            ("smollm2-135m", 134_515_008),
            ("smollm2-1.7b", 1_711_376_384),
            ("llama-1b", 1_235_814_400),
            ("llama-8b", 8_030_261_248),
            ("llama-70b", 70_553_706_496),
            ("mistral-7b", 7_248_023_552),
            ("qwen2-0.5b", 494_032_768),
            ("qwen2-7b", 7_615_616_512),
            ("qwen2-32b", 32_763_876_352),
        ] {
            assert_eq!(params(name), expected, "{name}");
        }
        assert!(SHAPES.iter().all(|shape| shape.architecture().is_ok()));
    }

    #[test]
    fn an_unknown_shape_is_named() {
        let said = find("llama-9b").unwrap_err().to_string();
        assert!(said.contains("`llama-9b`") && said.contains("llama-8b, llama-70b"), "{said}");
        assert!(!said.contains("test-tiny"));
    }
}
