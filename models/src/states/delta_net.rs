//! The gated delta net (Yang et al., arXiv 2412.06464): each head has a state matrix that decays, and is updated by
//! the delta rule.
//!
//! `S = decay S; S = S + k (beta (v - S^T k))^T; o = S^T q`. Prompts are computed in chunks, in which the updates are
//! the solution of a triangular system (the WY form, arXiv 2406.06484); few positions are computed one by one.

use burn::{
    module::{Module, Param},
    tensor::{
        DType, Tensor,
        activation::{sigmoid, silu, softplus},
        backend::Backend,
    },
};

use super::{
    CausalConv, HeadSteps, LayerState, Recurrent, States,
    chunks::{CHUNK, Chunks, MIN_CHUNKED, square, triangle},
    each_span,
};
use crate::{
    DeltaNetConfig, Kernels, Linear, Norm, NormConfig, NormKind, context::SpanContext, linear::uninitialized,
};

/// Rows of a triangular matrix that is inverted by a sum of powers; the values of the powers grow with the number of
/// rows.
const POWER_ROWS: usize = 8;
/// Epsilon of the L2 norm of queries and keys.
const LENGTH_EPS: f64 = 1e-6;

/// A gated delta net.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, SelfAttention};
///
/// let config = serde_json::json!({
///     "model_type": "qwen3_5_text", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
///     "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
///     "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 4,
///     "linear_value_head_dim": 4,
/// });
/// let config = Architecture::from_config(&config)?.config;
/// let model = config.init::<burn_flex::Flex>(&Default::default());
/// let Some(SelfAttention::DeltaNet(net)) = &model.model.layers[0].self_attn else { panic!("it has one") };
/// assert_eq!((net.in_proj_k.weight.dims(), net.in_proj_v.weight.dims()), ([4, 16], [8, 16]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct DeltaNet<B: Backend> {
    /// Query projection, `[key heads * key width, d]`.
    pub in_proj_q: Linear<B>,
    /// Key projection, `[key heads * key width, d]`.
    pub in_proj_k: Linear<B>,
    /// Value projection, `[value heads * value width, d]`.
    pub in_proj_v: Linear<B>,
    /// Gate on the output, `[value heads * value width, d]`.
    pub in_proj_z: Linear<B>,
    /// Projection to the step size of the delta rule, `[value heads, d]`.
    pub in_proj_b: Linear<B>,
    /// Projection to the decay, `[value heads, d]`.
    pub in_proj_a: Linear<B>,
    /// Convolution of queries, keys and values.
    pub conv: CausalConv<B>,
    /// Bias of the projection to the decay, `[value heads]`.
    pub dt_bias: Param<Tensor<B, 1>>,
    /// Logarithm of the decay's rate, `[value heads]`.
    pub a_log: Param<Tensor<B, 1>>,
    /// Norm over each value head.
    pub norm: Norm<B>,
    /// Output projection, `[d, value heads * value width]`.
    pub out_proj: Linear<B>,
    #[module(skip)]
    config: DeltaNetConfig,
}

impl<B: Backend> DeltaNet<B> {
    pub(crate) fn new(d: usize, config: &DeltaNetConfig, device: &B::Device) -> Self {
        let (keys, values) = (config.key_width(), config.value_width());
        let inward = |outputs| Linear::new(d, outputs, false, device);
        let per_head = || uninitialized([config.num_value_heads], device);
        let norm = NormConfig { kind: NormKind::Rms, eps: config.norm_eps };
        Self {
            in_proj_q: inward(keys),
            in_proj_k: inward(keys),
            in_proj_v: inward(values),
            in_proj_z: inward(values),
            in_proj_b: inward(config.num_value_heads),
            in_proj_a: inward(config.num_value_heads),
            conv: CausalConv::new(2 * keys + values, config.conv_kernel, false, device),
            dt_bias: per_head(),
            a_log: per_head(),
            norm: Norm::new(config.value_head_dim, norm, device),
            out_proj: Linear::new(values, d, false, device),
            config: config.clone(),
        }
    }

    /// Queries, keys and values of a span, `[n, value heads, width]` each, from the output of the convolution
    /// `[n, channels]`.
    fn heads(&self, mixed: Tensor<B, 2>) -> [Tensor<B, 3>; 3] {
        let &DeltaNetConfig { num_key_heads, num_value_heads, key_head_dim, value_head_dim, .. } =
            &self.config;
        let (n, keys) = (mixed.dims()[0], self.config.key_width());
        let of_keys = |first: usize| {
            let x = mixed.clone().narrow(1, first, keys).reshape([n, num_key_heads, key_head_dim]);
            let length = (x.clone() * x.clone()).sum_dim(2).add_scalar(LENGTH_EPS).sqrt();
            let (x, each) = (x / length, num_value_heads / num_key_heads);
            let spread = x.reshape([n, num_key_heads, 1, key_head_dim]).repeat_dim(2, each);
            spread.reshape([n, num_value_heads, key_head_dim])
        };
        let v = mixed.clone().narrow(1, 2 * keys, self.config.value_width());
        let v = v.reshape([n, num_value_heads, value_head_dim]);
        [of_keys(0).mul_scalar((key_head_dim as f64).powf(-0.5)), of_keys(keys), v]
    }
}

