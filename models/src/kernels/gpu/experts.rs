//! Mixtures of experts whose picks stay on the device.

use burn::{
    module::Param,
    tensor::{Int, Tensor, TensorPrimitive, backend::Backend},
};
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use moi_gpu::{Buffer, Groups, MAX_ROWS, PackedBuffer, Product, Router, Weights};

use super::{
    has_gpu_kernels,
    linears::function,
    on_runtime,
    tensors::{buffer, device, float, int, same, single, tensor, whole},
};
use crate::{ExpertStack, Experts, GroupScore, Linear, Matrix, Mlp, PackedMatrix, RouterScore};

/// The matrices of all experts.
struct Stacks {
    /// The gate and the up matrices, or the up matrices alone.
    inward: Vec<Stacked>,
    outward: Stacked,
}

/// The matrices of one linear layer of all experts.
struct Stacked {
    /// The matrices, `[experts * rows, width]`.
    weights: Weights,
    /// Biases, `[experts * rows]`.
    bias: Option<Buffer>,
    /// Rows of one expert.
    rows: usize,
}

impl Stacked {
    fn map(&self) -> Product<'_, &Weights> {
        Product { weight: &self.weights, bias: self.bias.as_ref(), rows: self.rows }
    }
}

/// Concatenates the matrices of the experts, if kernels can read the picked ones from there. The experts' own
/// parameters become views of the concatenation, so that nothing is in memory twice.
pub(in crate::kernels) fn stack<B: Backend>(experts: &mut Experts<B>) {
    if !super::is_gpu::<B>() || function(experts.activation()).is_none() {
        return;
    }
    on_runtime!(stack_on::<B>(experts), else ())
}

fn stack_on<B: Backend, R: CubeRuntime>(experts: &mut Experts<B>) {
    let all = &mut experts.experts[..];
    let gates = stacked::<B, R>(all, |mlp| mlp.gate_proj.as_mut());
    let ups = stacked::<B, R>(all, |mlp| Some(&mut mlp.up_proj));
    let downs = stacked::<B, R>(all, |mlp| Some(&mut mlp.down_proj));
    let is_gated = all.iter().any(|mlp| mlp.gate_proj.is_some());
    let (Some(up), Some(outward)) = (ups, downs) else { return };
    if is_gated == gates.is_some() {
        let inward = gates.into_iter().chain([up]).collect();
        experts.stack = ExpertStack::new(Stacks { inward, outward });
    }
}

/// Concatenates one linear layer of all experts, if all of them have it in one form and the device can address each
/// part.
fn stacked<B: Backend, R: CubeRuntime>(
    experts: &mut [Mlp<B>],
    map: fn(&mut Mlp<B>) -> Option<&mut Linear<B>>,
) -> Option<Stacked> {
    let mut products: Vec<&mut Linear<B>> = experts.iter_mut().map(map).collect::<Option<_>>()?;
    let [rows, _] = products.first()?.weight.dims();
    let biases: Vec<_> = products.iter().filter_map(|map| Some(map.bias.as_ref()?.val())).collect();
    let bias = match biases.len() {
        0 => None,
        count if count == products.len() => Some(buffer(&float::<B, R, 1>(Tensor::cat(biases, 0))?)),
        _ => return None,
    };
    let mut matrices: Vec<&mut Matrix<B>> = products.iter_mut().map(|map| &mut map.weight).collect();
    let form = matrices[0].packed().map(PackedMatrix::form);
    if matrices.iter().any(|matrix| matrix.packed().map(PackedMatrix::form) != form) {
        return None;
    }
    let weights = match form {
        None => Weights::Dense(joined_floats::<B, R>(matrices.iter_mut().filter_map(|m| m.dense_mut()))?),
        Some(form) => {
            let mut all: Vec<_> = matrices.iter_mut().filter_map(|matrix| matrix.packed_mut()).collect();
            let width = all[0].dims()[1];
            Weights::Packed(PackedBuffer {
                form,
                words: joined_words::<B, R>(all.iter_mut().map(|matrix| &mut matrix.words))?,
                scales: joined_floats::<B, R>(all.iter_mut().map(|matrix| &mut matrix.scales))?,
                minima: match form.has_minima() {
                    true => Some(joined_floats::<B, R>(
                        all.iter_mut().filter_map(|matrix| matrix.minima.as_mut()),
                    )?),
                    false => None,
                },
                width,
            })
        }
    };
    Some(Stacked { weights, bias, rows })
}

/// Concatenates parameters of one shape, which become views of the concatenation.
fn joined_floats<'a, B: Backend, R: CubeRuntime>(
    params: impl Iterator<Item = &'a mut Param<Tensor<B, 2>>>,
) -> Option<Buffer> {
    let mut params: Vec<_> = params.collect();
    let values: Vec<_> = params.iter().map(|param| param.val()).collect();
    if values.iter().any(|value| value.dtype() != values[0].dtype()) || !can_join::<B, R>(&values)? {
        return None;
    }
    let all = float::<B, R, 2>(Tensor::cat(values, 0))?;
    let count = params.len();
    for (index, param) in params.iter_mut().enumerate() {
        **param = Param::initialized(param.id, whole(part(&all, index, count))?);
    }
    // The memory of the separate parameters can be freed now.
    all.client.memory_cleanup();
    Some(buffer(&all))
}

