//! Tests of the sampling and mixing kernels against plain loops in float64.

use cubecl::prelude::*;
use moi_gpu::{Decided, EmbeddingTable, Weights, can_step, step};
use moi_kernels::PackedForm;
use moi_sampling::{Decision, RowSpec};

use super::{
    gpu::{Gpu, assert_close, random},
    parts::packed,
};

/// A default specification of one sequence: its rule and its sampling.
fn spec() -> RowSpec {
    RowSpec {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0.5,
        slope: 0.5,
        offset: 0.0,
        floor: 0.0,
        mixes: true,
        support: None,
        tolerance: 0.0,
        top: 0,
    }
}

/// Token ids in descending order of logits; ties by the lower id.
fn sorted(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    ids
}

/// The token that remains after the filters and sampling.
fn sampled(logits: &[f32], spec: &RowSpec) -> u32 {
    let order = sorted(logits);
    if spec.temperature == 0.0 {
        return order[0] as u32;
    }
    let max = f64::from(logits[order[0]]);
    let p = |id: usize| ((f64::from(logits[id]) - max) / f64::from(spec.temperature)).exp();
    let mut left = order;
    if spec.top_k > 0 {
        left.truncate(spec.top_k);
    }
    if spec.top_p < 1.0 {
        let target = f64::from(spec.top_p) * left.iter().map(|&id| p(id)).sum::<f64>();
        let mut reached = 0.0;
        let last = left.iter().position(|&id| {
            reached += p(id);
            reached >= target
        });
        left.truncate(last.map_or(left.len(), |last| last + 1));
    }
    left.retain(|&id| p(id) >= f64::from(spec.min_p));
    left.sort_unstable();
    let target = f64::from(spec.uniform) * left.iter().map(|&id| p(id)).sum::<f64>();
    let mut reached = 0.0;
    for &id in &left {
        reached += p(id);
        if reached > target {
            return id as u32;
        }
    }
    *left.last().unwrap() as u32
}

/// Probabilities on the support, entropy and gate.
fn mixed(logits: &[f32], spec: &RowSpec) -> (Vec<f64>, f64, f64) {
    let order = sorted(logits);
    let size = spec.support.map_or(logits.len(), |support| support.min(logits.len()));
    let max = f64::from(logits[order[0]]);
    let mut q = vec![0.0; logits.len()];
    order[..size].iter().for_each(|&id| q[id] = (f64::from(logits[id]) - max).exp());
    let sum: f64 = q.iter().sum();
    q.iter_mut().for_each(|q| *q /= sum);
    let nats: f64 = q.iter().filter(|&&q| q > 0.0).map(|q| -q * q.ln()).sum();
    let entropy = if size > 1 { nats / (size as f64).ln() } else { 0.0 };
    let gate = (f64::from(spec.slope) * entropy + f64::from(spec.offset)).clamp(0.0, 1.0);
    (q, entropy, if gate < f64::from(spec.floor) { 0.0 } else { gate })
}

fn read<R: Runtime>(gpu: &Gpu<R>, decided: Decided) -> Vec<Decision> {
    cubecl::future::block_on(decided.read(&gpu.0)).unwrap()
}

/// Whether the mean of all embeddings may replace unlikely tokens for this sequence.
fn tolerates(spec: &RowSpec) -> bool {
    spec.mixes && spec.support.is_none() && spec.tolerance > 0.0
}

