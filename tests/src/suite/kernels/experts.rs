//! Tests of mixture-of-experts kernels that choose the experts on the device.

use cubecl::prelude::*;
use half::f16;
use moi_gpu::{Activation, Choice, Groups, PackedBuffer, Product, Router, Weights, experts, route};
use moi_kernels::{Packed, PackedForm, pack};

use super::{
    gpu::{Gpu, assert_close, random},
    parts::{blocks, expected, silu},
};

const PLAIN: Router<'static> = Router {
    experts: 0,
    per_token: 0,
    softmax: true,
    softcap: None,
    groups: None,
    normalized: true,
    sum_plus: 0.0,
    sum_at_least: 0.0,
    factor: 1.0,
    correction: None,
    scales: None,
};

/// Indexes of the `count` largest values, in descending order; of equal values the first comes first.
fn best(values: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(count);
    order
}

/// The experts and weights for one position.
fn picks(router: &Router<'_>, values: &[f32], correction: &[f32], scales: &[f32]) -> Vec<(usize, f32)> {
    let capped = values.iter().map(|&value| match router.softcap {
        Some(cap) => f64::from(cap) * (f64::from(value) / f64::from(cap)).tanh(),
        None => f64::from(value),
    });
    let scores: Vec<f64> = match router.softmax {
        true => {
            let powers: Vec<f64> = capped.map(f64::exp).collect();
            powers.iter().map(|power| power / powers.iter().sum::<f64>()).collect()
        }
        false => capped.map(|value| 1.0 / (1.0 + (-value).exp())).collect(),
    };
    let corrected = |(score, &by): (&f64, &f32)| match router.correction {
        Some(_) => score + f64::from(by),
        None => *score,
    };
    let mut choices: Vec<f64> = scores.iter().zip(correction).map(corrected).collect();
    if let Some(groups) = router.groups {
        let size = choices.len() / groups.count;
        let of_group = |group: &[f64]| {
            best(group, if groups.two { 2 } else { 1 }).into_iter().map(|at| group[at]).sum::<f64>()
        };
        let kept = best(&choices.chunks(size).map(of_group).collect::<Vec<_>>(), groups.kept);
        for (at, choice) in choices.iter_mut().enumerate() {
            if !kept.contains(&(at / size)) {
                *choice = f64::NEG_INFINITY;
            }
        }
    }
    let picked = best(&choices, router.per_token);
    let sum: f64 = picked.iter().map(|&at| scores[at]).sum();
    let divisor = match router.normalized {
        true => (sum + f64::from(router.sum_plus)).max(f64::from(router.sum_at_least)),
        false => 1.0,
    };
    let weight = |at: usize| {
        let own = if router.scales.is_some() { f64::from(scales[at]) } else { 1.0 };
        (scores[at] / divisor * f64::from(router.factor) * own) as f32
    };
    picked.into_iter().map(|at| (at, weight(at))).collect()
}

pub(super) fn experts_are_picked_as_by_the_host<R: Runtime>(gpu: &Gpu<R>) {
    let (four, two) = (Groups { count: 4, kept: 2, two: true }, Groups { count: 8, kept: 3, two: false });
    for (case, (count, per_token)) in [(8, 2), (60, 4), (300, 8), (1024, 10)].into_iter().enumerate() {
        let values: Vec<f32> = random(case as u64, 3 * count).iter().map(|value| value * 3.0).collect();
        let (correction, scales) = (random(7, count), random(8, count));
        let (corrections, factors) = (gpu.put(&correction), gpu.put(&scales));
        let plain = Router { experts: count, per_token, ..PLAIN };
        let sigmoid = Router { softmax: false, correction: Some(&corrections), factor: 2.5, ..plain };
        let routers = [
            plain,
            Router { normalized: false, softcap: Some(2.0), ..plain },
            Router { scales: Some(&factors), sum_at_least: 1e-12, ..plain },
            Router { sum_plus: 1e-2, ..sigmoid },
            Router { groups: (count % 4 == 0).then_some(four), ..sigmoid },
            Router { groups: (count % 8 == 0).then_some(two), ..plain },
        ];
        for router in routers {
            let choice = route(&gpu.0, &gpu.put(&values), &router).unwrap();
            let ids: Vec<usize> = gpu.get(&choice.ids).iter().map(|bits| bits.to_bits() as usize).collect();
            let picked: Vec<(usize, f32)> =
                values.chunks(count).flat_map(|own| picks(&router, own, &correction, &scales)).collect();
            assert_eq!(ids, picked.iter().map(|pick| pick.0).collect::<Vec<_>>(), "{router:?}");
            let weights: Vec<f32> = picked.iter().map(|pick| pick.1).collect();
            assert_close(&gpu.get(&choice.weights), &weights, 1e-5);
        }
    }
    // Values that are equal, and NaN.
    let router = Router { experts: 4, per_token: 2, ..PLAIN };
    let ids = |values: &[f32]| -> Vec<u32> {
        let choice = route(&gpu.0, &gpu.put(values), &router).unwrap();
        gpu.get(&choice.ids).iter().map(|bits| bits.to_bits()).collect()
    };
    assert_eq!(ids(&[1.0, 2.0, 2.0, 2.0]), [1, 2]);
    assert!(ids(&[f32::NAN; 4]).iter().all(|&id| id < 4));
}

