//! A causal convolution over positions, for each channel by itself.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, backend::Backend},
};

use crate::linear::uninitialized;

/// `y_t = sum_j w_j u_(t - kernel + 1 + j) (+ b)` for each channel.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, SelfAttention};
/// # let config = serde_json::json!({
/// #     "model_type": "lfm2", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
/// #     "layer_types": ["conv", "full_attention"],
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let Some(SelfAttention::ShortConv(own)) = &model.model.layers[0].self_attn else { panic!("it has one") };
/// // Three weights for each of 16 channels, and no biases.
/// assert_eq!(own.conv.weight.val().dims(), [16, 3]);
/// assert!(own.conv.bias.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct CausalConv<B: Backend> {
    /// Weights, `[channels, kernel]`.
    pub weight: Param<Tensor<B, 2>>,
    /// Biases, `[channels]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> CausalConv<B> {
    /// A convolution of zeros, which are not allocated before they are used or replaced by loaded weights.
    pub(crate) fn new(channels: usize, kernel: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: uninitialized([channels, kernel], device),
            bias: bias.then(|| uninitialized([channels], device)),
        }
    }

    /// Computes outputs `[n, channels]` for new inputs `[n, channels]`, which follow the last inputs
    /// `[kernel - 1, channels]`, or zeros if there are none. Returns the outputs and the new last inputs, in float32.
    pub(crate) fn forward(
        &self,
        inputs: Tensor<B, 2>,
        last: Option<Tensor<B, 2>>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let ([n, channels], device) = (inputs.dims(), inputs.device());
        let kernel = self.weight.val().dims()[1];
        // Transposed, so that the weights of all channels for one tap are contiguous.
        let weight = self.weight.val().cast(DType::F32).transpose().reshape([kernel * channels]);
        let last = last.unwrap_or_else(|| Tensor::zeros([kernel - 1, channels], (&device, DType::F32)));
        let all = Tensor::cat(vec![last, inputs.cast(DType::F32)], 0);
        let tap = |j: usize| weight.clone().narrow(0, j * channels, channels).unsqueeze::<2>();
        let product = |j: usize| all.clone().narrow(0, j, n) * tap(j);
        let mut out = product(0);
        for j in 1..kernel {
            out = out + product(j);
        }
        if let Some(bias) = &self.bias {
            out = out + bias.val().cast(DType::F32).unsqueeze();
        }
        // The multiplication makes a copy, which does not keep all inputs in memory.
        let last = all.narrow(0, n, kernel - 1).mul_scalar(1.0);
        (out, last)
    }
}
