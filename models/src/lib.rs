//! Decoder-only transformers, written once over burn's [`Backend`] trait.
//!
//! An architecture is data: its page reads a checkpoint's `config.json` and turns it into a [`DecoderConfig`], and
//! one [`Decoder`] computes all of them. The input of a step is always an embedding; token ids are looked up before.
//! So mixtures, soft prompts and embeddings given by a caller take the same path.
//!
//! ```
//! use burn::tensor::{Int, Tensor};
//! use moi_models::{Architecture, CausalLm, ForwardBatch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = serde_json::json!({
//!     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
//!     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
//! });
//! let device = Default::default();
//! // Weights are not allocated before they are loaded or used.
//! let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
//! let mut pool = model.new_pool(&device);
//! let mut sequence = pool.table();
//! let ids = Tensor::<burn_flex::Flex, 1, Int>::from_ints([1, 2, 3], &device);
//! let batch = ForwardBatch::one(model.embed(ids), &mut sequence);
//! let hidden = model.forward(batch, &mut pool)?; // [3, 16]
//! assert_eq!(model.logits(hidden).dims(), [3, 32]);
//! assert_eq!(sequence.len(), 3);
//! # Ok(())
//! # }
//! ```

mod architecture;
mod attention;
mod batch;
mod cache;
mod config;
mod context;
mod decoder;
mod embedding;
mod error;
mod expert_stack;
mod experts;
mod family;
mod fields;
mod kernels;
mod latent;
mod layer;
mod linear;
mod matrix;
mod mixing;
mod mlp;
mod names;
mod non_finite;
mod norm;
mod pack;
mod packed;
mod pages;
mod residual;
mod rope;
mod rope_fields;
mod router;
mod states;
mod validate;

use std::{ops::RangeInclusive, sync::Arc};

use burn::tensor::{Int, Tensor, backend::Backend};

pub use architecture::{Architecture, Multimodal, Names, supported_model_types};
pub use attention::{Attention, LinearAttention, SelfAttention};
pub use batch::{ForwardBatch, Span, Visible};
pub use cache::{
    BLOCK_POSITIONS, BlockRun, BlockTable, CacheLayout, Checkpoint, KvPool, LayerBlocks, ParkedTable,
    SharedBlock,
};
pub use config::{
    Activation, AttentionConfig, AttentionKind, DecoderConfig, DeltaNetConfig, ExpertGroups, ExpertsConfig,
    FeedForwardKind, GateKind, GateSpan, GroupScore, LatentConfig, LatentExperts, LayerConfig, Mamba2Config,
    MlpConfig, NormConfig, NormKind, NormPlace, OutputGate, PerLayerInputs, QkNorm, QkSpan, QueryScale,
    RouterConfig, RouterScore, SharedExpertConfig, ShortConvConfig,
};
pub use decoder::{Decoder, Stack};
pub use embedding::Embedding;
pub use error::ModelError;
pub use expert_stack::ExpertStack;
pub use experts::{Experts, MlpAndExperts};
pub use kernels::{
    AttentionPass, BlockOutput, Kernels, Means, StateRun, TensorOperations, default_kernels, has_gpu_kernels,
    is_gpu, sample_and_mix, use_gpu_kernels, with_values,
};
pub use latent::LatentAttention;
pub use layer::{DecoderLayer, FeedForward, LinearMlp};
pub use linear::Linear;
pub use matrix::Matrix;
pub use mixing::Mixing;
pub use mlp::{Mlp, Xielu};
pub use moi_formats::{ExpertStacks, PairedRows, RowBlocks};
pub use moi_kernels::{AttentionSpan, BLOCK, BlockPlace, PackedForm, RowCache};
pub use names::{ParameterPath, TensorSource, is_held_in_float32};
pub use norm::Norm;
pub use packed::{Activations, PackedMatrix, scales_dtype};
pub use rope::{RopeConfig, RopeScaling};
pub use states::{CausalConv, DeltaNet, HeadSteps, Mamba2, ShortConv};

/// A causal language model whose inputs are embeddings: the interface between the decode loop and the model. Files,
/// devices and sampling are not part of it.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor, backend::Backend};
/// use moi_models::{Architecture, CausalLm, ModelError};
///
/// /// The logits of the token after these.
/// fn next<B: Backend>(model: &impl CausalLm<B>, ids: Tensor<B, 1, Int>) -> Result<Tensor<B, 2>, ModelError> {
///     let last = ids.dims()[0] - 1;
///     let hidden = model.forward_whole(model.embed(ids))?;
///     Ok(model.logits(hidden.narrow(0, last, 1)))
/// }
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let ids = Tensor::<burn_flex::Flex, 1, Int>::from_ints([1, 2, 3], &device);
/// assert_eq!(next(&model, ids)?.dims(), [1, 32]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait CausalLm<B: Backend> {
    /// The outputs of the model's input layer for `ids` `[tokens]`: `[tokens, d]`.
    fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2>;

    /// Runs new positions of any sequences after those that are cached, and adds them to the cache. Returns hidden
    /// states `[tokens, d]`, the input of [`CausalLm::logits`].
    ///
    /// # Errors
    /// If the inputs do not fit the spans, the context length or the pool; no sequence has then gained a position.
    fn forward(&self, batch: ForwardBatch<'_, B>, pool: &mut KvPool<B>) -> Result<Tensor<B, 2>, ModelError>;

    /// The hidden states `[tokens, d]` of a whole sequence, without keeping a cache.
    ///
    /// # Errors
    /// If the inputs do not fit the model.
    fn forward_whole(&self, inputs: Tensor<B, 2>) -> Result<Tensor<B, 2>, ModelError> {
        let mut pool = self.new_pool(&inputs.device());
        let mut table = pool.table();
        self.forward(ForwardBatch::one(inputs, &mut table), &mut pool)
    }

    /// The logits `[tokens, vocab]` of hidden states `[tokens, d]`.
    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2>;

    /// The embedding table whose rows are mixed.
    fn embedding(&self) -> &Embedding<B>;

    /// A pool for the KV caches of sequences that this model computes on a device.
    fn new_pool(&self, device: &B::Device) -> KvPool<B>;

    /// The kernels that compute its operations, and those of the input layer.
    fn kernels(&self) -> Arc<dyn Kernels<B>> {
        default_kernels()
    }

    /// Number of positions that the model supports.
    fn context_length(&self) -> usize;

    /// Number of positions up to which a cache is valid. With one more, all inputs have to run again with an empty
    /// cache, because the hidden states of every position change there.
    fn recompute_beyond(&self) -> Option<usize> {
        None
    }

    /// Whether what is cached of a position depends only on the inputs up to it, and not on the length of the
    /// sequence, so that sequences with a common prefix can share it.
    fn shares_prefixes(&self) -> bool {
        true
    }

    /// Whether layers keep states, which cannot be rolled back: sequences with a common prefix can only continue from
    /// kept ones.
    fn has_states(&self) -> bool {
        false
    }

    /// The name of the first weight in these layers with values that are not finite, for error messages; `None` if
    /// there is none, or the model cannot tell. The parts before the layers count with the first one, those after
    /// them as one more layer.
    fn broken_weight(&self, _layers: RangeInclusive<usize>) -> Option<String> {
        None
    }
}
