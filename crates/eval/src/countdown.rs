//! CountDown: problems in which given numbers must be combined by arithmetic to a target.

use num_rational::Ratio;
use num_traits::{CheckedDiv, CheckedMul, Zero};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use serde::{Deserialize, Serialize};

/// How CountDown problems are generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countdown {
    /// The count of numbers in a problem, 2 or more; 3 and 4 are usual.
    pub numbers: usize,
    /// The largest number; the smallest is 1.
    pub largest: i128,
    /// The smallest target.
    pub least_target: i128,
    /// The largest target.
    pub largest_target: i128,
    /// The random seed; the same seed gives the same problems.
    pub seed: u64,
}

impl Default for Countdown {
    fn default() -> Self {
        Self { numbers: 3, largest: 99, least_target: 10, largest_target: 99, seed: 0 }
    }
}

/// A generated problem, and an expression that solves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) numbers: Vec<i128>,
    pub(crate) target: i128,
    pub(crate) solution: String,
}

/// A partial expression.
struct Part {
    value: Ratio<i128>,
    text: String,
}

impl Countdown {
    /// Generates problems, each solvable by construction: its numbers are combined at random until one value is left,
    /// which is the target if it is an integer in range.
    pub(crate) fn make(&self, count: usize) -> Vec<Made> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut made: Vec<Made> = Vec::with_capacity(count);
        while made.len() < count {
            if let Some(problem) = self.try_one(&mut random) {
                made.push(problem);
            }
        }
        made
    }

    fn try_one(&self, random: &mut ChaCha8Rng) -> Option<Made> {
        let numbers: Vec<i128> =
            (0..self.numbers.max(2)).map(|_| 1 + below(random, self.largest.max(1) as u64) as i128).collect();
        let part = |&number: &i128| Part { value: Ratio::from_integer(number), text: number.to_string() };
        let mut parts: Vec<Part> = numbers.iter().map(part).collect();
        while parts.len() > 1 {
            let a = parts.swap_remove(below(random, parts.len() as u64) as usize);
            let b = parts.swap_remove(below(random, parts.len() as u64) as usize);
            let (sign, value) = match below(random, 4) {
                0 => ('+', a.value + b.value),
                1 => ('-', a.value - b.value),
                2 => ('*', a.value.checked_mul(&b.value)?),
                _ if b.value.is_zero() => return None,
                _ => ('/', a.value.checked_div(&b.value)?),
            };
            parts.push(Part { value, text: format!("({} {sign} {})", a.text, b.text) });
        }
        let Part { value, text } = parts.pop()?;
        let target = value.is_integer().then(|| value.to_integer())?;
        let in_range = (self.least_target..=self.largest_target).contains(&target);
        let solution =
            text.strip_prefix('(').and_then(|text| text.strip_suffix(')')).unwrap_or(&text).to_owned();
        in_range.then_some(Made { numbers, target, solution })
    }
}

/// A uniformly distributed number from 0 to below `limit`.
fn below(random: &mut ChaCha8Rng, limit: u64) -> u64 {
    // Numbers that would make small results more likely are drawn again.
    let rest = u64::MAX % limit;
    loop {
        let number = random.next_u64();
        if number < u64::MAX - rest {
            return number % limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scorer;

    #[test]
    fn problems_are_solvable_and_seeded() {
        for numbers in [2, 3, 4, 6] {
            let options = Countdown { numbers, ..Countdown::default() };
            let problems = options.make(50);
            for Made { numbers: given, target, solution } in &problems {
                assert_eq!(given.len(), numbers);
                assert!((10..=99).contains(target) && given.iter().all(|n| (1..=99).contains(n)));
                let scorer = Scorer::Countdown { numbers: given.clone(), target: *target };
                assert!(scorer.score(&format!("\\boxed{{{solution}}}")).correct, "{solution}");
            }
            assert_eq!(problems, options.make(50));
            assert_ne!(problems, Countdown { seed: 1, ..options }.make(50));
            // A larger set begins with the same problems.
            assert_eq!(problems[..20], options.make(20));
        }
    }
}
