//! Decisions at random.

/// A source of random decisions. Each closure that gives uniform numbers, at least 0 and below 1, is one.
///
/// # Examples
/// ```
/// use moi_speculation::Chance;
///
/// let mut given = [0.25, 0.75].into_iter();
/// let mut source = || given.next().unwrap_or(0.5);
/// assert!(source.accept(0.5));
/// assert_eq!(source.draw(&[1.0, 1.0]), Some(1));
/// ```
pub trait Chance {
    /// Whether something of this probability happens: always from 1 on, never at 0. Takes one uniform number, also
    /// where the outcome is certain.
    fn accept(&mut self, probability: f64) -> bool;

    /// Draws an index by weights, which need not sum to 1: the first one, in order, whose cumulative weight is above
    /// `uniform * sum`; the last one with a weight if rounding leaves none. Takes one uniform number. `None` if no
    /// weight is positive.
    fn draw(&mut self, weights: &[f64]) -> Option<usize>;
}

impl<F: FnMut() -> f64> Chance for F {
    fn accept(&mut self, probability: f64) -> bool {
        self() < probability
    }

    fn draw(&mut self, weights: &[f64]) -> Option<usize> {
        let target = self() * weights.iter().sum::<f64>();
        let (mut reached, mut last) = (0.0, None);
        for (index, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            reached += weight;
            last = Some(index);
            if reached > target {
                break;
            }
        }
        last
    }
}
