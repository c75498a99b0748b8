//! Tensors of burn's CubeCL backends are buffers of [`moi_gpu`].
//!
//! With burn's feature `fusion` they are not: a backend then has operations to come instead, and none of this applies.

mod attention;
mod maps;
mod step;
mod tensors;

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use burn::tensor::backend::Backend;

pub(super) use attention::attention;
pub(super) use maps::{join, maps, norm, packed_rows, unpacked};
pub(super) use step::step;
use tensors::is_on;

static OFF: AtomicBool = AtomicBool::new(false);

/// Turns the kernels for GPUs on or off for the process: without them all is done by tensor operations. They are on
/// unless the environment says `MOI_GPU_KERNELS=0`.
pub fn use_gpu_kernels(on: bool) {
    OFF.store(!on, Ordering::Relaxed);
}

fn are_on() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    let allowed =
        *ALLOWED.get_or_init(|| std::env::var_os("MOI_GPU_KERNELS").is_none_or(|value| value != "0"));
    allowed && !OFF.load(Ordering::Relaxed)
}

/// Whether the backend has kernels here, and they are not turned off.
pub(super) fn has_gpu_kernels<B: Backend>() -> bool {
    is_gpu::<B>() && are_on()
}

/// Whether the backend is one of those that kernels are here for.
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

/// Calls a function that is generic over backend and runtime with the runtime of the backend, if it has one here;
/// else gives the other value.
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
