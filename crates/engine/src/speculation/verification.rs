//! What decides a token where drafts were drawn.

use moi_speculation::{Chance, DraftTree, Verifier};
use rand_chacha::ChaCha8Rng;

use crate::{Sampler, sampler::uniform};

/// The stream of random numbers of verifiers. The sampler and drafts have those before it.
const STREAM: u64 = 3;
/// Words of the stream that each token has: two for each number, and a number for each draft and one more.
const WORDS: u128 = 4 * (crate::Speculation::MAX_BUDGET as u128 + 1);

/// Decides one token by drafts that were drawn from a distribution.
#[derive(Debug)]
pub(crate) struct Verification {
    verifier: Verifier,
    /// The distribution of the drafts `[vocab]`.
    row: Vec<f64>,
    drafts: Vec<u32>,
    random: ChaCha8Rng,
}

impl Verification {
    /// What decides the token behind a node; `None` if nothing was drawn there, so that the sampler decides it.
    pub(crate) fn behind(
        node: usize,
        tree: &DraftTree,
        verifier: Verifier,
        sampler: &Sampler,
    ) -> Option<Self> {
        let drafts = tree.drafts(node).to_vec();
        let row = tree.row(node).filter(|_| verifier != Verifier::Match && !drafts.is_empty())?;
        Some(Self { verifier, row: row.to_vec(), drafts, random: sampler.stream(STREAM, WORDS) })
    }

    /// The token, where the model's distribution is `p` `[vocab]`.
    pub(crate) fn choose(&mut self, p: &[f64]) -> u32 {
        let random = &mut self.random;
        let mut source = || uniform(random);
        // An app's own drafter may give a row of another length, or no distribution at all.
        self.row.resize(p.len(), 0.0);
        let token = self.verifier.choose(p, &self.row, &self.drafts, &mut source);
        match p[token as usize] > 0.0 {
            true => token,
            false => source.draw(p).unwrap_or(0) as u32,
        }
    }
}
