//! What keeps a message's text from being a control token.

use std::collections::HashSet;

use super::Message;
use crate::{TextError, Tokenizer};

/// Messages in which a control token's text is one private character: it is put back after the rendered prompt has been
/// cut at its real control tokens.
pub(super) struct Hidden<'a> {
    /// With stand-ins for control tokens.
    pub(super) messages: Vec<Message>,
    /// Control tokens' texts that are in the messages, and what stands in for them.
    pairs: Vec<(&'a str, String)>,
}

impl<'a> Hidden<'a> {
    pub(super) fn new(messages: &[Message], tokenizer: &'a Tokenizer) -> Result<Self, TextError> {
        // Nearly always there is none: a vocabulary's thousands are then looked for once, not per piece.
        let written = |text: &&str| messages.iter().any(|m| m.content.contains(text));
        let special: Vec<&str> = tokenizer.special_texts().filter(written).collect();
        let stand_ins = stand_ins(messages, special.len());
        if stand_ins.len() < special.len() {
            let what =
                "the messages have control tokens in them, and nearly every private character".to_owned();
            return Err(TextError::Template { path: None, what });
        }
        let pairs: Vec<(&str, String)> = special.into_iter().zip(stand_ins).collect();
        let hide = |text: &str| {
            pairs.iter().fold(text.to_owned(), |text, (special, stand_in)| text.replace(special, stand_in))
        };
        let messages = messages.iter().map(|m| Message::new(&m.role, &hide(&m.content))).collect();
        Ok(Self { messages, pairs })
    }

    /// The text that a piece of the rendered prompt stands for.
    pub(super) fn restore(&self, text: &str) -> String {
        self.pairs.iter().fold(text.to_owned(), |text, (special, stand_in)| text.replace(stand_in, special))
    }
}

/// Characters of a private plane that no message uses, one per control token.
fn stand_ins(messages: &[Message], count: usize) -> Vec<String> {
    let used: HashSet<char> =
        messages.iter().flat_map(|m| m.content.chars()).filter(|&c| c >= '\u{F0000}').collect();
    let private = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}');
    private.filter(|c| !used.contains(c)).take(count).map(String::from).collect()
}