/// Counts the most likely tokens that a sequence mixes one by one, and checks the tolerance. A special embedding
/// table reveals the count: the mean of its first column of ones is the weight of these tokens, and the second column
/// adds 1 for each of them.
fn kept<R: Runtime>(gpu: &Gpu<R>, logits: &[f32], spec: &RowSpec) -> usize {
    let order = sorted(logits);
    let (q, _, gate) = mixed(logits, spec);
    assert!(q.iter().all(|&q| q > 1e-30), "nothing is too unlikely to be counted");
    let values: Vec<f32> = q.iter().flat_map(|&q| [1.0, (1.0 / q) as f32, 0.0, 0.0]).collect();
    let weights = Weights::Dense(gpu.put(&values));
    let mean = gpu.put(&[0.0; 4]);
    let table = EmbeddingTable { weights: &weights, width: 4, scale: 1.0, mean: Some(&mean) };
    let (inputs, decided) = step(&gpu.0, &gpu.put(logits), std::slice::from_ref(spec), table);
    let inputs = gpu.get(&inputs);
    let token = read(gpu, decided)[0].token as usize;
    if gate == 0.0 {
        return 0;
    }
    let mean_of = |column: usize| {
        let own = f64::from(values[token * 4 + column]);
        own + (f64::from(inputs[column]) - own) / gate
    };
    let count = mean_of(1).round() as usize;
    let of_kept: f64 = order[..count].iter().map(|&id| q[id]).sum();
    assert!((mean_of(0) - of_kept).abs() < 2e-5, "{} is not the weight {of_kept} of {count}", mean_of(0));
    let tolerance = f64::from(spec.tolerance);
    assert!((1.0 - of_kept) * gate <= tolerance * 1.001 + 1e-6, "{of_kept} of {count} at gate {gate}");
    // The kernel may count a token with up to twice its weight, so it may also keep tokens of at least half the
    // weight of the last one that is needed.
    let mut below = 0.0;
    let least = order.iter().rev().find(|&&id| {
        below += q[id];
        below * gate > tolerance * 0.499
    });
    let most = least.map_or(0, |&least| q.iter().filter(|&&own| own >= q[least] * 0.499).count());
    assert!(count <= most, "{count} of at most {most}");
    count
}

/// Runs one step of several sequences and checks every number.
fn check<R: Runtime>(
    gpu: &Gpu<R>,
    logits: &[Vec<f32>],
    specs: &[RowSpec],
    table: &Weights,
    values: &[f32],
    scale: f32,
) {
    let vocab = logits[0].len();
    let width = values.len() / vocab;
    assert!(can_step(vocab, specs));
    let of_column = |column: usize| (0..vocab).map(|id| f64::from(values[id * width + column])).sum::<f64>();
    let mean_row: Vec<f32> = (0..width).map(|column| (of_column(column) / vocab as f64) as f32).collect();
    let mean = gpu.put(&mean_row);
    let table = EmbeddingTable { weights: table, width, scale, mean: Some(&mean) };
    let (inputs, decided) = step(&gpu.0, &gpu.put(&logits.concat()), specs, table);
    let inputs = gpu.get(&inputs);
    for (i, decision) in read(gpu, decided).into_iter().enumerate() {
        let (logits, spec) = (&logits[i], &specs[i]);
        let token = sampled(logits, spec);
        assert_eq!(decision.token, token, "{spec:?}");
        let (q, entropy, gate) = mixed(logits, spec);
        let max = f64::from(logits[sorted(logits)[0]]);
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
        let logprob = f64::from(logits[token as usize]) - max - sum.ln();
        for (what, found, expected) in [
            ("entropy", decision.entropy, entropy),
            ("gate", decision.gate, gate),
            ("logprob", decision.logprob, logprob),
            ("probability", decision.token_probability, q[token as usize]),
        ] {
            assert!(
                (f64::from(found) - expected).abs() < 3e-6 * expected.abs().max(1.0),
                "{what} {found} {expected}"
            );
        }
        assert!(!decision.broken);
        let order = sorted(logits);
        for (at, &(id, probability)) in decision.likeliest.iter().enumerate() {
            assert_eq!(id as usize, order[at]);
            assert!((f64::from(probability) - q[id as usize]).abs() < 3e-6);
        }
        let count = if tolerates(spec) { kept(gpu, logits, spec) } else { vocab };
        let rest: f64 = order[count..].iter().map(|&id| q[id]).sum();
        let expected: Vec<f32> = (0..width)
            .map(|column| {
                let at = |id: usize| f64::from(values[id * width + column]);
                let mean: f64 = order[..count].iter().map(|&id| q[id] * at(id)).sum();
                let mean = mean + rest * f64::from(mean_row[column]);
                let own = at(token as usize);
                let value = if spec.mixes { own + gate * (mean - own) } else { own };
                (value * f64::from(scale)) as f32
            })
            .collect();
        assert_close(&inputs[i * width..][..width], &expected, 3e-6);
    }
}