impl<B: Backend> Recurrent<B> for DeltaNet<B> {
    fn forward(
        &self,
        x: Tensor<B, 2>,
        spans: &[SpanContext],
        states: &mut dyn States<B>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2> {
        let single = |layer: &Linear<B>| kernels.linear(layer, x.clone()).cast(DType::F32);
        let qkv = kernels.qkv([&self.in_proj_q, &self.in_proj_k, &self.in_proj_v], x.clone());
        let mixed = Tensor::cat(qkv.map(|part| part.cast(DType::F32)).into(), 1);
        let (z, beta) = (single(&self.in_proj_z), sigmoid(single(&self.in_proj_b)));
        let number = |of: &Param<Tensor<B, 1>>| of.val().cast(DType::F32).unsqueeze::<2>();
        let decay = (softplus(single(&self.in_proj_a) + number(&self.dt_bias), 1.0)
            * number(&self.a_log).exp())
        .neg();
        let width = self.config.value_width();
        let out = each_span(spans, states, |first, len, state| {
            let (last, matrices) = match state {
                Some(state) => (Some(state.inputs), state.matrices),
                None => (None, None),
            };
            let (mixed, inputs) = self.conv.forward(mixed.clone().narrow(0, first, len), last);
            let [q, k, v] = self.heads(silu(mixed));
            let of_span = |x: &Tensor<B, 2>| x.clone().narrow(0, first, len);
            let steps = HeadSteps { q, k, v, decay: of_span(&decay), beta: Some(of_span(&beta)) };
            let matrices = matrices.unwrap_or_else(|| steps.zeros());
            let (out, matrices) = match kernels.state_steps(&steps, matrices) {
                Ok(run) => run,
                Err(matrices) => Steps::new(steps).run(matrices),
            };
            (out.reshape([len, width]), LayerState { inputs, matrices: Some(matrices) })
        });
        let ([tokens, _], head) = (out.dims(), self.config.value_head_dim);
        let normed = kernels.norm(&self.norm, out.reshape([tokens * width / head, head]));
        kernels.linear(&self.out_proj, normed.reshape([tokens, width]) * silu(z))
    }
}

/// Positions of one sequence: queries, keys and values `[n, heads, width]`, and for each position the step size of
/// the delta rule and the logarithm of the decay, `[n, heads]`.
struct Steps<B: Backend> {
    q: Tensor<B, 3>,
    k: Tensor<B, 3>,
    v: Tensor<B, 3>,
    beta: Tensor<B, 2>,
    decay: Tensor<B, 2>,
}

impl<B: Backend> Steps<B> {
    fn new(HeadSteps { q, k, v, decay, beta }: HeadSteps<B>) -> Self {
        // A delta net always has a `beta`; without one, no position would change the state.
        let beta = beta.unwrap_or_else(|| decay.zeros_like());
        Self { q, k, v, beta, decay }
    }

    /// The outputs `[n, heads, width]`, and the state matrices `[heads, keys, values]` after all positions.
    fn run(self, matrices: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        match self.k.dims()[0] {
            ..MIN_CHUNKED => self.one_by_one(matrices),
            _ => self.in_chunks(matrices),
        }
    }

    fn one_by_one(self, mut matrices: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let ([n, heads, keys], values) = (self.k.dims(), self.v.dims()[2]);
        let mut out = Vec::with_capacity(n);
        for at in 0..n {
            let row = |x: &Tensor<B, 3>, width: usize| x.clone().narrow(0, at, 1).reshape([heads, 1, width]);
            let number = |x: &Tensor<B, 2>| x.clone().narrow(0, at, 1).reshape([heads, 1, 1]);
            let (q, k, v) = (row(&self.q, keys), row(&self.k, keys), row(&self.v, values));
            matrices = matrices * number(&self.decay).exp();
            let correction = (v - k.clone().matmul(matrices.clone())) * number(&self.beta);
            matrices = matrices + k.reshape([heads, keys, 1]).matmul(correction);
            out.push(q.matmul(matrices.clone()).reshape([1, heads, values]));
        }
        let out = if n == 1 { out.remove(0) } else { Tensor::cat(out, 0) };
        (out, matrices)
    }

