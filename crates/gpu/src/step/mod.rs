//! From logits to the next inputs, in three launches whatever the sampling and the rule.
//!
//! ```text
//! survey   chunks of the vocabulary, many cubes   sums of exponentials, and each chunk's most likely tokens
//! decide   one cube for each row                  the token, its log-probability, entropy, gate, the likeliest tokens
//! blend    columns of the table, many cubes       E[y] + gate (sum_i q_i E[i] - E[y])
//! ```
//!
//! Nothing of this is read back before the next step is under way; [`Decided`] says what there is to read.

mod blend;
mod decide;
mod sampling;
mod survey;
#[cfg(test)]
mod tests;

use cubecl::prelude::*;

use crate::{Buffer, Device, Weights};

/// How one row samples and mixes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowSpec {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the K most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Below 1: where the cumulative distribution is cut.
    pub uniform: f32,
    /// The gate is `slope * entropy + offset`, between 0 and 1.
    pub slope: f32,
    /// See above.
    pub offset: f32,
    /// Whether the mean embedding is needed.
    pub mixes: bool,
    /// The K most likely tokens are mixed; all of them if there is none.
    pub support: Option<usize>,
    /// How many of the most likely tokens are told.
    pub top: usize,
}

/// Numbers of a [`RowSpec`] on the device.
const ROW: usize = 9;

/// The most likely tokens that are known one by one, at most.
pub const MAX_LISTED: usize = 64;

/// Tokens of a chunk.
const CHUNK: usize = 4096;

/// Most chunks: each unit of a cube looks at one.
const MAX_CHUNKS: usize = crate::reduce::UNITS;

/// Numbers before a row's list of tokens.
const HEADER: usize = 8;

/// The embedding whose rows are mixed.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingTable<'a> {
    /// `[vocab, width]`.
    pub weights: &'a Weights,
    /// Numbers of a row.
    pub width: usize,
    /// A factor on rows as they enter the model.
    pub scale: f32,
}

/// What a step has decided, for the host to read: a list of 32-bit words.
#[derive(Clone, Debug)]
pub struct Decided {
    /// On the device.
    pub words: Buffer,
    /// Of the words of each row: how many tokens are listed.
    listed: usize,
}

/// What was decided for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The sampled token.
    pub token: u32,
    /// Its log-probability in the raw distribution.
    pub logprob: f32,
    /// Of the distribution on the rule's support, divided by ln of its size.
    pub entropy: f32,
    /// How far the input moves towards the mean embedding.
    pub gate: f32,
    /// The largest logit.
    pub largest: f32,
    /// Whether NaN or infinity was among the logits.
    pub broken: bool,
    /// The probability of the token on the support.
    pub token_probability: f32,
    /// The most likely tokens and their probabilities on the support, the most likely first.
    pub likeliest: Vec<(u32, f32)>,
}

impl Decided {
    /// What the words say, once they are read.
    pub fn decisions(&self, words: &[u32]) -> Vec<Decision> {
        let row = |row: &[u32]| {
            let number = |at: usize| f32::from_bits(row[at]);
            let likeliest = (0..self.listed)
                .map(|i| (row[HEADER + i], number(HEADER + self.listed + i)))
                .filter(|&(_, probability)| probability > 0.0)
                .collect();
            Decision {
                token: row[0],
                logprob: number(1),
                entropy: number(2),
                gate: number(3),
                largest: number(4),
                broken: row[6] != 0,
                token_probability: number(7),
                likeliest,
            }
        };
        words.chunks_exact(HEADER + 2 * self.listed).map(row).collect()
    }
}

/// Whether rows can be sampled and mixed here: supports and lists of at most [`MAX_LISTED`] tokens, and no vocabulary
/// beyond a million.
pub fn can_step(vocab: usize, rows: &[RowSpec]) -> bool {
    let fits = |row: &RowSpec| row.top <= MAX_LISTED && row.support.is_none_or(|support| support <= MAX_LISTED);
    vocab <= CHUNK * MAX_CHUNKS && !rows.is_empty() && rows.iter().all(fits)
}

/// Samples from `logits` `[rows, vocab]` in float32 and mixes the next inputs `[rows, width]` in float32.
pub fn step<R: Runtime>(
    device: &Device<R>,
    logits: &Buffer,
    rows: &[RowSpec],
    table: EmbeddingTable<'_>,
) -> (Buffer, Decided) {
    let vocab = logits.len / rows.len();
    let listed = rows.iter().map(RowSpec::listed).max().unwrap_or(0).min(vocab);
    let specs: Vec<f32> = rows.iter().flat_map(|row| row.numbers(vocab)).collect();
    let specs = Buffer {
        handle: device.client.create_from_slice(f32::as_bytes(&specs)),
        len: specs.len(),
        dtype: logits.dtype,
    };
    let survey = survey::survey(device, logits, &specs, rows.len(), listed);
    let words = decide::decide(device, logits, &specs, &survey, rows.len(), listed);
    let inputs = blend::blend(device, logits, &specs, &words, rows.len(), listed, table);
    (inputs, Decided { words, listed })
}

impl RowSpec {
    /// Tokens that must be known one by one.
    fn listed(&self) -> usize {
        let filters = self.temperature > 0.0 && (self.top_p < 1.0 || self.min_p > 0.0);
        let sampled = match self.top_k {
            _ if self.temperature == 0.0 => 0,
            0 if filters => MAX_LISTED,
            0 => 0,
            k if k <= MAX_LISTED => k,
            _ => MAX_LISTED,
        };
        sampled.max(self.support.unwrap_or(0)).max(self.top)
    }

    fn numbers(&self, vocab: usize) -> [f32; ROW] {
        let top_k = if self.top_k >= vocab { 0 } else { self.top_k };
        let support = self.support.filter(|&support| support < vocab).unwrap_or(0);
        [
            if self.temperature > 0.0 { 1.0 / self.temperature } else { 0.0 },
            top_k as f32,
            self.top_p,
            self.min_p,
            self.uniform,
            self.slope,
            self.offset,
            support as f32,
            if self.mixes { 1.0 } else { 0.0 },
        ]
    }
}

/// What is known of each chunk.
struct Survey {
    /// `[rows, chunks, STATS]`.
    stats: Buffer,
    /// The most likely tokens of each chunk `[rows, chunks, listed]`: their logits.
    values: Buffer,
    /// And their ids.
    ids: Buffer,
    chunks: usize,
}

/// Numbers of a chunk: the largest logit, its token, the sum of exponentials below it, the sum of these times their
/// exponents, the sum at the row's temperature, and whether one is no number.
const STATS: usize = 6;
