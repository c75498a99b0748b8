//! Recurrent layers, which keep a state of fixed size instead of the positions that they have seen.
//!
//! A state has no positions, so it cannot be rolled back. It is in float32 whatever the type of the weights. A
//! sequence begins without a state, which is the same as zeros; pieces of a prompt and single steps continue it.

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

/// The state of one layer for one sequence.
#[derive(Clone, Debug)]
pub(crate) struct LayerState<B: Backend> {
    /// The last inputs of the convolution, `[kernel - 1, channels]`.
    pub(crate) inputs: Tensor<B, 2>,
    /// A state matrix per head, `[heads, keys, values]`, if the layer has them.
    pub(crate) matrices: Option<Tensor<B, 3>>,
}

/// The states of a layer in a forward pass, by span.
pub(crate) trait States<B: Backend> {
    /// Takes the state of a span's sequence; `None` if the sequence begins.
    fn take(&mut self, span: usize) -> Option<LayerState<B>>;

    /// Stores the state after the span.
    fn put(&mut self, span: usize, state: LayerState<B>);
}

/// Computes one span after another. `part`, given a span's first row, its length and its state, returns the outputs
/// and the next state.
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

/// Positions of one sequence in a layer that has a state matrix per head, all in float32:
/// `S = exp(decay) S; S += k w^T; o = S^T q`, where w is v, or `beta (v - S^T k)` with a beta.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::{Flex, FlexDevice};
/// use moi_models::{HeadSteps, Kernels, TensorOperations};
///
/// // One position of two heads, which share keys of four values.
/// let keys = Tensor::<Flex, 3>::zeros([1, 1, 4], &FlexDevice);
/// let v = Tensor::<Flex, 3>::zeros([1, 2, 8], &FlexDevice);
/// let decay = Tensor::<Flex, 2>::zeros([1, 2], &FlexDevice);
/// let steps = HeadSteps { q: keys.clone(), k: keys, v, decay, beta: None };
/// // There is no kernel for it: the state matrices come back unchanged.
/// let matrices = Tensor::<Flex, 3>::zeros([2, 4, 8], &FlexDevice);
/// assert!(TensorOperations.state_steps(&steps, matrices).is_err());
/// ```
#[derive(Clone, Debug)]
pub struct HeadSteps<B: Backend> {
    /// Queries, `[positions, groups, keys]`; all heads of a group share them.
    pub q: Tensor<B, 3>,
    /// Keys, `[positions, groups, keys]`; all heads of a group share them.
    pub k: Tensor<B, 3>,
    /// Values, `[positions, heads, values]`.
    pub v: Tensor<B, 3>,
    /// Logarithms of decays, `[positions, heads]`.
    pub decay: Tensor<B, 2>,
    /// Step sizes of the delta rule, `[positions, heads]`.
    pub beta: Option<Tensor<B, 2>>,
}

impl<B: Backend> HeadSteps<B> {
    /// State matrices of zeros, for a sequence that begins.
    fn zeros(&self) -> Tensor<B, 3> {
        let ([_, heads, values], keys) = (self.v.dims(), self.k.dims()[2]);
        Tensor::zeros([heads, keys, values], (&self.v.device(), DType::F32))
    }
}

/// A layer with a recurrent state.
pub(crate) trait Recurrent<B: Backend> {
    /// Computes `[tokens, d]` from `[tokens, d]`.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        spans: &[SpanContext],
        states: &mut dyn States<B>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2>;
}
