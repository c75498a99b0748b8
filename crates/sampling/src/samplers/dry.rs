//! DRY, "don't repeat yourself", as llama.cpp has it (text-generation-webui pull request 5677, llama.cpp pull request 9702).

use std::collections::HashMap;

use crate::{
    Candidates, Past, Sampling,
    declare::{Sampler, sampler},
};

sampler! {
    /// Lowers the logits of tokens that would continue a repetition of an earlier sequence. The penalty grows with
    /// the length of the repeated sequence: multiplier * base^(length - allowed_length).
    ///
    /// # Examples
    /// ```
    /// use moi_sampling::{Candidates, Dry, History, Past, Sampling};
    ///
    /// let dry = Dry { multiplier: 1.0, base: 2.0, ..Dry::default() };
    /// let sampling = Sampling { dry, ..Sampling::default() };
    /// // After `0 1 2 3 0 1 2`, token 3 would continue a repeated sequence of three tokens.
    /// let past = Past::new(History::new(&[0, 1, 2, 3, 0, 1, 2]));
    /// let mut candidates = Candidates::new(&[0.0; 5]);
    /// sampling.penalise(&mut candidates, &past);
    /// let logits: Vec<f64> = candidates.iter().map(|candidate| candidate.logit).collect();
    /// assert_eq!(logits, [0.0, 0.0, 0.0, -2.0, 0.0]);
    /// ```
    Dry = "dry" {
        /// DRY: taken from the logit of a token that would continue a repeated sequence of the allowed length; 0 is off
        "dry_multiplier" => multiplier: f64 = 0.0, if |by| *by >= 0.0, "0 (off) or more, and finite";
        /// DRY: with each further repeated token the penalty is multiplied by this
        "dry_base" => base: f64 = 1.75, if |base| *base >= 1.0, "1 or more, and finite";
        /// DRY: repeated sequences that are shorter may go on
        "dry_allowed_length" => allowed_length: usize = 2;
        /// DRY: how many of the last tokens are looked at; -1 is all, 0 is off
        "dry_penalty_last_n" => penalty_last_n: i64 = -1, if |n| *n >= -1, "-1 (all), 0 (off) or more";
        /// DRY: no repeated sequence reaches over this text; may be repeated, `none` is none
        /// [default: a line's end, ":", a quotation mark and "*"]
        "dry_sequence_breakers" => sequence_breakers: Vec<String> = ["\n", ":", "\"", "*"].map(str::to_owned).to_vec();
    }
}

/// The largest power of e in float32; exponents are limited to it so that penalties stay finite.
const LARGEST_EXPONENT: f64 = 88.722_839;

impl Sampler for Dry {
    fn is_penalty(&self) -> bool {
        true
    }

    fn is_off(&self) -> bool {
        self.multiplier == 0.0 || self.penalty_last_n == 0
    }

    fn apply(&self, candidates: &mut Candidates, past: &Past, _sampling: &Sampling) {
        if self.is_off() {
            return;
        }
        // A value of -1 becomes a window of 0, which means all tokens.
        let window = usize::try_from(self.penalty_last_n).unwrap_or(0);
        let lengths = self.repeated(past.history.all(window), &past.breakers);
        if !lengths.is_empty() {
            candidates.map_some(&lengths, |logit, &length| logit - self.penalty(length));
        }
    }
}

impl Dry {
    fn penalty(&self, length: usize) -> f64 {
        let over = (length - self.allowed_length) as f64;
        let most = if self.base > 1.000_001 { LARGEST_EXPONENT / self.base.ln() } else { f64::INFINITY };
        self.multiplier * self.base.powf(over.min(most))
    }

    /// The tokens that would continue a repeated sequence, each with the length of the longest such sequence, if that
    /// is at least the allowed length.
    fn repeated(&self, tokens: &[u32], breakers: &Breakers) -> HashMap<u32, usize> {
        let mut lengths = HashMap::new();
        let limit = breakers.since_last(tokens);
        if tokens.len() <= self.allowed_length || limit < self.allowed_length {
            return lengths;
        }
        let latest: Vec<u32> = tokens.iter().rev().copied().collect();
        for (back, length) in prefix_lengths(&latest).into_iter().enumerate().skip(1) {
            let length = length.min(limit);
            if length >= self.allowed_length {
                let longest = lengths.entry(latest[back - 1]).or_insert(length);
                *longest = length.max(*longest);
            }
        }
        lengths
    }
}

