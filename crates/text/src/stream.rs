//! Tokens to text as they come.

use crate::{TextError, Tokenizer};

/// Turns one sequence of tokens into pieces of text, never half a character.
///
/// A character can take several tokens: its bytes are held back until it is whole. What tokens decode to
/// can depend on the ones before (a leading space), so a few of these are decoded along.
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// Tokens that still matter.
    window: Vec<u32>,
    /// How many of these only give the others their context.
    context: usize,
    /// Bytes of the window's text that were given out.
    printed: usize,
}

/// What incomplete bytes decode to.
const REPLACEMENT: char = '\u{FFFD}';

impl Detokenizer {
    /// Takes the next token and gives the text that is certain now; often a word, sometimes nothing.
    ///
    /// # Errors
    /// If the tokenizer cannot decode.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TextError> {
        self.window.push(token);
        let text = tokenizer.decode(&self.window)?;
        let whole = text.trim_end_matches(REPLACEMENT);
        let piece = after(whole, self.printed).to_owned();
        self.printed = self.printed.max(whole.len());
        if whole.len() == text.len() {
            // A control token decodes to nothing and gives no context: the one before it is then kept.
            let next = tokenizer.decode(&self.window[self.context..])?;
            if !next.is_empty() {
                self.window.drain(..self.context);
                self.context = self.window.len();
                self.printed = next.len();
            }
        }
        Ok(piece)
    }

    /// What is left at the end: bytes that never became a character, as replacement characters.
    ///
    /// # Errors
    /// If the tokenizer cannot decode.
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let text = tokenizer.decode(&self.window)?;
        Ok(after(&text, self.printed).to_owned())
    }
}

/// The text behind its first `printed` bytes. Bytes that turn out not to make a character change the text
/// that some of them were printed as: it then goes on at the next character.
fn after(text: &str, printed: usize) -> &str {
    let start = (printed..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    &text[start..]
}
