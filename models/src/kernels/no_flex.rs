//! A build without the CPU's kernels.

#![allow(clippy::extra_unused_type_parameters, reason = "as where there are kernels")]

use burn::tensor::{Int, Tensor, backend::Backend};
use moi_kernels::RowCache;

use super::{Attend, Heads, Means};
use crate::{Activation, Matrix, Norm};

pub(super) fn is_flex<B: Backend>() -> bool {
    false
}

pub(super) fn products<B: Backend>(_: &Tensor<B, 2>, _: &[&Matrix<B>]) -> Option<Vec<Tensor<B, 2>>> {
    None
}

pub(super) fn weighted_sum<B: Backend>(_: &Matrix<B>, _: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    None
}

pub(super) fn means<B: Backend>(
    _: &Matrix<B>,
    _: &Means<'_, B>,
    _: &mut RowCache,
    _: &Tensor<B, 2>,
) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
    None
}

pub(super) fn packed_rows<B: Backend>(_: &Matrix<B>, _: &Tensor<B, 1, Int>) -> Option<Tensor<B, 2>> {
    None
}

pub(super) fn norm<B: Backend, const D: usize>(_: &Norm<B>, _: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    None
}

pub(super) fn gated<B: Backend>(
    _: Activation,
    gate: Tensor<B, 2>,
    _: Option<&Tensor<B, 2>>,
) -> Result<Tensor<B, 2>, Tensor<B, 2>> {
    Err(gate)
}

pub(super) fn heads<B: Backend>(_: &Tensor<B, 2>, _: &Heads<'_, B>) -> Option<Tensor<B, 4>> {
    None
}

pub(super) fn attend<B: Backend>(
    _: &Tensor<B, 4>,
    _: &Tensor<B, 4>,
    _: &Tensor<B, 4>,
    _: &Attend<'_, B>,
) -> Option<Tensor<B, 2>> {
    None
}

pub(super) fn assign_columns<B: Backend>(
    buffer: Tensor<B, 4>,
    _: usize,
    _: &Tensor<B, 4>,
) -> Result<Tensor<B, 4>, Tensor<B, 4>> {
    Err(buffer)
}

pub(super) fn distribution<B: Backend>(_: &Tensor<B, 2>, _: bool) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
    None
}
