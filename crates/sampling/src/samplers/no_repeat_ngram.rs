//! Bans tokens that would repeat an n-gram.

use std::collections::HashSet;

use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
};

sampler! {
    /// Removes tokens that would complete a sequence of N tokens that occurred before.
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, History, Past, Sampling};
    ///
    /// let past = Past::new(History::new(&[1, 2, 3, 1, 2]));
    /// let sampling = Sampling { no_repeat_ngram: 3.into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[0.0, 1.0, 0.0, 9.0]);
    /// sampling.apply(&mut candidates, &past)?;
    /// assert_eq!(candidates.draw(0.5), 1); // token 3 would complete `1 2 3` again
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    NoRepeatNgram(usize) = "no-repeat-ngram" {
        /// No sequence of N tokens comes twice; 0 allows it
        "no_repeat_ngram" => 0: usize = 0;
    }
}

impl Sampler for NoRepeatNgram {
    fn is_penalty(&self) -> bool {
        true
    }

    fn apply(&self, candidates: &mut Candidates, past: &Past, _sampling: &Sampling) {
        let (n, before) = (self.0, past.history.all(0));
        if n == 0 || before.len() + 1 < n {
            return;
        }
        let begun = &before[before.len() + 1 - n..];
        let repeated: HashSet<u32> = (before.windows(n))
            .filter(|window| window[..n - 1] == *begun)
            .map(|window| window[n - 1])
            .collect();
        if !repeated.is_empty() {
            candidates.retain(|candidate| !repeated.contains(&candidate.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::History;

    #[test]
    fn ngrams_do_not_come_twice() {
        let kept = |before: &[u32], n| {
            let mut candidates = Candidates::new(&[0.0; 4]);
            NoRepeatNgram(n).apply(&mut candidates, &Past::new(History::new(before)), &Sampling::default());
            candidates.iter().map(|candidate| candidate.id).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[1, 2, 3, 1, 2], 3), [0, 1, 2]);
        assert_eq!(kept(&[1, 2, 3, 1], 2), [0, 1, 3]);
        assert_eq!(kept(&[1, 2], 1), [0, 3]);
        assert_eq!(kept(&[1, 2, 3, 1, 2], 0).len(), 4);
        assert_eq!(kept(&[1], 3).len(), 4);
        assert_eq!(kept(&[], 1).len(), 4);
        assert_eq!(kept(&[0, 0], 2), [1, 2, 3]);
    }
}
