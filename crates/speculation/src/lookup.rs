//! Prompt lookup: what followed an earlier occurrence of the last tokens is the draft.

use ahash::{HashMap, RandomState};

/// The most last tokens whose agreement with an earlier place is told apart.
pub(crate) const MAX_MATCH: usize = 12;

/// What is looked up.
///
/// # Examples
/// ```
/// use moi_speculation::LookupSettings;
///
/// let settings = LookupSettings::default();
/// assert_eq!((settings.max_ngram, settings.min_ngram, settings.latest), (3, 1, true));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupSettings {
    /// The most last tokens that are looked up; longer matches are taken first.
    pub max_ngram: usize,
    /// The fewest, 1 or more.
    pub min_ngram: usize,
    /// Whether the latest earlier occurrence counts, or the earliest.
    pub latest: bool,
    /// Whether a draft that reaches the end of the text goes on with itself, as if the text repeated.
    pub repeats: bool,
}

impl Default for LookupSettings {
    fn default() -> Self {
        Self { max_ngram: 3, min_ngram: 1, latest: true, repeats: true }
    }
}

/// A draft that was looked up.
///
/// # Examples
/// ```
/// use moi_speculation::{Found, LookupIndex, LookupSettings};
///
/// let index = LookupIndex::new(LookupSettings::default());
/// assert_eq!(index.draft(4), Found { tokens: vec![], matched: 0 });
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The draft; empty if nothing was found.
    pub tokens: Vec<u32>,
    /// How many of the last tokens agree with those before the place that was found, up to 12; 0 if nothing was found.
    pub matched: usize,
}

/// The n-grams of a text, and where they occurred. Adding a token and looking the last ones up take the same time
/// whatever the length of the text.
///
/// # Examples
/// ```
/// use moi_speculation::{LookupIndex, LookupSettings};
///
/// let mut index = LookupIndex::new(LookupSettings { repeats: false, ..LookupSettings::default() });
/// for token in [1, 2, 3, 4, 1, 2] {
///     index.push(token);
/// }
/// let found = index.draft(10);
/// assert_eq!((found.matched, found.tokens), (2, vec![3, 4, 1, 2]));
/// ```
#[derive(Clone, Debug)]
pub struct LookupIndex {
    settings: LookupSettings,
    tokens: Vec<u32>,
    /// By the hash of an n-gram: where the token behind its earliest or latest occurrence is.
    behind: HashMap<u64, usize>,
    hasher: RandomState,
}

impl LookupIndex {
    /// An index without tokens.
    pub fn new(settings: LookupSettings) -> Self {
        // Fixed, so that a text gives the same drafts in each run.
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        Self { settings, tokens: Vec::new(), behind: HashMap::default(), hasher }
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Adds the next token of the text.
    pub fn push(&mut self, token: u32) {
        // The n-grams before it have a token behind them from now on.
        let end = self.tokens.len();
        for n in self.settings.min_ngram.max(1)..=self.settings.max_ngram.min(end) {
            let key = self.key(&self.tokens[end - n..]);
            match self.settings.latest {
                true => _ = self.behind.insert(key, end),
                false => _ = self.behind.entry(key).or_insert(end),
            }
        }
        self.tokens.push(token);
    }

    /// Drafts up to `length` tokens.
    pub fn draft(&self, length: usize) -> Found {
        self.draft_behind(&[], length)
    }

    /// Drafts up to `length` tokens behind the text and `ahead`, tokens that are expected behind it.
    ///
    /// # Examples
    /// ```
    /// use moi_speculation::{LookupIndex, LookupSettings};
    ///
    /// let mut index = LookupIndex::new(LookupSettings::default());
    /// [5, 6, 7, 8, 1].into_iter().for_each(|token| index.push(token));
    /// assert_eq!(index.draft_behind(&[6], 2).tokens, [7, 8]);
    /// ```
    pub fn draft_behind(&self, ahead: &[u32], length: usize) -> Found {
        let end = self.tokens.len() + ahead.len();
        let token = |at: usize| match at.checked_sub(self.tokens.len()) {
            Some(at) => ahead[at],
            None => self.tokens[at],
        };
        for n in (self.settings.min_ngram.max(1)..=self.settings.max_ngram.min(end)).rev() {
            let last: Vec<u32> = (end - n..end).map(token).collect();
            let Some(&from) = self.behind.get(&self.key(&last)) else { continue };
            // Another n-gram may have the same hash.
            if self.tokens[from - n..from] != *last {
                continue;
            }
            let count = if self.settings.repeats { length } else { length.min(end - from) };
            let period = end - from;
            let tokens = (0..count).map(|index| token(from + index % period)).collect();
            // How far both places agree tells how likely they go on alike.
            let agree = |more: &usize| token(from - 1 - more) == token(end - 1 - more);
            let matched = n + (n..MAX_MATCH.min(from)).take_while(agree).count();
            return Found { tokens, matched };
        }
        Found::default()
    }

    fn key(&self, ngram: &[u32]) -> u64 {
        self.hasher.hash_one(ngram)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The draft by a search of the whole text, of which the first `known` tokens are certain.
    fn searched(tokens: &[u32], known: usize, settings: &LookupSettings, length: usize) -> Vec<u32> {
        let end = tokens.len();
        for n in (settings.min_ngram..=settings.max_ngram.min(end.saturating_sub(1))).rev() {
            let starts: Vec<usize> = (0..end - n)
                .filter(|&at| at + n < known && tokens[at..at + n] == tokens[end - n..])
                .collect();
            let start = if settings.latest { starts.last() } else { starts.first() };
            if let Some(start) = start {
                let mut all = tokens.to_vec();
                for index in 0..length {
                    all.push(all[start + n + index]);
                }
                let most = if settings.repeats { length } else { length.min(end - start - n) };
                return all[start + n..][..most].to_vec();
            }
        }
        Vec::new()
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_search_finds(
            tokens in prop::collection::vec(0u32..4, 0..40),
            (min_ngram, more) in (1usize..3, 0usize..4),
            (latest, repeats) in (any::<bool>(), any::<bool>()),
            length in 0usize..9,
        ) {
            let settings = LookupSettings { max_ngram: min_ngram + more, min_ngram, latest, repeats };
            let mut index = LookupIndex::new(settings);
            for (count, &token) in tokens.iter().enumerate() {
                for ahead in 0..tokens.len() - count {
                    let found = index.draft_behind(&tokens[count..][..ahead], length).tokens;
                    prop_assert_eq!(found, searched(&tokens[..count + ahead], count, &settings, length));
                }
                index.push(token);
            }
            prop_assert_eq!(index.draft(length).tokens, searched(&tokens, tokens.len(), &settings, length));
        }
    }

    #[test]
    fn a_period_is_continued() {
        let mut index = LookupIndex::new(LookupSettings::default());
        [7, 1, 2, 1, 2].into_iter().for_each(|token| index.push(token));
        assert_eq!(index.draft(5), Found { tokens: vec![1, 2, 1, 2, 1], matched: 2 });
        // More tokens agree than an n-gram has.
        [1, 2, 1, 2].into_iter().for_each(|token| index.push(token));
        assert_eq!(index.draft(1), Found { tokens: vec![1], matched: 6 });
        assert_eq!(index.draft_behind(&[1], 1), Found { tokens: vec![2], matched: 7 });
        (0..20).for_each(|_| [1, 2].into_iter().for_each(|token| index.push(token)));
        assert_eq!(index.draft(1).matched, MAX_MATCH);
    }
}
