//! Grouped-query attention over the cache.

use burn::{
    module::Module,
    tensor::{DType, FloatDType, Tensor, activation::softmax, backend::Backend},
};

use crate::{
    AttentionConfig, AttentionKind, KvCache, Linear, Norm, NormConfig, QkNorm, RopeConfig,
    kernels::{self, Attend, Heads, Kernels},
    step::Step,
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
    #[module(skip)]
    shared: Shared,
}

/// Where this layer finds its part of what the layers of a step share.
#[derive(Clone, Copy, Debug)]
struct Shared {
    angles: Option<usize>,
    mask: usize,
}

impl<B: Backend> SelfAttention<B> {
    /// A block for a residual stream of `hidden_size` in a model with these kinds of rotary positions and
    /// windows; its own must be among them.
    pub(crate) fn new(
        hidden_size: usize,
        kind: &AttentionKind,
        norm: NormConfig,
        ropes: &[RopeConfig],
        windows: &[Option<usize>],
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
        let mask = windows.iter().position(|window| *window == config.window).unwrap_or(0);
        Self::Heads(Attention {
            q_proj: inward(q),
            k_proj: inward(kv),
            v_proj: inward(kv),
            o_proj: Linear::new(q, hidden_size, config.output_bias, device),
            q_norm: qk_norm(q),
            k_norm: qk_norm(kv),
            config: config.clone(),
            shared: Shared { angles, mask },
        })
    }

    /// `[batch * seq, d]` to `[batch * seq, d]`, adding keys and values to layer `layer` of the cache.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        layer: usize,
        step: &Step<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        match self {
            Self::Heads(attention) => attention.forward(x, layer, step, cache),
            Self::Linear(linear) => linear.linear_attn.forward(x),
        }
    }
}

impl<B: Backend> Attention<B> {
    fn forward(&self, x: Tensor<B, 2>, layer: usize, step: &Step<B>, cache: &mut KvCache<B>) -> Tensor<B, 2> {
        let [q, k, v] = Linear::together([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let out = match B::has_kernels() {
            true => self.attended_by_kernels([&q, &k, &v], layer, step, cache),
            false => self.attended_on_gpu([&q, &k, &v], layer, step, cache),
        };
        self.o_proj.forward(out.unwrap_or_else(|| self.attended([q, k, v], layer, step, cache)))
    }

    /// The heads of all positions side by side: `[batch * seq, heads * head_dim]`.
    fn attended(
        &self,
        [q, k, v]: [Tensor<B, 2>; 3],
        layer: usize,
        step: &Step<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        let &Step { batch, seq, .. } = step;
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, .. } = &self.config;
        let heads = |x: Tensor<B, 2>, heads: usize| x.reshape([batch, seq, heads, head_dim]).swap_dims(1, 2);
        let turned = |x: Tensor<B, 2>, norm: &Option<Norm<B>>, count: usize| {
            let x = match (norm, self.config.qk_norm) {
                (Some(norm), Some(QkNorm::Projection)) => heads(norm.forward(x), count),
                (Some(norm), _) => norm.forward(heads(x, count)),
                (None, _) => heads(x, count),
            };
            match self.shared.angles {
                Some(angles) => step.angles[angles].rotate(x),
                None => x,
            }
        };
        let q = turned(q, &self.q_norm, num_heads);
        let k = turned(k, &self.k_norm, num_kv_heads);
        let v = heads(v, num_kv_heads);
        let dtype = DType::from(self.cache_dtype());
        let (k, v) = (k.cast(dtype), v.cast(dtype));
        let (k, v) = cache.append(layer, k, v, step.limit);
        self.attend(q.mul_scalar(self.config.scale), k, v, step)
    }

    /// The same by kernels. None, with the cache as it was, where there is none for the type of the cache.
    fn attended_by_kernels(
        &self,
        [q, k, v]: [&Tensor<B, 2>; 3],
        layer: usize,
        step: &Step<B>,
        cache: &mut KvCache<B>,
    ) -> Option<Tensor<B, 2>> {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, scale, softcap, window, .. } = &self.config;
        let heads = |x: &Tensor<B, 2>, count, norm: Option<&Norm<B>>, turned, scale, cached| {
            let per_head = self.config.qk_norm != Some(QkNorm::Projection);
            let x = match norm {
                Some(norm) if !per_head => &norm.forward(x.clone()),
                _ => x,
            };
            let angles = self.shared.angles.filter(|_| turned).map(|angles| &step.angles[angles]);
            let norm = norm.filter(|_| per_head);
            B::heads(
                x,
                &Heads { batch: step.batch, seq: step.seq, count, head_dim, norm, angles, scale, cached },
            )
        };
        let cached = Some(self.cache_dtype());
        let q = heads(q, num_heads, self.q_norm.as_ref(), true, scale, None)?;
        let k = heads(k, num_kv_heads, self.k_norm.as_ref(), true, 1.0, cached)?;
        let v = heads(v, num_kv_heads, None, false, 1.0, cached)?;
        let (k, v) = cache.append(layer, k, v, step.limit);
        let sizes = Attend { step, window, heads: num_heads, kv_heads: num_kv_heads, head_dim, softcap };
        // The cache is written: tensor operations go on from here where there is no kernel for its type.
        Some(B::attend(&q, &k, &v, &sizes).unwrap_or_else(|| self.attend(q.swap_dims(1, 2), k, v, step)))
    }

