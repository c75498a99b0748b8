//! The next-token distribution: a softmax and its entropy.

use crate::{
    isa,
    lanes::dispatch,
    pool::{self, Shared},
};

/// A distribution over a vocabulary.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    /// The largest logit; NaN if any is.
    pub max: f32,
    /// ln of the sum of `e^(logit - max)`.
    pub ln_sum: f32,
    /// Entropy in nats.
    pub entropy: f32,
    /// Probability of each token; empty where it was not asked for.
    pub probability: Vec<f32>,
}

/// Number of logits in a part of the work: a constant, so that sums do not depend on the number of threads.
pub(crate) const GRAIN: usize = 1 << 12;

/// The exponentials of `scale` times logits, not yet divided by their sum.
pub(crate) struct Exponentials {
    /// The largest logit; NaN if any is. The sums are NaN where it is not finite.
    pub(crate) max: f32,
    /// Sum of the exponentials `e^s`, where s = scale (logit - max).
    pub(crate) sum: f64,
    /// Sum of `s e^s`.
    weighted: f64,
    /// These two sums for each part of [`GRAIN`] logits.
    pub(crate) parts: Vec<[f32; 2]>,
}

impl Exponentials {
    /// The entropy in nats: H = ln S - (sum of s_i e^s_i) / S, where S = sum of e^s_i.
    pub(crate) fn entropy(&self) -> f32 {
        (self.sum.ln() - self.weighted / self.sum) as f32
    }
}

/// The distribution of logits. Without `probabilities`, only the maximum, the sum and the entropy are computed.
/// Logits of -infinity have probability 0.
pub fn distribution(logits: &[f32], probabilities: bool) -> Distribution {
    let mut probability = vec![0.0f32; if probabilities { logits.len() } else { 0 }];
    let found = exponentials(logits, 1.0, &mut probability);
    if !found.max.is_finite() {
        return Distribution { max: found.max, ln_sum: f32::NAN, entropy: f32::NAN, probability: Vec::new() };
    }
    let inverse = (1.0 / found.sum) as f32;
    let len = probability.len();
    let places = Shared::new(&mut probability);
    pool::run_ranges(len, GRAIN, |start, end| {
        // SAFETY: the ranges are disjoint.
        unsafe { places.slice(start, end - start) }.iter_mut().for_each(|e| *e *= inverse);
    });
    Distribution { max: found.max, ln_sum: found.sum.ln() as f32, entropy: found.entropy(), probability }
}

/// The sums of the exponentials of `scale` times logits. If `out` is not empty, the exponentials are stored in it.
pub(crate) fn exponentials(logits: &[f32], scale: f32, out: &mut [f32]) -> Exponentials {
    let stored = !out.is_empty();
    assert!(!stored || out.len() == logits.len(), "a place for each exponential");
    let parts = logits.len().div_ceil(GRAIN);
    let range = |part: usize| &logits[part * GRAIN..((part + 1) * GRAIN).min(logits.len())];
    let mut largest = vec![f32::NEG_INFINITY; parts];
    let shared = Shared::new(&mut largest);
    // SAFETY: each part has a place of its own.
    pool::run(parts, |part| unsafe { shared.slice(part, 1)[0] = max_of(range(part)) });
    // A NaN on either side is kept.
    let max = largest.into_iter().fold(f32::NEG_INFINITY, |a, b| if a.is_nan() || a > b { a } else { b });
    if !max.is_finite() {
        return Exponentials { max, sum: f64::NAN, weighted: f64::NAN, parts: Vec::new() };
    }
    let mut sums = vec![[0.0f32; 2]; parts];
    let (shared, places) = (Shared::new(&mut sums), Shared::new(out));
    pool::run(parts, |part| {
        let logits = range(part);
        // SAFETY: each part has a place of its own.
        let out =
            unsafe { places.slice(part * GRAIN * usize::from(stored), logits.len() * usize::from(stored)) };
        // SAFETY: likewise.
        unsafe { shared.slice(part, 1)[0] = exponential_sums(logits, max, scale, out) };
    });
    // The parts are added in float64, so that the division into parts does not show in the result.
    let [sum, weighted] = sums
        .iter()
        .fold([0.0f64; 2], |sums, part| [sums[0] + f64::from(part[0]), sums[1] + f64::from(part[1])]);
    Exponentials { max, sum, weighted, parts: sums }
}

