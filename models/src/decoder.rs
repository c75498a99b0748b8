//! The one decoder. Reads top-down: decoder, stack, layer.

use std::{ops::RangeInclusive, sync::Arc};

use burn::{
    module::{Module, Param},
    tensor::{DType, Int, Tensor, TensorData, backend::Backend},
};

use crate::{
    AttentionConfig, AttentionKind, CausalLm, DecoderConfig, Embedding, Experts, FeedForwardKind,
    ForwardBatch, Kernels, KvPool, LayerConfig, Linear, Mlp, MlpAndExperts, ModelError, Norm, NormPlace,
    PerLayerInputs, RopeConfig, SelfAttention, Visible, cache::CacheShape, context::ForwardContext,
    default_kernels, kernels::KernelsOf, linear::uninitialized, residual::Residual,
};

/// A decoder-only transformer with a language model head. Field names follow the checkpoints' of Llama; an
/// architecture that spells them otherwise says so on its page.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// Embedding, layers and final norm.
    pub model: Stack<B>,
    /// `[vocab, d]`; absent where the embedding table is the head.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    config: DecoderConfig,
    #[module(skip)]
    ropes: Vec<RopeConfig>,
    #[module(skip)]
    kernels: KernelsOf,
}

/// Everything but the head.
#[derive(Module, Debug)]
pub struct Stack<B: Backend> {
    /// `[vocab, d]`.
    pub embed_tokens: Embedding<B>,
    /// `[first + context, d]`, where positions are learned.
    pub embed_positions: Option<Embedding<B>>,
    /// `[layers * width, d]`, where layers have inputs of their own.
    pub per_layer_model_projection: Option<Linear<B>>,
    /// `[width]`.
    pub per_layer_projection_norm: Option<Norm<B>>,
    /// First to last.
    pub layers: Vec<DecoderLayer<B>>,
    /// After the last layer.
    pub norm: Norm<B>,
}

/// Attention and feed-forward, each with its norms and the residual around. See [`NormPlace`] for which norm
/// stands where.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    /// Mixes positions.
    pub self_attn: Option<SelfAttention<B>>,
    /// Works on each position.
    pub mlp: Option<FeedForward<B>>,
    /// `[d]`.
    pub input_layernorm: Option<Norm<B>>,
    /// `[d]`.
    pub post_attention_layernorm: Option<Norm<B>>,
    /// `[d]`.
    pub pre_feedforward_layernorm: Option<Norm<B>>,
    /// `[d]`.
    pub post_feedforward_layernorm: Option<Norm<B>>,
    #[module(skip)]
    norms: NormPlace,
    /// `[width, d]`, where layers have inputs of their own: a gate on them.
    pub per_layer_input_gate: Option<Linear<B>>,
    /// `[d, width]`.
    pub per_layer_projection: Option<Linear<B>>,
    /// `[d]`.
    pub post_per_layer_input_norm: Option<Norm<B>>,
    #[module(skip)]
    per_layer_inputs: Option<PerLayerInputs>,
    /// `[1]`: what the residual stream is multiplied by at the layer's end.
    pub layer_scalar: Option<Param<Tensor<B, 1>>>,
    parallel: bool,
    residual_scale: f64,
}

/// What works on each position.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per layer, and nearly all are the large one")]
pub enum FeedForward<B: Backend> {
    /// The same for all.
    Mlp(Mlp<B>),
    /// A few of many.
    Experts(Experts<B>),
    /// Both.
    MlpAndExperts(MlpAndExperts<B>),
    /// One linear map in its place.
    Linear(LinearMlp<B>),
}

/// A linear map where other layers have a feed-forward block.
#[derive(Module, Debug)]
pub struct LinearMlp<B: Backend> {
    /// `[d, d]`.
    pub linear_mlp: Linear<B>,
}

impl DecoderConfig {
    /// The model, its weights not yet allocated: load them over, or use it with zeros.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Decoder<B> {
        let d = self.hidden_size;
        let ropes = distinct(self.attentions().filter_map(|attention| attention.rope.clone()));
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

