//! Keeps control tokens that are spelled in a message's text from becoming control tokens.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Conversation;
use crate::{TextError, Tokenizer};

/// A conversation in which the text of each control token is replaced by one private-use character. The text is put
/// back after the rendered prompt has been cut at its real control tokens.
pub(super) struct Hidden<'a> {
    /// The conversation with private-use characters in place of control tokens.
    pub(super) conversation: Conversation,
    /// The control token's text for each private-use character.
    texts: HashMap<char, &'a str>,
}

impl<'a> Hidden<'a> {
    pub(super) fn new(conversation: &'a Conversation, tokenizer: &'a Tokenizer) -> Result<Self, TextError> {
        let mut hidden: BTreeMap<&str, char> = BTreeMap::new();
        conversation.each_text(&mut |text| {
            hidden.extend(tokenizer.find_special(text).map(|range| (&text[range], char::default())));
        });
        if hidden.is_empty() {
            // This is nearly always the case.
            return Ok(Self { conversation: conversation.clone(), texts: HashMap::new() });
        }
        let stand_ins = stand_ins(conversation, tokenizer, hidden.len());
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
        let conversation = conversation.map_texts(&hide);
        Ok(Self {
            conversation,
            texts: hidden.into_iter().map(|(text, stand_in)| (stand_in, text)).collect(),
        })
    }

    /// Replaces the private-use characters in a piece of the rendered prompt by the texts that they stand for.
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

/// Private-use characters that neither messages nor control tokens contain.
fn stand_ins(conversation: &Conversation, tokenizer: &Tokenizer, count: usize) -> Vec<char> {
    let mut used: HashSet<char> = HashSet::new();
    let mut look = |text: &str| used.extend(text.chars().filter(|&c| c >= '\u{F0000}'));
    conversation.each_text(&mut look);
    tokenizer.special_texts().for_each(look);
    let private = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}');
    private.filter(|c| !used.contains(c)).take(count).collect()
}
