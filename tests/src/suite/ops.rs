//! Tests of the input layer at the sizes of real models, against the formulas in float64.

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, backend::Backend};
use moi_backends::{DeviceName, FloatType, Job, float_types};
use moi_engine::{InputRule, Support};

use crate::values;

const VOCAB: usize = 12_289;
const WIDTH: usize = 160;
/// Number of reported weights.
const TOP: usize = 5;

/// Tests entropies, gates, weights and inputs of a batch with all rules, and a table of every number type of the
/// device.
#[derive(Debug)]
pub(super) struct Mixing(pub(super) DeviceName);

impl Job for Mixing {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for kind in float_types::<B>(device) {
            mix::<B>(self.0, kind, device);
        }
    }
}

fn rules() -> Vec<InputRule> {
    vec![
        InputRule::TOKEN,
        InputRule::moi(1.0, Support::Full).unwrap(),
        InputRule::moi(-0.5, Support::TopK(20)).unwrap(),
        InputRule::direct(Support::Full).unwrap(),
        InputRule::gate(0.3, Support::TopK(7)).unwrap(),
        // A floor above the gate, and one below it.
        "moi:floor=1".parse().unwrap(),
        "moi:beta=0.25:support=20:floor=0.01".parse().unwrap(),
    ]
}

/// Multiples of 2^-9 between -1/4 and 1/4, which are exact in all number types.
fn exact(count: usize, salt: u64) -> Vec<f32> {
    let mixed =
        |i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56;
    (0..count as u64).map(|i| (mixed(i) as f32 - 128.0) / 512.0).collect()
}

fn mix<B: Backend>(device_name: DeviceName, kind: FloatType, device: &B::Device) {
    let rules = rules();
    let mut logits: Vec<f32> = exact(rules.len() * VOCAB, 3).iter().map(|x| x * 40.0).collect();
    // A token that cannot occur, and no ties at the border of a support.
    logits[VOCAB + 5] = f32::NEG_INFINITY;
    for (i, logit) in logits.iter_mut().enumerate() {
        *logit += (i % VOCAB) as f32 * 1e-5;
    }
    let table = exact(VOCAB * WIDTH, 11);
    let tokens: Vec<usize> = (0..rules.len()).map(|row| row * 977 + 13).collect();

    let ids: Vec<i64> = tokens.iter().map(|&token| token as i64).collect();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [rules.len()]), device);
    let data = TensorData::new(logits.clone(), [rules.len(), VOCAB]);
    let on_device = Tensor::<B, 2>::from_data(data, (device, DType::F32));
    let data = TensorData::new(table.clone(), [VOCAB, WIDTH]);
    let rows = Tensor::<B, 2>::from_data(data, (device, DType::from(kind.dtype())));
    let mixed = moi::next_inputs(on_device, ids, &rows, &rules, TOP).unwrap();
    let inputs = values(mixed.inputs.clone());

    let mut worst = 0.0f64;
    for ((row, report), rule) in mixed.into_rows().into_iter().enumerate().zip(rules) {
        let (entropy, gate, weights) = formulas(&logits[row * VOCAB..][..VOCAB], tokens[row], rule);
        // Each difference is checked on its own, because `max` ignores NaN.
        for off in [f64::from(report.entropy) - entropy, f64::from(report.gate) - gate] {
            assert!(off.abs() < 1e-5, "{device_name}, {rule}: entropy or gate off by {off}");
        }
        let weighty = weights.iter().filter(|&&weight| weight > 0.0).count();
        assert_eq!(report.top.len(), weighty.min(TOP), "{device_name}, {rule}");
        for &(token, weight) in &report.top {
            assert!(
                (f64::from(weight) - weights[token as usize]).abs() < 1e-5,
                "{device_name}, {rule}: weights"
            );
        }
        let expected: Vec<f64> = (0..WIDTH)
            .map(|column| {
                weights.iter().enumerate().map(|(i, w)| w * f64::from(table[i * WIDTH + column])).sum()
            })
            .collect();
        let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        let found = &inputs[row * WIDTH..][..WIDTH];
        assert!(found.iter().all(|x| x.is_finite()), "{device_name}, {rule}: not all inputs are finite");
        let error =
            found.iter().zip(&expected).fold(0.0f64, |max, (&f, e)| max.max((f64::from(f) - e).abs()));
        worst = worst.max(error / largest);
    }
    println!("{device_name}: mixing a table in {kind}: {worst:.1e}");
    // The result is rounded once, to the number type of the table.
    let allowed = match kind.dtype() {
        FloatDType::BF16 => 2f64.powi(-8),
        FloatDType::F16 => 2f64.powi(-10),
        _ => 2e-5,
    };
    assert!(worst <= allowed, "{device_name}: inputs in {kind} off by {worst}");
}

/// Entropy, gate and the weights of the whole vocabulary, in float64.
fn formulas(logits: &[f32], token: usize, rule: InputRule) -> (f64, f64, Vec<f64>) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let size = match rule.support() {
        Support::Full => logits.len(),
        Support::TopK(k) => k,
    };
    let mut q = vec![0.0f64; logits.len()];
    order[..size].iter().for_each(|&i| q[i] = f64::from(logits[i] - logits[order[0]]).exp());
    let sum: f64 = q.iter().sum();
    q.iter_mut().for_each(|q| *q /= sum);
    let nats: f64 = q.iter().filter(|&&q| q > 0.0).map(|q| -q * q.ln()).sum();
    let entropy = nats / (size as f64).ln();
    let gate = match rule {
        InputRule::Token(_) => 0.0,
        InputRule::Moi(moi::Moi { beta, floor, .. }) => {
            let gate = (entropy / (beta + 1.0)).clamp(0.0, 1.0);
            if gate < floor { 0.0 } else { gate }
        }
        InputRule::Direct(_) => 1.0,
        InputRule::Gate(moi::ConstantGate { gate, .. }) => gate,
        _ => unreachable!("the rules above are gates"),
    };
    let own = |i: usize| if i == token { 1.0 - gate } else { 0.0 };
    let weights = q.iter().enumerate().map(|(i, q)| gate * q + own(i)).collect();
    (entropy, gate, weights)
}