/// For each position, how many tokens from there on equal those at the beginning: the Z function (Gusfield,
/// Algorithms on Strings, Trees and Sequences, 1.4), in linear time. The first entry is 0.
fn prefix_lengths(tokens: &[u32]) -> Vec<usize> {
    let mut lengths = vec![0; tokens.len()];
    // The match found so far that ends last: `[left, right)` equals `[0, right - left)`.
    let (mut left, mut right) = (0, 0);
    for at in 1..tokens.len() {
        let mut length = if at < right { lengths[at - left].min(right - at) } else { 0 };
        while at + length < tokens.len() && tokens[length] == tokens[at + length] {
            length += 1;
        }
        if at + length > right {
            (left, right) = (at, at + length);
        }
        lengths[at] = length;
    }
    lengths
}

/// The token sequences that spell [`Dry::sequence_breakers`], by their first token.
///
/// # Examples
/// ```
/// use std::convert::Infallible;
///
/// use moi_sampling::{Breakers, Candidates, Dry, History, Past, Sampling};
///
/// let words = [(0, b"a".to_vec()), (1, b"b".to_vec()), (2, b":".to_vec())];
/// let breakers = Breakers::new(&[":".to_owned()], words.into_iter(), |_| Ok::<_, Infallible>(None))?;
/// let past = Past::new(History::new(&[0, 1, 2, 0, 1, 2])).with_breakers(breakers);
/// let sampling = Sampling { dry: Dry { multiplier: 1.0, ..Dry::default() }, ..Sampling::default() };
/// let mut candidates = Candidates::new(&[0.0; 3]);
/// sampling.penalise(&mut candidates, &past);
/// // The colon ends the repeated sequence, so `a` may follow it again.
/// assert!(candidates.iter().all(|candidate| candidate.logit == 0.0));
/// # Ok::<(), Infallible>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Breakers {
    /// The token sequences that may follow the first token; an empty one if that token contains the whole text.
    tails: HashMap<u32, Vec<Vec<u32>>>,
}

impl Breakers {
    /// Longer sequences are compared only up to this many tokens, as in llama.cpp.
    const MAX_TAIL: usize = 20;

    /// The sequences that spell some texts in a vocabulary. `tokens` are the bytes of all tokens. `encode` tokenizes
    /// the rest of a text whose beginning is the end of a token; if it returns `None`, that sequence is left out.
    ///
    /// # Errors
    /// If `encode` fails.
    pub fn new<E>(
        texts: &[String],
        tokens: impl Iterator<Item = (u32, Vec<u8>)>,
        encode: impl Fn(&[u8]) -> Result<Option<Vec<u32>>, E>,
    ) -> Result<Self, E> {
        let mut tails: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        let texts: Vec<&[u8]> = texts.iter().map(String::as_bytes).filter(|text| !text.is_empty()).collect();
        for (id, token) in tokens {
            for text in &texts {
                if token.windows(text.len()).any(|part| part == *text) {
                    tails.entry(id).or_default().push(Vec::new());
                    continue;
                }
                // The text may begin at the end of this token.
                for count in 1..text.len().min(token.len() + 1) {
                    if !token.ends_with(&text[..count]) {
                        continue;
                    }
                    if let Some(mut tail) = encode(&text[count..])? {
                        tail.truncate(Self::MAX_TAIL);
                        tails.entry(id).or_default().push(tail);
                    }
                }
            }
        }
        for tails in tails.values_mut() {
            tails.sort_unstable();
            tails.dedup();
        }
        Ok(Self { tails })
    }

