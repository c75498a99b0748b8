//! What kernels are told.

use burn::tensor::{FloatDType, backend::Backend};

use crate::{
    Norm,
    step::{Angles, Step},
};

/// What is done to the heads of a projection.
#[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "no kernel is told"))]
pub(crate) struct Heads<'a, B: Backend> {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    pub(crate) count: usize,
    pub(crate) head_dim: usize,
    /// Over each head, first.
    pub(crate) norm: Option<&'a Norm<B>>,
    pub(crate) angles: Option<&'a Angles<B>>,
    /// A factor, last.
    pub(crate) scale: f64,
    /// `[batch, heads, seq, head_dim]` in this type for the cache; else `[batch, seq, heads, head_dim]` in float32.
    pub(crate) cached: Option<FloatDType>,
}

/// How queries see keys.
#[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "no kernel is told"))]
pub(crate) struct Attend<'a, B: Backend> {
    pub(crate) step: &'a Step<B>,
    pub(crate) window: Option<usize>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) softcap: Option<f64>,
}
