//! The room for kernels: what a backend can do faster than by ordinary tensor operations.
//!
//! [`Kernels`] is there for every backend. Its functions say `None` where there is no kernel, and the caller then uses
//! tensor operations: so NdArray, GPUs and backends of other crates work as they are. With the feature `flex` those of
//! burn's Flex backend, whose tensors are slices in the host's memory, are in [`moi_kernels`].

#[cfg(feature = "flex")]
mod flex;
mod spec;

use burn::tensor::{Int, Tensor, backend::Backend};
pub(crate) use spec::{Attend, Heads};

use crate::{Activation, Matrix, NormConfig};

/// Kernels of a backend.
#[cfg(feature = "flex")]
pub(crate) trait Kernels: Backend {
    /// Whether there are any: either all of them or none.
    fn has_kernels() -> bool {
        flex::is_flex::<Self>()
    }

    /// `x` `[n, in]` times the transposes of matrices of equal widths: `[n, out]` each, in float32.
    fn products(x: &Tensor<Self, 2>, matrices: &[&Matrix<Self>]) -> Option<Vec<Tensor<Self, 2>>> {
        flex::products(x, matrices)
    }

    /// Weighted sums of all rows: `weights` `[n, out]` in float32, result `[n, in]` in float32.
    fn weighted_sum(table: &Matrix<Self>, weights: &Tensor<Self, 2>) -> Option<Tensor<Self, 2>> {
        flex::weighted_sum(table, weights)
    }

    /// The rows of `ids` `[n]` of a packed matrix, in float32.
    fn packed_rows(table: &Matrix<Self>, ids: &Tensor<Self, 1, Int>) -> Option<Tensor<Self, 2>> {
        flex::packed_rows(table, ids)
    }

    /// A norm over the last axis, in float32.
    fn norm<const D: usize>(
        config: &NormConfig,
        weight: &Tensor<Self, 1>,
        bias: Option<&Tensor<Self, 1>>,
        x: &Tensor<Self, D>,
    ) -> Option<Tensor<Self, D>> {
        flex::norm(config, weight, bias, x)
    }

    /// `activation(gate) * up`, in float32.
    fn gated(
        activation: Activation,
        gate: Tensor<Self, 2>,
        up: Option<&Tensor<Self, 2>>,
    ) -> Result<Tensor<Self, 2>, Tensor<Self, 2>> {
        flex::gated(activation, gate, up)
    }

    /// Heads on their way from a projection `[batch * seq, heads * head_dim]` into attention, in the type asked for.
    fn heads(x: &Tensor<Self, 2>, heads: &Heads<'_, Self>) -> Option<Tensor<Self, 4>> {
        flex::heads(x, heads)
    }

    /// Attention of queries `[batch, seq, heads, head_dim]`, scaled already: `[batch * seq, heads * head_dim]`.
    fn attend(
        q: &Tensor<Self, 4>,
        k: &Tensor<Self, 4>,
        v: &Tensor<Self, 4>,
        sizes: &Attend<'_, Self>,
    ) -> Option<Tensor<Self, 2>> {
        flex::attend(q, k, v, sizes)
    }

    /// Writes columns `[batch, heads, n, head_dim]` into a buffer from column `at` on.
    fn assign_columns(
        buffer: Tensor<Self, 4>,
        at: usize,
        part: &Tensor<Self, 4>,
    ) -> Result<Tensor<Self, 4>, Tensor<Self, 4>> {
        flex::assign_columns(buffer, at, part)
    }

    /// Probabilities and entropies in nats `[n, 1]` of logits `[n, vocab]`; probabilities of no columns where they are
    /// not asked for.
    fn distribution(
        logits: &Tensor<Self, 2>,
        probabilities: bool,
    ) -> Option<(Tensor<Self, 2>, Tensor<Self, 2>)> {
        flex::distribution(logits, probabilities)
    }
}

/// Kernels of a backend: this build has none.
#[cfg(not(feature = "flex"))]
#[rustfmt::skip]
pub(crate) trait Kernels: Backend {
    fn has_kernels() -> bool { false }
    fn products(_: &Tensor<Self, 2>, _: &[&Matrix<Self>]) -> Option<Vec<Tensor<Self, 2>>> { None }
    fn weighted_sum(_: &Matrix<Self>, _: &Tensor<Self, 2>) -> Option<Tensor<Self, 2>> { None }
    fn packed_rows(_: &Matrix<Self>, _: &Tensor<Self, 1, Int>) -> Option<Tensor<Self, 2>> { None }
    fn norm<const D: usize>(_: &NormConfig, _: &Tensor<Self, 1>, _: Option<&Tensor<Self, 1>>, _: &Tensor<Self, D>) -> Option<Tensor<Self, D>> { None }
    fn gated(_: Activation, gate: Tensor<Self, 2>, _: Option<&Tensor<Self, 2>>) -> Result<Tensor<Self, 2>, Tensor<Self, 2>> { Err(gate) }
    fn heads(_: &Tensor<Self, 2>, _: &Heads<'_, Self>) -> Option<Tensor<Self, 4>> { None }
    fn attend(_: &Tensor<Self, 4>, _: &Tensor<Self, 4>, _: &Tensor<Self, 4>, _: &Attend<'_, Self>) -> Option<Tensor<Self, 2>> { None }
    fn assign_columns(buffer: Tensor<Self, 4>, _: usize, _: &Tensor<Self, 4>) -> Result<Tensor<Self, 4>, Tensor<Self, 4>> { Err(buffer) }
    fn distribution(_: &Tensor<Self, 2>, _: bool) -> Option<(Tensor<Self, 2>, Tensor<Self, 2>)> { None }
}

impl<B: Backend> Kernels for B {}

/// Probabilities and entropies in nats `[n, 1]` of logits `[n, vocab]`, where the backend has a kernel for them;
/// probabilities of no columns where they are not asked for.
pub fn distribution<B: Backend>(
    logits: &Tensor<B, 2>,
    probabilities: bool,
) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
    B::distribution(logits, probabilities)
}

/// What `read` makes of float32 values, row after row. They are read back from a device, but not copied where they are
/// in the host's memory already.
pub fn with_values<B: Backend, R>(x: &Tensor<B, 2>, read: impl FnOnce(&[f32]) -> R) -> R {
    #[cfg(feature = "flex")]
    if let Some(values) = flex::values(x) {
        return read(values.slice());
    }
    read(x.to_data().convert::<f32>().as_slice::<f32>().unwrap_or_default())
}

/// Whether the backend has kernels for the CPU: rounding activations to 8 bits then pays.
pub fn has_kernels<B: Backend>() -> bool {
    <B as Kernels>::has_kernels()
}