    /// The number of tokens after the last breaker; of all `tokens` if there is none.
    fn since_last(&self, tokens: &[u32]) -> usize {
        if self.tails.is_empty() {
            return tokens.len();
        }
        for at in (0..tokens.len()).rev() {
            let Some(tails) = self.tails.get(&tokens[at]) else { continue };
            let behind = &tokens[at + 1..];
            if let Some(longest) = tails.iter().filter(|tail| behind.starts_with(tail)).map(Vec::len).max() {
                return behind.len() - longest;
            }
        }
        tokens.len()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::History;

    fn breakers(texts: &[&str]) -> Breakers {
        // Tokens a to d, `a:`, `:`, `\n` and `*-`.
        let words = ["a", "b", "c", "d", "a:", ":", "\n", "*-"];
        let words = words.iter().zip(0..).map(|(word, id)| (id, word.as_bytes().to_vec()));
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        let encode =
            |rest: &[u8]| Ok::<_, Infallible>(Some(rest.iter().map(|&b| u32::from(b - b'a')).collect()));
        Breakers::new(&texts, words, encode).unwrap()
    }

    fn penalties(dry: &Dry, tokens: &[u32], breakers: Breakers) -> Vec<f64> {
        let past = Past::new(History::new(tokens)).with_breakers(breakers);
        let mut candidates = Candidates::new(&[0.0; 8]);
        dry.apply(&mut candidates, &past, &Sampling::default());
        candidates.iter().map(|candidate| -candidate.logit).collect()
    }

    #[test]
    fn longer_repeats_cost_more() {
        let dry = Dry { multiplier: 0.8, ..Dry::default() };
        // a b c d, a b c: `d` would continue a repeated sequence of three tokens, one more than the allowed length.
        let mut expected = [0.0; 8];
        expected[3] = 0.8 * 1.75;
        assert_eq!(penalties(&dry, &[0, 1, 2, 3, 0, 1, 2], Breakers::default()), expected);
        // a b, a b: the repeated sequence has the allowed length, so its continuation costs the multiplier.
        expected[3] = 0.0;
        expected[0] = 0.8;
        assert_eq!(penalties(&dry, &[0, 1, 0, 1], Breakers::default()), expected);
        // A sequence that is too short, then a window that is too small.
        assert_eq!(penalties(&dry, &[0, 1, 0], Breakers::default()), [0.0; 8]);
        let last = Dry { penalty_last_n: 3, ..dry.clone() };
        assert_eq!(penalties(&last, &[0, 1, 0, 1], Breakers::default()), [0.0; 8]);
        let off = Dry { penalty_last_n: 0, ..dry.clone() };
        assert!(off.is_off() && Dry::default().is_off() && !dry.is_off());
        // The penalty of a long repetition is finite.
        let long = penalties(&Dry { base: 9.0, ..dry }, &[1; 400], Breakers::default());
        assert!(long[1].is_finite() && long[1] > 1e38, "{long:?}");
    }

    #[test]
    fn no_repeat_reaches_over_a_breaker() {
        let dry = Dry { multiplier: 1.0, base: 2.0, ..Dry::default() };
        // a b : a b c, a b : a b; the last four are alike, three of them, `: a b`, reach over the colon.
        let tokens = [0, 1, 5, 0, 1, 2, 0, 1, 5, 0, 1];
        let of_c = |breakers| penalties(&dry, &tokens, breakers)[2];
        assert_eq!(of_c(Breakers::default()), 8.0);
        assert_eq!(of_c(breakers(&["\n"])), 8.0);
        assert_eq!(of_c(breakers(&[":"])), 1.0);
        // Fewer tokens than the allowed length follow the breaker.
        assert_eq!(penalties(&dry, &[0, 1, 5, 0, 1, 5], breakers(&[":"])), [0.0; 8]);
    }

    #[test]
    fn breakers_are_found_within_and_across_tokens() {
        assert_eq!(breakers(&[":"]).tails, HashMap::from([(4, vec![vec![]]), (5, vec![vec![]])]));
        // `*-` ends with the beginning of `-bc`; what follows is `b` and `c`.
        assert_eq!(breakers(&["-bc"]).tails, HashMap::from([(7, vec![vec![1, 2]])]));
        assert_eq!(breakers(&["-bc"]).since_last(&[0, 7, 1, 2, 3]), 1);
        assert_eq!(breakers(&["-bc"]).since_last(&[0, 7, 1, 3, 3]), 5);
        assert_eq!(breakers(&[""]), Breakers::default());
    }

    proptest! {
        /// Compares with the definition, computed by plain loops.
        #[test]
        fn lengths_are_those_of_the_longest_common_ends(
            tokens in proptest::collection::vec(0u32..7, 0..40),
            allowed_length in 0usize..4,
        ) {
            let breakers = breakers(&[":"]);
            let dry = Dry { multiplier: 1.0, allowed_length, ..Dry::default() };
            let n = tokens.len();
            let limit = tokens.iter().rev().position(|token| [4, 5].contains(token)).unwrap_or(n);
            let mut expected: HashMap<u32, usize> = HashMap::new();
            for at in 1..n {
                let alike = |length: &usize| tokens[at - length..at] == tokens[n - length..];
                let length = (0..=at.min(limit)).filter(alike).max().unwrap();
                if length >= allowed_length && n > allowed_length && limit >= allowed_length {
                    let longest = expected.entry(tokens[at]).or_insert(length);
                    *longest = length.max(*longest);
                }
            }
            prop_assert_eq!(dry.repeated(&tokens, &breakers), expected);
        }
    }
}
