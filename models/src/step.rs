//! What all layers of a step share: where its columns lie, how heads are turned and what a query sees.

use std::cell::OnceCell;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::{KvCache, RopeConfig};

/// Finite, and representable in float16: a row that sees nothing must not become NaN.
const HIDDEN: f32 = -6e4;

/// One forward pass.
#[derive(Clone, Debug)]
pub(crate) struct Step<B: Backend> {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    /// The model's context length: no buffer grows beyond it.
    pub(crate) limit: usize,
    /// Position of each new column in its row; one row where all rows share them.
    pub(crate) positions: Vec<Vec<usize>>,
    /// One for each kind of rotary positions in the model.
    pub(crate) angles: Vec<Angles<B>>,
    /// One for each window in the model, made when it is first asked for: kernels need none.
    masks: Vec<Mask<B>>,
    pub(crate) columns: Columns,
    device: B::Device,
}

/// Where the columns of a step lie.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    /// Before each row's first position; one row where all start together.
    starts: Vec<usize>,
    /// Before the step.
    past: usize,
}

impl Columns {
    /// The columns that a query of the step sees, counted from the first that a layer with this window gets.
    #[cfg(feature = "flex")]
    pub(crate) fn visible(&self, row: usize, query: usize, window: Option<usize>) -> std::ops::Range<usize> {
        let first = first_seen(self.past, window);
        let seen = self.seen(row, query, window);
        seen.start.saturating_sub(first)..seen.end - first
    }

    /// The columns that a query of the step sees.
    #[cfg(any(feature = "flex", feature = "gpu"))]
    pub(crate) fn seen(&self, row: usize, query: usize, window: Option<usize>) -> std::ops::Range<usize> {
        let start = self.starts.get(row).or(self.starts.first()).copied().unwrap_or(0);
        let query = self.past + query;
        start.max(first_seen(query, window))..query + 1
    }
}

/// Added to the scores, `[batch or 1, 1, 1, seq, columns]`: 0 where a column is seen, very negative where not; none
/// where all are seen.
#[derive(Clone, Debug)]
struct Mask<B: Backend> {
    window: Option<usize>,
    bias: OnceCell<Option<Tensor<B, 5>>>,
}

impl<B: Backend> Step<B> {
    pub(crate) fn new(
        seq: usize,
        limit: usize,
        cache: &KvCache<B>,
        ropes: &[RopeConfig],
        windows: &[Option<usize>],
        device: &B::Device,
    ) -> Self {
        let alike = |of_rows: &[usize]| of_rows.iter().all(|&of_row| of_row == of_rows[0]);
        // Rows that start together share positions and mask, unless their frequencies differ.
        let shared = alike(cache.starts())
            && (alike(cache.sequence_lengths()) || !ropes.iter().any(RopeConfig::depends_on_length));
        let rows = if shared { 1 } else { cache.batch() };
        let (starts, lengths) = (&cache.starts()[..rows], &cache.sequence_lengths()[..rows]);
        let past = cache.len();
        let positions: Vec<Vec<usize>> = starts
            .iter()
            .map(|&start| (past..past + seq).map(|c| c.saturating_sub(start)).collect())
            .collect();
        let angles = ropes.iter().map(|rope| Angles::new(rope, &positions, lengths, device)).collect();
        let masks = windows.iter().map(|&window| Mask { window, bias: OnceCell::new() }).collect();
        let (columns, device) = (Columns { starts: starts.to_vec(), past }, device.clone());
        Self { batch: cache.batch(), seq, limit, positions, angles, masks, columns, device }
    }

    #[cfg(feature = "gpu")]
    pub(crate) fn device(&self) -> &B::Device {
        &self.device
    }

    /// The mask of the window with this index in the model.
    pub(crate) fn mask(&self, index: usize) -> Option<&Tensor<B, 5>> {
        let Mask { window, bias } = self.masks.get(index)?;
        bias.get_or_init(|| mask(&self.columns, self.seq, *window, &self.device)).as_ref()
    }
}

