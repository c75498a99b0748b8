//! What keeps a message's text from being a control token.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Message;
use crate::{TextError, Tokenizer};

/// Messages in which a control token's text is one private character: it is put back after the rendered prompt has been
/// cut at its real control tokens.
pub(super) struct Hidden<'a> {
    /// With stand-ins for control tokens.
    pub(super) messages: Vec<Message>,
    /// What stands-ins stand for.
    texts: HashMap<char, &'a str>,
}

impl<'a> Hidden<'a> {
    pub(super) fn new(messages: &'a [Message], tokenizer: &'a Tokenizer) -> Result<Self, TextError> {
        let mut hidden: BTreeMap<&str, char> = BTreeMap::new();
        for message in messages {
            let content = message.content.as_str();
            hidden.extend(tokenizer.find_special(content).map(|range| (&content[range], char::default())));
        }
        if hidden.is_empty() {
            // Nearly always.
            return Ok(Self { messages: messages.to_vec(), texts: HashMap::new() });
        }
        let stand_ins = stand_ins(messages, tokenizer, hidden.len());
        if stand_ins.len() < hidden.len() {
            let what =
                "the messages have control tokens in them, and nearly every private character".to_owned();
            return Err(TextError::Template { path: None, what });
        }
        hidden.values_mut().zip(stand_ins).for_each(|(stand_in, unused)| *stand_in = unused);
        let hide = |text: &str| {
            let mut out = String::with_capacity(text.len());
            let mut done = 0;
            for range in tokenizer.find_special(text) {
                out += &text[done..range.start];
                out.push(hidden[&text[range.clone()]]);
                done = range.end;
            }
            out + &text[done..]
        };
        let messages = messages.iter().map(|m| Message::new(&m.role, &hide(&m.content))).collect();
        Ok(Self { messages, texts: hidden.into_iter().map(|(text, stand_in)| (stand_in, text)).collect() })
    }

    /// The text that a piece of the rendered prompt stands for.
    pub(super) fn restore(&self, text: &str) -> String {
        if self.texts.is_empty() {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match self.texts.get(&c) {
                Some(text) => out += text,
                None => out.push(c),
            }
        }
        out
    }
}

/// Characters of a private plane that neither messages nor control tokens use.
fn stand_ins(messages: &[Message], tokenizer: &Tokenizer, count: usize) -> Vec<char> {
    let texts = messages.iter().map(|m| m.content.as_str()).chain(tokenizer.special_texts());
    let used: HashSet<char> = texts.flat_map(str::chars).filter(|&c| c >= '\u{F0000}').collect();
    let private = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}');
    private.filter(|c| !used.contains(c)).take(count).collect()
}
