//! Standard decoding.

use super::{Gated, Rule, knobs::knobs};

knobs! {
    /// The sampled token's embedding: standard decoding
    ///
    /// # Examples
    /// ```
    /// use moi::{InputRule, Token};
    ///
    /// assert_eq!(InputRule::from(Token {}), InputRule::TOKEN);
    /// assert!(!InputRule::TOKEN.mixes());
    /// ```
    Token = "token" {}
}

impl Rule for Token {
    fn gated(&self) -> Option<Gated> {
        Some(Gated::TOKEN)
    }
}
