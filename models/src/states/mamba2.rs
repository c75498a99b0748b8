//! Mamba 2 (Dao and Gu, arXiv 2405.21060): each head has a state matrix that decays, and to which the inputs are
//! added.
//!
//! `S = exp(dt A) S + B (dt x)^T; y = S^T C + D x`, where dt is a step size of each head, and B and C are shared by
//! groups of heads. Prompts are computed in chunks, few positions one by one.

use burn::{
    module::{Module, Param},
    tensor::{
        DType, Tensor,
        activation::{silu, softplus},
        backend::Backend,
    },
};

use super::{
    CausalConv, HeadSteps, LayerState, Recurrent, States,
    chunks::{Chunks, MIN_CHUNKED},
    each_span,
};
use crate::{
    Kernels, Linear, Mamba2Config, Norm, NormConfig, NormKind, context::SpanContext, linear::uninitialized,
};

/// A Mamba 2 layer.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, SelfAttention};
///
/// let config = serde_json::json!({
///     "model_type": "nemotron_h", "vocab_size": 32, "hidden_size": 16, "hybrid_override_pattern": "M",
///     "mamba_num_heads": 4, "mamba_head_dim": 4, "n_groups": 2, "ssm_state_size": 8,
/// });
/// let config = Architecture::from_config(&config)?.config;
/// let model = config.init::<burn_flex::Flex>(&Default::default());
/// let Some(SelfAttention::Mamba2(mamba)) = &model.model.layers[0].self_attn else { panic!("it has one") };
/// // The gate; the convolution's channels, which are values, keys and queries; the step sizes.
/// assert_eq!(mamba.in_proj.weight.dims(), [16 + (16 + 16 + 16) + 4, 16]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct Mamba2<B: Backend> {
    /// Projection to the gate, the convolution's inputs, and the step sizes, `[inner + channels + heads, d]`.
    pub in_proj: Linear<B>,
    /// Convolution of values, B and C.
    pub conv: CausalConv<B>,
    /// Biases of the step sizes, `[heads]`.
    pub dt_bias: Param<Tensor<B, 1>>,
    /// The logarithm of -A, `[heads]`.
    pub a_log: Param<Tensor<B, 1>>,
    /// D, the factor of the direct path from a value to the output, `[heads]`.
    pub d: Param<Tensor<B, 1>>,
    /// Norm of the output, `[inner]`; its mean is over the values of a group.
    pub norm: Norm<B>,
    /// Output projection, `[d, inner]`.
    pub out_proj: Linear<B>,
    #[module(skip)]
    config: Mamba2Config,
}

impl<B: Backend> Mamba2<B> {
    pub(crate) fn new(d: usize, config: &Mamba2Config, device: &B::Device) -> Self {
        let (inner, channels, heads) = (config.inner_width(), config.conv_width(), config.num_heads);
        let per_head = || uninitialized([heads], device);
        let norm = NormConfig { kind: NormKind::Rms, eps: config.norm_eps };
        Self {
            in_proj: Linear::new(d, inner + channels + heads, config.bias, device),
            conv: CausalConv::new(channels, config.conv_kernel, config.conv_bias, device),
            dt_bias: per_head(),
            a_log: per_head(),
            d: per_head(),
            norm: Norm::new(inner, norm, device),
            out_proj: Linear::new(inner, d, config.bias, device),
            config: config.clone(),
        }
    }

    /// The step size of each head, `[tokens, heads]`.
    fn steps(&self, dt: Tensor<B, 2>) -> Tensor<B, 2> {
        let dt = softplus(dt + self.dt_bias.val().cast(DType::F32).unsqueeze(), 1.0);
        let [least, most] = self.config.step_limits;
        // A step size is always above 0.
        let dt = if least > 0.0 { dt.clamp_min(least) } else { dt };
        if most.is_finite() { dt.clamp_max(most) } else { dt }
    }

    /// Multiplies the output `[tokens, inner]` with the gate, and normalizes it by groups.
    fn normed(&self, out: Tensor<B, 2>, gate: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        let ([tokens, inner], groups) = (out.dims(), self.config.num_groups);
        let out = out * silu(gate);
        if groups == 1 {
            return kernels.norm(&self.norm, out);
        }
        let x = out.reshape([tokens * groups, inner / groups]);
        let mean_square = (x.clone() * x.clone()).mean_dim(1);
        let x = x / mean_square.add_scalar(self.config.norm_eps).sqrt();
        let x = x.reshape([tokens, inner]);
        match &self.norm.weight {
            Some(weight) => x * weight.val().cast(DType::F32).unsqueeze(),
            None => x,
        }
    }
}

