//! Grouped-query attention over blocks of the KV cache.

use burn::{
    module::{Module, Param},
    tensor::{
        DType, Tensor,
        activation::{sigmoid, softplus},
        backend::Backend,
    },
};

use crate::{
    AttentionConfig, AttentionKind, AttentionPass, DeltaNet, GateKind, GateSpan, Kernels, KvPool,
    LatentAttention, LayerBlocks, Linear, Mamba2, Norm, NormConfig, NormKind, OutputGate, QkSpan, RopeConfig,
    ShortConv,
    cache::{CacheShape, LayerShape},
    context::ForwardContext,
    linear::uninitialized,
    states::Recurrent,
};

/// The part of a layer that mixes positions: attention, or a layer in its place.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, SelfAttention};
/// # let config = serde_json::json!({
/// #     "model_type": "lfm2", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
/// #     "layer_types": ["conv", "full_attention"],
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// // A short convolution, then attention.
/// let layers = &model.model.layers;
/// assert!(matches!(layers[0].self_attn, Some(SelfAttention::ShortConv(_))));
/// assert!(matches!(layers[1].self_attn, Some(SelfAttention::Heads(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per layer, and nearly all are the large one")]
pub enum SelfAttention<B: Backend> {
    /// Multi-head attention with a KV cache.
    Heads(Attention<B>),
    /// A gated delta net.
    DeltaNet(DeltaNet<B>),
    /// A short convolution.
    ShortConv(ShortConv<B>),
    /// Mamba 2.
    Mamba2(Mamba2<B>),
    /// Attention over latent vectors (MLA).
    Latent(LatentAttention<B>),
    /// A linear layer in place of attention.
    Linear(LinearAttention<B>),
}

/// A linear layer in place of attention.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, SelfAttention};
/// # let config = serde_json::json!({
/// #     "model_type": "nemotron-nas", "vocab_size": 32, "hidden_size": 16,
/// #     "num_hidden_layers": 1, "num_attention_heads": 4,
/// #     "block_configs": [{
/// #         "attention": { "replace_with_linear": true }, "ffn": { "replace_with_linear": true },
/// #     }],
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let attention = &model.model.layers[0].self_attn;
/// assert!(matches!(attention, Some(SelfAttention::Linear(own)) if own.linear_attn.weight.dims() == [16, 16]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct LinearAttention<B: Backend> {
    /// The linear layer, `[d, d]`.
    pub linear_attn: Linear<B>,
}

/// The attention of one layer.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, SelfAttention};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let Some(SelfAttention::Heads(attention)) = &model.model.layers[0].self_attn else {
///     panic!("Llama has attention");
/// };
/// assert_eq!(attention.q_proj.weight.dims(), [16, 16]);
/// assert!(attention.k_proj.is_some() && attention.q_norm.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Query projection, `[heads * head_dim, d]`.
    pub q_proj: Linear<B>,
    /// Key projection, `[kv_heads * head_dim, d]`; absent where the layer attends to another layer's keys.
    pub k_proj: Option<Linear<B>>,
    /// Value projection, `[kv_heads * head_dim, d]`; absent where the keys are also the values.
    pub v_proj: Option<Linear<B>>,
    /// Gate projection, `[heads, d]` or `[heads * head_dim, d]`.
    pub gate_proj: Option<Linear<B>>,
    /// Output projection, `[d, heads * head_dim]`.
    pub o_proj: Linear<B>,
    /// Norm over each head of the queries, or over all heads.
    pub q_norm: Option<Norm<B>>,
    /// Norm over each head of the keys, or over all heads.
    pub k_norm: Option<Norm<B>>,
    /// Norm over each head of the values, without a weight.
    pub v_norm: Option<Norm<B>>,
    /// Attention sinks, a logit per head `[heads]` that adds to the softmax denominator but has no value.
    pub sinks: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    config: AttentionConfig,
    /// Index of this layer's rotary embedding among those of the model.
    #[module(skip)]
    angles: Option<usize>,
}