/// The first column that is still seen when the next one is `next`.
pub(crate) fn first_seen(next: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (next + 1).saturating_sub(window))
}

/// Which of the columns from [`first_seen`] on each of `seq` new positions sees. A window sees the last
/// `window` columns up to and with the position's own.
fn mask<B: Backend>(
    columns: &Columns,
    seq: usize,
    window: Option<usize>,
    device: &B::Device,
) -> Option<Tensor<B, 5>> {
    let Columns { starts, past } = columns;
    let past = *past;
    let first = first_seen(past, window);
    if seq == 1 && starts.iter().all(|&start| start <= first) {
        return None;
    }
    let columns = first..past + seq;
    let mut bias = Vec::with_capacity(starts.len() * seq * columns.len());
    for &start in starts {
        for query in past..past + seq {
            let seen = start.max(first_seen(query, window))..=query;
            bias.extend(columns.clone().map(|c| if seen.contains(&c) { 0.0 } else { HIDDEN }));
        }
    }
    let data = TensorData::new(bias, [starts.len(), 1, 1, seq, columns.len()]);
    Some(Tensor::from_data(data, (device, DType::F32)))
}

/// cos and sin of the positions of a step, each `[batch or 1, 1, seq, dims]` in float32.
#[derive(Clone, Debug)]
pub(crate) struct Angles<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Angles<B> {
    /// `positions`: one row per batch row, or a single one that all rows share; `lengths`, how many positions each row has
    /// at least.
    fn new(rope: &RopeConfig, positions: &[Vec<usize>], lengths: &[usize], device: &B::Device) -> Self {
        let (rows, seq) = (positions.len(), positions.first().map_or(0, Vec::len));
        let factor = rope.attention_factor();
        let mut cos = Vec::with_capacity(rows * seq * rope.dims);
        let mut sin = Vec::with_capacity(cos.capacity());
        for (row, &length) in positions.iter().zip(lengths) {
            let frequencies = rope.frequencies(row.last().map_or(0, |last| last + 1).max(length));
            for &position in row {
                // float64 keeps the angle exact far into a long context.
                let turn = |f: &f64| (position as f64 * f).sin_cos();
                for (s, c) in frequencies.iter().chain(&frequencies).map(turn) {
                    cos.push((c * factor) as f32);
                    sin.push((s * factor) as f32);
                }
            }
        }
        // By way of one dimension: a device may put gaps between the rows of a tensor that comes in several.
        let tensor = |values: Vec<f32>| {
            // `reshape` takes a size of 0 for "as it was".
            if rope.dims == 0 {
                return Tensor::empty([rows, 1, seq, 0], (device, DType::F32));
            }
            let data = TensorData::new(values, [rows * seq * rope.dims]);
            Tensor::<B, 1>::from_data(data, (device, DType::F32)).reshape([rows, 1, seq, rope.dims])
        };
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Turns the first `dims` values of heads `[batch, heads, seq, head_dim]`; in float32.
    pub(crate) fn rotate(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let (dims, head_dim) = (self.cos.dims()[3], x.dims()[3]);
        let x = x.cast(DType::F32);
        if dims < head_dim {
            let rest = x.clone().narrow(3, dims, head_dim - dims);
            return match dims {
                0 => rest,
                _ => Tensor::cat(vec![self.rotate(x.narrow(3, 0, dims)), rest], 3),
            };
        }
        let low = x.clone().narrow(3, 0, dims / 2);
        let high = x.clone().narrow(3, dims / 2, dims / 2);
        let turned = Tensor::cat(vec![high.neg(), low], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }

    #[cfg(any(feature = "flex", feature = "gpu"))]
    pub(crate) fn cos(&self) -> &Tensor<B, 4> {
        &self.cos
    }

    #[cfg(any(feature = "flex", feature = "gpu"))]
    pub(crate) fn sin(&self) -> &Tensor<B, 4> {
        &self.sin
    }
}