/// Like [`joined_floats`], for integers.
fn joined_words<'a, B: Backend, R: CubeRuntime>(
    params: impl Iterator<Item = &'a mut Param<Tensor<B, 2, Int>>>,
) -> Option<Buffer> {
    let mut params: Vec<_> = params.collect();
    let values: Vec<_> = params.iter().map(|param| param.val()).collect();
    let first = int::<B, R, 2>(values[0].clone())?;
    if !fits(&first, values.len()) {
        return None;
    }
    let all = int::<B, R, 2>(Tensor::cat(values, 0))?;
    let count = params.len();
    for (index, param) in params.iter_mut().enumerate() {
        let own = Tensor::from_primitive(same(part(&all, index, count))?);
        **param = Param::initialized(param.id, own);
    }
    // The memory of the separate parameters can be freed now.
    all.client.memory_cleanup();
    Some(buffer(&all))
}

fn can_join<B: Backend, R: CubeRuntime>(values: &[Tensor<B, 2>]) -> Option<bool> {
    let TensorPrimitive::Float(first) = values[0].clone().into_primitive() else { return None };
    Some(fits(&same::<_, CubeTensor<R>>(first)?, values.len()))
}

/// Whether `count` tensors like this one can be one buffer, of which each part can be an argument of a kernel.
fn fits<R: CubeRuntime>(tensor: &CubeTensor<R>, count: usize) -> bool {
    let memory = &tensor.client.properties().memory;
    let bytes = bytes(tensor);
    bytes.is_multiple_of(memory.alignment) && bytes * count as u64 <= memory.max_page_size
}

fn bytes<R: CubeRuntime>(tensor: &CubeTensor<R>) -> u64 {
    let shape = tensor.meta.shape();
    (shape.num_elements() * tensor.dtype.size()) as u64
}

/// One of `count` equal parts of a tensor's rows, in the same memory.
fn part<R: CubeRuntime>(all: &CubeTensor<R>, index: usize, count: usize) -> CubeTensor<R> {
    let dims: [usize; 2] = all.meta.shape().dims();
    let own = bytes(all) / count as u64;
    let behind = all.handle.size_in_used() - own * (index as u64 + 1);
    let handle = all.handle.clone().offset_start(own * index as u64).offset_end(behind);
    let shape = [dims[0] / count, dims[1]].into();
    CubeTensor::new_contiguous(all.client.clone(), all.device.clone(), shape, handle, all.dtype)
}

/// The outputs of the picked experts, summed with their weights, given the router's logits `[n, experts]` and rows
/// `[n, width]`. `None` for more than [`MAX_ROWS`] rows, or if there is no kernel.
pub(super) fn experts<B: Backend>(
    experts: &Experts<B>,
    values: &Tensor<B, 2>,
    x: &Tensor<B, 2>,
) -> Option<Tensor<B, 2>> {
    if !has_gpu_kernels::<B>() || x.dims()[0] > MAX_ROWS {
        return None;
    }
    on_runtime!(experts_on::<B>(experts, values, x), else None)
}

fn experts_on<B: Backend, R: CubeRuntime>(
    experts: &Experts<B>,
    values: &Tensor<B, 2>,
    x: &Tensor<B, 2>,
) -> Option<Tensor<B, 2>> {
    let stacks: &Stacks = experts.stack.get()?;
    let n = x.dims()[0];
    let (values, x) = (single::<B, R, 2>(values)?, single::<B, R, 2>(x)?);
    let config = experts.config();
    let router = &config.router;
    let numbers = |param: &Option<Param<Tensor<B, 1>>>| match param {
        Some(param) => float::<B, R, 1>(param.val()).map(|tensor| Some(buffer(&tensor))),
        None => Some(None),
    };
    let (correction, scales) = (numbers(&experts.correction)?, numbers(&experts.expert_scales)?);
    let groups = router.groups.map(|groups| Groups {
        count: groups.count,
        kept: groups.kept,
        two: groups.score == GroupScore::BestTwo,
    });
    let router = Router {
        experts: config.num_experts,
        per_token: config.num_per_token,
        softmax: router.score == RouterScore::Softmax,
        softcap: router.softcap.map(|cap| cap as f32),
        groups,
        normalized: router.normalized,
        sum_plus: router.sum_plus as f32,
        sum_at_least: router.sum_at_least as f32,
        factor: router.factor as f32,
        correction: correction.as_ref(),
        scales: scales.as_ref(),
    };
    let device = device(&x);
    let choice = moi_gpu::route(&device, &buffer(&values), &router)?;
    let inward: Vec<_> = stacks.inward.iter().map(Stacked::map).collect();
    let activation = function(experts.activation())?;
    let outward = stacks.outward.map();
    let out = moi_gpu::experts(&device, &buffer(&x), &choice, &inward, activation, outward)?;
    tensor(out, [n, stacks.outward.rows], &x)
}
