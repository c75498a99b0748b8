//! Grouped-query attention over the cache.

use burn::{
    module::Module,
    tensor::{DType, Tensor, TensorData, activation::softmax, backend::Backend},
};

use crate::{AttentionConfig, KvCache, Linear, rope::Angles};

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
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

/// What all layers of a step share: where its columns lie and what they may see.
#[derive(Clone, Debug)]
pub(crate) struct Step<B: Backend> {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    /// The model's context length: no buffer grows beyond it.
    pub(crate) limit: usize,
    pub(crate) angles: Angles<B>,
    /// Added to the scores, `[batch or 1, 1, 1, seq, columns]`: 0 where a column is seen, very negative where not.
    pub(crate) bias: Option<Tensor<B, 5>>,
}

impl<B: Backend> Step<B> {
    pub(crate) fn new(
        seq: usize,
        limit: usize,
        cache: &KvCache<B>,
        frequencies: &[f64],
        device: &B::Device,
    ) -> Self {
        let first = cache.starts()[0];
        // Rows that start together share positions and mask.
        let starts = match cache.starts().iter().all(|&start| start == first) {
            true => &cache.starts()[..1],
            false => cache.starts(),
        };
        let past = cache.len();
        let positions: Vec<Vec<usize>> = starts
            .iter()
            .map(|&start| (past..past + seq).map(|c| c.saturating_sub(start)).collect())
            .collect();
        let angles = Angles::new(frequencies, &positions, device);
        let bias = causal_bias(starts, past, seq, device);
        Self { batch: cache.batch(), seq, limit, angles, bias }
    }
}

/// Which columns each of `seq` new positions sees; none needed for one position that sees everything.
fn causal_bias<B: Backend>(
    starts: &[usize],
    past: usize,
    seq: usize,
    device: &B::Device,
) -> Option<Tensor<B, 5>> {
    if seq == 1 && starts.iter().all(|&start| start == 0) {
        return None;
    }
    // Finite, and representable in float16: a row that sees nothing must not become NaN.
    const HIDDEN: f32 = -6e4;
    let columns = past + seq;
    let mut bias = Vec::with_capacity(starts.len() * seq * columns);
    for &start in starts {
        for query in past..columns {
            bias.extend((0..columns).map(|c| if (start..=query).contains(&c) { 0.0 } else { HIDDEN }));
        }
    }
    let data = TensorData::new(bias, [starts.len(), 1, 1, seq, columns]);
    Some(Tensor::from_data(data, (device, DType::F32)))
}

impl<B: Backend> Attention<B> {
    /// Attention for a residual stream of `hidden_size`.
    pub fn new(hidden_size: usize, config: &AttentionConfig, device: &B::Device) -> Self {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, bias, .. } = config;
        let linear = |inputs, outputs| Linear::new(inputs, outputs, bias, device);
        Self {
            q_proj: linear(hidden_size, num_heads * head_dim),
            k_proj: linear(hidden_size, num_kv_heads * head_dim),
            v_proj: linear(hidden_size, num_kv_heads * head_dim),
            o_proj: linear(num_heads * head_dim, hidden_size),
            num_heads,
            num_kv_heads,
            head_dim,
        }
    }

    /// `[batch * seq, d]` to `[batch * seq, d]`, adding keys and values to layer `layer` of the cache.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        layer: usize,
        step: &Step<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 2> {
        let &Step { batch, seq, .. } = step;
        let heads =
            |x: Tensor<B, 2>, heads: usize| x.reshape([batch, seq, heads, self.head_dim]).swap_dims(1, 2);
        let q = step.angles.rotate(heads(self.q_proj.forward(x.clone()), self.num_heads));
        let k = step.angles.rotate(heads(self.k_proj.forward(x.clone()), self.num_kv_heads));
        let v = heads(self.v_proj.forward(x), self.num_kv_heads);
        let (k, v) = cache.append(layer, k, v, step.limit);

        let out = self.attend(q, k, v, step);
        let out = out.swap_dims(1, 2).reshape([batch * seq, self.num_heads * self.head_dim]);
        self.o_proj.forward(out)
    }

    /// softmax(q k^T / sqrt(head_dim) + bias) v: `[batch, heads, seq, head_dim]`.
    ///
    /// The query heads of a group are folded into the sequence, so keys and values are never repeated.
    fn attend(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, v: Tensor<B, 4>, step: &Step<B>) -> Tensor<B, 4> {
        let &Step { batch, seq, .. } = step;
        let (kv, columns) = (self.num_kv_heads, k.dims()[2]);
        let group = self.num_heads / kv;
        let scale = (self.head_dim as f64).powf(-0.5);
        let q = q.mul_scalar(scale).reshape([batch, kv, group * seq, self.head_dim]);
        let mut scores = q.matmul(k.swap_dims(2, 3)).cast(DType::F32);
        if let Some(bias) = &step.bias {
            let split = scores.reshape([batch, kv, group, seq, columns]) + bias.clone();
            scores = split.reshape([batch, kv, group * seq, columns]);
        }
        let weights = softmax(scores, 3).cast(v.dtype());
        weights.matmul(v).reshape([batch, self.num_heads, seq, self.head_dim])
    }
}
