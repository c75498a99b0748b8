//! Tests of the kernels for norms, products, heads and attention.

use cubecl::prelude::*;
use half::f16;
use moi_gpu::{
    Activation, AddNorm, Attend, AttentionPlan, Buffer, NormSpec, NormWeights, Outcome, PackedBuffer, Picked,
    PlanWords, Product, Rotate, Weights, add_norm, attend, plan_words, products, queries_at_once, rotate,
    unpack,
};
use moi_kernels::{
    AttentionSizes, AttentionSpan, BlockPlace, CACHE_BLOCK, CachedBlocks, Float, Packed, PackedForm, Visible,
    pack,
};

use super::gpu::{Gpu, assert_close, random};

fn spec(centered: bool, plus_one: bool) -> NormSpec {
    NormSpec { eps: 1e-5, centered, plus_one }
}

fn normed(x: &[f32], width: usize, spec: NormSpec, weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let row = |x: &[f32]| {
        let mean = match spec.centered {
            true => x.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64,
            false => 0.0,
        };
        let square = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
        let by = |i: usize| f64::from(weight[i]) + if spec.plus_one { 1.0 } else { 0.0 };
        let one = |(i, &v): (usize, &f32)| {
            let y = (f64::from(v) - mean) / (square + f64::from(spec.eps)).sqrt() * by(i);
            (y + bias.map_or(0.0, |bias| f64::from(bias[i]))) as f32
        };
        x.iter().enumerate().map(one).collect::<Vec<_>>()
    };
    x.chunks(width).flat_map(row).collect()
}

