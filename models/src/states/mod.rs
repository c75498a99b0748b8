//! Layers that keep a state of fixed size in the place of what they have seen.
//!
//! A state has no positions: it cannot be cut back. A sequence begins with none, which counts as zeros, in float32 whatever
//! the weights are; pieces of a prompt and single steps continue the same one.

mod chunks;
mod conv;
mod delta_net;
mod mamba2;
mod short_conv;

use burn::tensor::{DType, Tensor, backend::Backend};

pub use conv::CausalConv;
pub use delta_net::DeltaNet;
pub use mamba2::Mamba2;
pub use short_conv::ShortConv;

use crate::{Kernels, context::SpanContext};

/// What a layer keeps of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct LayerState<B: Backend> {
    /// The last inputs of a convolution `[kernel - 1, channels]`.
    pub(crate) inputs: Tensor<B, 2>,
    /// A matrix for each head `[heads, keys, values]`, where there is one.
    pub(crate) matrices: Option<Tensor<B, 3>>,
}

/// The states of a layer in a forward pass: of each span, and where they go.
pub(crate) trait States<B: Backend> {
    /// What a span's sequence has; none where it begins.
    fn take(&mut self, span: usize) -> Option<LayerState<B>>;

    /// What it has behind the span.
    fn put(&mut self, span: usize, state: LayerState<B>);
}

/// One span after the other: `part` makes of a span's rows and its state what the layer gives, and the next state.
fn each_span<B: Backend>(
    spans: &[SpanContext],
    states: &mut dyn States<B>,
    mut part: impl FnMut(usize, usize, Option<LayerState<B>>) -> (Tensor<B, 2>, LayerState<B>),
) -> Tensor<B, 2> {
    let (mut first, mut all) = (0, Vec::with_capacity(spans.len()));
    for (index, span) in spans.iter().enumerate() {
        let (out, next) = part(first, span.len, states.take(index));
        states.put(index, next);
        all.push(out);
        first += span.len;
    }
    if all.len() == 1 { all.remove(0) } else { Tensor::cat(all, 0) }
}

/// Positions of one sequence in a layer whose state is a matrix for each head, all in float32: `S = exp(decay) S; S += k w^T;
/// o = S^T q`, where w is v, or `beta (v - S^T k)` where there is a beta.
#[derive(Clone, Debug)]
pub struct HeadSteps<B: Backend> {
    /// `[positions, groups, keys]`; a group's serves all its heads.
    pub q: Tensor<B, 3>,
    /// `[positions, groups, keys]`.
    pub k: Tensor<B, 3>,
    /// `[positions, heads, values]`.
    pub v: Tensor<B, 3>,
    /// `[positions, heads]`.
    pub decay: Tensor<B, 2>,
    /// `[positions, heads]`.
    pub beta: Option<Tensor<B, 2>>,
}

impl<B: Backend> HeadSteps<B> {
    /// Matrices of zeros, of a sequence that begins.
    fn zeros(&self) -> Tensor<B, 3> {
        let ([_, heads, values], keys) = (self.v.dims(), self.k.dims()[2]);
        Tensor::zeros([heads, keys, values], (&self.v.device(), DType::F32))
    }
}

/// A layer with a state.
pub(crate) trait Recurrent<B: Backend> {
    /// `[tokens, d]` to `[tokens, d]`.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        spans: &[SpanContext],
        states: &mut dyn States<B>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2>;
}
