//! Why a generation ended, and finding stop strings in streamed text.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Why a generation ended.
///
/// # Examples
/// ```
/// use moi_engine::StopReason;
///
/// assert_eq!(serde_json::to_string(&StopReason::Length)?, r#""length""#);
/// assert_eq!(serde_json::from_str::<StopReason>(r#""eos""#)?, StopReason::Eos);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// The model gave an end token.
    Eos,
    /// A stop string or a stop token was found.
    Stop,
    /// The largest number of tokens is reached.
    Length,
    /// The model's context is full.
    Context,
    /// The input rule ended it: a cold stop.
    Rule,
    /// The grammar is complete.
    Grammar,
}

/// Which of the stop rules ended a generation.
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Request, StoppedBy};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
/// request.stop.tokens = vec![0]; // The only token that this model gives.
/// let mut stopped_by = None;
/// for step in engine.generate(request)? {
///     stopped_by = step?.stopped_by;
/// }
/// assert_eq!(stopped_by, Some(StoppedBy::Token(0)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoppedBy {
    /// A stop string.
    String(String),
    /// A token.
    Token(u32),
}

/// Looks for stop strings in pieces of text, even if they span several pieces. Text that may become a stop string is
/// held back.
#[derive(Clone, Debug)]
pub(crate) struct StopMatcher {
    strings: Vec<String>,
    /// Whether the text ends behind the string instead of before it.
    includes: bool,
    held: String,
    /// The ranges of the texts of control tokens in `held`. No stop string begins or ends within one, because users
    /// do not see these texts.
    control: Vec<Range<usize>>,
}

impl StopMatcher {
    pub(crate) fn new(strings: Vec<String>, includes: bool) -> Self {
        Self { strings, includes, held: String::new(), control: Vec::new() }
    }

    /// Takes a piece of text, and the text of a control token behind it. Returns the text that is certain now, and
    /// the stop string that was found behind it. If `looks` is false, no stop string is looked for.
    pub(crate) fn push(&mut self, piece: &str, control: Option<&str>, looks: bool) -> (String, Option<&str>) {
        self.held.push_str(piece);
        if let Some(control) = control {
            self.control.push(self.held.len()..self.held.len() + control.len());
            self.held.push_str(control);
        }
        if !looks {
            return (self.finish(), None);
        }
        let found = (0..self.strings.len()).filter_map(|index| Some((self.find(index)?, index)));
        if let Some((at, index)) = found.min_by_key(|(at, _)| *at) {
            self.held.truncate(if self.includes { at + self.strings[index].len() } else { at });
            return (self.finish(), Some(&self.strings[index]));
        }
        let begun = self.strings.iter().map(|stop| self.begun(stop)).max().unwrap_or(0);
        let certain = self.held.len() - begun;
        let held = self.held.split_off(certain);
        self.control.retain_mut(|range| {
            let is_held = range.end > certain;
            *range = range.start.saturating_sub(certain)..range.end.saturating_sub(certain);
            is_held
        });
        (std::mem::replace(&mut self.held, held), None)
    }

    /// The first place of a stop string in the held text.
    fn find(&self, index: usize) -> Option<usize> {
        let stop = &self.strings[index];
        let mut from = 0;
        while let Some(at) = self.held[from..].find(stop).map(|at| from + at) {
            if self.is_border(at) && self.is_border(at + stop.len()) {
                return Some(at);
            }
            from = at + self.held[at..].chars().next().map_or(1, char::len_utf8);
        }
        None
    }

    /// Length of the longest end of the held text with which `stop` begins.
    fn begun(&self, stop: &str) -> usize {
        let held = &self.held;
        let lengths = stop.char_indices().map(|(at, _)| at).rev();
        let mut fits =
            lengths.filter(|&len| held.ends_with(&stop[..len]) && self.is_border(held.len() - len));
        fits.next().unwrap_or(0)
    }

    /// Whether a stop string may begin or end at this place.
    fn is_border(&self, at: usize) -> bool {
        !self.control.iter().any(|range| range.start < at && at < range.end)
    }

    /// The text that is held back, when no more text comes.
    pub(crate) fn finish(&mut self) -> String {
        self.control.clear();
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_a_stop_string_across_pieces() {
        let mut matcher = StopMatcher::new(vec!["\n\nUser:".into(), "END".into()], false);
        assert_eq!(matcher.push("a\n", None, true), ("a".into(), None));
        assert_eq!(matcher.push("\nUse", None, true), (String::new(), None));
        assert_eq!(matcher.push("d E", None, true), ("\n\nUsed ".into(), None));
        assert_eq!(matcher.push("NDless", None, true), (String::new(), Some("END")));
        let mut early = StopMatcher::new(vec!["END".into()], false);
        assert_eq!(early.push("END", None, false), ("END".into(), None));
        assert_eq!(early.push("END", None, true), (String::new(), Some("END")));
        let mut including = StopMatcher::new(vec!["END".into()], true);
        assert_eq!(including.push("the ENDless", None, true), ("the END".into(), Some("END")));
        let mut matcher = StopMatcher::new(vec!["é!".into()], false);
        assert_eq!(matcher.push("café", None, true), ("caf".into(), None));
        assert_eq!(matcher.finish(), "é");
    }

    #[test]
    fn stop_strings_take_control_tokens_whole() {
        let of = |stop: &str| {
            let mut matcher = StopMatcher::new(vec![stop.to_owned()], false);
            let mut all = String::new();
            for (piece, control) in [("a t", None), ("hin", Some("</think>")), ("k s", None), ("o", None)] {
                let (text, stopped) = matcher.push(piece, control, true);
                all += &text;
                if stopped.is_some() {
                    return (all, true);
                }
            }
            (all + &matcher.finish(), false)
        };
        let whole = "a thin</think>k so";
        for part in ["think>", "nk>k", "</th", "in</th", "think", ">k"] {
            assert_eq!(of(part), (whole.to_owned(), false), "{part}");
        }
        for (stop, text) in
            [("</think>", "a thin"), ("in</think>k", "a th"), ("k s", "a thin</think>"), ("thin", "a ")]
        {
            assert_eq!(of(stop), (text.to_owned(), true), "{stop}");
        }
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_text_gives(text in "[ab]{0,24}", stop in "[ab]{1,4}", cut in 1usize..5) {
            let mut matcher = StopMatcher::new(vec![stop.clone()], false);
            let (mut out, mut stopped) = (String::new(), false);
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(cut) {
                let (certain, found) = matcher.push(&piece.iter().collect::<String>(), None, true);
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
