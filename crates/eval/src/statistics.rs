//! Intervals and significance tests for rates, single and paired.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde::Serialize;
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

/// The confidence level of intervals.
const LEVEL: f64 = 0.95;
/// The number of resamples of a bootstrap.
const RESAMPLES: usize = 10_000;

/// An interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// The 95% interval of a rate of `successes` among `trials` (Wilson 1927, without continuity correction); 0 to 1 if
/// there are no trials.
pub fn wilson(successes: usize, trials: usize) -> Interval {
    if trials == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let z = Normal::standard().inverse_cdf(0.5 + LEVEL / 2.0);
    let n = trials as f64;
    let (rate, z2) = (successes as f64 / n, z * z);
    let centre = (rate + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (rate * (1.0 - rate) / n + z2 / (4.0 * n * n)).sqrt();
    // A rate of 0 or 1 is an end of its own interval, which rounding must not move.
    Interval {
        low: if successes == 0 { 0.0 } else { (centre - half).max(0.0) },
        high: if successes == trials { 1.0 } else { (centre + half).min(1.0) },
    }
}

/// McNemar's test: the pairs with different outcomes, and the probability of such a difference by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Pairs that only the first one solved.
    pub first_only: usize,
    /// Pairs that only the second one solved.
    pub second_only: usize,
    /// The exact two-sided p-value.
    pub p: f64,
}

/// McNemar's exact test on pairs of outcomes: a two-sided binomial test of the pairs that differ.
pub fn mcnemar(pairs: impl IntoIterator<Item = (bool, bool)>) -> McNemar {
    let (mut first_only, mut second_only) = (0, 0);
    for (first, second) in pairs {
        first_only += usize::from(first && !second);
        second_only += usize::from(second && !first);
    }
    let (fewer, all) = (first_only.min(second_only) as u64, (first_only + second_only) as u64);
    let tail = Binomial::new(0.5, all).map_or(1.0, |binomial| binomial.cdf(fewer));
    McNemar { first_only, second_only, p: (2.0 * tail).min(1.0) }
}

/// The 95% bootstrap interval of a mean over problems: percentiles of the means of problems drawn with replacement.
/// `differences` has one number for each problem, the paired difference.
pub fn bootstrap_difference(differences: &[f64], seed: u64) -> Interval {
    let n = differences.len();
    if n == 0 {
        return Interval { low: 0.0, high: 0.0 };
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| (0..n).map(|_| differences[(random.next_u64() % n as u64) as usize]).sum::<f64>() / n as f64)
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
    Interval { low: at((1.0 - LEVEL) / 2.0), high: at((1.0 + LEVEL) / 2.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-9, "{a} is not {b}");
    }

    /// scipy 1.17: `binomtest(k, n).proportion_ci(method="wilson")`, by tests/reference/significance.py.
    #[test]
    fn intervals_are_those_of_scipy() {
        for &(k, n, low, high) in WILSON {
            let interval = wilson(k, n);
            close(interval.low, low);
            close(interval.high, high);
        }
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    /// scipy 1.17: `binomtest(b, b + c).pvalue`.
    #[test]
    fn tests_are_those_of_scipy() {
        for &(b, c, p) in MCNEMAR {
            let pairs = [
                vec![(true, false); b],
                vec![(false, true); c],
                vec![(true, true); 5],
                vec![(false, false); 9],
            ];
            let test = mcnemar(pairs.concat());
            assert_eq!((test.first_only, test.second_only), (b, c));
            close(test.p, p);
        }
    }

    /// With many problems, the percentile interval of a mean is close to the normal interval.
    #[test]
    fn a_bootstrap_is_near_the_normal_interval() {
        let differences: Vec<f64> = (0..400).map(|i| f64::from(i % 5) - 1.0).collect();
        let interval = bootstrap_difference(&differences, 3);
        // The mean is 1, and its standard error is sqrt(2) / sqrt(400).
        let half = 1.959964 * 2f64.sqrt() / 20.0;
        assert!(
            (interval.low - (1.0 - half)).abs() < 0.01 && (interval.high - (1.0 + half)).abs() < 0.01,
            "{interval:?}"
        );
        assert_eq!(interval, bootstrap_difference(&differences, 3));
        assert_eq!(bootstrap_difference(&[0.5; 7], 0), Interval { low: 0.5, high: 0.5 });
        assert_eq!(bootstrap_difference(&[], 0), Interval { low: 0.0, high: 0.0 });
    }

    include!("scipy.rs");
}
