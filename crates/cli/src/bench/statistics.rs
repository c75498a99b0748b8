//! Statistics of the repetitions.

/// Mean, deviation and maximum of several values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Statistics {
    pub(super) mean: f64,
    /// The sample standard deviation; 0 for a single value.
    pub(super) deviation: f64,
    pub(super) largest: f64,
}

impl Statistics {
    pub(super) fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        if values.is_empty() {
            return Self::default();
        }
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = if values.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
        Self { mean, deviation, largest: values.iter().copied().fold(f64::NEG_INFINITY, f64::max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_deviation_and_largest() {
        let some = Statistics::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((some.mean, some.largest), (5.0, 9.0));
        assert!((some.deviation - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(Statistics::of(&[3.0]), Statistics { mean: 3.0, deviation: 0.0, largest: 3.0 });
        assert_eq!(Statistics::of(&[]), Statistics::default());
    }
}
