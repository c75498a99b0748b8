//! The one decoder. Reads top-down: decoder, stack, layer.

use std::{ops::RangeInclusive, sync::Arc};

use burn::{
    module::Module,
    tensor::{DType, Int, Tensor, TensorData, backend::Backend},
};

use crate::{
    AttentionConfig, AttentionKind, CausalLm, DecoderConfig, Embedding, Experts, FeedForwardKind,
    ForwardBatch, Kernels, KvPool, LayerConfig, Linear, Mlp, ModelError, Norm, NormPlace, RopeConfig,
    SelfAttention, Visible, cache::LayerShape, context::ForwardContext, default_kernels, kernels::KernelsOf,
    residual::Residual,
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
    /// `[context, d]`, where positions are learned.
    pub embed_positions: Option<Embedding<B>>,
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
                embed_tokens: Embedding::new(self.vocab_size, d, self.embedding_scale, device),
                embed_positions: self
                    .learned_positions
                    .then(|| Embedding::new(self.context_length, d, 1.0, device)),
                layers,
                norm: Norm::new(d, self.norm, device),
            },
            lm_head: (!self.tie_word_embeddings).then(|| Linear::new(d, self.vocab_size, false, device)),
            config: self.clone(),
            ropes,
            kernels: KernelsOf::new(default_kernels::<B>()),
        }
    }

    fn attentions(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.layers.iter().filter_map(|layer| match &layer.attention {
            Some(AttentionKind::Heads(attention)) => Some(attention),
            Some(AttentionKind::Linear) | None => None,
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
        let (found, hidden_size) = (batch.inputs.dims(), self.config.hidden_size);
        let tokens = batch.spans.iter().map(|span| span.len).sum();
        if found != [tokens, hidden_size] || tokens == 0 || batch.spans.iter().any(|span| span.len == 0) {
            return Err(ModelError::InputShape { tokens, hidden_size, found });
        }
        for span in &batch.spans {
            if !pool.owns(span.table) {
                return Err(ModelError::ForeignTable);
            }
            let mut most = span.len;
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

    /// The learned positions of a forward pass, `[tokens, d]`.
    fn positions(
        &self,
        table: &Embedding<B>,
        context: &ForwardContext<B>,
        device: &B::Device,
    ) -> Tensor<B, 2> {
        let ids: Vec<i64> = context.positions.iter().map(|&position| position as i64).collect();
        let count = ids.len();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [count]), device);
        table.scaled(context.kernels.rows(&table.weight, ids))
    }
}

impl<B: Backend> CausalLm<B> for Decoder<B> {
    fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let table = &self.model.embed_tokens;
        table.scaled(self.kernels().rows(&table.weight, ids))
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
        let mut x = inputs.cast(DType::F32);
        if let Some(table) = &self.model.embed_positions {
            x = x + self.positions(table, &context, &device).cast(DType::F32);
        }
        let mut stream = Residual::new(x, &*context.kernels);
        for (index, layer) in self.model.layers.iter().enumerate() {
            stream = layer.forward(stream, index, &context, pool);
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
        let shape = |layer: &DecoderLayer<B>| layer.self_attn.as_ref().and_then(|own| own.cached(&*kernels));
        let shapes: Vec<Option<LayerShape>> = self.model.layers.iter().map(shape).collect();
        KvPool::new(&shapes, kernels.cache_layout(), device)
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

    fn broken_weight(&self, layers: RangeInclusive<usize>) -> Option<String> {
        self.first_broken_weight(&layers)
    }
}

impl<B: Backend> DecoderLayer<B> {
    fn new(model: &DecoderConfig, config: &LayerConfig, ropes: &[RopeConfig], device: &B::Device) -> Self {
        let d = model.hidden_size;
        let names = config.norm_names();
        let norm = |name| names.contains(&name).then(|| Norm::new(d, model.norm, device));
        let attention = |kind| SelfAttention::new(d, kind, model.norm, ropes, device);
        let feed_forward = |kind: &FeedForwardKind| match kind {
            FeedForwardKind::Mlp(mlp) => FeedForward::Mlp(Mlp::new(d, mlp, device)),
            FeedForwardKind::Experts(experts) => FeedForward::Experts(Experts::new(d, experts, device)),
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
            norms: config.norms,
            parallel: config.parallel,
            residual_scale: config.residual_scale,
        }
    }

    fn forward<'a>(
        &'a self,
        stream: Residual<'a, B>,
        index: usize,
        context: &'a ForwardContext<B>,
        pool: &mut KvPool<B>,
    ) -> Residual<'a, B> {
        let [of_attention, of_feed_forward] = self.around();
        let kernels = &*context.kernels;
        let (stream, x) = stream.normed(of_attention.before);
        let attended = self.self_attn.as_ref().map(|attention| attention.forward(x, index, context, pool));
        if self.parallel {
            let (stream, x) = stream.normed(of_feed_forward.before);
            let stream = stream.add(attended, of_attention.after, self.residual_scale);
            return stream.add(self.fed(x, kernels), of_feed_forward.after, self.residual_scale);
        }
        let stream = stream.add(attended, of_attention.after, self.residual_scale);
        let (stream, x) = stream.normed(of_feed_forward.before);
        stream.add(self.fed(x, kernels), of_feed_forward.after, self.residual_scale)
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
            NormPlace::After => ((None, post_attention), (None, post_feedforward)),
            NormPlace::Around => ((input, post_attention), (pre_feedforward, post_feedforward)),
        };
        [attention, feed_forward].map(|(before, after)| Around { before, after })
    }

    /// What the feed-forward block computes.
    fn fed(&self, x: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Option<Tensor<B, 2>> {
        Some(match self.mlp.as_ref()? {
            FeedForward::Mlp(mlp) => kernels.mlp(mlp, x),
            FeedForward::Experts(experts) => experts.forward(x, kernels),
            FeedForward::Linear(linear) => kernels.linear(&linear.linear_mlp, x),
        })
    }
}

/// The norms around a block.
struct Around<'a, B: Backend> {
    before: Option<&'a Norm<B>>,
    after: Option<&'a Norm<B>>,
}
