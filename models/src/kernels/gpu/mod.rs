//! Kernels for burn's CubeCL backends, whose tensors are buffers of [`moi_gpu`].
//!
//! With burn's feature `fusion` they are not: tensors of such a backend are operations that will run later, and these
//! kernels are not used.

mod attention;
mod experts;
mod linears;
mod step;
mod tensors;

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use burn::{
    module::Param,
    tensor::{Int, Tensor, backend::Backend},
};

use attention::attention;
pub(super) use experts::stack;
use linears::{add_norm, function, linears, norm, packed_rows, unpacked};
pub(super) use step::step;
use tensors::is_on;

use super::{AttentionPass, BlockOutput, Kernels, TensorOperations, add_and_norm};
use crate::{CacheLayout, Experts, LayerBlocks, Linear, Matrix, Mlp, Norm};

/// Kernels for GPUs, on tensors of CubeCL backends. Operations without a kernel are left to tensor operations.
#[derive(Clone, Copy, Debug)]
pub(super) struct GpuKernels;

/// The cache layout that the attention kernel reads.
const LAYOUT: CacheLayout = CacheLayout { keys_by_value: false, one_slab: true };

/// Number of values that a kernel unpacks at a time for the backend's matrix product: 256 MB.
const TILE: usize = 1 << 26;

impl GpuKernels {
    /// Products with a matrix, for any number of rows.
    fn products<B: Backend>(self, matrix: &Matrix<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let map = LinearRef { matrix, bias: None };
        if let Some(product) = linears(&x, &[map], None).and_then(|mut products| products.pop()) {
            return product;
        }
        match matrix.packed() {
            Some(packed) if are_on() => {
                packed.products_by(x, TILE, |first, rows| unpacked(packed, first, rows))
            }
            _ => matrix.products(x),
        }
    }
}

impl<B: Backend> Kernels<B> for GpuKernels {
    fn cache_layout(&self) -> CacheLayout {
        LAYOUT
    }

    fn linear(&self, layer: &Linear<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match linears(&x, &[layer.into()], None).and_then(|mut y| y.pop()) {
            Some(y) => y,
            None => layer.biased(self.products(&layer.weight, x)),
        }
    }

    /// Computed in one launch.
    fn qkv(&self, layers: [&Linear<B>; 3], x: Tensor<B, 2>) -> [Tensor<B, 2>; 3] {
        let all = linears(&x, &layers.map(LinearRef::from), None);
        let all = all.and_then(|all| <[Tensor<B, 2>; 3]>::try_from(all).ok());
        all.unwrap_or_else(|| layers.map(|layer| self.linear(layer, x.clone())))
    }

