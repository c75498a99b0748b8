//! Rotary positions: angles per position, and turning heads by them.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

/// Rotary position embedding (Su et al., arXiv 2104.09864) on the whole head, halves paired
/// (`rotate_half`, the layout of Hugging Face checkpoints).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the wavelengths, `rope_theta`.
    pub theta: f64,
    /// How the frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// A change of the frequencies `theta^(-2i/d)`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Every frequency divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a smooth passage between.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the original training.
        original_max_position_embeddings: f64,
    },
    /// A divisor per frequency, `[head_dim / 2]`, as a GGUF file's `rope_freqs.weight` has it.
    Factors(Vec<f64>),
}

impl RopeConfig {
    /// Says what is wrong with the numbers, if anything.
    pub(crate) fn check(&self, head_dim: usize) -> Result<(), String> {
        let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(format!("{name} of the rotary positions is {value}, expected a number above 0")),
        };
        positive("rope_theta", self.theta)?;
        match &self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("original_max_position_embeddings", original_max_position_embeddings)?;
                match high_freq_factor > low_freq_factor && high_freq_factor.is_finite() {
                    true => Ok(()),
                    false => Err(format!(
                        "high_freq_factor ({high_freq_factor}) is not above low_freq_factor ({low_freq_factor})"
                    )),
                }
            }
            RopeScaling::Factors(factors) if factors.len() != head_dim / 2 => Err(format!(
                "{} rope frequency factors for a head of {head_dim}, expected {}",
                factors.len(),
                head_dim / 2
            )),
            RopeScaling::Factors(factors) => {
                factors.iter().try_for_each(|&f| positive("a frequency factor", f))
            }
        }
    }

    /// Radians per position of each pair `[head_dim / 2]`.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let frequency = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                self.scaling.apply(i, frequency)
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, pair: usize, frequency: f64) -> f64 {
        match self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            &Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let turns = original_max_position_embeddings * frequency / std::f64::consts::TAU;
                // 0 below low_freq_factor turns in the original context, 1 above high_freq_factor.
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - keep) * frequency / factor + keep * frequency
            }
            Self::Factors(factors) => frequency / factors[pair],
        }
    }
}

/// cos and sin of the positions of a step, each `[batch or 1, 1, seq, head_dim]` in float32.
#[derive(Clone, Debug)]
pub(crate) struct Angles<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Angles<B> {
    /// `positions`: one row per batch row, or a single one that all rows share.
    pub(crate) fn new(frequencies: &[f64], positions: &[Vec<usize>], device: &B::Device) -> Self {
        let (rows, seq, half) = (positions.len(), positions.first().map_or(0, Vec::len), frequencies.len());
        let mut cos = Vec::with_capacity(rows * seq * half * 2);
        let mut sin = Vec::with_capacity(cos.capacity());
        for &position in positions.iter().flatten() {
            // float64 keeps the angle exact far into a long context.
            let turn = |f: &f64| (position as f64 * f).sin_cos();
            for (s, c) in frequencies.iter().chain(frequencies).map(turn) {
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        let tensor = |values| {
            let data = TensorData::new(values, [rows, 1, seq, 2 * half]);
            Tensor::from_data(data, (device, DType::F32))
        };
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Turns heads `[batch, heads, seq, head_dim]`.
    pub(crate) fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let head_dim = x.dims()[3];
        let low = x.clone().narrow(3, 0, head_dim / 2);
        let high = x.clone().narrow(3, head_dim / 2, head_dim / 2);
        let turned = Tensor::cat(vec![high.neg(), low], 3);
        (x * self.cos.clone() + turned * self.sin.clone()).cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_short_waves_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        let scaled = RopeConfig { theta: 5e5, scaling }.frequencies(64);
        let plain = RopeConfig { theta: 5e5, scaling: RopeScaling::Default }.frequencies(64);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[31], plain[31] / 8.0);
        let middle = (0..32).filter(|&i| scaled[i] < plain[i] && scaled[i] > plain[i] / 8.0).count();
        assert!(middle > 0);
    }

    #[test]
    fn nonsense_is_named() {
        let check = |theta, scaling| RopeConfig { theta, scaling }.check(8).unwrap_err();
        assert!(check(0.0, RopeScaling::Default).contains("rope_theta"));
        assert!(check(1e4, RopeScaling::Linear { factor: f64::NAN }).contains("factor"));
        assert!(check(1e4, RopeScaling::Factors(vec![1.0; 3])).contains("expected 4"));
    }
}
