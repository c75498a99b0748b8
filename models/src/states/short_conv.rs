//! A short convolution between two gates (LFM2).

use burn::{
    module::Module,
    tensor::{DType, Tensor, backend::Backend},
};

use super::{CausalConv, LayerState, Recurrent, States, each_span};
use crate::{Kernels, Linear, ShortConvConfig, context::SpanContext};

/// `out(C * conv(B * x'))`, where B, C and x' are thirds of the output of one linear layer.
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
/// assert_eq!(own.in_proj.weight.dims(), [3 * 16, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct ShortConv<B: Backend> {
    /// Projection to B, C and x', `[3 d, d]`.
    pub in_proj: Linear<B>,
    /// Convolution of d channels.
    pub conv: CausalConv<B>,
    /// Output projection, `[d, d]`.
    pub out_proj: Linear<B>,
}

impl<B: Backend> ShortConv<B> {
    pub(crate) fn new(d: usize, config: &ShortConvConfig, device: &B::Device) -> Self {
        Self {
            in_proj: Linear::new(d, 3 * d, config.bias, device),
            conv: CausalConv::new(d, config.kernel, config.bias, device),
            out_proj: Linear::new(d, d, config.bias, device),
        }
    }
}

impl<B: Backend> Recurrent<B> for ShortConv<B> {
    fn forward(
        &self,
        x: Tensor<B, 2>,
        spans: &[SpanContext],
        states: &mut dyn States<B>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2> {
        let d = x.dims()[1];
        let all = kernels.linear(&self.in_proj, x).cast(DType::F32);
        let third = |at: usize| all.clone().narrow(1, at * d, d);
        let (gated, gate) = (third(0) * third(2), third(1));
        let out = each_span(spans, states, |first, len, state| {
            let last = state.map(|state| state.inputs);
            let (out, inputs) = self.conv.forward(gated.clone().narrow(0, first, len), last);
            (out, LayerState { inputs, matrices: None })
        });
        kernels.linear(&self.out_proj, gate * out)
    }
}
