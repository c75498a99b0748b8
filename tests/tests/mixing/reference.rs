//! An independent implementation of the method: weights per token, in float64, straight from the formulas.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi::{ConstantGate, InputRule, Moi, RowMix, Support, next_inputs};

/// The entropy, and the weights over the whole vocabulary.
pub(crate) fn weight_form(logits: &[f64], y: usize, rule: InputRule) -> (f64, Vec<f64>) {
    let vocab = logits.len();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut q: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
    let mut size = vocab;
    if let Support::TopK(k) = rule.support() {
        size = k.min(vocab);
        let mut order: Vec<usize> = (0..vocab).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        for &outside in &order[size..] {
            q[outside] = 0.0;
        }
    }
    let sum: f64 = q.iter().sum();
    q.iter_mut().for_each(|q| *q /= sum);
    let nats: f64 = q.iter().filter(|&&q| q > 0.0).map(|q| -q * q.ln()).sum();
    let h = if size == 1 { 0.0 } else { (nats / (size as f64).ln()).clamp(0.0, 1.0) };
    let one_hot = |i: usize| f64::from(u8::from(i == y));
    let weights = (0..vocab).map(|i| match rule {
        InputRule::Token(_) => one_hot(i),
        // Spec: w_i = (H q_i + (beta + 1 - H) [i = y]) / (beta + 1).
        InputRule::Moi(Moi { beta, floor, .. }) if h / (beta + 1.0) < floor => one_hot(i),
        InputRule::Moi(Moi { beta, .. }) => (h * q[i] + (beta + 1.0 - h) * one_hot(i)) / (beta + 1.0),
        InputRule::Direct(_) => q[i],
        InputRule::Gate(ConstantGate { gate, .. }) => gate * q[i] + (1.0 - gate) * one_hot(i),
        _ => panic!("`{}` is more than a gate", rule.name()),
    });
    (h, weights.collect())
}

/// The output of the layer for a batch: the inputs, row by row, and the report.
pub(crate) fn layer<B: Backend>(
    logits: &[Vec<f32>],
    tokens: &[usize],
    table: &[Vec<f32>],
    rules: &[InputRule],
    top: usize,
) -> (Vec<Vec<f32>>, Vec<RowMix>) {
    let device = B::Device::default();
    let matrix = |rows: &[Vec<f32>]| {
        let shape = [rows.len(), rows[0].len()];
        Tensor::<B, 2>::from_data(TensorData::new(rows.concat(), shape), &device)
    };
    let ids: Vec<i64> = tokens.iter().map(|&y| y as i64).collect();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &device);
    let mixed = next_inputs(matrix(logits), ids, &matrix(table), rules, top).unwrap();
    let inputs: Vec<f32> = mixed.inputs.clone().into_data().iter::<f32>().collect();
    let d = table[0].len();
    (inputs.chunks(d).map(<[f32]>::to_vec).collect(), mixed.into_rows())
}

/// An identity table, with which the next input equals the weights.
pub(crate) fn identity(vocab: usize) -> Vec<Vec<f32>> {
    (0..vocab).map(|i| (0..vocab).map(|j| if i == j { 1.0 } else { 0.0 }).collect()).collect()
}