impl<B: Backend> Recurrent<B> for Mamba2<B> {
    fn forward(
        &self,
        x: Tensor<B, 2>,
        spans: &[SpanContext],
        states: &mut dyn States<B>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2> {
        let &Mamba2Config { num_heads: heads, head_dim, num_groups: groups, state_size, .. } = &self.config;
        let (inner, channels) = (self.config.inner_width(), self.config.conv_width());
        let all = kernels.linear(&self.in_proj, x).cast(DType::F32);
        let gate = all.clone().narrow(1, 0, inner);
        let mixed = all.clone().narrow(1, inner, channels);
        let dt = self.steps(all.narrow(1, inner + channels, heads));
        let rate = self.a_log.val().cast(DType::F32).exp().neg();
        let decay = dt.clone() * rate.unsqueeze();
        let direct = self.d.val().cast(DType::F32).reshape([1, heads, 1]);
        let out = each_span(spans, states, |first, len, state| {
            let (last, matrices) = match state {
                Some(state) => (Some(state.inputs), state.matrices),
                None => (None, None),
            };
            let (mixed, inputs) = self.conv.forward(mixed.clone().narrow(0, first, len), last);
            let mixed = silu(mixed);
            let values = mixed.clone().narrow(1, 0, inner).reshape([len, heads, head_dim]);
            let of_groups = |at: usize| {
                let keys = groups * state_size;
                mixed.clone().narrow(1, inner + at * keys, keys).reshape([len, groups, state_size])
            };
            let of_span = |x: &Tensor<B, 2>| x.clone().narrow(0, first, len);
            let steps = HeadSteps {
                q: of_groups(1),
                k: of_groups(0),
                v: values.clone() * of_span(&dt).reshape([len, heads, 1]),
                decay: of_span(&decay),
                beta: None,
            };
            let matrices = matrices.unwrap_or_else(|| steps.zeros());
            let (out, matrices) = match kernels.state_steps(&steps, matrices) {
                Ok(run) => run,
                Err(matrices) => Steps(steps).run(matrices),
            };
            let out = out + values * direct.clone();
            (out.reshape([len, inner]), LayerState { inputs, matrices: Some(matrices) })
        });
        kernels.linear(&self.out_proj, self.normed(out, gate, kernels))
    }
}

/// Positions of one sequence, computed by tensor operations: queries are C, keys are B, values are times their step
/// sizes.
struct Steps<B: Backend>(HeadSteps<B>);

impl<B: Backend> Steps<B> {
    /// The outputs `[n, heads, width]`, and the state matrices `[heads, keys, values]` after all positions.
    fn run(self, matrices: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        match self.0.v.dims()[0] {
            ..MIN_CHUNKED => self.one_by_one(matrices),
            _ => self.in_chunks(matrices),
        }
    }

    fn one_by_one(self, mut matrices: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let HeadSteps { q, k, v, decay, .. } = self.0;
        let ([n, heads, values], [_, groups, keys]) = (v.dims(), k.dims());
        let mut out = Vec::with_capacity(n);
        for at in 0..n {
            let of_group = |x: &Tensor<B, 3>| {
                let row = x.clone().narrow(0, at, 1).reshape([groups, 1, keys]);
                spread(row, groups, heads)
            };
            let v = v.clone().narrow(0, at, 1).reshape([heads, 1, values]);
            let decay = decay.clone().narrow(0, at, 1).reshape([heads, 1, 1]).exp();
            let k = of_group(&k).reshape([heads, keys, 1]);
            matrices = matrices * decay + k.matmul(v);
            out.push(of_group(&q).matmul(matrices.clone()).reshape([1, heads, values]));
        }
        let out = if n == 1 { out.remove(0) } else { Tensor::cat(out, 0) };
        (out, matrices)
    }

