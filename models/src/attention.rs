//! Grouped-query attention over blocks of the cache.

use burn::{
    module::{Module, Param},
    tensor::{Tensor, backend::Backend},
};

use crate::{
    AttentionConfig, AttentionKind, AttentionPass, Kernels, KvPool, LayerBlocks, Linear, Norm, NormConfig,
    QkNorm, RopeConfig, cache::LayerShape, context::ForwardContext, linear::uninitialized,
};

/// What mixes the positions of a layer.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per layer, and nearly all are the large one")]
pub enum SelfAttention<B: Backend> {
    /// Attention.
    Heads(Attention<B>),
    /// One linear map in its place.
    Linear(LinearAttention<B>),
}

/// A linear map where other layers have attention.
#[derive(Module, Debug)]
pub struct LinearAttention<B: Backend> {
    /// `[d, d]`.
    pub linear_attn: Linear<B>,
}

/// Attention of one layer.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `[heads * head_dim, d]`.
    pub q_proj: Linear<B>,
    /// `[kv_heads * head_dim, d]`.
    pub k_proj: Linear<B>,
    /// `[kv_heads * head_dim, d]`.
    pub v_proj: Linear<B>,
    /// `[d, heads * head_dim]`.
    pub o_proj: Linear<B>,
    /// Of a head, or of all.
    pub q_norm: Option<Norm<B>>,
    /// Of a head, or of all.
    pub k_norm: Option<Norm<B>>,
    /// A logit of each head `[heads]` that takes a share of the softmax and gives nothing.
    pub sinks: Option<Param<Tensor<B, 1>>>,
    #[module(skip)]
    config: AttentionConfig,
    /// Which of the model's kinds of rotary positions is this layer's.
    #[module(skip)]
    angles: Option<usize>,
}

impl<B: Backend> SelfAttention<B> {
    /// A block for a residual stream of `hidden_size` in a model with these kinds of rotary positions; its own must be
    /// among them.
    pub(crate) fn new(
        hidden_size: usize,
        kind: &AttentionKind,
        norm: NormConfig,
        ropes: &[RopeConfig],
        device: &B::Device,
    ) -> Self {
        let config = match kind {
            AttentionKind::Heads(config) => config,
            AttentionKind::Linear => {
                let linear_attn = Linear::new(hidden_size, hidden_size, false, device);
                return Self::Linear(LinearAttention { linear_attn });
            }
        };
        let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let inward = |outputs| Linear::new(hidden_size, outputs, config.qkv_bias, device);
        let qk_norm = |projection: usize| {
            config.qk_norm.map(|span| {
                let width = match span {
                    QkNorm::Head => config.head_dim,
                    QkNorm::Projection => projection,
                };
                Norm::new(width, norm, device)
            })
        };
        let angles = config.rope.as_ref().and_then(|own| ropes.iter().position(|rope| rope == own));
        Self::Heads(Attention {
            q_proj: inward(q),
            k_proj: inward(kv),
            v_proj: inward(kv),
            o_proj: Linear::new(q, hidden_size, config.output_bias, device),
            q_norm: qk_norm(q),
            k_norm: qk_norm(kv),
            sinks: config.sinks.then(|| uninitialized([config.num_heads], device)),
            config: config.clone(),
            angles,
        })
    }

    /// `[tokens, d]` to `[tokens, d]`, adding keys and values to layer `layer` of the pool.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        layer: usize,
        context: &ForwardContext<B>,
        pool: &mut KvPool<B>,
    ) -> Tensor<B, 2> {
        match (self, pool.layer(layer)) {
            (Self::Heads(attention), Some((kind, blocks))) => attention.forward(x, kind, context, blocks),
            (Self::Heads(_), None) => unreachable!("a pool of this model keeps what its attention sees"),
            (Self::Linear(linear), _) => context.kernels.linear(&linear.linear_attn, x),
        }
    }

    /// The keys and values that it keeps, beside these kernels. Their type is that of the weights, but float16 beside rounded
    /// activations, which are less exact.
    pub(crate) fn cached(&self, kernels: &dyn Kernels<B>) -> Option<LayerShape> {
        match self {
            Self::Heads(attention) => Some(LayerShape {
                kv_heads: attention.config.num_kv_heads,
                head_dim: attention.config.head_dim,
                dtype: attention.k_proj.weight.cache_dtype(kernels).into(),
                window: attention.config.window,
            }),
            Self::Linear(_) => None,
        }
    }
}

impl<B: Backend> Attention<B> {
    fn forward(
        &self,
        x: Tensor<B, 2>,
        kind: usize,
        context: &ForwardContext<B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        let kernels = &*context.kernels;
        let qkv = kernels.qkv([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let out = kernels.attention(qkv, &self.pass(kind, context), blocks);
        kernels.linear(&self.o_proj, out)
    }

    fn pass<'a>(&'a self, kind: usize, context: &'a ForwardContext<B>) -> AttentionPass<'a, B> {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, scale, softcap, window, .. } = &self.config;
        let norms = self.q_norm.as_ref().zip(self.k_norm.as_ref()).zip(self.config.qk_norm);
        AttentionPass {
            heads: num_heads,
            kv_heads: num_kv_heads,
            head_dim,
            scale,
            softcap,
            window,
            norms: norms.map(|((q, k), over)| (q, k, over)),
            sinks: self.sinks.as_ref().map(Param::val),
            angles: self.angles.map(|angles| &context.angles[angles]),
            context,
            kind,
        }
    }
}
