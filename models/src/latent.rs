//! Attention over latent vectors (multi-head latent attention, MLA; DeepSeek V2, arXiv 2405.04434): keys and values
//! are linear in a narrow latent vector, and only that is cached.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, activation::softmax, backend::Backend},
};

use crate::{
    BLOCK_POSITIONS, Kernels, LatentConfig, LayerBlocks, Linear, Norm, NormConfig, NormKind, RopeConfig,
    cache::LayerShape, context::ForwardContext, linear::uninitialized,
};

/// Attention of one layer over latent vectors.
///
/// For each position, its latent vector and one rotated part of a key, which all heads share, are cached. For few
/// queries, the key projection is folded into the queries and the value projection into the output, so that the
/// latent vectors themselves are keys and values; for many queries, keys and values of all positions are computed
/// first.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, SelfAttention};
///
/// let config = serde_json::json!({
///     "model_type": "deepseek_v3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
///     "num_hidden_layers": 1, "num_attention_heads": 2, "q_lora_rank": null, "kv_lora_rank": 8,
///     "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 4,
/// });
/// let config = Architecture::from_config(&config)?.config;
/// let model = config.init::<burn_flex::Flex>(&Default::default());
/// let Some(SelfAttention::Latent(latent)) = &model.model.layers[0].self_attn else { panic!("it has latents") };
/// // The latent vector, and the rotated part of a key.
/// assert_eq!(latent.kv_a_proj.weight.dims(), [8 + 2, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct LatentAttention<B: Backend> {
    /// Query projection, `[heads * query_dim, d]`, if queries have no latent vector.
    pub q_proj: Option<Linear<B>>,
    /// Projection to the queries' latent vector, `[query_rank, d]`.
    pub q_a_proj: Option<Linear<B>>,
    /// Norm of the queries' latent vector, `[query_rank]`.
    pub q_a_norm: Option<Norm<B>>,
    /// From the latent vector to the queries, `[heads * query_dim, query_rank]`.
    pub q_b_proj: Option<Linear<B>>,
    /// Projection to the latent vector, followed by the rotated part of a key: `[kv_rank + rope_dim, d]`.
    pub kv_a_proj: Linear<B>,
    /// Norm of the latent vector, `[kv_rank]`.
    pub kv_a_norm: Norm<B>,
    /// From latent vectors to keys, `[heads * nope_dim, kv_rank]`. This and [`Self::v_b`] are folded into other
    /// products, and are held in float32: they are about a hundredth of a model.
    pub k_b: Param<Tensor<B, 2>>,
    /// From latent vectors to values, `[heads * value_dim, kv_rank]`.
    pub v_b: Param<Tensor<B, 2>>,
    /// Output projection, `[d, heads * value_dim]`.
    pub o_proj: Linear<B>,
    #[module(skip)]
    config: LatentConfig,
    /// Index of this layer's rotary embedding among those of the model.
    #[module(skip)]
    angles: Option<usize>,
}

/// The queries of one sequence, and what they attend to.
struct Attended<'a, B: Backend> {
    /// The part of the queries that is not rotated, `[heads, queries, nope_dim]`.
    nope: Tensor<B, 3>,
    /// The rotated part of the queries, `[heads, queries, rope_dim]`.
    rope: Tensor<B, 3>,
    /// Latent vectors and rotated parts of keys of all positions, `[positions, kv_rank + rope_dim]`.
    cached: Tensor<B, 2>,
    /// The attention mask that is added to scores, `[queries, positions]`.
    mask: Option<&'a Tensor<B, 2>>,
}

impl<B: Backend> LatentAttention<B> {
    pub(crate) fn new(d: usize, config: &LatentConfig, ropes: &[RopeConfig], device: &B::Device) -> Self {
        let queries = config.num_heads * config.query_dim();
        let norm = |width| {
            let norm = NormConfig { kind: NormKind::Rms, eps: config.norm_eps };
            Norm::new(width, norm, device)
        };
        let of_heads = |dim: usize| uninitialized([config.num_heads * dim, config.kv_rank], device);
        Self {
            q_proj: config.query_rank.is_none().then(|| Linear::new(d, queries, false, device)),
            q_a_proj: config.query_rank.map(|rank| Linear::new(d, rank, config.bias, device)),
            q_a_norm: config.query_rank.map(norm),
            q_b_proj: config.query_rank.map(|rank| Linear::new(rank, queries, false, device)),
            kv_a_proj: Linear::new(d, config.cached_dim(), config.bias, device),
            kv_a_norm: norm(config.kv_rank),
            k_b: of_heads(config.nope_dim),
            v_b: of_heads(config.value_dim),
            o_proj: Linear::new(config.num_heads * config.value_dim, d, config.bias, device),
            angles: ropes.iter().position(|rope| *rope == config.rope),
            config: config.clone(),
        }
    }

