//! How many tokens to draft: from what a pass costs and from how often drafts were accepted.

/// What a pass through a model costs, by the number of its positions.
///
/// # Examples
/// ```
/// use moi_speculation::PassCosts;
///
/// let costs = PassCosts::new(vec![(1, 10.0), (4, 13.0), (8, 21.0)]);
/// assert_eq!((costs.of(1), costs.of(2), costs.of(8)), (10.0, 11.0, 21.0));
/// // Beyond what was measured, each position costs what the last ones did.
/// assert_eq!(costs.of(10), 25.0);
/// assert_eq!(costs.relative(8), 2.1);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PassCosts {
    /// Positions and the cost of a pass, in order.
    measured: Vec<(usize, f64)>,
}

impl PassCosts {
    /// Costs of passes over some numbers of positions, in any unit and order.
    pub fn new(mut measured: Vec<(usize, f64)>) -> Self {
        measured.retain(|&(positions, cost)| positions > 0 && cost > 0.0 && cost.is_finite());
        measured.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        measured.dedup_by_key(|of| of.0);
        // More positions never cost less; where they seem to, the machine was busy with something else before.
        for index in (1..measured.len()).rev() {
            measured[index - 1].1 = measured[index - 1].1.min(measured[index].1);
        }
        Self { measured }
    }

    /// What was measured: positions and cost, in order.
    pub fn measured(&self) -> &[(usize, f64)] {
        &self.measured
    }

    /// The cost of a pass over so many positions, 1 or more. If nothing was measured, each costs 1.
    pub fn of(&self, positions: usize) -> f64 {
        let at = positions as f64;
        let after = self.measured.partition_point(|of| of.0 < positions);
        let (low, high) = match (self.measured.as_slice(), after) {
            ([], _) => return at,
            ([one], _) => return one.1 * (at / one.0 as f64).max(1.0),
            (_, 0) => return self.measured[0].1,
            (all, after) => {
                let after = after.min(all.len() - 1);
                (all[after - 1], all[after])
            }
        };
        let slope = (high.1 - low.1) / (high.0 - low.0) as f64;
        low.1 + slope * (at - low.0 as f64)
    }

    /// The cost of a pass over so many positions, as a multiple of that over one.
    pub fn relative(&self, positions: usize) -> f64 {
        self.of(positions) / self.of(1)
    }

    /// How many drafts to run beside `sequences` next tokens, so that most tokens come in a unit of cost: as many of
    /// the first ones in `values`, the probabilities with which they are accepted, the largest first. None, if that would
    /// gain less than a tenth, because such estimates are not that exact.
    ///
    /// # Examples
    /// ```
    /// use moi_speculation::PassCosts;
    ///
    /// let costs = PassCosts::new(vec![(1, 1.0), (2, 1.2), (4, 1.6)]);
    /// assert_eq!(costs.best_count(1, &[0.9, 0.8, 0.1]), 2);
    /// assert_eq!(costs.best_count(1, &[0.1]), 0);
    /// ```
    pub fn best_count(&self, sequences: usize, values: &[f64]) -> usize {
        const LEAST_GAIN: f64 = 1.1;
        let (mut tokens, mut best) =
            (sequences as f64, (0, LEAST_GAIN * sequences as f64 / self.of(sequences)));
        for (count, value) in (1..).zip(values) {
            tokens += value;
            let rate = tokens / self.of(sequences + count);
            if rate > best.1 {
                best = (count, rate);
            }
        }
        best.0
    }
}

/// Estimates how often something is right, from a prior and from what was seen, the last of it most.
///
/// # Examples
/// ```
/// use moi_speculation::HitRate;
///
/// let mut rate = HitRate::new(0.5);
/// assert_eq!(rate.get(), 0.5);
/// for _ in 0..100 {
///     rate.observe(true);
/// }
/// assert!(rate.get() > 0.9);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitRate {
    prior: f64,
    hits: f64,
    tries: f64,
}

impl HitRate {
    /// How many observations the prior counts as.
    const PRIOR_WEIGHT: f64 = 4.0;
    /// What an observation counts after the next one: the last 64 or so decide.
    const MEMORY: f64 = 1.0 - 1.0 / 64.0;

    /// A rate of which only a guess is known.
    pub fn new(prior: f64) -> Self {
        Self { prior, hits: 0.0, tries: 0.0 }
    }

    /// Counts one observation.
    pub fn observe(&mut self, is_hit: bool) {
        self.hits = self.hits * Self::MEMORY + f64::from(u8::from(is_hit));
        self.tries = self.tries * Self::MEMORY + 1.0;
    }

    /// The estimate, above 0 and below 1 if the prior is.
    pub fn get(&self) -> f64 {
        (self.hits + self.prior * Self::PRIOR_WEIGHT) / (self.tries + Self::PRIOR_WEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_never_fall() {
        let costs = PassCosts::new(vec![(2, 9.0), (1, 10.0), (4, 12.0), (3, f64::NAN)]);
        assert_eq!(costs.measured(), [(1, 9.0), (2, 9.0), (4, 12.0)]);
        assert_eq!((costs.of(1), costs.of(3), costs.of(6)), (9.0, 10.5, 15.0));
        assert_eq!(PassCosts::new(vec![]).of(3), 3.0);
        assert_eq!(PassCosts::new(vec![(2, 5.0)]).of(4), 10.0);
    }

    #[test]
    fn drafts_pay_where_passes_are_cheap() {
        let cheap = PassCosts::new(vec![(1, 1.0), (16, 1.1)]);
        let dear = PassCosts::new(vec![(1, 1.0), (16, 16.0)]);
        let values: Vec<f64> = (1..9).map(|depth| 0.5f64.powi(depth)).collect();
        assert_eq!((cheap.best_count(1, &values), dear.best_count(1, &values)), (6, 0));
        // Beside many sequences, a place in the pass is worth more.
        assert!(cheap.best_count(12, &values) <= 6);
    }
}
