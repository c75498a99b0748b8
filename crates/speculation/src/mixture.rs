//! Speculation where the next input is a mixture: a token and the input behind it are guessed, and both are verified.
//!
//! Behind a token `y` the model is fed an input that depends on the distribution from which `y` came, and that
//! distribution is known only after the pass that was to verify what stands behind. But a pass with nearly the right
//! inputs gives nearly the right distributions: where a walk ends because a token was right and its input was not near
//! enough, the rows behind give better guesses of tokens and inputs for the next pass.

/// A guess of the next token, and of the input behind it.
///
/// # Examples
/// ```
/// use moi_speculation::Guess;
///
/// let guess = Guess { token: 7, input: vec![0.5, 0.25], row: None };
/// assert_eq!(guess.token, 7);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Guess<I> {
    /// The token.
    pub token: u32,
    /// The input `[d]` that is fed for it.
    pub input: I,
    /// The distribution `[vocab]` from which the token was drawn, for verifiers that need it.
    pub row: Option<Vec<f64>>,
}

/// How far from the true input one may be that was fed in its place, and how far those were that were let through.
///
/// # Examples
/// ```
/// use moi_speculation::InputTolerance;
///
/// let mut tolerance = InputTolerance::new(1e-3);
/// assert!(tolerance.passes(0.0) && tolerance.passes(5e-4) && !tolerance.passes(2e-3));
/// assert_eq!((tolerance.inexact, tolerance.worst), (1, 5e-4));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InputTolerance {
    /// The largest relative error that passes: see [`relative_error`].
    pub most: f64,
    /// Number of inputs that passed and were not exact.
    pub inexact: usize,
    /// The largest error of these.
    pub worst: f64,
}

impl InputTolerance {
    /// A tolerance through which nothing has passed yet.
    pub fn new(most: f64) -> Self {
        Self { most, ..Self::default() }
    }

    /// Whether an input with this error may stay in place of the true one. Counts it if it does.
    pub fn passes(&mut self, error: f64) -> bool {
        let passes = error <= self.most;
        if passes && error > 0.0 {
            self.inexact += 1;
            self.worst = self.worst.max(error);
        }
        passes
    }
}

/// The distance of a guessed input from the true one, both `[d]`, as a share of the true one's Euclidean norm. It is 0
/// only if all values are equal; NaN if either holds NaN.
///
/// # Examples
/// ```
/// use moi_speculation::relative_error;
///
/// assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
/// assert_eq!(relative_error(&[3.0, 3.0], &[3.0, 4.0]), 0.2);
/// ```
pub fn relative_error<F: Copy + Into<f64>>(guess: &[F], truth: &[F]) -> f64 {
    let square = |sum: f64, value: f64| sum + value * value;
    let both = || guess.iter().zip(truth).map(|(&guess, &truth)| (guess.into(), truth.into()));
    let off = both().map(|(guess, truth)| guess - truth).fold(0.0, square).sqrt();
    if off == 0.0 && both().all(|(guess, truth)| guess == truth) {
        return 0.0;
    }
    // Squares of the smallest differences may vanish; the guess is still not exact.
    let off = if off == 0.0 { f64::MIN_POSITIVE } else { off };
    off / both().map(|(_, truth)| truth).fold(0.0, square).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_equal_inputs_are_exact() {
        assert!(relative_error(&[1e-200, 1.0], &[0.0, 1.0]) > 0.0);
        assert_eq!(relative_error(&[0.0f32; 2], &[0.0; 2]), 0.0);
        assert_eq!(relative_error(&[1.0], &[0.0]), f64::INFINITY);
        let broken = relative_error(&[f64::NAN, 1.0], &[0.0, 1.0]);
        assert!(broken.is_nan() && !InputTolerance::new(1.0).passes(broken));
    }
}
