//! Tests that compare with sums in float64.

use super::*;
use crate::{Float, PackedForm, PackedParts, distribution, pack};

fn softmax(vocab: usize, spread: f32) -> Vec<f32> {
    let logit = |i: usize| -((i * 7919 % vocab) as f32 / vocab as f32) * spread;
    let sum: f64 = (0..vocab).map(|i| f64::from(logit(i)).exp()).sum();
    (0..vocab).map(|i| (f64::from(logit(i)).exp() / sum) as f32).collect()
}

#[test]
fn what_is_left_out_is_less_than_the_bound() {
    let mut left = 0;
    for spread in [0.0, 5.0, 20.0, 40.0, 90.0] {
        let weights = softmax(5000, spread);
        let cutoff = cutoff(&weights);
        let below: f64 = weights.iter().filter(|w| **w < cutoff).map(|&w| f64::from(w)).sum();
        assert!(below < LEFT_OUT);
        // A cutoff at the next power of two would leave out too much.
        let more: f64 = weights.iter().filter(|w| **w < 2.0 * cutoff).map(|&w| f64::from(w)).sum();
        assert!(more >= LEFT_OUT);
        left += weights.iter().filter(|w| **w < cutoff).count();
    }
    assert!(left > 5000, "much is left out where much is small: {left}");
    let broken = Table::Dense(Dense::new(Float::F32(&[1.0, 2.0]), [2, 1]).unwrap());
    assert!(weighted_sums(&broken, &[f32::NAN, 1.0])[0].is_nan());
}

#[test]
fn sums_are_within_a_millionth_of_float64() {
    let (vocab, columns) = (3000, 96);
    let value = |i: usize| ((i * 48271 % 65537) as f32 / 32768.0 - 1.0) * 0.2;
    let table: Vec<f32> = (0..vocab * columns).map(value).collect();
    let largest = table.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    for spread in [0.0, 8.0, 30.0, 90.0] {
        let weights: Vec<f32> = [softmax(vocab, spread), softmax(vocab, spread / 2.0)].concat();
        let dense = Table::Dense(Dense::new(Float::F32(&table), [vocab, columns]).unwrap());
        let found = weighted_sums(&dense, &weights);
        for (n, found) in found.chunks(columns).enumerate() {
            for (column, found) in found.iter().enumerate() {
                let terms = (0..vocab).map(|row| {
                    f64::from(weights[n * vocab + row]) * f64::from(table[row * columns + column])
                });
                let expected: f64 = terms.sum();
                let off = (f64::from(*found) - expected).abs();
                assert!(off <= 1e-6 * f64::from(largest), "off by {off}");
            }
        }
    }
}

/// A table in Q8_0.
fn parts(vocab: usize, columns: usize) -> PackedParts {
    let blocks: Vec<u8> = (0..vocab * columns / 32)
        .flat_map(|block| {
            let scale = half::f16::from_f32(0.01 + (block % 7) as f32 * 0.001).to_le_bytes();
            scale.into_iter().chain((0..32).map(move |i| (block * 31 + i * 17) as u8))
        })
        .collect();
    pack(PackedForm::Q8_0, &blocks, vocab, columns).unwrap()
}

#[test]
fn packed_rows_sum_as_their_values_do() {
    let (vocab, columns) = (1000, 64);
    let parts = parts(vocab, columns);
    let packed =
        Packed::new(PackedForm::Q8_0, [vocab, columns], &parts.words, &parts.scales, &parts.minima).unwrap();
    let mut values = Vec::new();
    packed.rows(&(0..vocab).collect::<Vec<_>>(), &mut values);
    let weights = softmax(vocab, 12.0);
    let sums = weighted_sums(&Table::Packed(packed), &weights);
    for (column, sum) in sums.iter().enumerate() {
        let terms = (0..vocab).map(|row| f64::from(weights[row]) * f64::from(values[row * columns + column]));
        assert!((f64::from(*sum) - terms.sum::<f64>()).abs() < 1.5e-6);
    }
}

/// Logits like those of a language model: a few large ones and a long tail.
fn peaked(vocab: usize, sharpness: f32) -> Vec<f32> {
    (0..vocab).map(|i| -sharpness * ((i * 7919 % vocab) as f32 + 1.0).ln()).collect()
}

