//! Filters: which tokens are kept. Each keeps at least one, and sees what those before it have left, renormalised.

use crate::{Candidates, candidates::by_logit};

/// Divides the logits; 0 keeps the most likely token alone, of several the one with the lowest id.
pub fn temperature(candidates: &mut Candidates, temperature: f64) {
    if temperature == 0.0 {
        top_k(candidates, 1);
    } else if temperature != 1.0 {
        candidates.map(|logit| logit / temperature);
    }
}

/// Keeps the `k` most likely; all if `k` is 0.
pub fn top_k(candidates: &mut Candidates, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.unordered().select_nth_unstable_by(k - 1, by_logit);
        candidates.truncate(k);
    }
}

/// Keeps the fewest of the most likely whose share reaches `top_p` (nucleus sampling, arXiv 1904.09751).
pub fn top_p(candidates: &mut Candidates, top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    candidates.weigh();
    let rest = candidates.rest;
    let list = candidates.unordered();
    let target = top_p * (list.iter().map(|candidate| candidate.weight).sum::<f64>() + rest);
    // Put in order a few at a time: the nucleus is nearly always much smaller than the vocabulary.
    let (mut sorted, mut reached, mut chunk) = (0, 0.0, 64);
    while sorted < list.len() {
        let rest = &mut list[sorted..];
        let n = chunk.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, by_logit);
        }
        rest[..n].sort_unstable_by(by_logit);
        let enough = rest[..n].iter().position(|candidate| {
            reached += candidate.weight;
            reached >= target
        });
        if let Some(last) = enough {
            candidates.truncate(sorted + last + 1);
            return;
        }
        sorted += n;
        chunk *= 8;
    }
}

/// Keeps those at least `min_p` times as likely as the most likely (arXiv 2407.01082).
pub fn min_p(candidates: &mut Candidates, min_p: f64) {
    if min_p > 0.0 {
        candidates.weigh();
        let largest = candidates.iter().map(|candidate| candidate.weight).fold(0.0, f64::max);
        candidates.retain(|candidate| candidate.weight >= min_p * largest);
    }
}

/// Keeps the fewest of those whose surprise is nearest to the entropy, until their share reaches `typical_p` (locally
/// typical sampling, arXiv 2202.00666).
pub fn typical(candidates: &mut Candidates, typical_p: f64) {
    if typical_p >= 1.0 || candidates.is_empty() {
        return;
    }
    candidates.weigh();
    let sum: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let surprise = |weight: f64| -(weight / sum).ln();
    let entropy: f64 = (candidates.iter().map(|candidate| candidate.weight))
        .filter(|&weight| weight > 0.0)
        .map(|weight| weight / sum * surprise(weight))
        .sum();
    let list = candidates.unordered();
    list.sort_by(|a, b| {
        let far = |weight| (surprise(weight) - entropy).abs();
        far(a.weight).total_cmp(&far(b.weight)).then(by_logit(a, b))
    });
    let mut reached = 0.0;
    let enough = list.iter().position(|candidate| {
        reached += candidate.weight / sum;
        reached >= typical_p
    });
    if let Some(last) = enough {
        candidates.truncate(last + 1);
    }
}

/// Keeps those whose logits are within `n` standard deviations of the largest one; all if `n` is 0 (arXiv 2411.07641).
/// Logits of -infinity do not count.
pub fn top_n_sigma(candidates: &mut Candidates, n: f64) {
    let finite = || candidates.iter().map(|candidate| candidate.logit).filter(|logit| logit.is_finite());
    let count = finite().count() as f64;
    if n <= 0.0 || count < 1.0 {
        return;
    }
    let mean = finite().sum::<f64>() / count;
    let sigma = (finite().map(|logit| (logit - mean).powi(2)).sum::<f64>() / count).sqrt();
    let floor = candidates.largest() - n * sigma;
    candidates.retain(|candidate| candidate.logit >= floor);
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: &[f32] = &[0.1, 0.4, 0.2, 0.2, 0.05, 0.05];

    fn of(p: &[f32]) -> Candidates {
        Candidates::new(&p.iter().map(|p| p.ln()).collect::<Vec<_>>())
    }

    fn kept(p: &[f32], filter: impl Fn(&mut Candidates)) -> Vec<u32> {
        let mut candidates = of(p);
        filter(&mut candidates);
        let mut ids: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn each_filter_keeps_what_it_says() {
        assert_eq!(kept(P, |c| top_k(c, 3)), [1, 2, 3]);
        assert_eq!(kept(P, |c| top_k(c, 2)), [1, 2]);
        assert_eq!(kept(P, |c| top_k(c, 0)).len(), 6);
        assert_eq!(kept(P, |c| top_p(c, 0.399)), [1]);
        assert_eq!(kept(P, |c| top_p(c, 0.61)), [1, 2, 3]);
        assert_eq!(kept(P, |c| top_p(c, 1e-9)), [1]);
        assert_eq!(kept(P, |c| min_p(c, 0.499)), [1, 2, 3]);
        assert_eq!(kept(P, |c| min_p(c, 1.0)), [1]);
        assert_eq!(kept(P, |c| temperature(c, 0.0)), [1]);
        // top-p sees what top-k left, renormalised: .4 of .8 is half.
        let both = |c: &mut Candidates| {
            top_k(c, 3);
            top_p(c, 0.499);
        };
        assert_eq!(kept(P, both), [1]);
    }

    #[test]
    fn a_nucleus_may_span_several_chunks() {
        let flat = vec![1.0; 2000];
        assert_eq!(kept(&flat, |c| top_p(c, 0.5)).len(), 1000);
        assert_eq!(kept(&flat, |c| top_p(c, 0.9999)).len(), 2000);
    }

    #[test]
    fn typical_tokens_are_near_the_entropy() {
        // The entropy is 1.5 nats; surprises are 2.3, 0.92, 1.61, 1.61, 3.0, 3.0.
        assert_eq!(kept(P, |c| typical(c, 0.3)), [2, 3]);
        assert_eq!(kept(P, |c| typical(c, 0.5)), [1, 2, 3]);
        assert_eq!(kept(P, |c| typical(c, 0.85)), [0, 1, 2, 3]);
        assert_eq!(kept(P, |c| typical(c, 1.0)).len(), 6);
        assert_eq!(kept(&[1.0, 0.0], |c| typical(c, 0.5)), [0]);
    }

    #[test]
    fn sigma_is_of_finite_logits() {
        let kept = |logits: &[f32], n| {
            let mut candidates = Candidates::new(logits);
            top_n_sigma(&mut candidates, n);
            candidates.iter().map(|candidate| candidate.id).collect::<Vec<_>>()
        };
        // Deviation sqrt(2) around 2.
        let logits = [0.0, 1.0, 2.0, 3.0, 4.0];
        assert_eq!(kept(&logits, 1.0), [3, 4]);
        assert_eq!(kept(&logits, 1.42), [2, 3, 4]);
        assert_eq!(kept(&logits, 0.0).len(), 5);
        assert_eq!(kept(&[0.0, 1.0, f32::NEG_INFINITY, 2.0, 3.0, 4.0], 1.0), [4, 5]);
        assert_eq!(kept(&[1.0; 3], 1.0).len(), 3);
    }

    #[test]
    fn a_temperature_does_not_move_the_sigma_filter() {
        for t in [0.3, 1.7] {
            let kept = kept(P, |c| {
                temperature(c, t);
                top_n_sigma(c, 1.0);
            });
            assert_eq!(kept, [1, 2, 3]);
        }
    }
}
