//! A build without the CPU's kernels.

#![allow(clippy::extra_unused_type_parameters, reason = "as where there are kernels")]

use burn::tensor::{Int, Tensor, backend::Backend};
use moi_kernels::RowCache;

use super::{Attention, Heads, Means};
use crate::{
    Activation, Matrix, Norm,
    cache::{BlockRun, LayerBlocks},
};

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

pub(super) fn heads<B: Backend>(_: &Tensor<B, 2>, _: &Heads<'_, B>) -> Option<Tensor<B, 3>> {
    None
}

pub(super) fn attend<B: Backend>(
    _: &Tensor<B, 3>,
    _: &LayerBlocks<B>,
    _: &Attention<'_, B>,
) -> Option<Tensor<B, 2>> {
    None
}

pub(super) fn write_columns<B: Backend>(
    slabs: Vec<Tensor<B, 4>>,
    _: &Tensor<B, 3>,
    _: &[BlockRun],
    _: bool,
) -> Result<Vec<Tensor<B, 4>>, Vec<Tensor<B, 4>>> {
    Err(slabs)
}

pub(super) fn distribution<B: Backend>(_: &Tensor<B, 2>, _: bool) -> Option<(Tensor<B, 2>, Tensor<B, 2>)> {
    None
}