#[test]
fn what_goes_to_the_mean_row_is_within_the_tolerance() {
    let (vocab, columns) = (9000, 40);
    let value = |i: usize| ((i * 48271 % 65537) as f32 / 32768.0 - 1.0) * 0.2;
    let table: Vec<f32> = (0..vocab * columns).map(value).collect();
    let dense = Table::Dense(Dense::new(Float::F32(&table), [vocab, columns]).unwrap());
    let mean_row = weighted_sums(&dense, &vec![1.0 / vocab as f32; vocab]);
    for sharpness in [0.0, 0.3, 1.0, 2.0, 4.0] {
        let logits = peaked(vocab, sharpness);
        let q = distribution(&logits, true);
        let exact = weighted_sums(&dense, &q.probability);
        for gate in [0.0, 0.05, 0.5, 1.0] {
            for tolerance in [0.0, 1e-5, 1e-3, 0.1] {
                let mut cache = RowCache::default();
                let (mean, entropies) =
                    mean_rows(&dense, &mut cache, &mean_row, &logits, &|_, _| gate, tolerance);
                assert_eq!(entropies, [q.entropy]);
                // No value of a row differs from the mean row's by more than the range of values, 0.4.
                let bound = tolerance * 0.4 + gate * 1e-6;
                for (mean, exact) in mean.iter().zip(&exact) {
                    let off = gate * (mean - exact).abs();
                    assert!(off <= bound, "sharpness {sharpness}, gate {gate}, {tolerance}: off by {off}");
                }
            }
        }
    }
    let nan = vec![f32::NAN; vocab];
    let broken = mean_rows(&dense, &mut RowCache::default(), &mean_row, &nan, &|_, _| 1.0, 0.1);
    assert!(broken.0[0].is_nan() && broken.1[0].is_nan());
}

#[test]
fn few_rows_are_kept_where_few_are_likely() {
    for vocab in [100, 4096, 70_001, 262_144] {
        for sharpness in [0.0, 1.0, 1.5, 3.0] {
            let logits = peaked(vocab, sharpness);
            let mut weights = vec![0.0; vocab];
            let sum = exponentials(&logits, 1.0, &mut weights).sum;
            for allowed in [1e-6, 1e-3, 0.2] {
                let threshold = threshold(&weights, sum, allowed);
                let kept = kept(&weights, threshold);
                let below = weights.iter().filter(|&&weight| weight < threshold);
                let left: f64 = below.map(|&weight| f64::from(weight)).sum();
                assert!(left <= allowed * sum * 1.000_001, "{left} of {sum} left out");
                assert!(kept.is_sorted_by_key(|row| row.0), "in order");
                let mut sorted = weights.clone();
                sorted.sort_unstable_by(f32::total_cmp);
                let mut below = 0.0;
                let least = sorted.iter().take_while(|&&weight| {
                    below += f64::from(weight);
                    below <= allowed * sum
                });
                let least = vocab - least.count();
                // With equal weights, all rows may have to be kept; else the threshold's grid keeps less than a fifth
                // too many.
                let most = if sharpness == 0.0 { vocab } else { least + least / 5 + 2 };
                assert!(kept.len() <= most, "{vocab}, {sharpness}, {allowed}: {} of {least}", kept.len());
            }
        }
    }
}

#[test]
fn packed_tables_give_the_same_alone_and_in_a_batch_whatever_was_read_before() {
    let (vocab, columns) = (6400, 64);
    let parts = parts(vocab, columns);
    let packed =
        Packed::new(PackedForm::Q8_0, [vocab, columns], &parts.words, &parts.scales, &parts.minima).unwrap();
    let mut values = Vec::new();
    packed.rows(&(0..vocab).collect::<Vec<_>>(), &mut values);
    let (table, mean_row) = (Table::Packed(packed), vec![0.0; columns]);
    let logits = [0.2, 1.0, 2.0, 0.7].map(|sharpness| peaked(vocab, sharpness));
    let mut warm = RowCache::default();
    let together = mean_rows(&table, &mut warm, &mean_row, &logits.concat(), &|row, _| 0.3 * row as f32, 0.0);
    for (row, logits) in logits.iter().enumerate() {
        for cache in [&mut RowCache::default(), &mut warm] {
            let (mean, entropy) = mean_rows(&table, cache, &mean_row, logits, &|_, _| 0.3 * row as f32, 0.0);
            assert_eq!((&mean[..], entropy[0]), (&together.0[row * columns..][..columns], together.1[row]));
            let q = distribution(logits, true).probability;
            for (column, found) in mean.iter().enumerate() {
                let term = |token: usize| f64::from(q[token]) * f64::from(values[token * columns + column]);
                let expected: f64 = (0..vocab).map(term).sum();
                assert!((f64::from(*found) - expected).abs() < 2e-6, "{found}, expected {expected}");
            }
        }
    }
}
