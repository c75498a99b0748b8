//! The tokens before the one that is sampled.

use std::collections::HashMap;

/// The tokens of a sequence so far. Penalties look back at them.
///
/// # Examples
/// ```
/// use moi_sampling::History;
///
/// let mut history = History::new(&[1, 2]);
/// history.push(3);
/// assert_eq!(history.all(0), [1, 2, 3]);
/// assert_eq!(history.all(2), [2, 3]);
/// assert_eq!(history.generated(0), [3]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    tokens: Vec<u32>,
    /// How many of the tokens belong to the prompt.
    prompt: usize,
}

impl History {
    /// The history of a sequence that begins with a prompt.
    pub fn new(prompt: &[u32]) -> Self {
        Self { tokens: prompt.to_vec(), prompt: prompt.len() }
    }

    /// Adds a token that was generated.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// All tokens; only the last `window` of them if `window` is not 0.
    pub fn all(&self, window: usize) -> &[u32] {
        last(&self.tokens, window)
    }

    /// The tokens that were generated; only the last `window` of them if `window` is not 0.
    pub fn generated(&self, window: usize) -> &[u32] {
        last(&self.tokens[self.prompt..], window)
    }
}

fn last(tokens: &[u32], window: usize) -> &[u32] {
    match window {
        0 => tokens,
        _ => &tokens[tokens.len().saturating_sub(window)..],
    }
}

/// How often each token occurs in `tokens`.
pub(crate) fn counts(tokens: &[u32]) -> HashMap<u32, u32> {
    let mut counts = HashMap::with_capacity(tokens.len());
    for &token in tokens {
        *counts.entry(token).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_the_prompt() {
        let mut history = History::new(&[1, 2]);
        history.push(3);
        history.push(3);
        assert_eq!(
            (history.all(0), history.all(3), history.all(9)),
            (&[1, 2, 3, 3][..], &[2, 3, 3][..], &[1, 2, 3, 3][..])
        );
        assert_eq!((history.generated(0), history.generated(1)), (&[3, 3][..], &[3][..]));
        assert_eq!(counts(history.all(0))[&3], 2);
    }
}
