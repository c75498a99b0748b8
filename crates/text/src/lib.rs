//! Text to tokens and back: tokenizers, streaming detokenisation and chat templates.
//!
//! ```no_run
//! use moi_text::Tokenizer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tokenizer = Tokenizer::from_file("model/tokenizer.json".as_ref())?;
//! // User text stays text: `<|im_end|>` in it is no control token.
//! let ids = tokenizer.encode("a <|im_end|> in plain text", true)?;
//! assert_eq!(tokenizer.decode(&ids)?, "a <|im_end|> in plain text");
//! # Ok(())
//! # }
//! ```

mod catch_panics;
mod cuts;
mod describe;
mod error;
mod expansion_limit;
mod extra;
mod json;
mod patterns;
mod slow;
mod stream;
mod template;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod token_flags;
mod tokenizer;
mod vocabulary;

pub use catch_panics::catches_panics;
pub use cuts::{DEFAULT_PRE_TOKENIZER, adds_begin_token};
pub use describe::NEVER_MERGED;
pub use error::TextError;
pub use extra::{ExtraToken, IfKnown};
pub use moi_files::brief;
pub use slow::{SlowFiles, SlowTokenizer};
pub use stream::Detokenizer;
pub use template::{ChatTemplate, Conversation, Message, TemplateTokens};
pub use tokenizer::{THINKING, THINKING_CHANNEL, THINKING_RECIPIENT, Tokenizer};
pub use vocabulary::{TokenKind, Vocabulary, VocabularyKind};
