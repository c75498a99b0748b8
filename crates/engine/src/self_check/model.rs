//! The model whose logits are known. Its weights are computed from their names, so that it needs no file of weights.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, FloatDType, Tensor, TensorData, backend::Backend},
};
use moi_models::{Architecture, Decoder, ModelError, ParameterPath, is_held_in_float32};
use serde::Deserialize;
use serde_json::Value;

/// A Gemma 2 in miniature and some of its logits, computed in float64 by `tests/reference/self_check.py`.
///
/// # Examples
/// ```
/// use burn::tensor::FloatDType;
/// use moi_engine::self_check::Known;
///
/// let known = Known::read();
/// let model = known.model::<burn_flex::Flex>(&Default::default(), FloatDType::F32)?;
/// assert_eq!(model.config().model_type, "gemma2");
/// assert_eq!(known.logits.len(), known.tokens.len() - known.first);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
pub struct Known {
    config: Value,
    /// The token ids of the positions.
    pub tokens: Vec<u32>,
    /// The first position whose logits are known.
    pub first: usize,
    /// The logits are known for every `every`-th token of the vocabulary.
    pub every: usize,
    /// One row for each position from the first on.
    pub logits: Vec<Vec<f32>>,
}

impl Known {
    /// The built-in model.
    pub fn read() -> Self {
        #[allow(clippy::expect_used, reason = "the file is part of the program, and a test reads it")]
        serde_json::from_str(include_str!("known.json")).expect("a file of this crate")
    }

    /// The model with its weights in `dtype`, which represents all of them exactly.
    ///
    /// # Errors
    /// None, unless the decoder no longer takes the config.
    pub fn model<B: Backend>(&self, device: &B::Device, dtype: FloatDType) -> Result<Decoder<B>, ModelError> {
        let decoder = Architecture::from_config(&self.config)?.config.init::<B>(device);
        Ok(decoder.map(&mut Fill { dtype, path: ParameterPath::default() }))
    }
}

/// Gives every parameter values that are computed from its name.
struct Fill {
    dtype: FloatDType,
    path: ParameterPath,
}

impl<B: Backend> ModuleMapper<B> for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let name = self.path.name();
        let dtype = if is_held_in_float32(&name) { FloatDType::F32 } else { self.dtype };
        let shape = param.lazy_shape();
        let data = TensorData::new(weights(&name, shape.num_elements()), shape);
        let value = Tensor::from_data(data, (&param.lazy_device(), DType::from(dtype)));
        Param::initialized(param.id, value)
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}

/// Multiples of 2^-10 below 1/8, evenly spread: bytes of splitmix64 (Steele et al., 2014), seeded by the FNV-1a hash
/// of the name.
fn weights(name: &str, count: usize) -> Vec<f32> {
    let step = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let byte = |index: u64| {
        let mut z = seed.wrapping_add(index).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 56) as i8
    };
    (0..count as u64).map(|index| f32::from(byte(index)) / 1024.0).collect()
}