pub(super) fn joins_are_residuals_and_norms<R: Runtime>(gpu: &Gpu<R>) {
    let device = &gpu.0;
    for (rows, width, seed) in [(1, 576, 1), (3, 64, 2), (2, 1000, 3)] {
        let (x, block) = (random(seed, rows * width), random(seed + 10, rows * width));
        let (after, before, bias) =
            (random(seed + 20, width), random(seed + 30, width), random(seed + 40, width));
        for (centered, plus_one) in [(false, false), (false, true), (true, false)] {
            let spec = spec(centered, plus_one);
            let bias = centered.then_some(bias.as_slice());
            let weights = |weight: &[f32]| NormWeights {
                weight: gpu.put(weight),
                bias: bias.map(|bias| gpu.put(bias)),
            };
            let (after_weights, before_weights) = (weights(&after), weights(&before));
            for has_block in [false, true] {
                for has_after in [false, true].into_iter().filter(|after| has_block || !after) {
                    let joined = add_norm(
                        device,
                        &AddNorm {
                            x: &gpu.put(&x),
                            block: has_block.then_some(&gpu.put(&block)),
                            after: has_after.then_some(&after_weights),
                            scale: 0.5,
                            before: Some(&before_weights),
                            spec,
                            width,
                        },
                    );
                    let added = match has_after {
                        true => normed(&block, width, spec, &after, bias),
                        false => block.clone(),
                    };
                    let sum: Vec<f32> = match has_block {
                        true => x.iter().zip(&added).map(|(x, y)| x + 0.5 * y).collect(),
                        false => x.clone(),
                    };
                    if let Some(found) = joined.sum {
                        assert_close(&gpu.get(&found), &sum, 2e-6);
                    }
                    let found = gpu.get(joined.normed.as_ref().unwrap());
                    assert_close(&found, &normed(&sum, width, spec, &before, bias), 5e-6);
                }
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

pub(super) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The product of inputs with a matrix: outputs `[n, rows]`.
pub(super) fn expected(x: &[f32], weight: &[f32], bias: Option<&[f32]>, width: usize) -> Vec<f32> {
    let row = |x: &[f32]| {
        let one = |(i, w): (usize, &[f32])| (dot(x, w) + bias.map_or(0.0, |b| f64::from(b[i]))) as f32;
        weight.chunks(width).enumerate().map(one).collect::<Vec<_>>()
    };
    x.chunks(width).flat_map(row).collect()
}

pub(super) fn dense_products_are_sums<R: Runtime>(gpu: &Gpu<R>) {
    let device = &gpu.0;
    for (n, width, rows, halves) in [
        (1, 576, [576, 192, 192], false),
        (3, 50, [17, 1, 33], false),
        (8, 100, [40, 40, 5], false),
        (2, 64, [16, 31, 64], true),
    ] {
        if halves && !gpu.has_halves() {
            println!("float16 is left out: the device has none");
            continue;
        }
        let x = random(1, n * width);
        let held: Vec<Vec<f32>> = (0..3)
            .map(|i| random(i as u64 + 2, rows[i] * width))
            .map(|w| if halves { w.iter().map(|&w| f16::from_f32(w).to_f32()).collect() } else { w })
            .collect();
        let biases: Vec<Vec<f32>> = (0..3).map(|i| random(i as u64 + 9, rows[i])).collect();
        let bias_buffers: Vec<Buffer> = biases.iter().map(|bias| gpu.put(bias)).collect();
        let weights: Vec<Weights> = held
            .iter()
            .map(|w| match halves {
                true => gpu.put_halves(&w.iter().map(|&w| f16::from_f32(w)).collect::<Vec<_>>()),
                false => gpu.put(w),
            })
            .map(Weights::Dense)
            .collect();
        for count in 1..=3 {
            for biased in [false, true] {
                let maps: Vec<_> = (0..count)
                    .map(|i| Product {
                        weight: &weights[i],
                        bias: biased.then_some(&bias_buffers[i]),
                        rows: rows[i],
                    })
                    .collect();
                let found = products(device, &gpu.put(&x), n, &maps, Outcome::Each).unwrap();
                assert_eq!(found.len(), count);
                for i in 0..count {
                    let bias = biased.then_some(biases[i].as_slice());
                    assert_close(&gpu.get(&found[i]), &expected(&x, &held[i], bias, width), 2e-6);
                }
            }
        }
    }
}

pub(super) fn activations_stand_between_products<R: Runtime>(gpu: &Gpu<R>) {
    let device = &gpu.0;
    let (n, width, rows) = (3, 96, 37);
    let (x, gate, up) = (random(1, n * width), random(2, rows * width), random(3, rows * width));
    let weights = [Weights::Dense(gpu.put(&gate)), Weights::Dense(gpu.put(&up))];
    let maps = weights.each_ref().map(|weight| Product { weight, bias: None, rows });
    type Function = fn(f64) -> f64;
    let functions: [(Activation, Function); 5] = [
        (Activation::Silu, silu),
        (Activation::GeluTanh, |x| 0.5 * x * (1.0 + (0.797_884_560_8 * (x + 0.044_715 * x.powi(3))).tanh())),
        (Activation::QuickGelu, |x| x / (1.0 + (-1.702 * x).exp())),
        (Activation::Relu, |x| x.max(0.0)),
        (Activation::ReluSquared, |x| x.max(0.0).powi(2)),
    ];
    let (g, u) = (expected(&x, &gate, None, width), expected(&x, &up, None, width));
    for (activation, function) in functions {
        let found = products(device, &gpu.put(&x), n, &maps, Outcome::Activated(activation)).unwrap();
        let both: Vec<f32> =
            g.iter().zip(&u).map(|(&g, &u)| (function(f64::from(g)) * f64::from(u)) as f32).collect();
        assert_close(&gpu.get(&found[0]), &both, 1e-5);
        let found = products(device, &gpu.put(&x), n, &maps[..1], Outcome::Activated(activation)).unwrap();
        let one: Vec<f32> = g.iter().map(|&g| function(f64::from(g)) as f32).collect();
        assert_close(&gpu.get(&found[0]), &one, 1e-5);
    }
    // The expected values are from a table of erf: Gelu(1) = 0.841345, Gelu(-2) = -0.0455003.
    let weights = Weights::Dense(gpu.put(&[1.0]));
    let map = [Product { weight: &weights, bias: None, rows: 1 }];
    let found =
        products(device, &gpu.put(&[1.0, -2.0]), 2, &map, Outcome::Activated(Activation::Gelu)).unwrap();
    assert_close(&gpu.get(&found[0]), &[0.841_344_7, -0.045_500_26], 1e-5);
}

/// Random bytes of packed blocks, with moderate values in the float16 fields.
pub(super) fn blocks(form: PackedForm, rows: usize, width: usize, seed: u64) -> Vec<u8> {
    let (values, size) = form.format().size();
    let mut blocks: Vec<u8> =
        random(seed, rows * width / values * size).iter().map(|v| (v * 127.9) as i8 as u8).collect();
    for block in blocks.chunks_mut(size) {
        let numbers: &[usize] = match form {
            PackedForm::Q6_K => &[208],
            _ if form.has_minima() => &[0, 2],
            _ => &[0],
        };
        numbers.iter().for_each(|&at| block[at + 1] = 0x2c | block[at + 1] & 0x83);
    }
    blocks
}

pub(super) fn packed<R: Runtime>(
    gpu: &Gpu<R>,
    form: PackedForm,
    rows: usize,
    width: usize,
    seed: u64,
) -> (PackedBuffer, Vec<f32>) {
    let parts = pack(form, &blocks(form, rows, width, seed), rows, width).unwrap();
    let view = Packed::new(form, [rows, width], &parts.words, &parts.scales, &parts.minima).unwrap();
    let mut values = Vec::new();
    view.rows(&(0..rows).collect::<Vec<_>>(), &mut values);
    let minima = form.has_minima().then(|| gpu.put_scales(&parts.minima));
    (
        PackedBuffer {
            form,
            words: gpu.put_words(&parts.words),
            scales: gpu.put_scales(&parts.scales),
            minima,
            width,
        },
        values,
    )
}

pub(super) fn packed_products_are_those_of_the_unpacked<R: Runtime>(gpu: &Gpu<R>) {
    let device = &gpu.0;
    for form in PackedForm::ALL {
        let width = 3 * form.span();
        for (n, rows) in [(1, [16, 37, 50]), (5, [20, 1, 16])] {
            let x = random(1, n * width);
            let (buffers, values): (Vec<_>, Vec<_>) =
                (0..3).map(|i| packed(gpu, form, rows[i], width, i as u64 + 2)).unzip();
            let weights: Vec<Weights> = buffers.iter().cloned().map(Weights::Packed).collect();
            let maps: Vec<_> =
                (0..3).map(|i| Product { weight: &weights[i], bias: None, rows: rows[i] }).collect();
            let found = products(device, &gpu.put(&x), n, &maps, Outcome::Each).unwrap();
            for i in 0..3 {
                assert_close(&gpu.get(&found[i]), &expected(&x, &values[i], None, width), 3e-6);
            }
            let (first, count) = (1.min(rows[0] - 1), rows[0] - 1);
            let unpacked = gpu.get(&unpack(device, &buffers[0], Picked::From(first, count)));
            assert_eq!(unpacked, values[0][first * width..][..count * width], "{form:?}");
            let last = rows[0] - 1;
            let picked =
                gpu.get(&unpack(device, &buffers[0], Picked::Ids(&gpu.put_words(&[last as i32, 0]))));
            let expected = [&values[0][last * width..], &values[0][..width]].concat();
            assert_eq!(picked, expected, "{form:?}");
        }
    }
    // One launch may combine different block formats, as Gemma's files do, but not floats with blocks.
    let (a, a_values) = packed(gpu, PackedForm::Q4_K, 32, 256, 1);
    let (b, b_values) = packed(gpu, PackedForm::Q6_K, 32, 256, 2);
    let x = random(3, 256);
    let weights = [Weights::Packed(a), Weights::Packed(b), Weights::Dense(gpu.put(&b_values))];
    let maps = weights.each_ref().map(|weight| Product { weight, bias: None, rows: 32 });
    let found = products(device, &gpu.put(&x), 1, &maps[..2], Outcome::Activated(Activation::Silu)).unwrap();
    let (g, u) = (expected(&x, &a_values, None, 256), expected(&x, &b_values, None, 256));
    let both: Vec<f32> =
        g.iter().zip(&u).map(|(&g, &u)| (silu(f64::from(g)) * f64::from(u)) as f32).collect();
    assert_close(&gpu.get(&found[0]), &both, 1e-5);
    assert!(products(device, &gpu.put(&x), 1, &maps[1..], Outcome::Each).is_none());
}

/// The attention plan of spans, on a device.
fn plan<R: Runtime>(
    gpu: &Gpu<R>,
    spans: &[AttentionSpan<'_>],
    window: Option<usize>,
    queries: usize,
) -> AttentionPlan {
    let PlanWords { words, tiles, longest } = plan_words(spans, window, queries);
    let words: Vec<i32> = words.into_iter().map(|word| word as i32).collect();
    let tokens = spans.iter().map(|span| span.len).sum();
    AttentionPlan { words: gpu.put_words(&words), tokens, tiles, queries, longest }
}

fn places_of(indexes: &[usize]) -> Vec<BlockPlace> {
    indexes.iter().map(|&index| BlockPlace { slab: 0, index }).collect()
}

pub(super) fn heads_are_turned_into_the_cache<R: Runtime>(gpu: &Gpu<R>) {
    let device = &gpu.0;
    for (heads, kv_heads, head_dim, dims, has_norm) in
        [(4, 2, 64, 64, false), (3, 1, 20, 8, true), (2, 2, 16, 0, true)]
    {
        let (first, second) = (places_of(&[4, 1]), places_of(&[0]));
        let causal = Visible::Causal;
        let spans = [
            AttentionSpan { len: 5, past: 62, blocks: &first, first_block: 0, visible: &causal },
            AttentionSpan { len: 1, past: 131, blocks: &second, first_block: 2, visible: &causal },
        ];
        // Block number, and position in the block.
        let places = [(4, 62), (4, 63), (1, 0), (1, 1), (1, 2), (0, 3)];
        let tokens = places.len();
        let q = random(1, tokens * heads * head_dim);
        let k = random(2, tokens * kv_heads * head_dim);
        let v = random(3, tokens * kv_heads * head_dim);
        let (cos, sin) = (random(4, tokens * dims), random(5, tokens * dims));
        let (q_weight, k_weight) = (random(6, head_dim), random(7, head_dim));
        let len = 5 * kv_heads * CACHE_BLOCK * head_dim;
        let (keys, values) = (gpu.put(&vec![9.0; len]), gpu.put(&vec![9.0; len]));
        let norms = (
            NormWeights { weight: gpu.put(&q_weight), bias: None },
            NormWeights { weight: gpu.put(&k_weight), bias: None },
        );
        let angles = (gpu.put(&cos), gpu.put(&sin));
        let (spec, scale) = (spec(false, false), 0.25);
        let found = rotate(
            device,
            &Rotate {
                q: &gpu.put(&q),
                k: &gpu.put(&k),
                v: &gpu.put(&v),
                angles: (dims > 0).then_some((&angles.0, &angles.1, dims)),
                norms: has_norm.then_some((&norms.0, &norms.1)),
                spec,
                cache: (&keys, &values),
                plan: &plan(gpu, &spans, None, 1),
                heads,
                kv_heads,
                head_dim,
                scale,
            },
        );
        let rotated = |x: &[f32], count: usize, weight: &[f32], scale: f32| -> Vec<f32> {
            let x = if has_norm { normed(x, head_dim, spec, weight, None) } else { x.to_vec() };
            let mut out = Vec::new();
            for (index, head) in x.chunks(head_dim).enumerate() {
                let angles = index / count * dims;
                for i in 0..head_dim {
                    let rotated = match i {
                        _ if i >= dims => head[i],
                        _ if i < dims / 2 => head[i] * cos[angles + i] - head[i + dims / 2] * sin[angles + i],
                        _ => head[i] * cos[angles + i] + head[i - dims / 2] * sin[angles + i],
                    };
                    out.push(rotated * scale);
                }
            }
            out
        };
        assert_close(&gpu.get(&found), &rotated(&q, heads, &q_weight, scale), 5e-6);
        let k = rotated(&k, kv_heads, &k_weight, 1.0);
        for (buffer, new) in [(&keys, &k), (&values, &v)] {
            let mut cache = vec![9.0; len];
            for (index, head) in new.chunks(head_dim).enumerate() {
                let ((block, column), of_head) = (places[index / kv_heads], index % kv_heads);
                let to = ((block * kv_heads + of_head) * CACHE_BLOCK + column) * head_dim;
                cache[to..to + head_dim].copy_from_slice(head);
            }
            assert_close(&gpu.get(buffer), &cache, 1e-6);
        }
    }
}

/// Attention over sequences of several lengths, including prompts, together with trees and full visibility. The
/// expected values come from the CPU kernel, which has its own test against the formula.
pub(super) fn attention_is_a_weighted_mean_of_values<R: Runtime>(gpu: &Gpu<R>) {
    let device = &gpu.0;
    // Sinks below, among and above all scores.
    let sinks = [-30.0, 0.3, 1.5, 12.0, -2.0, 4.0, 0.0, -1.0, 30.0];
    for (heads, kv_heads, head_dim, window, softcap) in [
        (4, 2, 64, None, None),
        (9, 3, 64, Some(1000), Some(5.0)),
        (2, 1, 20, Some(70), None),
        (3, 3, 16, None, None),
        (8, 1, 128, Some(300), None),
    ] {
        let tables = [places_of(&[3]), places_of(&(4..30).rev().collect::<Vec<_>>()), places_of(&[0, 2, 1])];
        let (causal, full) = (Visible::Causal, Visible::Full);
        let tree = Visible::Tree(vec![None, None, Some(0), Some(2), Some(1), Some(2)]);
        let span = |table: usize, past, len, visible| AttentionSpan {
            len,
            past,
            blocks: &tables[table],
            first_block: 0,
            visible,
        };
        // One query alone; the sequences of a batch; a long prompt next to single steps; a tree across the end of a
        // block.
        let cases = [
            vec![span(0, 32, 1, &causal)],
            vec![span(1, 1500, 1, &causal)],
            vec![span(0, 5, 1, &causal), span(1, 700, 1, &causal), span(2, 130, 1, &causal)],
            vec![span(0, 0, 50, &causal), span(1, 1203, 1, &causal), span(2, 60, 77, &causal)],
            vec![span(2, 126, 6, &tree), span(0, 3, 6, &full), span(1, 640, 6, &tree)],
        ];
        for spans in cases {
            let tokens: usize = spans.iter().map(|span| span.len).sum();
            let size = 30 * kv_heads * CACHE_BLOCK * head_dim;
            let q = random(1, tokens * heads * head_dim);
            let (keys, values) = (random(2, size), random(3, size));
            let longest = spans.iter().map(|span| span.len).max().unwrap();
            let put = gpu.put(&keys);
            let sinks = (heads != 4).then_some(&sinks[..heads]);
            let queries = queries_at_once(device, [heads, kv_heads, head_dim], longest, put.dtype).unwrap();
            assert!(longest == 1 || queries > 1, "queries of a sequence share what is read");
            let found = attend(
                device,
                &Attend {
                    q: &gpu.put(&q),
                    keys: &put,
                    values: &gpu.put(&values),
                    plan: &plan(gpu, &spans, window, queries),
                    heads,
                    kv_heads,
                    head_dim,
                    softcap,
                    sinks: sinks.map(|sinks| gpu.put(sinks)).as_ref(),
                },
            )
            .unwrap();
            // The CPU kernel stores the keys value by value.
            let by_value: Vec<f32> = keys
                .chunks(CACHE_BLOCK * head_dim)
                .flat_map(|head| {
                    (0..CACHE_BLOCK * head_dim).map(|i| head[i % CACHE_BLOCK * head_dim + i / CACHE_BLOCK])
                })
                .collect();
            let cached =
                CachedBlocks { keys: vec![Float::F32(&by_value)], values: vec![Float::F32(&values)] };
            let sizes = AttentionSizes { heads, kv_heads, head_dim, softcap, window, sinks };
            let expected = moi_kernels::attend(&sizes, &q, &cached, &spans);
            assert_close(&gpu.get(&found), &expected, 5e-6);
        }
    }
}
