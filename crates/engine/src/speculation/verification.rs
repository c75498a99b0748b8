//! What decides a token where drafts were drawn.

use moi_speculation::{Chance, DraftTree, Verifier, greedy_acceptance, optimal_acceptance};
use rand_chacha::ChaCha8Rng;

use crate::{Sampler, sampler::uniform};

/// The stream of random numbers of verifiers. Drafts have the one behind it; the sampler and the noise of rules count
/// theirs from 0.
const STREAM: u64 = u64::MAX - 1;
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
    measures_optimum: bool,
    /// How often the best possible verifier would accept a draft, once that is computed.
    pub(crate) optimal: Option<f64>,
}

impl Verification {
    /// What decides the token behind a node; `None` if nothing was drawn there, so that the sampler decides it.
    pub(crate) fn behind(
        node: usize,
        tree: &DraftTree,
        verifier: Verifier,
        sampler: &Sampler,
    ) -> Option<Self> {
        let mut drafts = tree.drafts(node).to_vec();
        // An app's own drafter may list more, for which there are no numbers.
        drafts.truncate(crate::Speculation::MAX_BUDGET);
        let row = tree.row(node).filter(|_| verifier != Verifier::Match && !drafts.is_empty())?;
        Some(Self {
            verifier,
            row: row.to_vec(),
            drafts,
            random: sampler.stream(STREAM, WORDS),
            measures_optimum: false,
            optimal: None,
        })
    }

    /// Asks for the optimum, if it is the turn of the token before which so many came: it is computed for every fourth,
    /// and not for three drafts and more that depend on each other, which would take seconds.
    pub(crate) fn measure_optimum(&mut self, generated: usize) {
        let is_long = self.verifier == Verifier::WithoutReplacement && self.drafts.len() > 2;
        self.measures_optimum = generated % 4 == 1 && !is_long;
    }

    /// The token, where the model's distribution is `p` `[vocab]`.
    pub(crate) fn choose(&mut self, p: &[f64]) -> u32 {
        let random = &mut self.random;
        let mut source = || uniform(random);
        // An app's own drafter may give a row of another length, or no distribution at all.
        self.row.resize(p.len(), 0.0);
        let drafts = self.drafts.len();
        self.optimal = self.measures_optimum.then(|| match self.verifier {
            // What it drafts is no independent draw, and it reaches the optimum of its own way to draft.
            Verifier::Greedy => greedy_acceptance(p, &self.row, drafts),
            verifier => optimal_acceptance(p, &self.row, drafts, verifier != Verifier::WithoutReplacement),
        });
        let token = self.verifier.choose(p, &self.row, &self.drafts, &mut source);
        match p[token as usize] > 0.0 {
            true => token,
            false => source.draw(p).unwrap_or(0) as u32,
        }
    }
}