/// The index of the first value that equals `largest`.
pub fn first_of_largest(values: &[f32], largest: f32) -> Option<usize> {
    // Whole runs are compared first, which is vectorized; only the search in the run that has the value is not.
    let runs = values
        .chunks(256)
        .position(|run| run.iter().fold(false, |found, &value| found | (value == largest)))?;
    let within = values[256 * runs..].iter().position(|&value| value == largest)?;
    Some(256 * runs + within)
}

fn max_of(values: &[f32]) -> f32 {
    dispatch!(isa(), |values: &[f32]| -> f32 {
        let (chunks, rest) = values.as_chunks::<16>();
        let mut broken = rest.iter().any(|value| value.is_nan());
        let mut max = rest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // SAFETY: chunks of sixteen; the CPU has the instruction set.
        unsafe {
            let mut lanes = L::splat(f32::NEG_INFINITY);
            for chunk in chunks {
                lanes = lanes.max(L::load(chunk.as_ptr()));
                broken |= chunk.iter().fold(false, |broken, value| broken | value.is_nan());
            }
            max = max.max(lanes.largest());
        }
        if broken { f32::NAN } else { max }
    })
}

/// Sums of `e^s` and of `s e^s`, where `s = scale (logit - max)`. If `out` is not empty, `e^s` is stored in it.
fn exponential_sums(logits: &[f32], max: f32, scale: f32, out: &mut [f32]) -> [f32; 2] {
    dispatch!(isa(), |logits: &[f32], max: f32, scale: f32, out: &mut [f32]| -> [f32; 2] {
        // SAFETY: chunks of sixteen; the CPU has the instruction set.
        unsafe {
            let mut sums = [L::splat(0.0); 2];
            macro_rules! step {
                ($chunk:expr, $out:expr) => {{
                    // The limit makes `s e^s` 0 where a logit is -infinity.
                    let s =
                        L::load($chunk.as_ptr()).sub(L::splat(max)).mul(L::splat(scale)).max(L::splat(-1e30));
                    let e = s.exp();
                    sums = [sums[0].add(e), s.mul_add(e, sums[1])];
                    let out: Option<&mut [f32; 16]> = $out;
                    if let Some(out) = out {
                        e.store(out.as_mut_ptr());
                    }
                }};
            }
            let (chunks, rest) = logits.as_chunks::<16>();
            let (places, place_of_rest) = out.as_chunks_mut::<16>();
            let mut places = places.iter_mut();
            for chunk in chunks {
                step!(chunk, places.next());
            }
            if !rest.is_empty() {
                let (mut padded, mut exponentials) = ([f32::NEG_INFINITY; 16], [0.0; 16]);
                padded[..rest.len()].copy_from_slice(rest);
                step!(padded, Some(&mut exponentials));
                let len = place_of_rest.len();
                place_of_rest.copy_from_slice(&exponentials[..len]);
            }
            [sums[0].sum(), sums[1].sum()]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_float64() {
        for len in [1usize, 2, 15, 16, 17, 40_000] {
            let mut logits: Vec<f32> = (0..len).map(|i| ((i * 7919 % 1009) as f32) * 0.02 - 9.0).collect();
            logits[len / 2] = if len > 2 { f32::NEG_INFINITY } else { 1.0 };
            let found = distribution(&logits, true);
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(found.max, max);
            let s: Vec<f64> = logits.iter().map(|&l| f64::from(l) - f64::from(max)).collect();
            let sum: f64 = s.iter().map(|s| s.exp()).sum();
            assert!((f64::from(found.ln_sum) - sum.ln()).abs() < 2e-6);
            let mut entropy = 0.0;
            for (s, &p) in s.iter().zip(&found.probability) {
                let q = s.exp() / sum;
                assert!((f64::from(p) - q).abs() <= 2e-6 * q);
                entropy -= if q > 0.0 { q * q.ln() } else { 0.0 };
            }
            assert!((f64::from(found.entropy) - entropy).abs() < 5e-6, "{} {entropy}", found.entropy);
            assert_eq!(distribution(&logits, false).entropy, found.entropy);
            let first = logits.iter().position(|&l| l == max);
            assert_eq!(first_of_largest(&logits, max), first);
        }
    }

    #[test]
    fn what_is_no_number_shows() {
        for len in [3usize, 16, 20_000] {
            for at in [0, len / 2, len - 1] {
                let mut logits = vec![0.5; len];
                logits[at] = f32::NAN;
                assert!(distribution(&logits, true).max.is_nan());
                logits[at] = f32::INFINITY;
                assert_eq!(distribution(&logits, true).max, f32::INFINITY);
            }
            assert_eq!(distribution(&vec![f32::NEG_INFINITY; len], true).max, f32::NEG_INFINITY);
        }
    }
}
