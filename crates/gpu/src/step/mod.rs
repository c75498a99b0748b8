//! From logits to the next inputs, in three launches whatever the sampling and the rule.
//!
//! ```text
//! survey   chunks of the vocabulary, many cubes   sums of exponentials, and each chunk's tokens, the likeliest first
//! decide   one cube for each row                  the token, its log-probability, entropy, gate, the likeliest tokens,
//!                                                 and how many of each chunk's tokens are mixed one by one
//! blend    columns of the table, many cubes       E[y] + gate (sum_i q_i E[i] + q_rest mean(E) - E[y])
//! ```
//!
//! In a mixture of the whole vocabulary few tokens have nearly all of the weight. The weight of the others, `q_rest`, as
//! much as the row tolerates, goes to the mean row of the table, and their own rows are not read: [`levels`] says how
//! these tokens are found.
//!
//! Nothing of this is read back before the next step is under way; [`Decided`] says what there is to read.

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

/// Numbers of a [`RowSpec`] on the device.
const ROW: usize = 10;

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
    /// The mean of all rows as they are stored, `[width]` in float32. Without it nothing takes the place of a row,
    /// whatever the rows tolerate.
    pub mean: Option<&'a Buffer>,
}

/// What a step has decided, for the host to read.
#[derive(Clone, Debug)]
pub struct Decided {
    words: Buffer,
    /// Of the words of each row: how many tokens are listed.
    listed: usize,
}

impl Decided {
    /// Has the words copied to the host behind the work that is enqueued by now; what comes later does not hold them up.
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

    /// What the words say, once they are read.
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

/// Whether rows can be sampled and mixed here: supports and lists of at most [`MAX_LISTED`] tokens, and no vocabulary
/// beyond a million.
pub fn can_step(vocab: usize, rows: &[RowSpec]) -> bool {
    let fits =
        |row: &RowSpec| row.top <= MAX_LISTED && row.support.is_none_or(|support| support <= MAX_LISTED);
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

/// Tokens that must be known one by one.
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

/// Tokens that are mixed; 0 for the whole vocabulary.
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
    ]
}

/// What is known of each chunk.
struct Survey {
    /// `[rows, chunks, STATS]`.
    stats: Buffer,
    /// The most likely tokens of each chunk `[rows, chunks, listed]`: their logits.
    values: Buffer,
    /// And their ids.
    ids: Buffer,
    /// The ids of each chunk by [`levels`], where a row mixes the whole vocabulary: `[rows, vocab]`.
    order: Buffer,
    chunks: usize,
}

/// What the mixture of a step is made from.
struct StepBuffers<'a> {
    logits: &'a Buffer,
    specs: Buffer,
    survey: Survey,
    /// Where each chunk's part of the tokens that are mixed one by one begins, and their number: `[rows, chunks + 1]`.
    kept: Buffer,
    rows: usize,
    /// Whether a row mixes the whole vocabulary.
    whole: bool,
}

/// Where the bounds of weight of a chunk's levels begin. Before them: the largest logit, its token, the sum of
/// exponentials below it, the sum of these times their exponents, the sum at the row's temperature, and whether one is
/// no number.
const BOUNDS: usize = 6;

/// Where the numbers of tokens down to each level begin.
const REACHES: usize = BOUNDS + levels::LEVELS;

/// Numbers of a chunk.
const STATS: usize = REACHES + levels::LEVELS;
