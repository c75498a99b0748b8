//! From logits to a token, on the host.

use std::cmp::Ordering;

use moi_kernels::{Distribution, distribution, first_of_largest};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde::{Deserialize, Serialize};

use crate::EngineError;

/// How tokens are sampled. The filters work in this order: temperature, top-k, top-p, min-p; each sees what
/// the ones before it left, renormalised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token always (greedy).
    pub temperature: f64,
    /// Keeps the K most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keeps tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl Sampling {
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let wrong = |name, allowed, value| Err(EngineError::Sampling { name, allowed, value });
        match *self {
            Self { temperature: t, .. } if !(t.is_finite() && t >= 0.0) => {
                wrong("temperature", "0 (greedy) or more, and finite", t)
            }
            Self { top_p: p, .. } if !(p > 0.0 && p <= 1.0) => wrong("top-p", "above 0 and at most 1", p),
            Self { min_p: p, .. } if !(0.0..=1.0).contains(&p) => wrong("min-p", "between 0 and 1", p),
            _ => Ok(()),
        }
    }
}

/// A sampled token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log-probability in the raw distribution, before temperature and filters.
    pub logprob: f64,
}

/// Samples the tokens of one row.
///
/// One uniform number per token from a ChaCha stream of the seed, turned into a token by the inverse of the
/// cumulative distribution, tokens in order of their ids, in float64: so a seed means the same tokens on
/// every run and every backend whose logits agree.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    drawn: usize,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// Not normalised.
    p: f64,
}

impl Sampler {
    /// A sampler at the start of its stream.
    ///
    /// # Errors
    /// If a value of `sampling` is not allowed.
    pub fn new(sampling: Sampling, seed: u64) -> Result<Self, EngineError> {
        sampling.check()?;
        Ok(Self { sampling, rng: ChaCha8Rng::seed_from_u64(seed), drawn: 0 })
    }

    /// How it samples.
    pub(crate) fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// The next uniform number, at least 0 and below 1.
    pub(crate) fn draw(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Samples from raw logits `[vocab]`.
    ///
    /// # Errors
    /// If they hold NaN or +infinity, or nothing but -infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Sampled, EngineError> {
        let uniform = self.draw();
        self.choose(logits, uniform)
    }

    /// The token for a number that was drawn.
    pub(crate) fn choose(&mut self, logits: &[f32], uniform: f64) -> Result<Sampled, EngineError> {
        let wrong = |what| EngineError::BadLogits { step: self.drawn, what };
        let Distribution { max, ln_sum, .. } = distribution(logits, false);
        if !max.is_finite() {
            return Err(wrong(match max {
                _ if max.is_nan() => "NaN",
                _ if max > 0.0 => "infinity",
                _ => "no finite value",
            }));
        }
        let token = match self.sampling.temperature {
            0.0 => first_of_largest(logits, max).unwrap_or(0) as u32,
            temperature => {
                let tempered = |l: f32| (f64::from(l - max) / temperature).exp();
                let candidates = logits.iter().zip(0u32..).map(|(&l, id)| Candidate { id, p: tempered(l) });
                inverse_cdf(self.filter(candidates.collect()), uniform)
            }
        };
        self.drawn += 1;
        let logprob = f64::from(logits[token as usize] - max) - f64::from(ln_sum);
        Ok(Sampled { token, logprob })
    }

    fn filter(&self, candidates: Vec<Candidate>) -> Vec<Candidate> {
        let Sampling { top_k: k, top_p, min_p: floor, .. } = self.sampling;
        min_p(nucleus(top_k(candidates, k), top_p), floor)
    }
}

/// Most probable first, ties by the lower id.
fn by_probability(a: &Candidate, b: &Candidate) -> Ordering {
    b.p.total_cmp(&a.p).then(a.id.cmp(&b.id))
}

/// The K most probable; all if `k` is 0.
fn top_k(mut candidates: Vec<Candidate>, k: usize) -> Vec<Candidate> {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_probability);
        candidates.truncate(k);
    }
    candidates
}

/// The fewest of the most probable whose share reaches `top_p`; at least one.
fn nucleus(mut candidates: Vec<Candidate>, top_p: f64) -> Vec<Candidate> {
    if top_p >= 1.0 {
        return candidates;
    }
    let target = top_p * candidates.iter().map(|c| c.p).sum::<f64>();
    // Sorting a few at a time: the nucleus is nearly always much smaller than the vocabulary.
    let (mut sorted, mut reached) = (0, 0.0);
    let mut chunk = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let n = chunk.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, by_probability);
        }
        rest[..n].sort_unstable_by(by_probability);
        let enough = rest[..n].iter().position(|c| {
            reached += c.p;
            reached >= target
        });
        if let Some(last) = enough {
            candidates.truncate(sorted + last + 1);
            return candidates;
        }
        sorted += n;
        chunk *= 8;
    }
    candidates
}