    fn attentions(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers.iter().filter_map(|layer| match &layer.attention {
            Some(AttentionKind::Heads(attention)) => Some(attention),
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
    /// What the model was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// With other kernels than those that this build has for the backend: of an app's own, or [`crate::TensorOperations`]
    /// to compare with. Pools that were made before do not fit it.
    pub fn with_kernels(mut self, kernels: Arc<dyn Kernels<B>>) -> Self {
        self.kernels = KernelsOf::new(kernels);
        self
    }

    /// Whether a batch fits the model.
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

    /// The inputs of all layers `[tokens, layers * width]`, where they have any: of what stands behind the embedding in the
    /// model's inputs, and of a map of the embedding itself, halved in power.
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

    /// The learned positions of a forward pass, `[tokens, d]`.
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
        !self.ropes.iter().any(RopeConfig::depends_on_length) && self.config.state_values() == 0
    }

    fn broken_weight(&self, layers: RangeInclusive<usize>) -> Option<String> {
        self.first_broken_weight(&layers)
    }
}

impl<B: Backend> DecoderLayer<B> {
    fn new(model: &DecoderConfig, config: &LayerConfig, ropes: &[RopeConfig], device: &B::Device) -> Self {
        let d = model.hidden_size;
        let [before, behind] = config.norm_names();
        let norm = |name: &str| {
            let config = if before.contains(&name) { model.norm } else { model.post_norm };
            let is_there = before.contains(&name) || behind.contains(&name);
            is_there.then(|| Norm::new(d, config, device))
        };
        let own = model.per_layer_inputs;
        let attention = |kind| SelfAttention::new(d, kind, ropes, device);
        let feed_forward = |kind: &FeedForwardKind| match kind {
            FeedForwardKind::Mlp(mlp) => FeedForward::Mlp(Mlp::new(d, mlp, device)),
            FeedForwardKind::Experts(experts) => FeedForward::Experts(Experts::new(d, experts, device)),
            FeedForwardKind::MlpAndExperts(mlp, experts) => {
                FeedForward::MlpAndExperts(MlpAndExperts::new(model, mlp, experts, device))
            }
            FeedForwardKind::Linear => {
                FeedForward::Linear(LinearMlp { linear_mlp: Linear::new(d, d, false, device) })
            }
        };
        Self {
            self_attn: config.attention.as_ref().map(attention),
            mlp: config.feed_forward.as_ref().map(feed_forward),
            input_layernorm: norm("input_layernorm"),
            post_attention_layernorm: norm("post_attention_layernorm"),
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm"),
            post_feedforward_layernorm: norm("post_feedforward_layernorm"),
            per_layer_input_gate: own.map(|own| Linear::new(d, own.width, false, device)),
            per_layer_projection: own.map(|own| Linear::new(own.width, d, false, device)),
            post_per_layer_input_norm: own.map(|_| Norm::new(d, model.post_norm, device)),
            per_layer_inputs: own,
            norms: config.norms,
            layer_scalar: config.output_scale.then(|| uninitialized([1], device)),
            parallel: config.parallel,
            residual_scale: config.residual_scale,
        }
    }

    fn forward<'a>(
        &'a self,
        stream: Residual<'a, B>,
        index: usize,
        input: Option<Tensor<B, 2>>,
        context: &'a ForwardContext<B>,
        pool: &mut KvPool<B>,
    ) -> Residual<'a, B> {
        let [of_attention, of_feed_forward] = self.around();
        let kernels = &*context.kernels;
        let (stream, x) = stream.normed(of_attention.before);
        let attended = self.self_attn.as_ref().map(|own| own.forward(x.clone(), index, context, pool));
        if self.parallel {
            let (stream, y) = match self.norms {
                NormPlace::Shared => (stream, x),
                _ => stream.normed(of_feed_forward.before),
            };
            let stream = stream.add(attended, of_attention.after, self.residual_scale);
            return stream.add(self.fed(y, None, kernels), of_feed_forward.after, self.residual_scale);
        }
        let stream = stream.add(attended, of_attention.after, self.residual_scale);
        let (stream, read) = match &self.mlp {
            // What reads the stream itself needs it settled.
            Some(FeedForward::MlpAndExperts(_)) => {
                let (stream, read) = stream.normed(None);
                (stream, Some(read))
            }
            _ => (stream, None),
        };
        let (stream, x) = stream.normed(of_feed_forward.before);
        let stream = stream.add(self.fed(x, read, kernels), of_feed_forward.after, self.residual_scale);
        let stream = match input {
            Some(input) => self.with_input(stream, input, kernels),
            None => stream,
        };
        match &self.layer_scalar {
            Some(scalar) => stream.scaled(scalar.val()),
            None => stream,
        }
    }

    /// The stream with what the layer makes of its own input `[tokens, width]`.
    fn with_input<'a>(
        &'a self,
        stream: Residual<'a, B>,
        input: Tensor<B, 2>,
        kernels: &dyn Kernels<B>,
    ) -> Residual<'a, B> {
        let (Some(gate), Some(map), Some(config)) =
            (&self.per_layer_input_gate, &self.per_layer_projection, self.per_layer_inputs)
        else {
            return stream;
        };
        let (stream, x) = stream.normed(None);
        let gate = config.activation.apply(kernels.linear(gate, x).cast(DType::F32));
        let y = kernels.linear(map, gate * input);
        stream.add(Some(y), self.post_per_layer_input_norm.as_ref(), 1.0)
    }

    /// The norms around attention, and around the feed-forward block.
    fn around(&self) -> [Around<'_, B>; 2] {
        let [input, post_attention, pre_feedforward, post_feedforward] = [
            &self.input_layernorm,
            &self.post_attention_layernorm,
            &self.pre_feedforward_layernorm,
            &self.post_feedforward_layernorm,
        ]
        .map(Option::as_ref);
        let (attention, feed_forward) = match self.norms {
            NormPlace::Before => ((input, None), (post_attention, None)),
            NormPlace::Shared => ((input, None), (None, None)),
            NormPlace::After => ((None, post_attention), (None, post_feedforward)),
            NormPlace::Around => ((input, post_attention), (pre_feedforward, post_feedforward)),
        };
        [attention, feed_forward].map(|(before, after)| Around { before, after })
    }

    /// What the feed-forward block computes of its input, and of the residual stream where it reads that, too.
    fn fed(
        &self,
        x: Tensor<B, 2>,
        stream: Option<Tensor<B, 2>>,
        kernels: &dyn Kernels<B>,
    ) -> Option<Tensor<B, 2>> {
        Some(match self.mlp.as_ref()? {
            FeedForward::Mlp(mlp) => kernels.mlp(mlp, x),
            FeedForward::Experts(experts) => experts.forward(x, kernels),
            FeedForward::MlpAndExperts(both) => {
                let stream = stream.unwrap_or_else(|| x.clone());
                both.forward(x, stream, kernels)
            }
            FeedForward::Linear(linear) => kernels.linear(&linear.linear_mlp, x),
        })
    }
}

/// The norms around a block.
struct Around<'a, B: Backend> {
    before: Option<&'a Norm<B>>,
    after: Option<&'a Norm<B>>,
}
