//! Why a generation ended, and finding stop strings in streamed text.

use serde::{Deserialize, Serialize};

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// The model gave an end token.
    Eos,
    /// The text came to a stop string.
    Stop,
    /// The number of tokens asked for is reached.
    Length,
    /// The model's context is full.
    Context,
    /// The input rule ended it: a cold stop.
    Rule,
    /// The grammar is complete.
    Grammar,
}

/// What of the stop rules ended a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// A stop string.
    String(String),
    /// A token.
    Token(u32),
}

/// Looks for stop strings in pieces of text, across their borders. What may become one is held back.
#[derive(Clone, Debug)]
pub(crate) struct StopMatcher {
    strings: Vec<String>,
    /// Whether the text ends behind the string instead of before it.
    includes: bool,
    held: String,
}

impl StopMatcher {
    pub(crate) fn new(strings: Vec<String>, includes: bool) -> Self {
        Self { strings, includes, held: String::new() }
    }

    /// Takes a piece; gives the text that is certain now, and the stop string that was found behind it. Where it is too
    /// early for one it `looks` for none.
    pub(crate) fn push(&mut self, piece: &str, looks: bool) -> (String, Option<&str>) {
        self.held.push_str(piece);
        if !looks {
            return (std::mem::take(&mut self.held), None);
        }
        let found = self.strings.iter().filter_map(|stop| Some((self.held.find(stop)?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            self.held.truncate(if self.includes { at + stop.len() } else { at });
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let begun = self.strings.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - begun);
        (std::mem::replace(&mut self.held, held), None)
    }

    /// What is held back, when nothing more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` with which `stop` begins.
fn begun(text: &str, stop: &str) -> usize {
    let lengths = stop.char_indices().map(|(at, _)| at).rev();
    lengths.into_iter().find(|&len| text.ends_with(&stop[..len])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_a_stop_string_across_pieces() {
        let mut matcher = StopMatcher::new(vec!["\n\nUser:".into(), "END".into()], false);
        assert_eq!(matcher.push("a\n", true), ("a".into(), None));
        assert_eq!(matcher.push("\nUse", true), (String::new(), None));
        assert_eq!(matcher.push("d E", true), ("\n\nUsed ".into(), None));
        assert_eq!(matcher.push("NDless", true), (String::new(), Some("END")));
        let mut early = StopMatcher::new(vec!["END".into()], false);
        assert_eq!(early.push("END", false), ("END".into(), None));
        assert_eq!(early.push("END", true), (String::new(), Some("END")));
        let mut including = StopMatcher::new(vec!["END".into()], true);
        assert_eq!(including.push("the ENDless", true), ("the END".into(), Some("END")));
        let mut matcher = StopMatcher::new(vec!["é!".into()], false);
        assert_eq!(matcher.push("café", true), ("caf".into(), None));
        assert_eq!(matcher.finish(), "é");
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_text_gives(text in "[ab]{0,24}", stop in "[ab]{1,4}", cut in 1usize..5) {
            let mut matcher = StopMatcher::new(vec![stop.clone()], false);
            let (mut out, mut stopped) = (String::new(), false);
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(cut) {
                let (certain, found) = matcher.push(&piece.iter().collect::<String>(), true);
                out += &certain;
                if found.is_some() {
                    stopped = true;
                    break;
                }
            }
            out += &matcher.finish();
            // The first place where a stop string is complete ends the text; pieces may see a later
            // completion of an earlier start first only if they hold both.
            match text.find(&stop) {
                Some(at) => prop_assert_eq!((out, stopped), (text[..at].to_owned(), true)),
                None => prop_assert_eq!((out, stopped), (text, false)),
            }
        }
    }
}
