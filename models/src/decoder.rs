//! The decoder: embedding, layers, LM head. A layer is in `layer.rs`.

use std::{ops::RangeInclusive, sync::Arc};

use burn::{
    module::Module,
    tensor::{DType, Int, Tensor, TensorData, backend::Backend},
};

use crate::{
    AttentionKind, CausalLm, DecoderConfig, DecoderLayer, Embedding, ForwardBatch, Kernels, KvPool,
    LayerConfig, Linear, ModelError, Norm, RopeConfig, Visible, cache::CacheShape, context::ForwardContext,
    default_kernels, kernels::KernelsOf, residual::Residual,
};

/// A decoder-only transformer with a language model head. Field names follow Llama's checkpoints; the page of an
/// architecture with other names defines these.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor};
/// use burn_flex::Flex;
/// use moi_models::{Architecture, CausalLm};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let ids = Tensor::<Flex, 1, Int>::from_ints([1, 2, 3], &device);
/// let hidden = model.forward_whole(model.embed(ids))?;
/// assert_eq!(model.logits(hidden).dims(), [3, 32]);
/// assert_eq!(model.config().layers.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// Embedding, layers and final norm.
    pub model: Stack<B>,
    /// The LM head, `[vocab, d]`; absent where it is tied to the embedding table.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    config: DecoderConfig,
    #[module(skip)]
    ropes: Vec<RopeConfig>,
    #[module(skip)]
    kernels: KernelsOf,
}

/// Everything but the LM head.
///
/// # Examples
/// ```
/// use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let stack = &model.model;
/// assert_eq!(stack.embed_tokens.dims(), [32, 16]);
/// assert_eq!((stack.layers.len(), stack.norm.width()), (2, 16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Stack<B: Backend> {
    /// Token embedding, `[vocab, d]`.
    pub embed_tokens: Embedding<B>,
    /// Position embedding, `[first + context, d]`, where positions are learned.
    pub embed_positions: Option<Embedding<B>>,
    /// Projection of the embedding to inputs of each layer, `[layers * width, d]`, where layers have inputs of their
    /// own.
    pub per_layer_model_projection: Option<Linear<B>>,
    /// Norm of these inputs, `[width]`.
    pub per_layer_projection_norm: Option<Norm<B>>,
    /// The layers, from first to last.
    pub layers: Vec<DecoderLayer<B>>,
    /// The norm after the last layer.
    pub norm: Norm<B>,
}

impl DecoderConfig {
    /// The model, whose weights are not allocated yet: load a checkpoint into it, or use it with zeros.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Decoder<B> {
        let d = self.hidden_size;
        let ropes = distinct(self.ropes().cloned());
        let layer = |config| DecoderLayer::new(self, config, &ropes, device);
        let layers = self.layers.iter().map(layer).collect();
        Decoder {
            model: Stack {
                embed_tokens: Embedding::new(self.vocab_size, d, self.embedding_scale, device)
                    .with_norm(self.embedding_norm)
                    .with_per_layer(
                        self.layers.len(),
                        self.per_layer_inputs.map(|inputs| inputs.width),
                        device,
                    ),
                embed_positions: self
                    .learned_positions
                    .map(|first| Embedding::new(first + self.context_length, d, 1.0, device)),
                per_layer_model_projection: self
                    .per_layer_inputs
                    .map(|_| Linear::new(d, self.per_layer_width(), false, device)),
                per_layer_projection_norm: self
                    .per_layer_inputs
                    .map(|inputs| Norm::new(inputs.width, self.norm, device)),
                layers,
                norm: Norm::new(d, self.final_norm, device),
            },
            lm_head: (!self.tie_word_embeddings)
                .then(|| Linear::new(d, self.vocab_size, self.head_bias, device)),
            config: self.clone(),
            ropes,
            kernels: KernelsOf::new(default_kernels::<B>()),
        }
    }

    /// The rotary embeddings of all layers that have one.
    fn ropes(&self) -> impl Iterator<Item = &RopeConfig> {
        self.layers.iter().filter_map(|layer| match layer.attention.as_ref()? {
            AttentionKind::Heads(attention) => attention.rope.as_ref(),
            AttentionKind::Latent(latent) => Some(&latent.rope),
            _ => None,
        })
    }
}

fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    all.fold(Vec::new(), |mut seen, one| {
        if !seen.contains(&one) {
            seen.push(one);
        }
        seen
    })
}

impl<B: Backend> Decoder<B> {
    /// The config that the model was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Replaces the kernels that this build has for the backend, by an app's own, or by [`crate::TensorOperations`]
    /// to compare with. Pools that were made before do not fit the new kernels.
    pub fn with_kernels(mut self, kernels: Arc<dyn Kernels<B>>) -> Self {
        self.kernels = KernelsOf::new(kernels);
        self
    }

    /// The model with some of its layers alone, in order; it shares its weights with this one. `None` if there is no
    /// such layer, none is left, or layers need others: they use another one's cache, or have inputs of their own.
    ///
    /// # Examples
    /// ```
    /// use moi_models::Architecture;
    /// # let config = serde_json::json!({
    /// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
    /// #     "num_hidden_layers": 4, "num_attention_heads": 4,
    /// # });
    /// # let device = Default::default();
    /// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
    /// let draft = model.with_layers(&[0, 1, 3]).ok_or("no such layers")?;
    /// assert_eq!(draft.config().layers.len(), 3);
    /// assert!(model.with_layers(&[4]).is_none() && model.with_layers(&[]).is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_layers(&self, kept: &[usize]) -> Option<Self> {
        let shares = |layer: &LayerConfig| match &layer.attention {
            Some(AttentionKind::Heads(heads)) => heads.shared_cache.is_some(),
            _ => false,
        };
        let needs_others = self.config.per_layer_inputs.is_some() || self.config.layers.iter().any(shares);
        if needs_others || kept.is_empty() || !kept.is_sorted_by(|a, b| a < b) {
            return None;
        }
        let mut some = self.clone();
        some.config.layers =
            kept.iter().map(|&at| self.config.layers.get(at).cloned()).collect::<Option<_>>()?;
        some.model.layers = kept.iter().map(|&at| self.model.layers[at].clone()).collect();
        Some(some)
    }

    /// Checks that a batch fits the model and the pool.
    fn check(&self, batch: &ForwardBatch<'_, B>, pool: &KvPool<B>) -> Result<(), ModelError> {
        let (found, width) = (batch.inputs.dims(), self.config.input_width());
        let tokens = batch.spans.iter().map(|span| span.len).sum();
        if found != [tokens, width] || tokens == 0 || batch.spans.iter().any(|span| span.len == 0) {
            return Err(ModelError::InputShape { tokens, width, found });
        }
        for span in &batch.spans {
            if !pool.owns(span.table) {
                return Err(ModelError::ForeignTable);
            }
            let mut most = span.len;
            if pool.has_states() && !matches!(span.visible, Visible::Causal) {
                return Err(ModelError::TreeOfStates);
            }
            if let Visible::Tree(parents) = &span.visible {
                let before =
                    |(node, parent): (usize, &Option<usize>)| parent.is_none_or(|parent| parent < node);
                if parents.len() != span.len || !parents.iter().enumerate().all(before) {
                    return Err(ModelError::Tree { len: span.len });
                }
                most = (0..span.len).map(|node| span.visible.depth(node) + 1).max().unwrap_or(0);
            }
            let (needed, context_length) = (span.table.len() + most, self.config.context_length);
            if needed > context_length {
                return Err(ModelError::ContextFull { needed, context_length });
            }
        }
        Ok(())
    }

    /// The inputs of all layers `[tokens, layers * width]`, if they have any: the sum of the values after the
    /// embedding in the model's inputs, and of a projection of the embedding, times sqrt(1/2).
    fn inputs_of_layers(&self, inputs: &Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Option<Tensor<B, 2>> {
        let (d, own) = (self.config.hidden_size, self.config.per_layer_inputs?);
        let (map, norm) =
            (self.model.per_layer_model_projection.as_ref()?, self.model.per_layer_projection_norm.as_ref()?);
        let (tokens, all) = (inputs.dims()[0], self.config.per_layer_width());
        let of_input = kernels.linear(map, inputs.clone().narrow(1, 0, d)).cast(DType::F32);
        let of_input = of_input.mul_scalar((d as f64).powf(-0.5));
        let of_input = kernels.norm(norm, of_input.reshape([tokens * all / own.width, own.width]));
        let of_token = inputs.clone().narrow(1, d, all);
        Some((of_input.reshape([tokens, all]) + of_token).mul_scalar(std::f64::consts::FRAC_1_SQRT_2))
    }

    /// The learned position embeddings of a forward pass, `[tokens, d]`.
    fn positions(
        &self,
        table: &Embedding<B>,
        context: &ForwardContext<B>,
        device: &B::Device,
    ) -> Tensor<B, 2> {
        let first = self.config.learned_positions.unwrap_or(0);
        let ids: Vec<i64> = context.positions.iter().map(|&position| (first + position) as i64).collect();
        let count = ids.len();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), device);
        table.rows(ids, &*context.kernels)
    }
}

