//! Gated input rules: on the device, computes the next input as the sampled token's embedding moved towards the mean
//! embedding of the raw distribution.

use burn::tensor::{DType, Int, Tensor, backend::Backend};

use crate::{
    mix::{Mixed, Recorded, TopWeights, column},
    rows::EmbeddingRows,
    rule::{Gate, Gated, Support},
    top_k::top_k,
};

/// The next-token distribution of each row, restricted to the rule's support.
struct Distribution<B: Backend> {
    /// Probabilities `[n, support]`, in descending order if the support is top-k. The shape is arbitrary if no caller
    /// needs them.
    probability: Tensor<B, 2>,
    /// Token ids of the probabilities `[n, support]`; `None` means the whole vocabulary in order of ids.
    tokens: Option<Tensor<B, 2, Int>>,
    /// Entropy divided by ln(support) `[n, 1]`.
    entropy: Tensor<B, 2>,
    /// Mean embedding sum_i q_i E[i] `[n, d]`, if the embedding table has computed it already.
    mean: Option<Tensor<B, 2>>,
}

impl<B: Backend> Distribution<B> {
    /// The distributions of `logits` `[n, vocab]` on `support`. `candidates` says whether the largest weights will be
    /// reported, which needs the probabilities.
    fn new(
        logits: Tensor<B, 2>,
        support: Support,
        embedding: &impl EmbeddingRows<B>,
        gates: &[Gate],
        candidates: bool,
    ) -> Self {
        let vocab = logits.dims()[1];
        let mixes = gates.iter().any(|gate| *gate != Gated::TOKEN.gate);
        let is_full = !matches!(support, Support::TopK(k) if k < vocab);
        let known = (mixes && is_full).then(|| embedding.means(&logits, gates)).flatten();
        if let Some((mean, nats)) = known {
            let probability = match candidates {
                true => probabilities(&logits, embedding, true).0,
                false => nats.clone(),
            };
            let entropy = normalised(nats, vocab);
            return Self { probability, tokens: None, entropy, mean: Some(mean) };
        }
        let (logits, tokens, size) = match support {
            Support::TopK(k) if k < vocab => {
                let (values, tokens) = top_k(logits, k);
                (values, Some(tokens), k)
            }
            _ => (logits, None, vocab),
        };
        let (probability, nats) = match tokens {
            None => probabilities(&logits, embedding, mixes || candidates),
            Some(_) => softmax(logits),
        };
        Self { probability, tokens, entropy: normalised(nats, size), mean: None }
    }

    /// Mean embedding sum_i q_i E[i] `[n, d]` in float32.
    fn mean(&self, embedding: &impl EmbeddingRows<B>) -> Tensor<B, 2> {
        if let Some(mean) = &self.mean {
            return mean.clone();
        }
        let q = self.probability.clone();
        match &self.tokens {
            None => embedding.weighted_sum(q).cast(DType::F32),
            Some(tokens) => {
                let [n, k] = tokens.dims();
                let rows = embedding.rows(tokens.clone().reshape([n * k])).cast(DType::F32);
                let d = rows.dims()[1];
                q.reshape([n, 1, k]).matmul(rows.reshape([n, k, d])).reshape([n, d])
            }
        }
    }

