//! Planned inputs: a rule lists embeddings and their weights on the host, and this module sums them.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use crate::{
    gated::probabilities,
    mix::{Mixed, Recorded, TopWeights, column},
    rows::EmbeddingRows,
    rule::{Gate, Plan, Raw},
};

/// The longest list of embeddings that are gathered one by one. A longer one becomes a weighted sum over the whole
/// table.
const MAX_LISTED: usize = 4096;

/// The inputs of rows that either all include the mean embedding of the distribution or all do not.
pub(crate) fn mix_plans<B: Backend>(
    logits: &Tensor<B, 2>,
    tokens: &Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    plans: &[&Plan],
    top: usize,
) -> Mixed<B> {
    let (n, device) = (plans.len(), logits.device());
    let mut inputs = listed(embedding, plans, &device);
    if plans.iter().any(|plan| plan.mean != 0.0) {
        let gates: Vec<Gate> = plans.iter().map(|plan| Gate::constant(plan.mean)).collect();
        let mean = match embedding.means(logits, &gates) {
            Some((mean, _)) => mean,
            None => {
                let (probability, _) = probabilities(logits, embedding, true);
                embedding.weighted_sum(probability).cast(DType::F32)
            }
        };
        inputs = inputs + mean * column(plans.iter().map(|plan| plan.mean).collect(), &device);
    }
    let dtype = embedding.rows(tokens.clone().narrow(0, 0, 1)).dtype();
    let numbers =
        |values: Vec<f32>| Tensor::<B, 1>::from_data(TensorData::new(values, [n]), (&device, DType::F32));
    let recorded = |plan: &&Plan| Recorded { token: Some(plan.token), ends: plan.ends };
    Mixed {
        inputs: inputs.cast(dtype),
        entropy: numbers(plans.iter().map(|plan| plan.entropy).collect()),
        gate: numbers(plans.iter().map(|plan| plan.gate).collect()),
        recorded: plans.iter().map(recorded).collect(),
        candidates: (top > 0).then(|| candidates(logits, plans, top)),
        top,
    }
}

/// The length that a plan's list is padded to. Rows of different lengths are computed apart, because matrix products
/// of different widths may add up in another order. `usize::MAX` stands for lists longer than [`MAX_LISTED`], which
/// are summed over the whole table.
pub(crate) fn width(plan: &Plan) -> usize {
    match plan.weights.len() {
        len if len > MAX_LISTED => usize::MAX,
        len => len.next_power_of_two(),
    }
}

/// The weighted sums of the embeddings that plans list `[n, d]`, in float32.
fn listed<B: Backend>(
    embedding: &impl EmbeddingRows<B>,
    plans: &[&Plan],
    device: &B::Device,
) -> Tensor<B, 2> {
    let n = plans.len();
    let width = plans.iter().map(|plan| width(plan)).max().unwrap_or(1);
    let vocab = embedding.dims()[0];
    if width > MAX_LISTED {
        let mut dense = vec![0.0f32; n * vocab];
        for (row, plan) in plans.iter().enumerate() {
            for &(token, weight) in &plan.weights {
                dense[row * vocab + token as usize] = weight;
            }
        }
        let dense = Tensor::from_data(TensorData::new(dense, [n, vocab]), (device, DType::F32));
        return embedding.weighted_sum(dense).cast(DType::F32);
    }
    let (tokens, weights) = padded(plans.iter().map(|plan| plan.weights.as_slice()), width);
    let tokens = Tensor::<B, 1, Int>::from_data(TensorData::new(tokens, [n * width]), device);
    let weights = Tensor::<B, 1>::from_data(TensorData::new(weights, [n * width]), (device, DType::F32));
    let rows = embedding.rows(tokens).cast(DType::F32);
    let d = rows.dims()[1];
    weights.reshape([n, 1, width]).matmul(rows.reshape([n, width, d])).reshape([n, d])
}

/// Concatenates lists, each padded to `width` with token 0 and weight 0.
fn padded<'a>(lists: impl Iterator<Item = &'a [(u32, f32)]>, width: usize) -> (Vec<i64>, Vec<f32>) {
    let (mut tokens, mut weights) = (Vec::new(), Vec::new());
    for list in lists {
        let filling = (0..width - list.len()).map(|_| (0, 0.0));
        for (token, weight) in list.iter().copied().chain(filling) {
            tokens.push(i64::from(token));
            weights.push(weight);
        }
    }
    (tokens, weights)
}

/// The largest weights of each row.
fn candidates<B: Backend>(logits: &Tensor<B, 2>, plans: &[&Plan], top: usize) -> TopWeights<B> {
    let [n, vocab] = logits.dims();
    let means = plans.iter().any(|plan| plan.mean != 0.0);
    let host =
        if means { logits.to_data().convert::<f32>() } else { TensorData::new(Vec::<f32>::new(), [0]) };
    let mut rows = host.as_slice::<f32>().unwrap_or_default().chunks(vocab);
    let lists: Vec<Vec<(u32, f32)>> = plans
        .iter()
        .map(|plan| {
            let mut list = plan.weights.clone();
            if let Some(logits) = rows.next() {
                add_mean(&mut list, plan.mean, logits, top);
            }
            list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            list.truncate(top);
            list
        })
        .collect();
    let width = lists.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let (tokens, weights) = padded(lists.iter().map(Vec::as_slice), width);
    let device = logits.device();
    TopWeights {
        tokens: Tensor::from_data(TensorData::new(tokens, [n, width]), &device),
        weights: Tensor::from_data(TensorData::new(weights, [n, width]), (&device, DType::F32)),
    }
}

/// Adds the most likely tokens of a mean embedding with weight `mean` to a list of weights.
fn add_mean(list: &mut Vec<(u32, f32)>, mean: f32, logits: &[f32], top: usize) {
    let raw = Raw::new(logits);
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let count = (top + list.len()).min(order.len());
    if count < order.len() {
        order.select_nth_unstable_by(count, by_logit);
        order.truncate(count);
    }
    for token in order {
        let weight = mean * raw.probability(logits[token as usize]) as f32;
        match list.iter_mut().find(|entry| entry.0 == token) {
            Some(entry) => entry.1 += weight,
            None => list.push((token, weight)),
        }
    }
}