/// Those at least `floor` times as probable as the most probable.
fn min_p(mut candidates: Vec<Candidate>, floor: f64) -> Vec<Candidate> {
    let max = candidates.iter().map(|c| c.p).fold(0.0, f64::max);
    candidates.retain(|c| c.p >= floor * max);
    candidates
}

/// The token at which the cumulative distribution, in order of ids, passes `uniform`.
fn inverse_cdf(mut candidates: Vec<Candidate>, uniform: f64) -> u32 {
    candidates.sort_unstable_by_key(|c| c.id);
    let target = uniform * candidates.iter().map(|c| c.p).sum::<f64>();
    let mut reached = 0.0;
    let mut last = 0;
    for Candidate { id, p } in candidates {
        if p > 0.0 {
            reached += p;
            last = id;
            if reached > target {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(p: &[f64]) -> Vec<Candidate> {
        p.iter().zip(0..).map(|(&p, id)| Candidate { id, p }).collect()
    }

    fn ids(mut candidates: Vec<Candidate>) -> Vec<u32> {
        candidates.sort_by_key(|c| c.id);
        candidates.iter().map(|c| c.id).collect()
    }

    const P: &[f64] = &[0.1, 0.4, 0.2, 0.2, 0.05, 0.05];

    #[test]
    fn each_filter_keeps_what_it_says() {
        assert_eq!(ids(top_k(candidates(P), 3)), [1, 2, 3]);
        assert_eq!(ids(top_k(candidates(P), 2)), [1, 2]);
        assert_eq!(ids(top_k(candidates(P), 0)).len(), 6);
        assert_eq!(ids(nucleus(candidates(P), 0.4)), [1]);
        assert_eq!(ids(nucleus(candidates(P), 0.61)), [1, 2, 3]);
        assert_eq!(ids(nucleus(candidates(P), 1e-9)), [1]);
        assert_eq!(ids(min_p(candidates(P), 0.5)), [1, 2, 3]);
        assert_eq!(ids(min_p(candidates(P), 1.0)), [1]);
        // top-p sees what top-k left, renormalised: .4 of .8 is half.
        assert_eq!(ids(nucleus(top_k(candidates(P), 3), 0.5)), [1]);
    }

    #[test]
    fn a_nucleus_may_span_several_chunks() {
        let flat = vec![1.0; 2000];
        assert_eq!(nucleus(candidates(&flat), 0.5).len(), 1000);
        assert_eq!(nucleus(candidates(&flat), 0.9999).len(), 2000);
    }

    #[test]
    fn the_inverse_cdf_covers_every_uniform() {
        let p = [0.25, 0.0, 0.5, 0.25, 0.0];
        let token = |u| inverse_cdf(candidates(&p), u);
        assert_eq!([0.0, 0.24, 0.25, 0.74, 0.75, 1.0 - 1e-16].map(token), [0, 0, 2, 2, 3, 3]);
    }

    #[test]
    fn a_seed_repeats_and_frequencies_follow_the_distribution() {
        let sampling = Sampling { temperature: 0.5, ..Sampling::default() };
        let draw = |seed| {
            let mut sampler = Sampler::new(sampling, seed).unwrap();
            (0..20_000).map(|_| sampler.sample(&[0.0, 0.5, 1.0]).unwrap().token).collect::<Vec<_>>()
        };
        let tokens = draw(7);
        assert_eq!(tokens, draw(7));
        assert_ne!(tokens, draw(8));
        // At temperature 0.5 the logits are 0, 1, 2. Chi-square with 2 degrees of freedom, p = 1e-4: 18.4.
        let sum: f64 = (0..3).map(|i| f64::from(i).exp()).sum();
        let chi: f64 = (0..3u32)
            .map(|i| {
                let expected = 20_000.0 * f64::from(i).exp() / sum;
                let found = tokens.iter().filter(|&&t| t == i).count() as f64;
                (found - expected).powi(2) / expected
            })
            .sum();
        assert!(chi < 18.4, "chi-square {chi}");
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(Sampling::default(), 0).unwrap();
        let sampled = sampler.sample(&[0.0, 2.0, 2.0]).unwrap();
        assert_eq!(sampled.token, 1);
        let expected = -(2.0 + (-2.0f64).exp()).ln();
        assert!((sampled.logprob - expected).abs() < 1e-6);
    }

    #[test]
    fn broken_logits_and_values_are_named() {
        let mut sampler = Sampler::new(Sampling::default(), 0).unwrap();
        for (logits, what) in [
            ([0.0, f32::NAN], "NaN"),
            ([0.0, f32::INFINITY], "infinity"),
            ([f32::NEG_INFINITY; 2], "no finite value"),
        ] {
            let error = sampler.sample(&logits).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("step 0"), "{error}");
        }
        for (sampling, name) in [
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
            (Sampling { temperature: f64::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top-p"),
            (Sampling { min_p: 1.5, ..Sampling::default() }, "min-p"),
        ] {
            assert!(Sampler::new(sampling, 0).unwrap_err().to_string().contains(name));
        }
    }
}
