//! Seeded noise for the weights of mixtures. It is drawn on the host, so that it is the same on every backend.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use rand_distr::{Distribution, Gamma};

/// Distance in the random stream, in words, between the positions of two tokens.
const STRIDE: u128 = 1 << 10;

/// The noise of one sequence. Each step has its own random stream and each token its own position in it, so the noise
/// of a token does not depend on the other tokens.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    random: ChaCha8Rng,
}

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Begins a step with its own stream. Stream 0 belongs to the sampler.
    pub(crate) fn begin(&mut self, step: usize) {
        self.random.set_stream(step as u64 + 1);
        self.random.set_word_pos(0);
    }

    /// Moves to the stream position of a token.
    fn at(&mut self, token: u32) {
        self.random.set_word_pos(STRIDE * u128::from(token));
    }

    /// A uniform random number above 0 and below 1.
    fn uniform(&mut self) -> f64 {
        ((self.random.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// Draws a token with the probabilities `q`, walking them in the given order.
    pub(crate) fn pick(&mut self, q: &[(u32, f64)]) -> Option<u32> {
        let target = self.uniform() * q.iter().map(|&(_, p)| p).sum::<f64>();
        let mut reached = 0.0;
        let passes = |&&(_, p): &&(u32, f64)| {
            reached += p;
            reached > target
        };
        q.iter().find(passes).or(q.last()).map(|&(token, _)| token)
    }

    /// softmax((ln q + g) / tau) with g = -ln(-ln u).
    pub(crate) fn gumbel_softmax(&mut self, q: &[(u32, f64)], tau: f64) -> Vec<(u32, f64)> {
        let uniforms: Vec<f64> = (q.iter())
            .map(|&(token, _)| {
                self.at(token);
                self.uniform()
            })
            .collect();
        gumbel_softmax(q, &uniforms, tau)
    }

    /// A draw from Dirichlet(alpha q).
    ///
    /// A gamma variate of shape a < 1 is a variate of shape a + 1 times u^(1/a). Logarithms are used, because the
    /// variates underflow to 0 for small a.
    pub(crate) fn dirichlet(&mut self, q: &[(u32, f64)], alpha: f64) -> Vec<(u32, f64)> {
        let mut log_gamma = |(token, p): (u32, f64)| {
            self.at(token);
            let shape = alpha * p;
            let boost = self.uniform().ln() / shape;
            // `Gamma::new` accepts any positive shape and scale, so the default is never used.
            let gamma = Gamma::new(shape + 1.0, 1.0).map_or(1.0, |gamma| gamma.sample(&mut self.random));
            (token, gamma.ln() + boost)
        };
        softmax(q.iter().copied().map(&mut log_gamma).collect())
    }
}

/// The Gumbel-softmax weights for the given uniform numbers.
fn gumbel_softmax(q: &[(u32, f64)], uniforms: &[f64], tau: f64) -> Vec<(u32, f64)> {
    let noisy = |(&(token, p), u): (&(u32, f64), &f64)| (token, (p.ln() - (-u.ln()).ln()) / tau);
    softmax(q.iter().zip(uniforms).map(noisy).collect())
}

/// The softmax of the logarithms of weights.
fn softmax(mut logs: Vec<(u32, f64)>) -> Vec<(u32, f64)> {
    let largest = logs.iter().map(|&(_, log)| log).fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for (_, log) in &mut logs {
        *log = (*log - largest).exp();
        sum += *log;
    }
    logs.iter_mut().for_each(|(_, weight)| *weight /= sum);
    logs
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &[(u32, f64)] = &[(3, 0.5), (0, 0.3), (9, 0.2)];

    /// Chi-square statistic of 20,000 drawn tokens against the probabilities [`Q`].
    fn chi_square(draw: impl Fn(usize) -> u32) -> f64 {
        const DRAWS: usize = 20_000;
        let tokens: Vec<u32> = (0..DRAWS).map(draw).collect();
        let term = |&(token, p): &(u32, f64)| {
            let found = tokens.iter().filter(|&&t| t == token).count() as f64;
            (found - p * DRAWS as f64).powi(2) / (p * DRAWS as f64)
        };
        Q.iter().map(term).sum()
    }

    fn noise(step: usize) -> Noise {
        let mut noise = Noise::new(11);
        noise.begin(step);
        noise
    }

    fn largest(weights: &[(u32, f64)]) -> u32 {
        weights.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
    }

    /// With 2 degrees of freedom a chi-square above 18.4 has a probability of 1e-4.
    #[test]
    fn picks_and_gumbel_maxima_follow_q() {
        let picks = chi_square(|step| noise(step).pick(Q).unwrap());
        assert!(picks < 18.4, "{picks}");
        // The largest of ln q + g is a draw from q, whatever tau is.
        for tau in [0.01, 0.5, 3.0] {
            let maxima = chi_square(|step| largest(&noise(step).gumbel_softmax(Q, tau)));
            assert!(maxima < 18.4, "tau {tau}: {maxima}");
        }
    }

    /// A draw of a token from Dirichlet weights is a draw from their mean, q; and the variance is q (1 - q) / (alpha + 1).
    #[test]
    fn dirichlet_weights_have_their_mean_and_variance() {
        for alpha in [0.05, 1.0, 4.0] {
            let drawn = chi_square(|step| {
                let mut noise = noise(step);
                let weights = noise.dirichlet(Q, alpha);
                noise.begin(step + 1_000_000);
                noise.pick(&weights).unwrap()
            });
            assert!(drawn < 18.4, "alpha {alpha}: {drawn}");
            let n = 20_000;
            let first: Vec<f64> = (0..n).map(|step| noise(step).dirichlet(Q, alpha)[0].1).collect();
            let mean = first.iter().sum::<f64>() / n as f64;
            let variance = first.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n as f64;
            let expected = 0.25 / (alpha + 1.0);
            assert!((variance / expected - 1.0).abs() < 0.05, "alpha {alpha}: {variance} {expected}");
        }
    }

    #[test]
    fn limits() {
        // tau -> 0 picks one token, tau -> infinity makes all alike, alpha -> infinity gives q.
        for step in 0..100 {
            let picked = noise(step).gumbel_softmax(Q, 1e-7);
            assert!(picked.iter().any(|w| w.1 > 1.0 - 1e-9), "{picked:?}");
            let flat = noise(step).gumbel_softmax(Q, 1e9);
            assert!(flat.iter().all(|w| (w.1 - 1.0 / 3.0).abs() < 1e-6), "{flat:?}");
            let sure = noise(step).dirichlet(Q, 1e12);
            assert!(sure.iter().zip(Q).all(|(w, q)| (w.1 - q.1).abs() < 1e-4), "{sure:?}");
            let tiny = noise(step).dirichlet(Q, 1e-9);
            assert!(
                tiny.iter().all(|w| w.1.is_finite()) && tiny.iter().any(|w| w.1 > 1.0 - 1e-9),
                "{tiny:?}"
            );
        }
    }

    /// The expected values come from tests/reference/rules.py.
    #[test]
    fn gumbel_weights_are_those_of_the_formula() {
        let all: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../../tests/reference/rules.json")).unwrap();
        let cases: Vec<_> = all.iter().filter(|case| case["rule"] == "gumbel").collect();
        assert_eq!(cases.len(), 3);
        let numbers = |value: &serde_json::Value| {
            value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>()
        };
        for case in cases {
            let q: Vec<(u32, f64)> = (0..).zip(numbers(&case["q"])).collect();
            let found = super::gumbel_softmax(&q, &numbers(&case["uniforms"]), case["tau"].as_f64().unwrap());
            for ((_, found), expected) in found.iter().zip(numbers(&case["weights"])) {
                assert!((found - expected).abs() < 2e-9, "{found} is not {expected}");
            }
        }
    }

    #[test]
    fn a_token_keeps_its_noise_whoever_else_is_there() {
        let ratio = |weights: &[(u32, f64)]| weights[0].1 / weights[1].1;
        let all = noise(5).gumbel_softmax(Q, 0.5);
        let two = noise(5).gumbel_softmax(&Q[..2], 0.5);
        assert!((ratio(&all) / ratio(&two) - 1.0).abs() < 1e-12);
        assert_ne!(all, noise(6).gumbel_softmax(Q, 0.5));
        assert_eq!(all, noise(5).gumbel_softmax(Q, 0.5));
    }
}
