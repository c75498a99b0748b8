//! Changes to logits, by what came before or by what a caller wants.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{Candidates, history::counts};

/// Adds to the logits of some tokens.
pub fn logit_bias(candidates: &mut Candidates, bias: &BTreeMap<u32, f64>) {
    if !bias.is_empty() {
        let bias: HashMap<u32, f64> = bias.iter().map(|(&id, &by)| (id, by)).collect();
        candidates.map_some(&bias, |logit, by| logit + by);
    }
}

/// Divides the positive logits of tokens that came before, and multiplies the negative ones (CTRL, arXiv 1909.05858).
pub fn repetition(candidates: &mut Candidates, before: &[u32], penalty: f64) {
    if penalty != 1.0 {
        let change = |logit: f64, _: &u32| if logit > 0.0 { logit / penalty } else { logit * penalty };
        candidates.map_some(&counts(before), change);
    }
}

/// Takes the same from the logit of every token that came before.
pub fn presence(candidates: &mut Candidates, before: &[u32], penalty: f64) {
    if penalty != 0.0 {
        candidates.map_some(&counts(before), |logit, _| logit - penalty);
    }
}

/// Takes from the logit of every token as often as it came before.
pub fn frequency(candidates: &mut Candidates, before: &[u32], penalty: f64) {
    if penalty != 0.0 {
        candidates.map_some(&counts(before), |logit, &count| logit - penalty * f64::from(count));
    }
}

/// Takes away tokens that would complete a sequence of `n` tokens which was there before; none if `n` is 0.
pub fn no_repeat_ngram(candidates: &mut Candidates, before: &[u32], n: usize) {
    if n == 0 || before.len() + 1 < n {
        return;
    }
    let begun = &before[before.len() + 1 - n..];
    let repeated: HashSet<u32> =
        before.windows(n).filter(|window| window[..n - 1] == *begun).map(|window| window[n - 1]).collect();
    if !repeated.is_empty() {
        candidates.retain(|candidate| !repeated.contains(&candidate.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(change: impl Fn(&mut Candidates)) -> Vec<f64> {
        let mut candidates = Candidates::new(&[2.0, -1.0, 0.5]);
        change(&mut candidates);
        candidates.iter().map(|candidate| candidate.logit).collect()
    }

    #[test]
    fn each_penalty_changes_what_it_says() {
        let before = [0, 1, 1, 7];
        assert_eq!(logits(|c| repetition(c, &before, 2.0)), [1.0, -2.0, 0.5]);
        assert_eq!(logits(|c| presence(c, &before, 0.25)), [1.75, -1.25, 0.5]);
        assert_eq!(logits(|c| frequency(c, &before, 0.25)), [1.75, -1.5, 0.5]);
        assert_eq!(logits(|c| logit_bias(c, &BTreeMap::from([(2, 1.0), (9, 1.0)]))), [2.0, -1.0, 1.5]);
        for nothing in [
            logits(|c| repetition(c, &before, 1.0)),
            logits(|c| presence(c, &before, 0.0)),
            logits(|c| frequency(c, &[], 1.0)),
        ] {
            assert_eq!(nothing, [2.0, -1.0, 0.5]);
        }
    }

    #[test]
    fn ngrams_do_not_come_twice() {
        let kept = |before: &[u32], n| {
            let mut candidates = Candidates::new(&[0.0; 4]);
            no_repeat_ngram(&mut candidates, before, n);
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
