//! Sampling and mixing on a device, without a round trip to the host.

use std::fmt::Debug;

use burn::tensor::{Tensor, backend::Backend};
use moi_models::{Embedding, Mixing};
use moi_sampling::{Reading, RowSpec};

/// Samples and mixes on a device, so that the next step can be launched before the tokens of the last one are read.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_engine::{DeviceSampler, Engine, Prompt, Reading, Request, RowSpec};
/// use moi_models::{Embedding, Mixing};
///
/// /// Leaves every step to the host.
/// #[derive(Debug)]
/// struct OnHost;
///
/// impl DeviceSampler<Flex> for OnHost {
///     fn sample_and_mix(
///         &self,
///         _logits: &Tensor<Flex, 2>,
///         _embedding: &Embedding<Flex>,
///         _mixing: &Mixing<Flex>,
///         _rows: &[RowSpec],
///     ) -> Option<(Tensor<Flex, 2>, Reading)> {
///         None
///     }
/// }
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device).with_device_sampler(OnHost);
/// let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
/// request.stop.max_tokens = Some(2);
/// assert_eq!(engine.generate(request)?.count(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait DeviceSampler<B: Backend>: Debug + Send + Sync {
    /// Samples from logits `[rows, vocab]` and mixes the next inputs `[rows, d]`, in float32, without waiting for the
    /// device: the decisions are copied to the host in the background. `None` if the device cannot do this for such
    /// rows, so that the host decides.
    fn sample_and_mix(
        &self,
        logits: &Tensor<B, 2>,
        embedding: &Embedding<B>,
        mixing: &Mixing<B>,
        rows: &[RowSpec],
    ) -> Option<(Tensor<B, 2>, Reading)>;
}

/// Uses the kernels that the backend has for it, on GPUs. On other backends the host decides.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_engine::{DeviceSampler, KernelSampler};
/// use moi_models::{CausalLm, Mixing};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let logits = Tensor::<Flex, 2>::zeros([1, 32], &device);
/// let mixing = Mixing::new(0.0, model.kernels());
/// let sampled = KernelSampler.sample_and_mix(&logits, model.embedding(), &mixing, &[]);
/// assert!(sampled.is_none()); // On the CPU, the host decides.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
