//! A build without kernels for GPUs.

#![allow(clippy::extra_unused_type_parameters, reason = "as where there are kernels")]

use burn::tensor::{Int, Tensor, backend::Backend};
use moi_sampling::{Reading, RowSpec};

use super::{Attention, Joined, Map, Pending};
use crate::{Activation, Embedding, Matrix, Mixing, Norm, PackedMatrix, cache::LayerBlocks};

/// Turns the kernels for GPUs on or off for the process; this build has none.
pub fn use_gpu_kernels(_on: bool) {}

pub(super) fn has_gpu_kernels<B: Backend>() -> bool {
    false
}

pub(super) fn is_gpu<B: Backend>() -> bool {
    false
}

pub(super) fn maps<B: Backend>(
    _: &Tensor<B, 2>,
    _: &[Map<'_, B>],
    _: Option<Activation>,
) -> Option<Vec<Tensor<B, 2>>> {
    None
}

pub(super) fn packed_rows<B: Backend>(_: &Matrix<B>, _: &Tensor<B, 1, Int>) -> Option<Tensor<B, 2>> {
    None
}

pub(super) fn unpacked<B: Backend>(_: &PackedMatrix<B>, _: usize, _: usize) -> Option<Tensor<B, 2>> {
    None
}

pub(super) fn norm<B: Backend, const D: usize>(_: &Norm<B>, _: &Tensor<B, D>) -> Option<Tensor<B, D>> {
    None
}

pub(super) fn join<B: Backend>(
    _: &Tensor<B, 2>,
    _: Option<&Pending<'_, B>>,
    _: Option<&Norm<B>>,
) -> Option<Joined<B>> {
    None
}

pub(super) fn attention<B: Backend>(
    _: [&Tensor<B, 2>; 3],
    _: &Attention<'_, B>,
    _: &mut LayerBlocks<B>,
) -> Option<Tensor<B, 2>> {
    None
}

pub(super) fn step<B: Backend>(
    _: &Tensor<B, 2>,
    _: &Embedding<B>,
    _: &Mixing<B>,
    _: &[RowSpec],
) -> Option<(Tensor<B, 2>, Reading)> {
    None
}
