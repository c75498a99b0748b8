//! Samples tokens from logits and mixes the next inputs, in three launches whatever the sampling and the rule.
//!
//! ```text
//! survey   chunks of the vocabulary, many cubes   sums of exponentials; each chunk's tokens, the most likely first
//! decide   one cube for each row                  the token, its log-probability, entropy, gate, the most likely
//!                                                 tokens, and how many of each chunk's tokens are mixed one by one
//! blend    columns of the table, many cubes       E[y] + gate (sum_i q_i E[i] + q_rest mean(E) - E[y])
//! ```
//!
//! In a mixture of the whole vocabulary, few tokens have nearly all of the weight. The weight of the others,
//! `q_rest`, as much as the row tolerates, goes to the mean row of the table, and their own rows are not read:
//! [`levels`] describes how these tokens are found.
//!
//! Nothing of this is read back before the next step has been launched; [`Decided`] has what there is to read.

mod blend;
mod decide;
mod entries;
mod levels;
mod sampling;
mod survey;

use std::task::{Context, Poll, Waker};

use cubecl::prelude::*;
use moi_sampling::{Decision, Reading, RowSpec};

use crate::{Buffer, Device, Weights};

/// Number of values of a [`RowSpec`] on the device.
const ROW: usize = 11;

/// Maximum number of most likely tokens that are listed one by one.
pub const MAX_LISTED: usize = 64;

/// Tokens in a chunk of the vocabulary.
const CHUNK: usize = 4096;

/// Maximum number of chunks, because each unit of a cube handles one.
const MAX_CHUNKS: usize = crate::reduce::UNITS;

/// Number of words before a row's list of tokens.
const HEADER: usize = 8;

/// The embedding table whose rows are mixed.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingTable<'a> {
    /// The table, `[vocab, width]`.
    pub weights: &'a Weights,
    /// Values per row.
    pub width: usize,
    /// A factor on embeddings as inputs of the model.
    pub scale: f32,
    /// The mean of all rows as they are stored, `[width]` in float32. Without it, every row that has a weight is
    /// read, whatever the rows tolerate.
    pub mean: Option<&'a Buffer>,
}

/// The decisions of a step, in device memory, for the host to read.
#[derive(Clone, Debug)]
pub struct Decided {
    words: Buffer,
    /// Number of tokens that are listed for each row.
    listed: usize,
}

impl Decided {
    /// Starts a copy of the words to the host after the work that is enqueued by now; later work does not delay it.
    /// The error is the driver's.
    pub fn read<R: Runtime>(self, device: &Device<R>) -> Reading {
        let client = device.client.clone();
        let mut reading: Reading = Box::pin(async move {
            let read = client.read_async(vec![self.words.handle.clone()]).await;
            let read = read.map_err(|error| format!("{error}"))?;
            let bytes = read.first().map_or(&[][..], |bytes| &bytes[..]);
            let words: Vec<u32> =
                bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
            Ok(self.decisions(&words[..self.words.len.min(words.len())]))
        });
        // The first poll enqueues the copy.
        match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(decisions) => Box::pin(std::future::ready(decisions)),
            Poll::Pending => reading,
        }
    }

    /// Decodes the words after they were read.
    fn decisions(&self, words: &[u32]) -> Vec<Decision> {
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

/// Whether rows can be sampled and mixed here: their supports and lists must have at most [`MAX_LISTED`] tokens, and
/// the vocabulary at most about a million.
pub fn can_step(vocab: usize, rows: &[RowSpec]) -> bool {
    let fits =
        |row: &RowSpec| row.top <= MAX_LISTED && row.support.is_none_or(|support| support <= MAX_LISTED);
    vocab <= CHUNK * MAX_CHUNKS && !rows.is_empty() && rows.iter().all(fits)
}

/// Samples from `logits` `[rows, vocab]` in float32, and mixes the next inputs, `[rows, width]` in float32.
pub fn step<R: Runtime>(
    device: &Device<R>,
    logits: &Buffer,
    rows: &[RowSpec],
    table: EmbeddingTable<'_>,
) -> (Buffer, Decided) {
    let vocab = logits.len / rows.len();
    let listed = rows.iter().map(listed).max().unwrap_or(0).min(vocab);
    let whole = rows.iter().any(|row| row.mixes && support(row, vocab) == 0);
    let specs: Vec<f32> = rows.iter().flat_map(|row| numbers(row, vocab, table.mean.is_some())).collect();
    let specs = Buffer {
        handle: device.client.create_from_slice(f32::as_bytes(&specs)),
        len: specs.len(),
        dtype: logits.dtype,
    };
    let survey = survey::survey(device, logits, &specs, rows.len(), listed, whole);
    let (words, kept) = decide::decide(device, logits, &specs, &survey, rows.len(), listed, whole);
    let decided = Decided { words, listed };
    let step = StepBuffers { logits, specs, survey, kept, rows: rows.len(), whole };
    (blend::blend(device, &step, &decided, table), decided)
}

/// Number of tokens of a row that must be listed one by one.
fn listed(row: &RowSpec) -> usize {
    let filters = row.temperature > 0.0 && (row.top_p < 1.0 || row.min_p > 0.0);
    let sampled = match row.top_k {
        _ if row.temperature == 0.0 => 0,
        0 if filters => MAX_LISTED,
        0 => 0,
        k => k.min(MAX_LISTED),
    };
    sampled.max(row.support.unwrap_or(0)).max(row.top)
}

/// Number of tokens that are mixed; 0 for the whole vocabulary.
fn support(row: &RowSpec, vocab: usize) -> usize {
    row.support.filter(|&support| support < vocab).unwrap_or(0)
}

fn numbers(row: &RowSpec, vocab: usize, has_mean: bool) -> [f32; ROW] {
    let top_k = if row.top_k >= vocab { 0 } else { row.top_k };
    [
        if row.temperature > 0.0 { 1.0 / row.temperature } else { 0.0 },
        top_k as f32,
        row.top_p,
        row.min_p,
        row.uniform,
        row.slope,
        row.offset,
        support(row, vocab) as f32,
        if row.mixes { 1.0 } else { 0.0 },
        if has_mean { row.tolerance } else { 0.0 },
        row.floor,
    ]
}

/// Statistics of each chunk of the vocabulary.
struct Survey {
    /// The statistics, `[rows, chunks, STATS]`.
    stats: Buffer,
    /// Logits of the most likely tokens of each chunk, `[rows, chunks, listed]`.
    values: Buffer,
    /// Ids of these tokens.
    ids: Buffer,
    /// The ids of each chunk, sorted by [`levels`], for rows that mix the whole vocabulary: `[rows, vocab]`.
    order: Buffer,
    chunks: usize,
}

/// The buffers from which the mixture of a step is computed.
struct StepBuffers<'a> {
    logits: &'a Buffer,
    specs: Buffer,
    survey: Survey,
    /// Where each chunk's part of the kept tokens begins, and the number of all kept tokens: `[rows, chunks + 1]`.
    kept: Buffer,
    rows: usize,
    /// Whether a row mixes the whole vocabulary.
    whole: bool,
}

/// Index of the bounds of the weights of levels in a chunk's statistics. Before them are: the largest logit, its
/// token, the sum of the exponentials relative to it, the sum of these times their exponents, the sum at the row's
/// temperature, and whether any logit is NaN or infinite.
const BOUNDS: usize = 6;

/// Index of the numbers of tokens on each level and those above.
const REACHES: usize = BOUNDS + levels::LEVELS;

/// Number of statistics of a chunk.
const STATS: usize = REACHES + levels::LEVELS;
