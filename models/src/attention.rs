//! Grouped-query attention over blocks of the cache.

use burn::{
    module::Module,
    tensor::{DType, FloatDType, Tensor, activation::softmax, backend::Backend},
};

use crate::{
    AttentionConfig, AttentionKind, BLOCK_POSITIONS, KvPool, Linear, Norm, NormConfig, QkNorm, RopeConfig,
    cache::{LayerBlocks, LayerShape},
    context::ForwardContext,
    kernels::{self, Heads, Kernels},
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
            (Self::Linear(linear), _) => linear.linear_attn.forward(x),
        }
    }

    /// The keys and values that it keeps.
    pub(crate) fn cached(&self) -> Option<LayerShape> {
        match self {
            Self::Heads(attention) => Some(LayerShape {
                kv_heads: attention.config.num_kv_heads,
                head_dim: attention.config.head_dim,
                dtype: attention.cache_dtype().into(),
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
        let [q, k, v] = Linear::together([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let out = match B::has_kernels() {
            true => self.attended_by_kernels([&q, &k, &v], kind, context, blocks),
            false => self.attended_on_gpu([&q, &k, &v], kind, context, blocks),
        };
        self.o_proj.forward(out.unwrap_or_else(|| self.attended([q, k, v], kind, context, blocks)))
    }

    /// The heads of all positions side by side: `[tokens, heads * head_dim]`.
    fn attended(
        &self,
        [q, k, v]: [Tensor<B, 2>; 3],
        kind: usize,
        context: &ForwardContext<B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, .. } = &self.config;
        let heads = |x: Tensor<B, 2>, heads: usize| x.reshape([context.tokens, heads, head_dim]);
        let rotated = |x: Tensor<B, 2>, norm: &Option<Norm<B>>, count: usize| {
            let x = match (norm, self.config.qk_norm) {
                (Some(norm), Some(QkNorm::Projection)) => heads(norm.forward(x), count),
                (Some(norm), _) => norm.forward(heads(x, count)),
                (None, _) => heads(x, count),
            };
            match self.angles {
                Some(angles) => context.angles[angles].rotate(x),
                None => x,
            }
        };
        let q = rotated(q, &self.q_norm, num_heads);
        let k = rotated(k, &self.k_norm, num_kv_heads);
        let v = heads(v, num_kv_heads);
        let (k, v) = (k.cast(blocks.dtype), v.cast(blocks.dtype));
        blocks.write(&k, &v, &context.tables[kind].runs);
        self.attend(q.mul_scalar(self.config.scale), kind, context, blocks)
    }

    /// The same by the CPU's kernels. None, with the blocks as they were, where there is none for their type.
    fn attended_by_kernels(
        &self,
        [q, k, v]: [&Tensor<B, 2>; 3],
        kind: usize,
        context: &ForwardContext<B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Option<Tensor<B, 2>> {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, scale, .. } = &self.config;
        let heads = |x: &Tensor<B, 2>, count, norm: Option<&Norm<B>>, is_rotated, scale, dtype| {
            let per_head = self.config.qk_norm != Some(QkNorm::Projection);
            let x = match norm {
                Some(norm) if !per_head => &norm.forward(x.clone()),
                _ => x,
            };
            let angles = self.angles.filter(|_| is_rotated).map(|angles| &context.angles[angles]);
            let norm = norm.filter(|_| per_head);
            B::heads(x, &Heads { tokens: context.tokens, count, head_dim, norm, angles, scale, dtype })
        };
        let q = heads(q, num_heads, self.q_norm.as_ref(), true, scale, DType::F32)?;
        let k = heads(k, num_kv_heads, self.k_norm.as_ref(), true, 1.0, blocks.dtype)?;
        let v = heads(v, num_kv_heads, None, false, 1.0, blocks.dtype)?;
        blocks.write(&k, &v, &context.tables[kind].runs);
        let spec = self.spec(kind, context);
        // The cache is written: tensor operations go on from here where there is no kernel for its type.
        Some(B::attend(&q, blocks, &spec).unwrap_or_else(|| self.attend(q, kind, context, blocks)))
    }

    /// The same by the kernels of GPUs. None, with the blocks as they were, where there is none.
    fn attended_on_gpu(
        &self,
        [q, k, v]: [&Tensor<B, 2>; 3],
        kind: usize,
        context: &ForwardContext<B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Option<Tensor<B, 2>> {
        let norms = self.q_norm.as_ref().zip(self.k_norm.as_ref());
        let over_all = norms.filter(|_| self.config.qk_norm == Some(QkNorm::Projection));
        let norms = norms.filter(|_| over_all.is_none());
        let spec = kernels::Attention { norms, ..self.spec(kind, context) };
        match over_all {
            Some((q_norm, k_norm)) if B::has_attention() => {
                let (q, k) = (q_norm.forward(q.clone()), k_norm.forward(k.clone()));
                B::attended([&q, &k, v], &spec, blocks)
            }
            Some(_) => None,
            None => B::attended([q, k, v], &spec, blocks),
        }
    }

    fn spec<'a>(&self, kind: usize, context: &'a ForwardContext<B>) -> kernels::Attention<'a, B> {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, scale, softcap, window, .. } = &self.config;
        kernels::Attention {
            context,
            kind,
            window,
            heads: num_heads,
            kv_heads: num_kv_heads,
            head_dim,
            angles: self.angles.map(|angles| &context.angles[angles]),
            norms: None,
            scale,
            softcap,
        }
    }

    /// The type of keys and values in the cache: that of the weights, but float16 beside rounded activations, which
    /// are less exact.
    fn cache_dtype(&self) -> FloatDType {
        self.k_proj.weight.cache_dtype()
    }

    /// softmax(q k^T + bias) v of queries that are scaled already `[tokens, heads, head_dim]`, the scores capped where the
    /// model does: `[tokens, heads * head_dim]`. One sequence after the other: the reference of all kernels.
    fn attend(
        &self,
        q: Tensor<B, 3>,
        kind: usize,
        context: &ForwardContext<B>,
        blocks: &LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        let (mut first, mut outs) = (0, Vec::with_capacity(context.spans.len()));
        for (index, span) in context.spans.iter().enumerate() {
            let places = &context.tables[kind].spans[index];
            let [k, v] = blocks.gather(&places.blocks);
            let columns = span.past + span.len - places.first * BLOCK_POSITIONS;
            let (k, v) = (k.narrow(1, 0, columns), v.narrow(1, 0, columns));
            let q = q.clone().narrow(0, first, span.len);
            outs.push(self.attend_to(q, k, v, context.mask(kind, index)));
            first += span.len;
        }
        if outs.len() == 1 { outs.remove(0) } else { Tensor::cat(outs, 0) }
    }

    /// The same for one sequence, with its keys and values `[kv_heads, positions, head_dim]`.
    ///
    /// The query heads of a group are folded into the sequence, so keys and values are never repeated.
    fn attend_to(
        &self,
        q: Tensor<B, 3>,
        k: Tensor<B, 3>,
        v: Tensor<B, 3>,
        mask: Option<&Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let &AttentionConfig { num_heads, num_kv_heads: kv, head_dim, softcap, .. } = &self.config;
        let (seq, group, columns) = (q.dims()[0], num_heads / kv, k.dims()[1]);
        // A product has the type of its factors, and bfloat16's eight bits are too few for the exponents of a softmax.
        let k = if k.dtype() == DType::BF16 { k.cast(DType::F32) } else { k };
        let q = q.cast(k.dtype()).swap_dims(0, 1).reshape([kv, group * seq, head_dim]);
        let mut scores = q.matmul(k.swap_dims(1, 2)).cast(DType::F32);
        if let Some(cap) = softcap {
            scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
        }
        if let Some(mask) = mask {
            let split = scores.reshape([kv, group, seq, columns]) + mask.clone().unsqueeze();
            scores = split.reshape([kv, group * seq, columns]);
        }
        let v = if v.dtype() == DType::BF16 { v.cast(DType::F32) } else { v };
        let weights = softmax(scores, 2).cast(v.dtype());
        let out = weights.matmul(v).reshape([num_heads, seq, head_dim]);
        out.swap_dims(0, 1).reshape([seq, num_heads * head_dim])
    }
}