fn logits(seed: u64, vocab: usize, spread: f32) -> Vec<f32> {
    random(seed, vocab).into_iter().map(|value| value * spread).collect()
}

pub(super) fn rows_of_all_kinds_are_sampled_and_mixed<R: Runtime>(gpu: &Gpu<R>) {
    for (vocab, width, spread) in [(7, 8, 3.0), (5000, 36, 12.0), (9001, 64, 0.5)] {
        let values = random(2, vocab * width);
        let table = Weights::Dense(gpu.put(&values));
        let rows = [
            RowSpec { mixes: false, slope: 0.0, ..spec() },
            RowSpec { top: 5, ..spec() },
            // Gates below the floor, and gates above it.
            RowSpec { floor: 0.9, top: 5, ..spec() },
            RowSpec { floor: 0.01, ..spec() },
            RowSpec { support: Some(20), top: 3, ..spec() },
            RowSpec { support: Some(1), ..spec() },
            RowSpec { slope: 0.0, offset: 1.0, temperature: 1.0, uniform: 0.3, ..spec() },
            RowSpec { slope: 0.0, offset: 0.25, temperature: 0.5, uniform: 0.999, ..spec() },
        ];
        let all: Vec<Vec<f32>> = (0..rows.len()).map(|i| logits(i as u64 + 3, vocab, spread)).collect();
        check(gpu, &all, &rows, &table, &values, 1.5);
        for (row, logits) in rows.iter().zip(&all) {
            check(gpu, std::slice::from_ref(logits), &[*row], &table, &values, 1.0);
        }
    }
}

pub(super) fn rare_tokens_are_mixed_as_the_mean_row<R: Runtime>(gpu: &Gpu<R>) {
    let (vocab, width) = (9001, 36);
    let values = random(2, vocab * width);
    let table = Weights::Dense(gpu.put(&values));
    let at_gate = |gate: f32| RowSpec { slope: 0.0, offset: gate, ..spec() };
    // From a flat distribution to one with few likely tokens, and one whose chunks differ in likelihood.
    let mut uneven = logits(7, vocab, 6.0);
    uneven[..4096].iter_mut().for_each(|logit| *logit -= 9.0);
    uneven[8192..].iter_mut().for_each(|logit| *logit -= 30.0);
    let all =
        [vec![1.5; vocab], logits(3, vocab, 0.5), logits(4, vocab, 6.0), logits(5, vocab, 10.0), uneven];
    for tolerance in [0.0, 1e-5, 1e-3, 0.05] {
        for gate in [0.02, 0.4, 1.0] {
            let spec = RowSpec { tolerance, ..at_gate(gate) };
            check(gpu, &all, &[spec; 5], &table, &values, 1.5);
        }
    }
    // All tokens are needed if all are equal, none if the mean's weight is below the tolerance, and few if few are
    // likely.
    let tolerant = RowSpec { tolerance: 1e-3, ..at_gate(1.0) };
    assert_eq!(kept(gpu, &all[0], &tolerant), vocab);
    assert_eq!(kept(gpu, &all[4], &RowSpec { tolerance: 0.05, ..at_gate(0.02) }), 0);
    assert!(kept(gpu, &all[3], &tolerant) < vocab / 2);
    // Sequences that mix a list, do not mix, or have an entropy-dependent gate, next to one without tolerance.
    let rows = [
        RowSpec { support: Some(20), tolerance: 0.05, ..spec() },
        RowSpec { mixes: false, tolerance: 0.05, ..spec() },
        RowSpec { tolerance: 0.01, temperature: 1.0, top_p: 0.9, ..spec() },
        RowSpec { slope: 0.0, tolerance: 0.01, ..spec() },
        RowSpec { tolerance: 0.0, ..at_gate(1.0) },
    ];
    check(gpu, &all, &rows, &table, &values, 1.0);
    // Without a mean row, no embedding may be replaced.
    let logits = gpu.put(&all[3]);
    let table = EmbeddingTable { weights: &table, width, scale: 1.0, mean: None };
    let inputs = |spec: RowSpec| gpu.get(&step(&gpu.0, &logits, &[spec], table).0);
    assert_eq!(inputs(tolerant), inputs(at_gate(1.0)));
}

