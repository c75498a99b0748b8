//! Rotary embedding: the angle by which each pair of values of a head is rotated, per position.
//!
//! Formulas are as in transformers' `modeling_rope_utils.py`; the papers are named at each kind.

use std::f64::consts::TAU;

/// Rotary position embedding (Su et al., arXiv 2104.09864) of the first `dims` values of a head. Value `i` is paired
/// with value `i + dims / 2` (`rotate_half`, the layout of Hugging Face checkpoints).
///
/// # Examples
/// ```
/// use moi_models::{RopeConfig, RopeScaling};
///
/// let scaling = RopeScaling::Linear { factor: 2.0 };
/// let rope = RopeConfig { theta: 10_000.0, dims: 8, scaling };
/// let frequencies = rope.frequencies(1);
/// assert_eq!((frequencies.len(), frequencies[0]), (4, 0.5));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the wavelengths, `rope_theta`.
    pub theta: f64,
    /// Number of values of a head that are rotated; the others are unchanged.
    pub dims: usize,
    /// How the frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// A change of the frequencies `theta^(-2i/dims)`.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, AttentionKind, RopeScaling};
///
/// let config = serde_json::json!({
///     "model_type": "llama", "num_hidden_layers": 1, "rope_scaling": { "rope_type": "linear", "factor": 4.0 },
/// });
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(AttentionKind::Heads(heads)) = &layers[0].attention else { panic!("Llama has attention") };
/// let scaling = heads.rope.as_ref().map(|rope| &rope.scaling);
/// assert_eq!(scaling, Some(&RopeScaling::Linear { factor: 4.0 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No change.
    Default,
    /// Every frequency divided by a factor (position interpolation, arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// A base that grows with the length of the sequence beyond the original context (dynamic NTK).
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
    },
    /// Llama 3.1: frequencies of long wavelengths are divided by `factor`, those of short ones are kept, and those
    /// between are interpolated.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Frequencies of wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Frequencies of wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
    },
    /// YaRN (arXiv 2309.00071): the same idea with a linear interpolation over the pairs, and a factor on the rotated
    /// values.
    Yarn {
        /// The divisor.
        factor: f64,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
        /// Pairs that make more full turns than this in the original context keep their frequency.
        beta_fast: f64,
        /// Frequencies of pairs that make fewer full turns than this are divided.
        beta_slow: f64,
        /// Whether the interpolation begins and ends at whole pairs.
        truncate: bool,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// LongRoPE (arXiv 2402.13753): a divisor per pair, with one list for the original context and one for longer
    /// sequences.
    LongRope {
        /// Divisors within the original context, `[dims / 2]`.
        short_factor: Vec<f64>,
        /// Divisors for longer sequences, `[dims / 2]`.
        long_factor: Vec<f64>,
        /// Context length of the original training.
        original_max_position_embeddings: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// Only the first pairs of a head are rotated, with the frequencies that they have among all pairs (Gemma 4).
    Proportional {
        /// Number of pairs that are rotated.
        pairs: usize,
        /// The divisor of their frequencies.
        factor: f64,
    },
    /// A divisor per frequency, `[dims / 2]`, as a GGUF file's `rope_freqs.weight` has it.
    Factors(Vec<f64>),
}

impl RopeConfig {
    /// Describes what is wrong with the numbers, if anything.
    pub(crate) fn problem(&self, head_dim: usize) -> Option<String> {
        let dims = self.dims;
        if !dims.is_multiple_of(2) {
            return Some(format!(
                "rotary positions turn {dims} values of a head, an odd number (head_dim {head_dim}); they are \
                 paired"
            ));
        }
        if dims > head_dim {
            return Some(format!("rotary positions turn {dims} values of a head of {head_dim}"));
        }
        positive("rope_theta", self.theta).or_else(|| self.scaling.problem(dims / 2))
    }

    /// Whether the frequencies depend on the length of the sequence.
    pub(crate) fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }

    /// Frequencies of all pairs in radians per position, `[dims / 2]`, for a sequence of `len` positions.
    pub fn frequencies(&self, len: usize) -> Vec<f64> {
        let dims = self.dims as f64;
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, original_max_position_embeddings: original } if dims > 2.0 => {
                let stretch = factor * (len as f64).max(original) / original - (factor - 1.0);
                self.theta * stretch.powf(dims / (dims - 2.0))
            }
            _ => self.theta,
        };
        let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / dims);
        let scaled = |pair| self.scaling.apply(pair, frequency(pair), self, len);
        (0..self.dims / 2).map(scaled).collect()
    }

    /// Factor on cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }

    /// The pairs at which YaRN's interpolation begins and ends.
    fn yarn_range(&self, original: f64, beta_fast: f64, beta_slow: f64, truncate: bool) -> (f64, f64) {
        let dims = self.dims as f64;
        // The pair that makes `turns` full turns in the original context.
        let pair = |turns: f64| dims * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low.max(0.0), high.min(dims - 1.0))
    }
}