/// Matrices of several experts one after the other, padded to whole tiles, with their values.
fn stack<R: Runtime>(
    gpu: &Gpu<R>,
    form: PackedForm,
    [count, rows, width]: [usize; 3],
    seed: u64,
) -> (PackedBuffer, Vec<f32>) {
    let (mut words, mut scales, mut minima, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for expert in 0..count {
        let parts = pack(form, &blocks(form, rows, width, seed + expert as u64), rows, width).unwrap();
        let view = Packed::new(form, [rows, width], &parts.words, &parts.scales, &parts.minima).unwrap();
        let mut own = Vec::new();
        view.rows(&(0..rows).collect::<Vec<_>>(), &mut own);
        values.extend(own);
        words.extend(parts.words);
        scales.extend(parts.scales);
        minima.extend(parts.minima);
    }
    let minima = form.has_minima().then(|| gpu.put_scales(&minima));
    (
        PackedBuffer { form, words: gpu.put_words(&words), scales: gpu.put_scales(&scales), minima, width },
        values,
    )
}

/// The matrices of all experts in one storage form, with their values.
fn weights<R: Runtime>(
    gpu: &Gpu<R>,
    form: Option<PackedForm>,
    halves: bool,
    sizes: [usize; 3],
    seed: u64,
) -> (Weights, Vec<f32>) {
    match form {
        Some(form) => {
            let (buffer, values) = stack(gpu, form, sizes, seed);
            (Weights::Packed(buffer), values)
        }
        None => {
            let values = random(seed, sizes.iter().product());
            let half: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
            match halves {
                true => {
                    let rounded = half.iter().map(|value| value.to_f32()).collect();
                    (Weights::Dense(gpu.put_halves(&half)), rounded)
                }
                false => (Weights::Dense(gpu.put(&values)), values),
            }
        }
    }
}

pub(super) fn picked_experts_are_summed<R: Runtime>(gpu: &Gpu<R>) {
    const LIMIT: f32 = 7.0;
    let k = Some(PackedForm::Q4_K);
    let q8 = Some(PackedForm::Q8_0);
    let (count, per_token) = (5, 3);
    for (case, (n, [width, inner, outer], [inward, outward], halves)) in [
        (1, [48, 40, 33], [None, None], false),
        (4, [50, 17, 48], [None, None], false),
        (2, [64, 32, 64], [None, None], true),
        (1, [256, 256, 37], [k, Some(PackedForm::Q6_K)], false),
        (8, [64, 96, 40], [q8, Some(PackedForm::Q5_1)], false),
        (2, [64, 96, 32], [q8, None], false),
        (1, [64, 32, 48], [Some(PackedForm::Q4_0), q8], false),
    ]
    .into_iter()
    .enumerate()
    {
        if halves && !gpu.has_halves() {
            println!("float16 is left out: the device has none");
            continue;
        }
        let x = random(case as u64, n * width);
        let (gate, gate_values) = weights(gpu, inward, halves, [count, inner, width], 10);
        let (up, up_values) = weights(gpu, inward, halves, [count, inner, width], 20);
        let (down, down_values) = weights(gpu, outward, halves, [count, outer, inner], 30);
        let biases = [random(41, count * inner), random(42, count * inner), random(43, count * outer)];
        let bias_buffers = biases.each_ref().map(|bias| gpu.put(bias));
        let ids: Vec<i32> = (0..n * per_token).map(|at| ((at * 7 + case) % count) as i32).collect();
        let shares = random(50, n * per_token);
        let choice = Choice { ids: gpu.put_words(&ids), weights: gpu.put(&shares), per_token };
        for (gated, biased, activation) in [
            (true, false, Activation::Silu),
            (true, true, Activation::clamped(LIMIT)),
            (false, true, Activation::Silu),
        ] {
            let bias = |at: usize| biased.then_some(&bias_buffers[at]);
            let of = |weight, at: usize, rows| Product { weight, bias: bias(at), rows };
            let maps = [of(&gate, 0, inner), of(&up, 1, inner)];
            let inward = if gated { &maps[..] } else { &maps[..1] };
            let outward = of(&down, 2, outer);
            let found = experts(&gpu.0, &gpu.put(&x), &choice, inward, activation, outward).unwrap();
            let mut sums = vec![0.0f32; n * outer];
            for (pair, (&id, &share)) in ids.iter().zip(&shares).enumerate() {
                let (position, id) = (pair / per_token, id as usize);
                let own = &x[position * width..][..width];
                let part = |values: &[f32], at: usize, x: &[f32], rows: usize| {
                    let bias = biased.then(|| &biases[at][id * rows..][..rows]);
                    expected(x, &values[id * rows * x.len()..][..rows * x.len()], bias, x.len())
                };
                let (g, u) = (part(&gate_values, 0, own, inner), part(&up_values, 1, own, inner));
                let between = |(&g, &u): (&f32, &f32)| {
                    let (g, u) = (f64::from(g), f64::from(u));
                    let both = match activation {
                        Activation::Silu => [silu(g), u],
                        _ => {
                            let limit = f64::from(LIMIT);
                            let g = g.min(limit);
                            [g / (1.0 + (-1.702 * g).exp()), u.clamp(-limit, limit) + 1.0]
                        }
                    };
                    (both[0] * if gated { both[1] } else { 1.0 }) as f32
                };
                let inside: Vec<f32> = g.iter().zip(&u).map(between).collect();
                let outside = part(&down_values, 2, &inside, outer);
                for (sum, value) in sums[position * outer..].iter_mut().zip(outside) {
                    *sum += share * value;
                }
            }
            assert_close(&gpu.get(&found), &sums, 1e-5);
        }
    }
}