pub(super) fn filters_leave_what_they_say<R: Runtime>(gpu: &Gpu<R>) {
    let (vocab, width) = (6000, 4);
    let values = random(2, vocab * width);
    let table = Weights::Dense(gpu.put(&values));
    // Peaked distributions use the sorted list, flat ones use thresholds.
    for spread in [30.0, 4.0, 0.3] {
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (40, 1.0, 0.0),
            (300, 1.0, 0.0),
            (0, 0.9, 0.0),
            (0, 1.0, 0.3),
            (50, 0.8, 0.01),
            (500, 0.7, 0.2),
            (1, 0.5, 1.0),
        ] {
            let rows: Vec<RowSpec> = [0.0, 0.37, 0.62, 0.999_999]
                .into_iter()
                .map(|uniform| RowSpec { temperature: 0.7, top_k, top_p, min_p, uniform, ..spec() })
                .collect();
            let all: Vec<Vec<f32>> = (0..4).map(|i| logits(i + 11, vocab, spread)).collect();
            check(gpu, &all, &rows, &table, &values, 1.0);
        }
    }
}

pub(super) fn ties_go_to_the_lower_id<R: Runtime>(gpu: &Gpu<R>) {
    let vocab = 9000;
    let mut tied = vec![0.0; vocab];
    [17, 4200, 4203, 8999].into_iter().for_each(|id| tied[id] = 5.0);
    let values = random(2, vocab * 4);
    let table = Weights::Dense(gpu.put(&values));
    for support in [None, Some(3), Some(10), Some(64)] {
        let row = RowSpec { support, top: 8, ..spec() };
        let drawn = RowSpec { temperature: 1.0, top_k: 2, uniform: 0.7, ..row };
        check(gpu, &[tied.clone(), tied.clone()], &[row, drawn], &table, &values, 1.0);
    }
}

pub(super) fn packed_and_half_tables_are_mixed<R: Runtime>(gpu: &Gpu<R>) {
    let (vocab, width) = (4500, 256);
    let rows = [
        spec(),
        RowSpec { support: Some(20), top: 20, ..spec() },
        RowSpec { mixes: false, ..spec() },
        RowSpec { tolerance: 0.01, ..spec() },
    ];
    let all: Vec<Vec<f32>> = (0..4).map(|i| logits(i + 3, vocab, 9.0)).collect();
    for form in PackedForm::ALL {
        let (table, values) = packed(gpu, form, vocab, width, 5);
        check(gpu, &all, &rows, &Weights::Packed(table), &values, 2.0);
    }
    if !gpu.has_halves() {
        println!("float16 is left out: the device has none");
        return;
    }
    let halves: Vec<half::f16> = random(2, vocab * width).into_iter().map(half::f16::from_f32).collect();
    let values: Vec<f32> = halves.iter().map(|half| half.to_f32()).collect();
    check(gpu, &all, &rows, &Weights::Dense(gpu.put_halves(&halves)), &values, 1.0);
}

pub(super) fn impossible_and_broken_logits<R: Runtime>(gpu: &Gpu<R>) {
    let (vocab, width) = (5000, 4);
    let values = random(2, vocab * width);
    let table = Weights::Dense(gpu.put(&values));
    // A logit of minus infinity is a token that cannot be sampled.
    let mut banned = vec![f32::NEG_INFINITY; vocab];
    banned[4999] = 1.0;
    banned[30] = 0.0;
    let drawn = RowSpec { temperature: 1.0, uniform: 0.9, top: 6, ..spec() };
    let rows = [
        RowSpec { top: 6, ..spec() },
        drawn,
        RowSpec { top_k: 5, ..drawn },
        RowSpec { top_p: 0.99, ..drawn },
    ];
    check(gpu, &vec![banned; 4], &rows, &table, &values, 1.0);
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut logits = logits(1, vocab, 3.0);
        logits[4321] = wrong;
        let table = EmbeddingTable { weights: &table, width, scale: 1.0, mean: None };
        let (_, decided) = step(&gpu.0, &gpu.put(&logits), &[drawn], table);
        assert!(read(gpu, decided)[0].broken, "{wrong}");
    }
    assert!(!can_step(vocab, &[RowSpec { support: Some(65), ..spec() }]));
    assert!(!can_step(1 << 21, &[spec()]));
}
