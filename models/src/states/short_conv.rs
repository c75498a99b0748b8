//! A short convolution between two gates (LFM2).

use burn::{
    module::Module,
    tensor::{DType, Tensor, backend::Backend},
};

use super::{CausalConv, LayerState, Recurrent, States, each_span};
use crate::{Kernels, Linear, ShortConvConfig, context::SpanContext};

/// `out(C * conv(B * x'))`, where B, C and x' are thirds of one map.
#[derive(Module, Debug)]
pub struct ShortConv<B: Backend> {
    /// `[3 d, d]`.
    pub in_proj: Linear<B>,
    /// Of d channels.
    pub conv: CausalConv<B>,
    /// `[d, d]`.
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
