//! Streaming detokenisation: turns tokens into text as they arrive.

use crate::{TextError, Tokenizer};

/// Turns one sequence of tokens into pieces of text that never end within a character.
///
/// A character can take several tokens, so its bytes are held back until it is complete. What tokens decode to can
/// depend on the tokens before (a leading space), so a few earlier tokens are decoded along.
///
/// # Examples
/// ```
/// use moi_text::{Detokenizer, Vocabulary, VocabularyKind};
///
/// // A vocabulary of the two bytes of `é`, written as characters.
/// let kind = VocabularyKind::ByteLevel { pre: "gpt-2".to_owned(), merges: Vec::new() };
/// let (tokens, kinds, rstrip) = (["Ã", "©"].map(str::to_owned).to_vec(), Vec::new(), Vec::new());
/// let tokenizer = Vocabulary { kind, tokens, kinds, bos: None, eos: None, rstrip }.into_tokenizer()?;
/// let mut stream = Detokenizer::default();
/// let pieces = [stream.push(&tokenizer, 0)?, stream.push(&tokenizer, 1)?];
/// assert_eq!(pieces, ["", "é"]);
/// assert_eq!(stream.finish(&tokenizer)?, "");
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// Tokens that still affect the text to come.
    window: Vec<u32>,
    /// How many tokens of the window only give context to the others.
    context: usize,
    /// Bytes of the window's text that were already returned.
    printed: usize,
}

/// The character that incomplete bytes decode to.
const REPLACEMENT: char = '\u{FFFD}';

impl Detokenizer {
    /// Takes the next token and returns the text that is now certain; often a word, sometimes nothing.
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
            // A control token decodes to nothing and gives no context, so the token before it is then kept.
            let next = tokenizer.decode(&self.window[self.context..])?;
            if !next.is_empty() {
                self.window.drain(..self.context);
                self.context = self.window.len();
                self.printed = next.len();
            }
        }
        Ok(piece)
    }

    /// Returns the rest of the text at the end: bytes that never became a character, as replacement characters.
    ///
    /// # Errors
    /// If the tokenizer cannot decode.
    pub fn finish(self, tokenizer: &Tokenizer) -> Result<String, TextError> {
        let text = tokenizer.decode(&self.window)?;
        Ok(after(&text, self.printed).to_owned())
    }
}

/// The text behind its first `printed` bytes. If bytes turn out not to make a character, text that was already
/// printed changes; the rest then begins at the next character boundary.
fn after(text: &str, printed: usize) -> &str {
    let start = (printed..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    &text[start..]
}
