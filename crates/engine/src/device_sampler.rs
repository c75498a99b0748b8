//! Sampling and mixing on a device, without a way back to the host.

use std::fmt::Debug;

use burn::tensor::{Tensor, backend::Backend};
use moi_models::{Embedding, Mixing};
use moi_sampling::{Reading, RowSpec};

/// What samples and mixes on a device, so that the next step can be launched before the tokens of the last one are read.
pub trait DeviceSampler<B: Backend>: Debug + Send + Sync {
    /// Samples from logits `[rows, vocab]` and mixes the next inputs `[rows, d]`, in float32, without waiting for the device:
    /// what was decided is on its way to the host meanwhile. `None` where it cannot for such rows, which the host then
    /// decides.
    fn sample_and_mix(
        &self,
        logits: &Tensor<B, 2>,
        embedding: &Embedding<B>,
        mixing: &Mixing<B>,
        rows: &[RowSpec],
    ) -> Option<(Tensor<B, 2>, Reading)>;
}

/// By the kernels that there are for the backend: on GPUs. Elsewhere the host decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelSampler;

impl<B: Backend> DeviceSampler<B> for KernelSampler {
    fn sample_and_mix(
        &self,
        logits: &Tensor<B, 2>,
        embedding: &Embedding<B>,
        mixing: &Mixing<B>,
        rows: &[RowSpec],
    ) -> Option<(Tensor<B, 2>, Reading)> {
        match mixing.kernels().samples_on_device() {
            true => moi_models::sample_and_mix(logits, embedding, mixing, rows),
            false => None,
        }
    }
}
