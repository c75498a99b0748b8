//! Standard decoding.

use super::{Gated, Rule, knobs::knobs};

knobs! {
    /// The sampled token's embedding: standard decoding
    Token = "token" {}
}

impl Rule for Token {
    fn gated(&self) -> Option<Gated> {
        Some(Gated::TOKEN)
    }
}