    fn in_chunks(self, mut matrices: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let (chunks, device) = (Chunks::new(self.k.dims()[0]), self.k.device());
        // Padding positions do not change the state, and have no decay.
        let (q, k, v) = (chunks.filled(self.q), chunks.filled(self.k), chunks.filled(self.v));
        let beta = chunks.column(self.beta);
        let decays = chunks.decays(chunks.column(self.decay));
        let (left, last, pairs) = (decays.left.clone(), decays.last(), decays.pairs);
        let below = triangle::<B>(&device, |row, column| if row > column { 1.0 } else { 0.0 });
        let k_beta = k.clone() * beta.clone();
        let system = k_beta.clone().matmul(k.clone().swap_dims(1, 2)) * pairs.clone() * below;
        let inverse = inverse_of_unit_plus(system);
        let corrections = inverse.clone().matmul(v * beta);
        let known = inverse.matmul(k_beta * left.clone().exp());
        let within = q.clone().matmul(k.clone().swap_dims(1, 2)) * pairs;
        let (q_left, k_left) = (q * left.clone().exp(), k * (last.clone() - left).exp());
        let last = last.exp();
        let mut out = Vec::with_capacity(chunks.count());
        for chunk in 0..chunks.count() {
            let part = |x: &Tensor<B, 3>| chunks.part(x, chunk);
            let new = part(&corrections) - part(&known).matmul(matrices.clone());
            let before = part(&q_left).matmul(matrices.clone());
            out.push(before + part(&within).matmul(new.clone()));
            matrices = matrices * part(&last) + part(&k_left).swap_dims(1, 2).matmul(new);
        }
        (chunks.joined(out), matrices)
    }
}

/// The inverses of the unit matrix plus strictly lower triangular matrices `[n, chunk, chunk]`. Small blocks are
/// inverted by a sum of powers, of which all but a few are 0; a pair of inverted blocks gives the inverse of a block
/// of twice the size. Powers of whole chunks would be too large to cancel in float32.
fn inverse_of_unit_plus<B: Backend>(system: Tensor<B, 3>) -> Tensor<B, 3> {
    let ([n, ..], device) = (system.dims(), system.device());
    let block = |row: usize, column: usize, size: usize| {
        system.clone().narrow(1, row * size, size).narrow(2, column * size, size)
    };
    let unit = square::<B>(&device, POWER_ROWS, |row, column| if row == column { 1.0 } else { 0.0 });
    let small = |at: usize| {
        let one = block(at, at, POWER_ROWS);
        let two = one.clone().matmul(one.clone());
        let four = two.clone().matmul(two.clone());
        (unit.clone() - one).matmul(unit.clone() + two).matmul(unit.clone() + four)
    };
    let mut inverses: Vec<Tensor<B, 3>> = (0..CHUNK / POWER_ROWS).map(small).collect();
    let mut size = POWER_ROWS;
    while inverses.len() > 1 {
        let zeros = Tensor::zeros([n, size, size], (&device, DType::F32));
        let pair = |(at, halves): (usize, &[Tensor<B, 3>])| {
            let [first, second] = halves else { return halves[0].clone() };
            let corner = second.clone().matmul(block(2 * at + 1, 2 * at, size)).matmul(first.clone()).neg();
            let above = Tensor::cat(vec![first.clone(), zeros.clone()], 2);
            Tensor::cat(vec![above, Tensor::cat(vec![corner, second.clone()], 2)], 1)
        };
        inverses = inverses.chunks(2).enumerate().map(pair).collect();
        size *= 2;
    }
    inverses.remove(0)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::Flex;

    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5).collect()
    }

    fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    fn steps(heads: usize, n: usize, keys: usize, values: usize) -> Steps<Flex> {
        let unit = |x: Tensor<Flex, 3>| x.clone() / (x.clone() * x).sum_dim(2).sqrt();
        Steps {
            q: unit(tensor(numbers(heads * n * keys, 1), [n, heads, keys])),
            // The keys are similar, so that updates are large.
            k: unit(tensor(numbers(heads * n * keys, 2), [n, heads, keys]).add_scalar(1.0)),
            v: tensor(numbers(heads * n * values, 3), [n, heads, values]),
            beta: tensor(numbers(heads * n, 4), [n, heads]).add_scalar(0.5),
            decay: tensor(numbers(heads * n, 5), [n, heads]).sub_scalar(0.5).mul_scalar(0.2),
        }
    }

    /// Chunks give the same as single steps: whole ones and a part of one, from zeros and from a state.
    #[test]
    fn chunks_are_single_steps() {
        for n in [16, 64, 65, 150] {
            let (heads, keys, values) = (3, 8, 4);
            let state = tensor(numbers(heads * keys * values, 6), [heads, keys, values]);
            let (expected, expected_state) = steps(heads, n, keys, values).one_by_one(state.clone());
            let (found, found_state) = steps(heads, n, keys, values).in_chunks(state);
            let error = |a: Tensor<Flex, 3>, b: Tensor<Flex, 3>| {
                let largest: f32 = b.clone().abs().max().into_scalar();
                let worst: f32 = (a - b).abs().max().into_scalar();
                worst / largest
            };
            let (outs, states) = (error(found, expected), error(found_state, expected_state));
            assert!(outs < 1e-5 && states < 1e-5, "{n}: {outs:e}, {states:e}");
        }
    }

    /// The worst system: all keys are equal, with full step size and no decay.
    #[test]
    fn equal_keys_are_inverted() {
        let below = triangle::<Flex>(&Default::default(), |row, column| if row > column { 1.0 } else { 0.0 });
        let unit = triangle::<Flex>(&Default::default(), |row, column| if row == column { 1.0 } else { 0.0 });
        let product = inverse_of_unit_plus(below.clone()).matmul(below + unit.clone());
        let worst: f32 = (product - unit).abs().max().into_scalar();
        assert!(worst < 1e-5, "{worst:e}");
    }
}
