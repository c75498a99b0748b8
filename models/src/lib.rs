//! Decoder-only transformers, written once over burn's [`Backend`] trait.
//!
//! An architecture is data: its page reads a checkpoint's `config.json` and turns it into a
//! [`DecoderConfig`]; one [`Decoder`] does the mathematics for all of them. The step's input is always an
//! embedding; token ids are a helper. So mixtures, soft prompts and embeddings given by a caller are one path.
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
mod broken;
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

/// A causal language model whose input is embeddings: the narrow door between the decode loop and the
/// mathematics. Nothing about files, devices or sampling passes through it.
pub trait CausalLm<B: Backend> {
    /// The rows of `ids` `[tokens]` as the model's input layer emits them `[tokens, d]`.
    fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2>;

    /// Runs new positions of any sequences behind what these have cached, and adds them to it: hidden states
    /// `[tokens, d]`, ready for [`CausalLm::logits`].
    ///
    /// # Errors
    /// If the inputs do not fit the spans, the context length or the pool; no sequence has then gained a position.
    fn forward(&self, batch: ForwardBatch<'_, B>, pool: &mut KvPool<B>) -> Result<Tensor<B, 2>, ModelError>;

    /// The hidden states `[tokens, d]` of a whole sequence, of which nothing is kept.
    ///
    /// # Errors
    /// If the inputs do not fit the model.
    fn forward_whole(&self, inputs: Tensor<B, 2>) -> Result<Tensor<B, 2>, ModelError> {
        let mut pool = self.new_pool(&inputs.device());
        let mut table = pool.table();
        self.forward(ForwardBatch::one(inputs, &mut table), &mut pool)
    }

    /// Hidden states `[tokens, d]` to logits `[tokens, vocab]`.
    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2>;

    /// The embedding whose rows are mixed.
    fn embedding(&self) -> &Embedding<B>;

    /// A pool of keys and values for the sequences that this model computes on a device.
    fn new_pool(&self, device: &B::Device) -> KvPool<B>;

    /// How its operations are computed, and those of the input layer on its embedding.
    fn kernels(&self) -> Arc<dyn Kernels<B>> {
        default_kernels()
    }

    /// How many positions the model was made for.
    fn context_length(&self) -> usize;

    /// The positions up to which a cache serves: with one more, all inputs have to run anew, in an empty cache, because
    /// what is computed of every position changes there.
    fn recompute_beyond(&self) -> Option<usize> {
        None
    }

    /// Whether what a position holds depends on the inputs up to it alone, and not on the length of the sequence: then
    /// sequences that begin alike can share it.
    fn shares_prefixes(&self) -> bool {
        true
    }

    /// Whether layers keep states, which cannot be cut back: sequences that begin alike go on from where these were kept.
    fn has_states(&self) -> bool {
        false
    }

    /// The first weight that has values that are not finite in these layers, for messages; none that is known where a
    /// model does not say. What stands before the layers counts as the first, what comes behind them as one more.
    fn broken_weight(&self, _layers: RangeInclusive<usize>) -> Option<String> {
        None
    }
}
