//! Tests of the GPU kernels, each against plain loops in float64, with random and extreme numbers.

mod experts;
mod gpu;
mod parts;
mod step;

use std::any::Any;

use burn::tensor::backend::Backend;
use cubecl::prelude::*;
use gpu::Gpu;
use moi_backends::{DeviceName, Job};

/// Runs every kernel test on a device; does nothing on the CPU.
#[derive(Debug)]
pub(super) struct Kernels(pub(super) DeviceName);

impl Job for Kernels {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        let device = device as &dyn Any;
        #[cfg(feature = "cuda")]
        if let Some(device) = device.downcast_ref::<cubecl::cuda::CudaDevice>() {
            return all(self.0, cubecl::cuda::CudaRuntime::client(device));
        }
        #[cfg(any(feature = "vulkan", feature = "wgpu", feature = "metal"))]
        if let Some(device) = device.downcast_ref::<cubecl::wgpu::WgpuDevice>() {
            return all(self.0, cubecl::wgpu::WgpuRuntime::client(device));
        }
        assert!(!self.0.kind().is_gpu(), "{}: {device:?}", self.0);
    }
}

fn all<R: Runtime>(name: DeviceName, client: ComputeClient<R>) {
    let gpu = &Gpu(moi_gpu::Device { client });
    type Test<R> = fn(&Gpu<R>);
    let tests: [(&str, Test<R>); 14] = [
        ("joins", parts::joins_are_residuals_and_norms),
        ("products with floats", parts::dense_products_are_sums),
        ("activations", parts::activations_stand_between_products),
        ("products with blocks", parts::packed_products_are_those_of_the_unpacked),
        ("routers", experts::experts_are_picked_as_by_the_host),
        ("experts", experts::picked_experts_are_summed),
        ("heads", parts::heads_are_turned_into_the_cache),
        ("attention", parts::attention_is_a_weighted_mean_of_values),
        ("sampling and mixing", step::rows_of_all_kinds_are_sampled_and_mixed),
        ("mean rows", step::rare_tokens_are_mixed_as_the_mean_row),
        ("filters", step::filters_leave_what_they_say),
        ("ties", step::ties_go_to_the_lower_id),
        ("tables", step::packed_and_half_tables_are_mixed),
        ("broken logits", step::impossible_and_broken_logits),
    ];
    for (what, test) in tests {
        test(gpu);
        println!("{name}: kernels: {what} as plain loops");
    }
}