    /// The shape of what is cached per position, with these kernels.
    pub(crate) fn cached(&self, kernels: &dyn Kernels<B>) -> LayerShape {
        LayerShape {
            kv_heads: 1,
            head_dim: self.config.cached_dim(),
            dtype: self.kv_a_proj.weight.cache_dtype(kernels).into(),
            window: None,
            has_values: false,
        }
    }

    /// Computes `[tokens, d]` from `[tokens, d]`, and adds latent vectors to the blocks of its layer.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        kind: usize,
        context: &ForwardContext<B>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        let kernels = &*context.kernels;
        let &LatentConfig { num_heads: heads, nope_dim, rope_dim, .. } = &self.config;
        let q = self.queries(x.clone(), kernels).cast(DType::F32);
        let q = match &context.query_factors {
            Some(factors) => q * factors.clone(),
            None => q,
        };
        let q = q.reshape([context.tokens, heads, nope_dim + rope_dim]);
        let (nope, rope) = (q.clone().narrow(2, 0, nope_dim), q.narrow(2, nope_dim, rope_dim));
        let rope = self.rotated(rope, context);
        self.write(x, context, &context.tables[kind].runs, blocks);
        let (mut first, mut outs) = (0, Vec::with_capacity(context.spans.len()));
        for (index, span) in context.spans.iter().enumerate() {
            let places = &context.tables[kind].spans[index];
            let columns = span.past + span.len - places.first * BLOCK_POSITIONS;
            let [cached, _] = blocks.gather(&places.blocks);
            let of_span = |x: &Tensor<B, 3>| x.clone().narrow(0, first, span.len).swap_dims(0, 1);
            let attended = Attended {
                nope: of_span(&nope),
                rope: of_span(&rope),
                cached: cached.narrow(1, 0, columns).cast(DType::F32).squeeze_dim(0),
                mask: context.mask(kind, index),
            };
            outs.push(match self.is_folded(span.len) {
                true => self.attend_to_latents(attended),
                false => self.attend_to_heads(attended),
            });
            first += span.len;
        }
        let out = if outs.len() == 1 { outs.remove(0) } else { Tensor::cat(outs, 0) };
        kernels.linear(&self.o_proj, out)
    }

    fn queries(&self, x: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        match (&self.q_a_proj, &self.q_a_norm, &self.q_b_proj, &self.q_proj) {
            (Some(a), Some(norm), Some(b), _) => kernels.linear(b, kernels.norm(norm, kernels.linear(a, x))),
            (.., Some(q)) => kernels.linear(q, x),
            _ => unreachable!("queries are a map of the input or of a latent"),
        }
    }

    /// Writes the new positions to the cache.
    fn write(
        &self,
        x: Tensor<B, 2>,
        context: &ForwardContext<B>,
        runs: &[crate::BlockRun],
        blocks: &mut LayerBlocks<B>,
    ) {
        let (tokens, &LatentConfig { kv_rank, rope_dim, .. }) = (context.tokens, &self.config);
        let both = context.kernels.linear(&self.kv_a_proj, x).cast(DType::F32);
        let latent = context.kernels.norm(&self.kv_a_norm, both.clone().narrow(1, 0, kv_rank));
        let rope = both.narrow(1, kv_rank, rope_dim).reshape([tokens, 1, rope_dim]);
        let rope = self.rotated(rope, context).reshape([tokens, rope_dim]);
        let cached = Tensor::cat(vec![latent.cast(DType::F32), rope], 1).cast(blocks.dtype);
        let cached = cached.reshape([tokens, 1, kv_rank + rope_dim]);
        blocks.write(&cached, &cached, runs);
    }

    fn rotated(&self, x: Tensor<B, 3>, context: &ForwardContext<B>) -> Tensor<B, 3> {
        match self.angles {
            Some(angles) => context.angles[angles].rotate(x),
            None => x,
        }
    }

    /// Whether folding is cheaper for this number of queries. Folded, a query and a position take
    /// `2 kv_rank + rope_dim` multiplications per head; else they take `nope_dim + rope_dim + value_dim`, and each
    /// position `kv_rank (nope_dim + value_dim)` once.
    fn is_folded(&self, queries: usize) -> bool {
        let &LatentConfig { kv_rank, nope_dim, value_dim, .. } = &self.config;
        let more = (2 * kv_rank).saturating_sub(nope_dim + value_dim);
        queries * more <= kv_rank * (nope_dim + value_dim)
    }

    /// Attends with latent vectors as keys and values: `[queries, heads * value_dim]`.
    fn attend_to_latents(&self, of: Attended<'_, B>) -> Tensor<B, 2> {
        let &LatentConfig { num_heads: heads, kv_rank, value_dim, .. } = &self.config;
        let ([_, queries, _], [positions, width]) = (of.nope.dims(), of.cached.dims());
        let folded = of.nope.matmul(self.of_heads(&self.k_b));
        let q = Tensor::cat(vec![folded, of.rope], 2).reshape([heads * queries, width]);
        let scores = q.matmul(of.cached.clone().transpose()).reshape([heads, queries, positions]);
        let weights = self.weights(scores, of.mask).reshape([heads * queries, positions]);
        let latents = weights.matmul(of.cached.narrow(1, 0, kv_rank)).reshape([heads, queries, kv_rank]);
        let out = latents.matmul(self.of_heads(&self.v_b).swap_dims(1, 2));
        out.swap_dims(0, 1).reshape([queries, heads * value_dim])
    }

    /// Computes keys and values of all positions, and attends to them: `[queries, heads * value_dim]`.
    fn attend_to_heads(&self, of: Attended<'_, B>) -> Tensor<B, 2> {
        let &LatentConfig { num_heads: heads, kv_rank, nope_dim, rope_dim, value_dim, .. } = &self.config;
        let (queries, positions) = (of.nope.dims()[1], of.cached.dims()[0]);
        let latents = of.cached.clone().narrow(1, 0, kv_rank);
        // `[positions, heads, dim]` to `[heads, positions, dim]`.
        let of_heads = |map: &Param<Tensor<B, 2>>, dim: usize| {
            let all = latents.clone().matmul(map.val().cast(DType::F32).transpose());
            all.reshape([positions, heads, dim]).swap_dims(0, 1)
        };
        let (keys, values) = (of_heads(&self.k_b, nope_dim), of_heads(&self.v_b, value_dim));
        let rope = of.cached.narrow(1, kv_rank, rope_dim).reshape([1, positions, rope_dim]);
        let scores =
            of.nope.matmul(keys.swap_dims(1, 2)) + of.rope.matmul(rope.repeat_dim(0, heads).swap_dims(1, 2));
        let out = self.weights(scores, of.mask).matmul(values);
        out.swap_dims(0, 1).reshape([queries, heads * value_dim])
    }

    /// The softmax of scores `[heads, queries, positions]`, after factor and mask.
    fn weights(&self, scores: Tensor<B, 3>, mask: Option<&Tensor<B, 2>>) -> Tensor<B, 3> {
        let scores = scores.mul_scalar(self.config.scale);
        let scores = match mask {
            Some(mask) => scores + mask.clone().unsqueeze(),
            None => scores,
        };
        softmax(scores, 2)
    }

    /// A projection by heads, `[heads, dim, kv_rank]`, in float32.
    fn of_heads(&self, map: &Param<Tensor<B, 2>>) -> Tensor<B, 3> {
        let map = map.val().cast(DType::F32);
        let [rows, columns] = map.dims();
        let heads = self.config.num_heads;
        map.reshape([heads, rows / heads, columns])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::Flex;

    use super::*;
    use crate::RopeScaling;

    fn tensor<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<Flex, D> {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5);
        Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), shape), &Default::default())
    }

    fn attention() -> LatentAttention<Flex> {
        let config = LatentConfig {
            num_heads: 3,
            query_rank: None,
            kv_rank: 10,
            nope_dim: 6,
            rope_dim: 4,
            value_dim: 5,
            bias: false,
            norm_eps: 1e-6,
            rope: RopeConfig { theta: 1e4, dims: 4, scaling: RopeScaling::Default },
            scale: 0.3,
        };
        let mut attention = LatentAttention::new(8, &config, &[], &Default::default());
        attention.k_b = Param::from_tensor(tensor([3 * 6, 10], 1));
        attention.v_b = Param::from_tensor(tensor([3 * 5, 10], 2));
        attention
    }

    /// Folding the projections and computing all keys and values give the same result, with and without a mask.
    #[test]
    fn folded_is_computed() {
        let attention = attention();
        let mask = tensor([7, 9], 6);
        for mask in [None, Some(&mask)] {
            let attended = || Attended {
                nope: tensor([3, 7, 6], 3),
                rope: tensor([3, 7, 4], 4),
                cached: tensor([9, 14], 5),
                mask,
            };
            let folded = attention.attend_to_latents(attended());
            let computed = attention.attend_to_heads(attended());
            assert_eq!(folded.dims(), [7, 15]);
            let worst: f32 = (folded - computed).abs().max().into_scalar();
            assert!(worst < 1e-6, "{worst:e}");
        }
    }

    /// Few queries are folded, many are not: up to 170 with DeepSeek V3's sizes, any number if heads are as wide as
    /// the latent.
    #[test]
    fn few_queries_are_folded() {
        let mut attention = attention();
        let sizes = LatentConfig { kv_rank: 512, nope_dim: 128, value_dim: 128, ..attention.config.clone() };
        attention.config = sizes;
        assert!(attention.is_folded(1) && attention.is_folded(170) && !attention.is_folded(171));
        attention.config.kv_rank = 128;
        assert!(attention.is_folded(1 << 20));
    }
}