impl<B: Backend> CausalLm<B> for Decoder<B> {
    fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.model.embed_tokens.rows(ids, &*self.kernels())
    }

    fn forward(&self, batch: ForwardBatch<'_, B>, pool: &mut KvPool<B>) -> Result<Tensor<B, 2>, ModelError> {
        self.check(&batch, pool)?;
        let ForwardBatch { inputs, mut spans } = batch;
        let reserved = spans.iter_mut().try_for_each(|span| pool.reserve(span.table, span.len));
        if let Err(error) = reserved {
            spans.iter_mut().for_each(|span| span.table.release_reserved());
            return Err(error);
        }
        let device = inputs.device();
        let context = ForwardContext::new(&spans, pool, &self.ropes, self.kernels(), &device);
        let context = context.with_query_scale(self.config.query_scale);
        let mut x = inputs.cast(DType::F32);
        let of_layers = self.inputs_of_layers(&x, &*context.kernels);
        if of_layers.is_some() {
            x = x.narrow(1, 0, self.config.hidden_size);
        }
        if let Some(table) = &self.model.embed_positions {
            x = x + self.positions(table, &context, &device).cast(DType::F32);
        }
        let mut stream = Residual::new(x, &*context.kernels);
        for (index, layer) in self.model.layers.iter().enumerate() {
            let input = of_layers.as_ref().map(|inputs| {
                let width = inputs.dims()[1] / self.model.layers.len();
                inputs.clone().narrow(1, index * width, width)
            });
            stream = layer.forward(stream, index, input, &context, pool);
        }
        spans.into_iter().for_each(|span| span.table.advance(span.len));
        let (_, normed) = stream.normed(Some(&self.model.norm));
        Ok(normed)
    }

    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let logits = match &self.lm_head {
            Some(head) => self.kernels().linear(head, hidden),
            None => self.kernels().logits(&self.model.embed_tokens.weight, hidden),
        };
        let mut logits = logits.cast(DType::F32);
        if self.config.logit_scale != 1.0 {
            logits = logits.mul_scalar(self.config.logit_scale);
        }
        if let Some(cap) = self.config.logit_softcap {
            logits = logits.div_scalar(cap).tanh().mul_scalar(cap);
        }
        logits
    }

    fn embedding(&self) -> &Embedding<B> {
        &self.model.embed_tokens
    }

    fn new_pool(&self, device: &B::Device) -> KvPool<B> {
        let kernels = self.kernels();
        let shape = |layer: &DecoderLayer<B>| match &layer.self_attn {
            Some(own) => own.cached(&*kernels),
            None => CacheShape::None,
        };
        let shapes: Vec<CacheShape> = self.model.layers.iter().map(shape).collect();
        KvPool::new(&shapes, self.config.state_values() * size_of::<f32>(), kernels.cache_layout(), device)
    }

    fn kernels(&self) -> Arc<dyn Kernels<B>> {
        self.kernels.get()
    }

    fn context_length(&self) -> usize {
        self.config.context_length
    }

    fn recompute_beyond(&self) -> Option<usize> {
        self.config.recompute_beyond
    }

    fn shares_prefixes(&self) -> bool {
        !self.ropes.iter().any(RopeConfig::depends_on_length)
    }

    fn has_states(&self) -> bool {
        self.config.state_values() > 0
    }

    fn broken_weight(&self, layers: RangeInclusive<usize>) -> Option<String> {
        self.first_broken_weight(&layers)
    }
}