    fn in_chunks(self, mut matrices: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let HeadSteps { q, k, v, decay, .. } = self.0;
        let ([n, heads, _], groups) = (v.dims(), k.dims()[1]);
        let chunks = Chunks::new(n);
        let (q, k, v) = (chunks.filled(q), chunks.filled(k), chunks.filled(v));
        let decays = chunks.decays(chunks.column(decay));
        let (left, last, pairs) = (decays.left.clone(), decays.last(), decays.pairs);
        // Products of C and B are computed only once per group.
        let within = spread(q.clone().matmul(k.clone().swap_dims(1, 2)), groups, heads) * pairs;
        let q_left = spread(q, groups, heads) * left.clone().exp();
        let k_left = spread(k, groups, heads) * (last.clone() - left).exp();
        let last = last.exp();
        let mut out = Vec::with_capacity(chunks.count());
        for chunk in 0..chunks.count() {
            let part = |x: &Tensor<B, 3>| chunks.part(x, chunk);
            let new = part(&v);
            let before = part(&q_left).matmul(matrices.clone());
            out.push(before + part(&within).matmul(new.clone()));
            matrices = matrices * part(&last) + part(&k_left).swap_dims(1, 2).matmul(new);
        }
        (chunks.joined(out), matrices)
    }
}

/// Repeats what each group has, `[groups * n, rows, width]`, for each of its heads: `[heads * n, rows, width]`.
fn spread<B: Backend>(x: Tensor<B, 3>, groups: usize, heads: usize) -> Tensor<B, 3> {
    let ([all, rows, width], each) = (x.dims(), heads / groups);
    if each == 1 {
        return x;
    }
    let of_group = all / groups * rows * width;
    let spread = x.reshape([groups, 1, of_group]).repeat_dim(1, each);
    spread.reshape([all * each, rows, width])
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::Flex;

    use super::*;

    fn tensor<const D: usize>(shape: [usize; D], seed: usize) -> Tensor<Flex, D> {
        let count: usize = shape.iter().product();
        let values = (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5);
        Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), shape), &Default::default())
    }

    fn steps(n: usize, [heads, groups, keys, values]: [usize; 4]) -> Steps<Flex> {
        Steps(HeadSteps {
            q: tensor([n, groups, keys], 1),
            k: tensor([n, groups, keys], 2),
            v: tensor([n, heads, values], 3),
            decay: tensor([n, heads], 4).sub_scalar(0.5).mul_scalar(0.2),
            beta: None,
        })
    }

    /// Chunks give the same as single steps: whole ones and a part of one, from zeros and from a state; with several
    /// groups, and with a single one.
    #[test]
    fn chunks_are_single_steps() {
        for (n, groups) in [(16, 2), (64, 1), (65, 3), (150, 2)] {
            let sizes = [6, groups, 8, 4];
            let state = tensor([6, 8, 4], 6);
            let (expected, expected_state) = steps(n, sizes).one_by_one(state.clone());
            let (found, found_state) = steps(n, sizes).in_chunks(state);
            let error = |a: Tensor<Flex, 3>, b: Tensor<Flex, 3>| {
                let largest: f32 = b.clone().abs().max().into_scalar();
                let worst: f32 = (a - b).abs().max().into_scalar();
                worst / largest
            };
            let (outs, states) = (error(found, expected), error(found_state, expected_state));
            assert!(outs < 1e-5 && states < 1e-5, "{n}: {outs:e}, {states:e}");
        }
    }

    /// Single steps give the same as plain loops in float64.
    #[test]
    fn steps_are_plain_loops() {
        let ([heads, groups, keys, values], n) = ([6, 2, 3, 4], 5);
        let steps = steps(n, [heads, groups, keys, values]);
        let read = |x: Vec<f32>| -> Vec<f64> { x.into_iter().map(f64::from).collect() };
        let HeadSteps { q, k, v, decay, .. } = &steps.0;
        let [q, k, v] = [q, k, v].map(|x| read(x.clone().into_data().to_vec().unwrap()));
        let decay = read(decay.clone().into_data().to_vec().unwrap());
        let zeros = steps.0.zeros();
        let found = read(steps.run(zeros).0.into_data().to_vec().unwrap());
        for head in 0..heads {
            let (group, mut state) = (head / (heads / groups), vec![0.0; keys * values]);
            for at in 0..n {
                let of_group = |x: &[f64], key: usize| x[(at * groups + group) * keys + key];
                let value = |j: usize| (at * heads + head) * values + j;
                for key in 0..keys {
                    for j in 0..values {
                        let one = &mut state[key * values + j];
                        *one = *one * decay[at * heads + head].exp() + of_group(&k, key) * v[value(j)];
                    }
                }
                for j in 0..values {
                    let expected: f64 =
                        (0..keys).map(|key| of_group(&q, key) * state[key * values + j]).sum();
                    assert!((found[value(j)] - expected).abs() < 1e-6, "{head} {at} {j}");
                }
            }
        }
    }
}
