//! What kernels are told.

use burn::{
    module::Param,
    tensor::{DType, Tensor, backend::Backend},
};

use crate::{
    Linear, Matrix, Norm,
    context::{Angles, ForwardContext},
};

/// A linear map.
#[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "no kernel is told"))]
pub(crate) struct Map<'a, B: Backend> {
    pub(crate) matrix: &'a Matrix<B>,
    pub(crate) bias: Option<&'a Param<Tensor<B, 1>>>,
}

impl<'a, B: Backend> From<&'a Linear<B>> for Map<'a, B> {
    fn from(linear: &'a Linear<B>) -> Self {
        Self { matrix: &linear.weight, bias: linear.bias.as_ref() }
    }
}

/// What a block has computed and the residual stream has not yet got.
pub(crate) struct Pending<'a, B: Backend> {
    pub(crate) block: Tensor<B, 2>,
    /// A norm over it.
    pub(crate) after: Option<&'a Norm<B>>,
    pub(crate) scale: f64,
}

/// The residual stream with what a block adds to it, if it added anything, and a norm of that, if one is asked for.
pub(crate) type Joined<B> = (Option<Tensor<B, 2>>, Option<Tensor<B, 2>>);

/// Attention of one layer in a forward pass.
#[cfg_attr(not(any(feature = "flex", feature = "gpu")), allow(dead_code, reason = "no kernel is told"))]
pub(crate) struct Attention<'a, B: Backend> {
    pub(crate) context: &'a ForwardContext<B>,
    /// Which kind of layer it is in the pool.
    pub(crate) kind: usize,
    pub(crate) window: Option<usize>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the CPU's kernels get rotated heads"))]
    pub(crate) angles: Option<&'a Angles<B>>,
    /// Over each head of the queries and of the keys.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the CPU's kernels get normed heads"))]
    pub(crate) norms: Option<(&'a Norm<B>, &'a Norm<B>)>,
    /// A factor on queries.
    #[cfg_attr(not(feature = "gpu"), allow(dead_code, reason = "the CPU's kernels get scaled heads"))]
    pub(crate) scale: f64,
    pub(crate) softcap: Option<f64>,
}

/// What is done to the heads of a projection.
#[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "no kernel is told"))]
pub(crate) struct Heads<'a, B: Backend> {
    pub(crate) tokens: usize,
    pub(crate) count: usize,
    pub(crate) head_dim: usize,
    /// Over each head, first.
    pub(crate) norm: Option<&'a Norm<B>>,
    pub(crate) angles: Option<&'a Angles<B>>,
    /// A factor, last.
    pub(crate) scale: f64,
    pub(crate) dtype: DType,
}

/// How means of a table's rows are computed: see [`crate::Mixing`].
#[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "no kernel is told"))]
pub(crate) struct Means<'a, B: Backend> {
    /// The mean of all rows `[d]`, in float32.
    pub(crate) mean_row: &'a dyn Fn() -> &'a Tensor<B, 1>,
    /// How much of a row's input its mean will be, given the row and its entropy in nats.
    pub(crate) share: &'a (dyn Fn(usize, f32) -> f32 + Sync),
    /// The largest share of an input's weight that goes to the mean of all rows.
    pub(crate) tolerance: f32,
}