    fn attention(
        &self,
        q: Tensor<B, 2>,
        kv: Option<[Tensor<B, 2>; 2]>,
        pass: &AttentionPass<'_, B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        match attention(&q, kv.as_ref(), pass, blocks) {
            Some(out) => out,
            None => TensorOperations.attention(q, kv, pass, blocks),
        }
    }

    /// Computes the inward layers and the activation in one launch.
    fn mlp(&self, mlp: &Mlp<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let inward: Vec<_> = mlp.gate_proj.iter().chain([&mlp.up_proj]).map(LinearRef::from).collect();
        let inner = function(mlp.activation())
            .and_then(|activation| linears(&x, &inward, Some(activation)))
            .and_then(|mut inner| inner.pop());
        match inner {
            Some(inner) => self.linear(&mlp.down_proj, inner),
            None => mlp.forward_by(x, |layer, x| self.linear(layer, x)),
        }
    }

    /// Computed in three launches.
    fn experts(&self, experts: &Experts<B>, values: &Tensor<B, 2>, x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        experts::experts(experts, values, x)
    }

    fn norm(&self, layer: &Norm<B>, x: Tensor<B, 2>) -> Tensor<B, 2> {
        norm(layer, &x).unwrap_or_else(|| layer.forward(x))
    }

    /// Computed in one launch.
    fn residual(
        &self,
        stream: Tensor<B, 2>,
        output: Option<BlockOutput<'_, B>>,
        norm: Option<&Norm<B>>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        if output.is_none() && norm.is_none() {
            return (stream.clone(), stream);
        }
        match add_norm(&stream, output.as_ref(), norm) {
            Some((sum, normed)) => {
                let stream = sum.unwrap_or(stream);
                let input = normed.unwrap_or_else(|| stream.clone());
                (stream, input)
            }
            None => add_and_norm(stream, output, norm, |norm, x| self.norm(norm, x)),
        }
    }

    fn logits(&self, table: &Matrix<B>, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        self.products(table, hidden)
    }

    fn rows(&self, table: &Matrix<B>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        packed_rows(table, &ids).unwrap_or_else(|| table.rows(ids))
    }

    fn weighted_sum(&self, table: &Matrix<B>, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        match table.packed() {
            Some(packed) if are_on() => {
                packed.weighted_sum_by(weights, TILE, |first, rows| unpacked(packed, first, rows))
            }
            _ => table.weighted_sum(weights),
        }
    }

    fn samples_on_device(&self) -> bool {
        are_on()
    }
}

/// A linear layer, with or without a bias.
struct LinearRef<'a, B: Backend> {
    matrix: &'a Matrix<B>,
    bias: Option<&'a Param<Tensor<B, 1>>>,
}

impl<'a, B: Backend> From<&'a Linear<B>> for LinearRef<'a, B> {
    fn from(linear: &'a Linear<B>) -> Self {
        Self { matrix: &linear.weight, bias: linear.bias.as_ref() }
    }
}

/// The residual stream after a block's output was added, if there was one, and its norm, if one was given.
type AddNormOutput<B> = (Option<Tensor<B, 2>>, Option<Tensor<B, 2>>);

static OFF: AtomicBool = AtomicBool::new(false);

/// See [`super::use_gpu_kernels`].
pub(super) fn use_gpu_kernels(on: bool) {
    OFF.store(!on, Ordering::Relaxed);
}

fn are_on() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    let allowed =
        *ALLOWED.get_or_init(|| std::env::var_os("MOI_GPU_KERNELS").is_none_or(|value| value != "0"));
    allowed && !OFF.load(Ordering::Relaxed)
}

/// Whether the backend has kernels here, and they are on.
pub(super) fn has_gpu_kernels<B: Backend>() -> bool {
    is_gpu::<B>() && are_on()
}

/// Whether the backend is one of those for which there are kernels here.
pub(super) fn is_gpu<B: Backend>() -> bool {
    #[cfg(feature = "cuda")]
    if is_on::<B, cubecl::cuda::CudaRuntime>() {
        return true;
    }
    #[cfg(feature = "wgpu")]
    if is_on::<B, cubecl::wgpu::WgpuRuntime>() {
        return true;
    }
    false
}

/// Calls a function that is generic over backend and runtime with the runtime of the backend, if there are kernels
/// for it; else evaluates to the other value.
macro_rules! on_runtime {
    ($function:ident::<$backend:ident $(, $more:tt)*>($($argument:expr),* $(,)?), else $otherwise:expr) => {{
        #[cfg(feature = "cuda")]
        if $crate::kernels::gpu::tensors::is_on::<$backend, cubecl::cuda::CudaRuntime>() {
            return $function::<$backend, cubecl::cuda::CudaRuntime $(, $more)*>($($argument),*);
        }
        #[cfg(feature = "wgpu")]
        if $crate::kernels::gpu::tensors::is_on::<$backend, cubecl::wgpu::WgpuRuntime>() {
            return $function::<$backend, cubecl::wgpu::WgpuRuntime $(, $more)*>($($argument),*);
        }
        $otherwise
    }};
}
use on_runtime;