    /// The weights g q_i + (1 - g) [i = y] of the `top` most likely tokens and of the sampled token y.
    fn candidates(&self, y: Tensor<B, 1, Int>, gate: Tensor<B, 2>, top: usize) -> TopWeights<B> {
        let [n, support] = self.probability.dims();
        let top = top.min(support);
        let (q, tokens) = match &self.tokens {
            None => top_k(self.probability.clone(), top),
            Some(tokens) => {
                (self.probability.clone().slice([0..n, 0..top]), tokens.clone().slice([0..n, 0..top]))
            }
        };
        let y = y.reshape([n, 1]);
        let q_y = match &self.tokens {
            None => self.probability.clone().gather(1, y.clone()),
            Some(all) => {
                (self.probability.clone() * all.clone().equal(y.clone()).float().cast(DType::F32)).sum_dim(1)
            }
        };
        let is_y = tokens.clone().equal(y.clone()).float().cast(DType::F32);
        let sampled = q_y * gate.clone() + gate.clone().neg().add_scalar(1.0);
        // The sampled token y has a column of its own with its whole weight. Its weight in the other columns is 0, so
        // that it is not counted twice.
        let others = q * gate * is_y.neg().add_scalar(1.0);
        TopWeights { tokens: Tensor::cat(vec![tokens, y], 1), weights: Tensor::cat(vec![others, sampled], 1) }
    }
}

/// Probabilities `[n, vocab]` and entropies in nats `[n, 1]` of `logits`. If `wanted` is false, the probabilities may
/// have any shape.
pub(crate) fn probabilities<B: Backend>(
    logits: &Tensor<B, 2>,
    embedding: &impl EmbeddingRows<B>,
    wanted: bool,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    embedding.distribution(logits, wanted).unwrap_or_else(|| softmax(logits.clone()))
}

/// Divides entropies in nats by ln(tokens), the largest entropy of a distribution over that many tokens.
fn normalised<B: Backend>(nats: Tensor<B, 2>, tokens: usize) -> Tensor<B, 2> {
    match tokens {
        1 => nats.zeros_like(),
        _ => nats.div_scalar((tokens as f64).ln()).clamp(0.0, 1.0),
    }
}

/// The softmax of `logits`, and its entropies in nats `[n, 1]`.
fn softmax<B: Backend>(logits: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    // H = ln S - sum q_i s_i with s_i = logit_i - max and S = sum exp s_i: one exponential per entry.
    // The clamp keeps q_i s_i = 0 where a logit is -infinity (0 ln 0 = 0).
    let shifted = logits.clone() - logits.max_dim(1);
    let shifted = shifted.clamp_min(-1e30);
    let exp = shifted.clone().exp();
    let sum = exp.clone().sum_dim(1);
    let probability = exp / sum.clone();
    let nats = sum.log() - (probability.clone() * shifted).sum_dim(1);
    (probability, nats)
}

/// The next inputs of rows whose rules share one support and which either all mix or all feed the token.
pub(crate) fn mix_gated<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    rules: &[Gated],
    top: usize,
) -> Mixed<B> {
    let n = rules.len();
    let device = logits.device();
    let mixes = rules[0].mixes();
    let gates: Vec<Gate> = rules.iter().map(|rule| rule.gate).collect();
    let distribution = Distribution::new(logits, rules[0].support, embedding, &gates, top > 0);
    let slope = column(rules.iter().map(|rule| rule.gate.slope).collect(), &device);
    let offset = column(rules.iter().map(|rule| rule.gate.offset).collect(), &device);
    let mut gate = (distribution.entropy.clone() * slope + offset).clamp(0.0, 1.0);
    if rules.iter().any(|rule| rule.gate.floor > 0.0) {
        let floor = column(rules.iter().map(|rule| rule.gate.floor).collect(), &device);
        let below = gate.clone().lower(floor);
        gate = gate.mask_fill(below, 0.0);
    }

    let token_rows = embedding.rows(tokens.clone());
    let inputs = if mixes {
        let dtype = token_rows.dtype();
        let token_rows = token_rows.cast(DType::F32);
        let mean = distribution.mean(embedding);
        (token_rows.clone() + (mean - token_rows) * gate.clone()).cast(dtype)
    } else {
        token_rows
    };
    let candidates = (top > 0).then(|| distribution.candidates(tokens, gate.clone(), top));
    let recorded = vec![Recorded::default(); n];
    let (entropy, gate) = (distribution.entropy.reshape([n]), gate.reshape([n]));
    Mixed { inputs, entropy, gate, recorded, candidates, top }
}