impl<B: Backend> SelfAttention<B> {
    /// A block for a residual stream of `hidden_size`. `ropes` are the model's rotary embeddings, which must include
    /// the layer's own.
    pub(crate) fn new(
        hidden_size: usize,
        kind: &AttentionKind,
        ropes: &[RopeConfig],
        device: &B::Device,
    ) -> Self {
        match kind {
            AttentionKind::Heads(config) => Self::Heads(Attention::new(hidden_size, config, ropes, device)),
            AttentionKind::DeltaNet(config) => Self::DeltaNet(DeltaNet::new(hidden_size, config, device)),
            AttentionKind::ShortConv(config) => Self::ShortConv(ShortConv::new(hidden_size, config, device)),
            AttentionKind::Mamba2(config) => Self::Mamba2(Mamba2::new(hidden_size, config, device)),
            AttentionKind::Latent(config) => {
                Self::Latent(LatentAttention::new(hidden_size, config, ropes, device))
            }
            AttentionKind::Linear => {
                let linear_attn = Linear::new(hidden_size, hidden_size, false, device);
                Self::Linear(LinearAttention { linear_attn })
            }
        }
    }

    /// Computes `[tokens, d]` from `[tokens, d]`, and adds keys and values to layer `layer` of the pool.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        layer: usize,
        context: &ForwardContext<B>,
        pool: &mut KvPool<B>,
    ) -> Tensor<B, 2> {
        let source = match self {
            Self::Heads(attention) => attention.config.shared_cache.unwrap_or(layer),
            Self::Latent(_) => layer,
            Self::DeltaNet(net) => return recurrent(net, x, layer, context, pool),
            Self::ShortConv(conv) => return recurrent(conv, x, layer, context, pool),
            Self::Mamba2(mamba) => return recurrent(mamba, x, layer, context, pool),
            Self::Linear(linear) => return context.kernels.linear(&linear.linear_attn, x),
        };
        match (self, pool.layer(source)) {
            (Self::Heads(attention), Some((kind, blocks))) => attention.forward(x, kind, context, blocks),
            (Self::Latent(latent), Some((kind, blocks))) => latent.forward(x, kind, context, blocks),
            _ => unreachable!("a pool of this model keeps what its attention sees"),
        }
    }

    /// The shape of what the layer caches, with these kernels. Keys and values have the type of the weights, or
    /// float16 if activations are quantized, which is less exact anyway.
    pub(crate) fn cached(&self, kernels: &dyn Kernels<B>) -> CacheShape {
        let (config, k_proj) = match self {
            Self::Heads(Attention { config, k_proj, .. }) => (config, k_proj),
            Self::Latent(latent) => return CacheShape::Keys(latent.cached(kernels)),
            Self::DeltaNet(_) | Self::ShortConv(_) | Self::Mamba2(_) => return CacheShape::State,
            Self::Linear(_) => return CacheShape::None,
        };
        let Some(k_proj) = k_proj else { return CacheShape::None };
        CacheShape::Keys(LayerShape {
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: k_proj.weight.cache_dtype(kernels).into(),
            window: config.window,
            has_values: true,
        })
    }
}

/// Runs a layer that has a recurrent state.
fn recurrent<B: Backend>(
    layer: &impl Recurrent<B>,
    x: Tensor<B, 2>,
    index: usize,
    context: &ForwardContext<B>,
    pool: &mut KvPool<B>,
) -> Tensor<B, 2> {
    let mut states = pool.states(index, &context.slots);
    layer.forward(x, &context.spans, &mut states, &*context.kernels)
}

impl<B: Backend> Attention<B> {
    fn new(hidden_size: usize, config: &AttentionConfig, ropes: &[RopeConfig], device: &B::Device) -> Self {
        let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let inward = |outputs| Linear::new(hidden_size, outputs, config.qkv_bias, device);
        let qk_norm = |projection: usize| {
            config.qk_norm.map(|norm| {
                let width = match norm.span {
                    QkSpan::Head => config.head_dim,
                    QkSpan::Projection => projection,
                };
                Norm::new(width, norm.norm, device)
            })
        };
        let has_keys = config.shared_cache.is_none();
        let v_norm = |eps| Norm::new(config.head_dim, NormConfig { kind: NormKind::RmsAlone, eps }, device);
        Self {
            q_proj: inward(q),
            k_proj: has_keys.then(|| inward(kv)),
            v_proj: (has_keys && !config.keys_are_values).then(|| inward(kv)),
            gate_proj: config.gate_width().map(|width| Linear::new(hidden_size, width, false, device)),
            o_proj: Linear::new(q, hidden_size, config.output_bias, device),
            q_norm: qk_norm(q),
            k_norm: qk_norm(kv).filter(|_| has_keys),
            v_norm: config.value_norm.filter(|_| has_keys).map(v_norm),
            sinks: config.sinks.then(|| uninitialized([config.num_heads], device)),
            config: config.clone(),
            angles: config.rope.as_ref().and_then(|own| ropes.iter().position(|rope| rope == own)),
        }
    }

