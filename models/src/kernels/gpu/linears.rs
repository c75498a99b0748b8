//! Linear layers, residual additions and norms on a GPU.

use burn::tensor::{DType, Int, Tensor, TensorMetadata, backend::Backend};
use burn_cubecl::CubeRuntime;
use moi_gpu::{AddNorm, MAX_ROWS, NormSpec, NormWeights, Outcome, Picked};

use super::{
    AddNormOutput, LinearRef, has_gpu_kernels, on_runtime,
    tensors::{buffer, device, float, int, packed, single, tensor, weights},
};
use crate::{Activation, Matrix, Norm, NormConfig, NormKind, PackedMatrix, kernels::BlockOutput};

/// Products of one input of few rows, `[n, in]`, with several matrices: `[n, out]` in float32 each, or one output for
/// all if there is an activation. `None` if there is no kernel.
pub(super) fn linears<B: Backend>(
    x: &Tensor<B, 2>,
    matrices: &[LinearRef<'_, B>],
    activation: Option<moi_gpu::Activation>,
) -> Option<Vec<Tensor<B, 2>>> {
    if !has_gpu_kernels::<B>() || x.dims()[0] > MAX_ROWS {
        return None;
    }
    on_runtime!(linears_on::<B>(x, matrices, activation), else None)
}

fn linears_on<B: Backend, R: CubeRuntime>(
    x: &Tensor<B, 2>,
    layers: &[LinearRef<'_, B>],
    activation: Option<moi_gpu::Activation>,
) -> Option<Vec<Tensor<B, 2>>> {
    let [n, _] = x.dims();
    let x = single::<B, R, 2>(x)?;
    let device = device(&x);
    let weights: Vec<_> = layers.iter().map(|map| weights::<B, R>(map.matrix)).collect::<Option<_>>()?;
    let bias = |map: &LinearRef<'_, B>| Some(buffer(&float::<B, R, 1>(map.bias?.val())?));
    let biases: Vec<_> = layers.iter().map(bias).collect();
    // A kernel needs either biases of one type for all layers, or none.
    let alike =
        biases.iter().all(|bias| bias.as_ref().map(|b| b.dtype) == biases[0].as_ref().map(|b| b.dtype));
    let rows: Vec<usize> = layers.iter().map(|map| map.matrix.dims()[0]).collect();
    let all = (weights.iter().zip(&biases).zip(&rows)).map(|((weight, bias), &rows)| moi_gpu::Product {
        weight,
        bias: bias.as_ref(),
        rows,
    });
    let all: Vec<_> = all.collect();
    let outcome = match activation {
        None => Outcome::Each,
        Some(activation) => Outcome::Activated(activation),
    };
    let out = if alike { moi_gpu::products(&device, &buffer(&x), n, &all, outcome)? } else { return None };
    out.into_iter().zip(&rows).map(|(out, &rows)| tensor(out, [n, rows], &x)).collect()
}

/// The kernels' activation function, if they have it.
pub(super) fn function(activation: Activation) -> Option<moi_gpu::Activation> {
    Some(match activation {
        Activation::Silu => moi_gpu::Activation::Silu,
        Activation::Gelu => moi_gpu::Activation::Gelu,
        Activation::GeluTanh => moi_gpu::Activation::GeluTanh,
        Activation::QuickGelu => moi_gpu::Activation::QuickGelu,
        Activation::Relu => moi_gpu::Activation::Relu,
        Activation::ReluSquared => moi_gpu::Activation::ReluSquared,
        Activation::ClampedSwiGlu { limit } => moi_gpu::Activation::clamped(limit as f32),
        Activation::Xielu => return None,
    })
}

/// `rows` rows of a packed matrix, from row `first` on, in float32.
pub(super) fn unpacked<B: Backend>(
    matrix: &PackedMatrix<B>,
    first: usize,
    rows: usize,
) -> Option<Tensor<B, 2>> {
    if !has_gpu_kernels::<B>() {
        return None;
    }
    on_runtime!(unpacked_on::<B>(matrix, first, rows), else None)
}

fn unpacked_on<B: Backend, R: CubeRuntime>(
    matrix: &PackedMatrix<B>,
    first: usize,
    rows: usize,
) -> Option<Tensor<B, 2>> {
    let scales = float::<B, R, 2>(matrix.scales.val())?;
    let out = moi_gpu::unpack(&device(&scales), &packed::<B, R>(matrix)?, Picked::From(first, rows));
    tensor(out, [rows, matrix.dims()[1]], &scales)
}

/// The rows of a packed table with these ids, in float32.
pub(super) fn packed_rows<B: Backend>(table: &Matrix<B>, ids: &Tensor<B, 1, Int>) -> Option<Tensor<B, 2>> {
    if !has_gpu_kernels::<B>() {
        return None;
    }
    on_runtime!(packed_rows_on::<B>(table.packed()?, ids), else None)
}

fn packed_rows_on<B: Backend, R: CubeRuntime>(
    table: &PackedMatrix<B>,
    ids: &Tensor<B, 1, Int>,
) -> Option<Tensor<B, 2>> {
    let ids = int::<B, R, 1>(ids.clone())?;
    if ids.dtype() != DType::I32 {
        return None;
    }
    let out = moi_gpu::unpack(&device(&ids), &packed::<B, R>(table)?, Picked::Ids(&buffer(&ids)));
    tensor(out, [ids.shape().num_elements(), table.dims()[1]], &ids)
}

pub(super) fn spec(config: &NormConfig) -> NormSpec {
    NormSpec {
        eps: config.eps as f32,
        centered: config.kind == NormKind::Layer,
        plus_one: config.kind == NormKind::RmsPlusOne,
    }
}

/// A norm's parameters, in device memory.
pub(super) fn parameters<B: Backend, R: CubeRuntime>(
    norm: &Norm<B>,
    device: &B::Device,
) -> Option<NormWeights> {
    let numbers = |tensor: Tensor<B, 1>| float::<B, R, 1>(tensor).map(|tensor| buffer(&tensor));
    let bias = match &norm.bias {
        Some(bias) => Some(numbers(bias.val())?),
        None => None,
    };
    let weight = match &norm.weight {
        Some(weight) => numbers(weight.val())?,
        None => numbers(Tensor::ones([norm.width()], (device, DType::F32)))?,
    };
    // A kernel reads both in one type.
    bias.as_ref().is_none_or(|bias| bias.dtype == weight.dtype).then_some(NormWeights { weight, bias })
}

/// A norm over the last axis, in float32.
pub(super) fn norm<B: Backend>(norm: &Norm<B>, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    if !has_gpu_kernels::<B>() {
        return None;
    }
    on_runtime!(norm_on::<B>(norm, x), else None)
}

fn norm_on<B: Backend, R: CubeRuntime>(norm: &Norm<B>, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let (dims, own_device) = (x.dims(), x.device());
    let x = single::<B, R, 2>(x)?;
    let weights = parameters::<B, R>(norm, &own_device)?;
    let output_and_normed = moi_gpu::add_norm(
        &device(&x),
        &AddNorm {
            x: &buffer(&x),
            block: None,
            after: None,
            scale: 1.0,
            before: Some(&weights),
            spec: spec(&norm.config()),
            width: dims[1],
        },
    );
    tensor(output_and_normed.normed?, dims, &x)
}

/// The residual stream after a block's output was added, if there is one, and its norm, if one is given.
pub(super) fn add_norm<B: Backend>(
    x: &Tensor<B, 2>,
    output: Option<&BlockOutput<'_, B>>,
    before: Option<&Norm<B>>,
) -> Option<AddNormOutput<B>> {
    if !has_gpu_kernels::<B>() {
        return None;
    }
    on_runtime!(add_norm_on::<B>(x, output, before), else None)
}

fn add_norm_on<B: Backend, R: CubeRuntime>(
    x: &Tensor<B, 2>,
    output: Option<&BlockOutput<'_, B>>,
    before: Option<&Norm<B>>,
) -> Option<AddNormOutput<B>> {
    let (dims, own_device) = (x.dims(), x.device());
    let x = single::<B, R, 2>(x)?;
    let block = match output {
        Some(output) => Some(buffer(&float::<B, R, 2>(output.output.clone())?)),
        None => None,
    };
    let of = |norm: Option<&Norm<B>>| match norm {
        Some(norm) => parameters::<B, R>(norm, &own_device).map(Some),
        None => Some(None),
    };
    let after = output.and_then(|output| output.norm);
    let (after_weights, before_weights) = (of(after)?, of(before)?);
    if let (Some(after), Some(before)) = (&after_weights, &before_weights)
        && after.weight.dtype != before.weight.dtype
    {
        return None;
    }
    // A kernel computes both norms with the same options.
    if let (Some(after), Some(before)) = (after, before)
        && spec(&after.config()) != spec(&before.config())
    {
        return None;
    }
    let config = before.or(after).map_or(NormConfig { kind: NormKind::Rms, eps: 1.0 }, Norm::config);
    let output_and_normed = moi_gpu::add_norm(
        &device(&x),
        &AddNorm {
            x: &buffer(&x),
            block: block.as_ref(),
            after: after_weights.as_ref(),
            scale: output.map_or(1.0, |output| output.scale as f32),
            before: before_weights.as_ref(),
            spec: spec(&config),
            width: dims[1],
        },
    );
    let back = |buffer: Option<moi_gpu::Buffer>| match buffer {
        Some(buffer) => tensor(buffer, dims, &x).map(Some),
        None => Some(None),
    };
    Some((back(output_and_normed.sum)?, back(output_and_normed.normed)?))
}
