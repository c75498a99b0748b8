use half::{bf16, f16};

use super::*;

/// The formula, in float64.
fn expected(
    sizes: &Attention,
    q: &[f32],
    k: &dyn Fn(usize, usize, usize, usize) -> f32,
    v: &dyn Fn(usize, usize, usize, usize) -> f32,
    visible: &dyn Visible,
) -> Vec<f64> {
    let &Attention { batch, seq, heads, kv_heads, head_dim, softcap } = sizes;
    let mut out = vec![0.0; q.len()];
    for b in 0..batch {
        for s in 0..seq {
            for h in 0..heads {
                let at = ((b * seq + s) * heads + h) * head_dim;
                let kv = h / (heads / kv_heads);
                let score = |c: usize| {
                    let dot: f64 =
                        (0..head_dim).map(|i| f64::from(q[at + i]) * f64::from(k(b, kv, c, i))).sum();
                    softcap.map_or(dot, |cap| (dot / f64::from(cap)).tanh() * f64::from(cap))
                };
                let scores: Vec<(usize, f64)> = visible.columns(b, s).map(|c| (c, score(c))).collect();
                let max = scores.iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s.1 - max).exp()).sum();
                for (c, score) in scores {
                    for i in 0..head_dim {
                        out[at + i] += (score - max).exp() / sum * f64::from(v(b, kv, c, i));
                    }
                }
            }
        }
    }
    out
}

#[test]
fn agrees_with_the_formula_whatever_the_sizes() {
    // batch, seq, heads, kv_heads, head_dim, past, window, softcap
    let cases = [
        (1, 1, 1, 1, 8, 0, 1000, None),
        (1, 1, 9, 3, 64, 575, 1000, None),
        (2, 1, 4, 1, 16, 1300, 700, None),
        (1, 70, 6, 2, 24, 9, 1000, None),
        (2, 33, 4, 4, 32, 100, 40, Some(5.0)),
        (1, 5, 32, 1, 12, 3, 2, None),
        (1, 13, 1, 1, 40, 5, 1000, None),
    ];
    for (batch, seq, heads, kv_heads, head_dim, past, window, softcap) in cases {
        let sizes = Attention { batch, seq, heads, kv_heads, head_dim, softcap };
        let columns = past + seq;
        let capacity = columns + 5;
        let number = |i: usize| ((i * 48271 % 65537) as f32 / 32768.0 - 1.0) * 0.7;
        let q: Vec<f32> = (0..batch * seq * heads * head_dim).map(number).collect();
        let cache = batch * kv_heads * capacity * head_dim + 3;
        let keys: Vec<f32> = (0..cache).map(|i| number(5 * i + 2)).collect();
        let values: Vec<f32> = (0..cache).map(|i| number(11 * i + 7)).collect();
        // The second row of a batch starts later.
        let visible = |b: usize, s: usize| {
            let end = past + s + 1;
            (2 * b).max(end.saturating_sub(window)).min(end)..end
        };
        let halves: [Vec<f16>; 2] = [&keys, &values].map(|v| v.iter().map(|&x| f16::from_f32(x)).collect());
        let shorts: [Vec<bf16>; 2] = [&keys, &values].map(|v| v.iter().map(|&x| bf16::from_f32(x)).collect());
        let stored = [
            (Float::F32(&keys), Float::F32(&values)),
            (Float::F16(&halves[0]), Float::F16(&halves[1])),
            (Float::Bf16(&shorts[0]), Float::Bf16(&shorts[1])),
        ];
        for (k, v) in stored {
            let cached = |values| Cached {
                values,
                start: 3,
                batch_stride: kv_heads * capacity * head_dim,
                head_stride: capacity * head_dim,
                columns,
            };
            let (k, v) = (cached(k), cached(v));
            let read = |cached: Cached<'_>, b: usize, h: usize, c: usize, i: usize| {
                let at = 3 + ((b * kv_heads + h) * capacity + c) * head_dim + i;
                match cached.values {
                    Float::F32(values) => values[at],
                    Float::F16(values) => values[at].to_f32(),
                    Float::Bf16(values) => values[at].to_f32(),
                }
            };
            let found = attend(&sizes, &q, &k, &v, &visible);
            let expected = expected(
                &sizes,
                &q,
                &|b, h, c, i| read(k, b, h, c, i),
                &|b, h, c, i| read(v, b, h, c, i),
                &visible,
            );
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < 2e-6, "{sizes:?}: {found} {expected}");
            }
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros_and_a_broken_one_shows() {
    let sizes = Attention { batch: 1, seq: 2, heads: 1, kv_heads: 1, head_dim: 16, softcap: None };
    let numbers = vec![0.5; 16 * 4];
    let cached =
        Cached { values: Float::F32(&numbers), start: 0, batch_stride: 0, head_stride: 0, columns: 4 };
    let visible = |_: usize, s: usize| 0..4 * s;
    let found = attend(&sizes, &[1.0; 32], &cached, &cached, &visible);
    assert_eq!(found[..16], [0.0; 16]);
    assert!(found[16..].iter().all(|value| (value - 0.5).abs() < 1e-6));
    let broken = attend(&sizes, &[f32::NAN; 32], &cached, &cached, &visible);
    assert!(broken[16..].iter().all(|value| value.is_nan()));
}