    fn forward(
        &self,
        x: Tensor<B, 2>,
        kind: usize,
        context: &ForwardContext<B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        let kernels = &*context.kernels;
        let gate = self.gate_proj.as_ref().map(|gate| kernels.linear(gate, x.clone()));
        let pass = self.pass(kind, context);
        let (q, kv) = self.projections(x, kernels);
        let q = match &context.query_factors {
            Some(factors) => q.cast(DType::F32) * factors.clone(),
            None => q,
        };
        let kv = kv.map(|[k, v]| {
            let v = match &self.v_norm {
                Some(norm) => {
                    let (dims, head_dim) = (v.dims(), self.config.head_dim);
                    kernels.norm(norm, v.reshape([dims[0] * dims[1] / head_dim, head_dim])).reshape(dims)
                }
                None => v,
            };
            [k, v]
        });
        let is_behind = self.config.qk_norm.is_some_and(|norm| norm.behind_rope);
        let out = match is_behind {
            // Kernels apply norms before the rotary embedding; the other order is computed by tensor operations
            // first.
            true => {
                let q = pass.rotated_and_normed(q, pass.q_norm, pass.heads, kernels);
                let kv =
                    kv.map(|[k, v]| [pass.rotated_and_normed(k, pass.k_norm, pass.kv_heads, kernels), v]);
                let pass = AttentionPass { q_norm: None, k_norm: None, angles: None, ..pass };
                kernels.attention(q, kv, &pass, blocks)
            }
            false => kernels.attention(q, kv, &pass, blocks),
        };
        let out = match (gate, self.config.gate) {
            (Some(gate), Some(config)) => gated(out, gate, config, self.config.head_dim),
            _ => out,
        };
        kernels.linear(&self.o_proj, out)
    }

    /// The queries, and the keys and values if the layer has its own.
    fn projections(
        &self,
        x: Tensor<B, 2>,
        kernels: &dyn Kernels<B>,
    ) -> (Tensor<B, 2>, Option<[Tensor<B, 2>; 2]>) {
        match (&self.k_proj, &self.v_proj) {
            (Some(k), Some(v)) => {
                let [q, k, v] = kernels.qkv([&self.q_proj, k, v], x);
                (q, Some([k, v]))
            }
            (Some(k), None) => {
                let (q, k) = (kernels.linear(&self.q_proj, x.clone()), kernels.linear(k, x));
                (q, Some([k.clone(), k]))
            }
            (None, _) => (kernels.linear(&self.q_proj, x), None),
        }
    }

    fn pass<'a>(&'a self, kind: usize, context: &'a ForwardContext<B>) -> AttentionPass<'a, B> {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, scale, softcap, window, .. } = &self.config;
        AttentionPass {
            heads: num_heads,
            kv_heads: num_kv_heads,
            head_dim,
            scale,
            softcap,
            window,
            q_norm: self.q_norm.as_ref(),
            k_norm: self.k_norm.as_ref(),
            norm_span: self.config.qk_norm.map_or(QkSpan::Head, |norm| norm.span),
            sinks: self.sinks.as_ref().map(Param::val),
            angles: self.angles.map(|angles| &context.angles[angles]),
            context,
            kind,
        }
    }
}

/// The output of attention, `[tokens, heads * head_dim]`, times its gate.
fn gated<B: Backend>(
    out: Tensor<B, 2>,
    gate: Tensor<B, 2>,
    config: OutputGate,
    head_dim: usize,
) -> Tensor<B, 2> {
    let [tokens, width] = out.dims();
    let out = out.cast(DType::F32);
    let gate = gate.cast(DType::F32);
    let gate = match config.kind {
        GateKind::Sigmoid => sigmoid(gate),
        GateKind::Softplus => softplus(gate, 1.0),
    };
    match config.span {
        GateSpan::Value => out * gate,
        GateSpan::Head => {
            let heads = width / head_dim;
            let by_head = out.reshape([tokens, heads, head_dim]) * gate.reshape([tokens, heads, 1]);
            by_head.reshape([tokens, width])
        }
    }
}