impl RopeScaling {
    fn apply(&self, pair: usize, frequency: f64, rope: &RopeConfig, len: usize) -> f64 {
        match self {
            Self::Default | Self::Dynamic { .. } => frequency,
            Self::Linear { factor } => frequency / factor,
            &Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let turns = original_max_position_embeddings * frequency / TAU;
                // This is 0 below `low_freq_factor` full turns in the original context, and 1 above
                // `high_freq_factor`.
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
            &Self::Yarn {
                factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, ..
            } => {
                let (low, mut high) =
                    rope.yarn_range(original_max_position_embeddings, beta_fast, beta_slow, truncate);
                if low == high {
                    high += 0.001;
                }
                let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * divided + frequency * (1.0 - divided)
            }
            Self::LongRope { short_factor, long_factor, original_max_position_embeddings, .. } => {
                let beyond = len as f64 > *original_max_position_embeddings;
                frequency / if beyond { long_factor[pair] } else { short_factor[pair] }
            }
            Self::Proportional { pairs, .. } if pair >= *pairs => 0.0,
            Self::Proportional { factor, .. } => frequency / factor,
            Self::Factors(factors) => frequency / factors[pair],
        }
    }

    fn problem(&self, pairs: usize) -> Option<String> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let list = |name: &str, factors: &[f64]| match factors.len() == pairs {
            true => factors.iter().find_map(|&factor| positive(name, factor)),
            false => Some(format!(
                "{name} of the rotary positions has {} entries, expected {pairs}, half the rotated width",
                factors.len()
            )),
        };
        match self {
            Self::Default => None,
            Self::Linear { factor } | Self::Proportional { factor, .. } => positive("factor", *factor),
            &Self::Dynamic { factor, original_max_position_embeddings } => {
                // A factor below 1 would not extend the context, and a negative one could make the base negative.
                (factor < 1.0).then(|| format!("factor of the rotary positions is {factor}, expected >= 1"))
                    .or_else(|| positive("factor", factor))
                    .or_else(|| positive(ORIGINAL, original_max_position_embeddings))
            }
            &Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => positive("factor", factor)
                .or_else(|| positive("low_freq_factor", low_freq_factor))
                .or_else(|| positive(ORIGINAL, original_max_position_embeddings))
                .or_else(|| {
                    let rising = high_freq_factor > low_freq_factor && high_freq_factor.is_finite();
                    (!rising).then(|| {
                        format!("high_freq_factor ({high_freq_factor}) is not above low_freq_factor ({low_freq_factor})")
                    })
                }),
            &Self::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => [
                ("factor", factor),
                (ORIGINAL, original_max_position_embeddings),
                ("beta_fast", beta_fast),
                ("beta_slow", beta_slow),
                ("attention_factor", attention_factor),
            ]
            .into_iter()
            .find_map(|(name, value)| positive(name, value)),
            Self::LongRope { short_factor, long_factor, original_max_position_embeddings, attention_factor } => {
                list("short_factor", short_factor)
                    .or_else(|| list("long_factor", long_factor))
                    .or_else(|| positive(ORIGINAL, *original_max_position_embeddings))
                    .or_else(|| positive("attention_factor", *attention_factor))
            }
            Self::Factors(factors) => list("the list of frequency factors", factors),
        }
    }
}

fn positive(name: &str, value: f64) -> Option<String> {
    match value.is_finite() && value > 0.0 {
        true => None,
        false => Some(format!("{name} of the rotary positions is {value}, expected a number above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(theta: f64, dims: usize, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, dims, scaling }
    }

    #[test]
    fn llama3_keeps_short_waves_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let scaled = rope(5e5, 64, scaling).frequencies(1);
        let plain = rope(5e5, 64, RopeScaling::Default).frequencies(1);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 8.0);
        let middle = (0..32).filter(|&i| scaled[i] < plain[i] && scaled[i] > plain[i] / 8.0).count();
        assert!(middle > 0);
    }

    #[test]
    fn dynamic_and_longrope_change_with_the_length_alone_beyond_the_original_context() {
        let dynamic =
            rope(1e4, 8, RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: 16.0 });
        let plain = rope(1e4, 8, RopeScaling::Default).frequencies(1);
        assert_eq!(dynamic.frequencies(16), plain);
        let longer = dynamic.frequencies(24);
        assert!(longer[3] < plain[3] && longer[0] == plain[0]);
        let long = rope(
            1e4,
            8,
            RopeScaling::LongRope {
                short_factor: vec![1.0; 4],
                long_factor: vec![2.0; 4],
                original_max_position_embeddings: 16.0,
                attention_factor: 1.0,
            },
        );
        assert_eq!(long.frequencies(16), plain);
        assert_eq!(long.frequencies(17)[2], plain[2] / 2.0);
    }

    #[test]
    fn nonsense_is_named() {
        let check = |theta, scaling| rope(theta, 8, scaling).problem(8).unwrap_or_default();
        assert!(check(0.0, RopeScaling::Default).contains("rope_theta"));
        assert!(check(1e4, RopeScaling::Linear { factor: f64::NAN }).contains("factor"));
        assert!(check(1e4, RopeScaling::Factors(vec![1.0; 3])).contains("expected 4"));
        assert!(rope(1e4, 7, RopeScaling::Default).problem(8).unwrap_or_default().contains("odd"));
        assert!(rope(1e4, 10, RopeScaling::Default).problem(8).unwrap_or_default().contains("of 8"));
    }
}