    /// The same in one kernel or three, for few positions. None, with the cache as it was, where there is none.
    fn attended_on_gpu(
        &self,
        [q, k, v]: [&Tensor<B, 2>; 3],
        layer: usize,
        step: &Step<B>,
        cache: &mut KvCache<B>,
    ) -> Option<Tensor<B, 2>> {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, scale, softcap, window, .. } = &self.config;
        let norms = self.q_norm.as_ref().zip(self.k_norm.as_ref());
        let over_all = norms.filter(|_| self.config.qk_norm == Some(QkNorm::Projection));
        let attention = kernels::Attention {
            step,
            layer,
            window,
            heads: num_heads,
            kv_heads: num_kv_heads,
            head_dim,
            angles: self.shared.angles.map(|angles| &step.angles[angles]),
            norms: norms.filter(|_| over_all.is_none()),
            scale,
            softcap,
            cached: self.cache_dtype(),
        };
        match over_all {
            Some((q_norm, k_norm)) if B::has_attention(step.seq) => {
                let (q, k) = (q_norm.forward(q.clone()), k_norm.forward(k.clone()));
                B::attended([&q, &k, v], &attention, cache)
            }
            Some(_) => None,
            None => B::attended([q, k, v], &attention, cache),
        }
    }

    /// The type of keys and values in the cache: that of the weights, but float16 beside rounded activations, which
    /// are less exact.
    fn cache_dtype(&self) -> FloatDType {
        self.k_proj.weight.cache_dtype()
    }

    /// softmax(q k^T + bias) v of queries that are scaled already `[batch, heads, seq, head_dim]`, the scores capped where
    /// the model does: `[batch * seq, heads * head_dim]`.
    ///
    /// The query heads of a group are folded into the sequence, so keys and values are never repeated.
    fn attend(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, step: &Step<B>) -> Tensor<B, 2> {
        let &Step { batch, seq, .. } = step;
        let &AttentionConfig { num_heads, num_kv_heads: kv, head_dim, softcap, .. } = &self.config;
        let (group, columns) = (num_heads / kv, k.dims()[2]);
        // A product has the type of its factors, and bfloat16's eight bits are too few for the exponents of a softmax.
        let k = if k.dtype() == DType::BF16 { k.cast(DType::F32) } else { k };
        let q = q.cast(k.dtype()).reshape([batch, kv, group * seq, head_dim]);
        let mut scores = q.matmul(k.swap_dims(2, 3)).cast(DType::F32);
        if let Some(cap) = softcap {
            scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
        }
        if let Some(mask) = step.mask(self.shared.mask) {
            let split = scores.reshape([batch, kv, group, seq, columns]) + mask.clone();
            scores = split.reshape([batch, kv, group * seq, columns]);
        }
        let v = if v.dtype() == DType::BF16 { v.cast(DType::F32) } else { v };
        let weights = softmax(scores, 3).cast(v.dtype());
        let out = weights.matmul(v).reshape([batch, num_heads, seq, head_dim]);
        out.swap_dims(1, 2).reshape([batch * seq, num_heads * head_dim])
    }
}
