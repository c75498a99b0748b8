//! Finds the tokens that sampling filters may keep, without examining the tokens of a large vocabulary one by one.

use std::cell::RefCell;

use crate::{
    softmax::{Exponentials, GRAIN, exponentials},
    threshold::{kept, threshold},
};

/// A bound on the relative error of probability masses in float32, with room. Tokens near a filter's limit are kept.
const MARGIN: f64 = 1e-5;

/// Sampling filters on a distribution, in the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filters {
    /// One over the temperature.
    pub scale: f32,
    /// Keeps the K most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keeps tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f64,
}

/// Tokens that include all that the filters keep, and the weight of the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Shortlist {
    /// In ascending order. All tokens that are as likely as the least likely one are included.
    pub tokens: Vec<u32>,
    /// Total weight of the other tokens, where the most likely token has weight 1; 0 if top-k removes them first.
    pub rest: f64,
}

thread_local! {
    /// Kept from step to step, because the memory for a large vocabulary would be mapped anew each time.
    static WEIGHTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `with` with the weights `e^(scale (logit - max))` and their sums.
fn weighed<R>(logits: &[f32], scale: f32, with: impl FnOnce(&[f32], &Exponentials) -> R) -> R {
    WEIGHTS.with_borrow_mut(|weights| {
        weights.resize(logits.len(), 0.0);
        let found = exponentials(logits, scale, weights);
        with(weights, &found)
    })
}

/// A list of tokens with finite logits that includes all that the filters keep; `None` if no filter removes many.
///
/// Filtering these tokens alone gives the same result, if `rest` is part of the total that top-p is relative to.
pub fn shortlist(logits: &[f32], filters: &Filters) -> Option<Shortlist> {
    let top_k = if filters.top_k < logits.len() { filters.top_k } else { 0 };
    let takes_many = match top_k {
        0 => filters.top_p < 1.0 || filters.min_p > 0.0,
        k => k < logits.len() / 16,
    };
    if !takes_many {
        return None;
    }
    weighed(logits, filters.scale, |weights, found| {
        let floor = match top_k {
            0 => {
                let left = (1.0 - filters.top_p) * (1.0 - MARGIN);
                let of_top_p = if filters.top_p < 1.0 { threshold(weights, found.sum, left) } else { 0.0 };
                of_top_p.max((filters.min_p * (1.0 - MARGIN)) as f32)
            }
            // The filters after top-k only see the tokens that it keeps.
            k => floor_of_top(weights, k),
        };
        let kept = kept(weights, floor.max(f32::MIN_POSITIVE));
        let weight: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
        let tokens = kept.into_iter().map(|(token, _)| token).collect();
        let rest = if top_k == 0 { (found.sum - weight).max(0.0) } else { 0.0 };
        Some(Shortlist { tokens, rest })
    })
}

/// A weight that at least `count` weights reach, and not many more unless there are ties.
fn floor_of_top(weights: &[f32], count: usize) -> f32 {
    // Positive floats are ordered like their bits.
    let (mut right, mut wrong) = (0, 1.0f32.to_bits() + 1);
    while wrong - right > 1 {
        let middle = right + (wrong - right) / 2;
        let reach = count_from(weights, f32::from_bits(middle));
        match reach >= count {
            true => right = middle,
            false => wrong = middle,
        }
        if (count..=count + count / 4 + 16).contains(&reach) {
            break;
        }
    }
    f32::from_bits(right)
}

fn count_from(weights: &[f32], floor: f32) -> usize {
    // A count in 32 bits can be vectorized.
    let count = |weights: &[f32]| weights.iter().map(|&weight| u32::from(weight >= floor)).sum::<u32>();
    weights.chunks(GRAIN).map(|weights| count(weights) as usize).sum()
}

/// Draws a token: the one at which the cumulative distribution of tempered logits, in the order of tokens, passes
/// `uniform`, at least 0 and below 1. `scale` is one over the temperature. Logits must be finite or -infinity, and at
/// least one of them finite.
pub fn draw(logits: &[f32], scale: f32, uniform: f64) -> u32 {
    weighed(logits, scale, |weights, found| {
        let target = uniform * found.sum;
        let mut reached = 0.0;
        let mut chosen = None;
        for (part, &[sum, _]) in found.parts.iter().enumerate().filter(|(_, sums)| sums[0] > 0.0) {
            // If rounding keeps the sum below the target, the last part with a positive weight is chosen.
            chosen = Some((part, reached));
            reached += f64::from(sum);
            if reached > target {
                break;
            }
        }
        let Some((part, mut reached)) = chosen else { return 0 };
        let mut last = 0;
        for (token, &weight) in (part * GRAIN..).zip(weights[part * GRAIN..].iter().take(GRAIN)) {
            if weight > 0.0 {
                reached += f64::from(weight);
                last = token;
                if reached > target {
                    break;
                }
            }
        }
        last as u32
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(vocab: usize, spread: f32) -> Vec<f32> {
        (0..vocab).map(|i| (i * 7919 % vocab) as f32 / vocab as f32 * spread - spread / 2.0).collect()
    }

    /// The weights in float64.
    fn exact(logits: &[f32], scale: f32) -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter().map(|&logit| ((f64::from(logit) - f64::from(max)) * f64::from(scale)).exp()).collect()
    }

    #[test]
    fn all_that_filters_leave_is_on_the_list() {
        for (vocab, spread) in [(1000, 8.0), (50_000, 0.5), (50_000, 25.0), (262_144, 40.0)] {
            let mut logits = logits(vocab, spread);
            logits[vocab / 3] = f32::NEG_INFINITY;
            for scale in [0.5, 1.0, 1.25] {
                let weights = exact(&logits, scale);
                let total: f64 = weights.iter().sum();
                let mut order: Vec<usize> = (0..vocab).collect();
                order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
                for (top_k, top_p, min_p) in [
                    (0, 0.9, 0.0),
                    (0, 0.1, 0.0),
                    (0, 1.0, 0.1),
                    (40, 1.0, 0.0),
                    (40, 0.9, 0.05),
                    (0, 0.95, 0.02),
                ] {
                    let filters = Filters { scale, top_k, top_p, min_p };
                    let list = shortlist(&logits, &filters).unwrap();
                    assert!(list.tokens.is_sorted());
                    let mut left: Vec<usize> = order.clone();
                    if top_k > 0 {
                        left.truncate(top_k);
                    }
                    let mut reached = 0.0;
                    let target = top_p * left.iter().map(|&id| weights[id]).sum::<f64>();
                    let nucleus = left.iter().position(|&id| {
                        reached += weights[id];
                        reached >= target
                    });
                    left.truncate(nucleus.map_or(left.len(), |last| last + 1));
                    left.retain(|&id| weights[id] >= min_p);
                    for id in &left {
                        assert!(
                            list.tokens.binary_search(&(*id as u32)).is_ok(),
                            "{filters:?}: {id} is missing"
                        );
                    }
                    let on_list: f64 = list.tokens.iter().map(|&id| weights[id as usize]).sum();
                    assert!(top_k > 0 || (on_list + list.rest - total).abs() <= 1e-5 * total);
                    // The list is short, unless the filters keep many tokens.
                    assert!(
                        list.tokens.len() <= 2 * left.len() + top_k + vocab / 10,
                        "{filters:?}: {}",
                        list.tokens.len()
                    );
                }
                assert_eq!(shortlist(&logits, &Filters { scale, top_k: 0, top_p: 1.0, min_p: 0.0 }), None);
            }
        }
    }

    #[test]
    fn a_draw_is_that_of_float64_but_at_the_edges() {
        for (vocab, spread) in [(1, 1.0), (5, 2.0), (9000, 3.0), (50_000, 30.0)] {
            let mut logits = logits(vocab, spread);
            if vocab > 1 {
                logits[0] = f32::NEG_INFINITY;
                logits[vocab - 1] = f32::NEG_INFINITY;
            }
            let weights = exact(&logits, 1.25);
            let total: f64 = weights.iter().sum();
            for step in 0..500 {
                let uniform = f64::from(step) / 500.0 + 1e-4;
                let token = draw(&logits, 1.25, uniform) as usize;
                let before: f64 = weights[..token].iter().sum::<f64>() / total;
                let after = before + weights[token] / total;
                assert!(weights[token] > 0.0);
                assert!(before - 1e-6 <= uniform && uniform <= after + 1e-6, "{uniform}: {token}");
            }
            assert!(weights[draw(&logits, 1.0, 0.0) as usize] > 0.0);
            assert!(weights[draw(&logits, 1.0, 1.0 - f64::EPSILON) as usize] > 0.0);
        }
    }
}
