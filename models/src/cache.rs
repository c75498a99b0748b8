//! Keys and values of the positions a model has seen.

#[cfg(feature = "gpu")]
use burn::tensor::DType;
use burn::tensor::{Int, Tensor, backend::Backend};

#[cfg(feature = "gpu")]
use crate::step::Step;
use crate::{
    AttentionKind, DecoderConfig, LayerConfig, broken::is_broken, kernels::Kernels, step::first_seen,
};

/// Positions a buffer grows by.
const STEP: usize = 256;

/// Keys and values of every layer, for a batch of rows of different lengths.
///
/// Rows end together: a row with fewer positions starts later, and `starts` says where. So one step writes
/// one column for all rows, whatever their lengths, and nothing is moved to decode. Buffers are
/// `[batch, kv_heads, capacity, head_dim]`, have one owner each (an assignment then works in place), and
/// grow in steps up to the context length. A layer with a sliding window keeps the columns that the next
/// position can see, and room for a quarter as many, so that they are moved once in a while and not each step.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    /// Columns in use.
    len: usize,
    /// Columns before each row's first position.
    starts: Vec<usize>,
    /// Positions that each row's sequence is known to have, at least: rotary frequencies may depend on it.
    lengths: Vec<usize>,
}

/// Keys and values of one layer. Taken out while they are written, so that they have one owner.
#[derive(Clone, Debug)]
struct LayerCache<B: Backend> {
    keys: Buffer<B>,
    values: Buffer<B>,
}

#[derive(Clone, Debug)]
struct Buffer<B: Backend> {
    tensor: Option<Tensor<B, 4>>,
    /// The column that stands first in the tensor; those before it are out of every window.
    first: usize,
    window: Option<usize>,
}

/// Buffers to be written `[batch, kv_heads, capacity, head_dim]`.
#[cfg(feature = "gpu")]
pub(crate) struct Room<B: Backend> {
    pub(crate) keys: Tensor<B, 4>,
    pub(crate) values: Tensor<B, 4>,
    /// The first column to write.
    pub(crate) at: usize,
    /// Columns that came before the buffers' first.
    pub(crate) first: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for `batch` rows; nothing is allocated before the first step.
    pub fn new(config: &DecoderConfig, batch: usize) -> Self {
        let empty = |layer: &LayerConfig| {
            let window = match &layer.attention {
                Some(AttentionKind::Heads(attention)) => attention.window,
                Some(AttentionKind::Linear) | None => None,
            };
            let buffer = Buffer { tensor: None, first: 0, window };
            LayerCache { keys: buffer.clone(), values: buffer }
        };
        Self {
            layers: config.layers.iter().map(empty).collect(),
            len: 0,
            starts: vec![0; batch],
            lengths: vec![0; batch],
        }
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.starts.len()
    }

    /// Columns in use: the positions of the longest row.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Columns before each row's first position; they hold nothing and must not be attended to.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Says, before a prompt runs in pieces, that all rows will have so many positions when it has run. Rotary frequencies that
    /// depend on the length of the sequence are then those of this length from the first piece on, as in one forward pass of
    /// all. Steps beyond it raise the length by themselves; [`Self::truncate`] does not lower it.
    pub fn set_sequence_length(&mut self, positions: usize) {
        self.lengths.fill(positions);
    }

    /// Positions that each row's sequence is known to have, at least.
    pub fn sequence_lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Columns that each layer has allocated; 0 for a layer without attention.
    pub fn capacities(&self) -> Vec<usize> {
        let columns = |buffer: &Buffer<B>| buffer.tensor.as_ref().map_or(0, |tensor| tensor.dims()[2]);
        self.layers.iter().map(|layer| columns(&layer.keys)).collect()
    }

    /// Of each layer, whether the keys and values of a row are finite in the first `columns` columns; none for a layer
    /// that has none of these. Reads them back: for messages alone.
    pub fn finite_layers(&self, row: usize, columns: usize) -> Vec<Option<bool>> {
        let start = self.starts[row];
        let broken = |buffer: &Buffer<B>| {
            let tensor = buffer.tensor.as_ref()?;
            let from = start.saturating_sub(buffer.first);
            let to = columns.min(self.len).checked_sub(buffer.first).filter(|&to| to > from)?;
            Some(is_broken(tensor.clone().narrow(0, row, 1).narrow(2, from, to - from)))
        };
        let finite = |layer: &LayerCache<B>| Some(!(broken(&layer.keys)? | broken(&layer.values)?));
        self.layers.iter().map(finite).collect()
    }

    /// Counts `seq` columns as written; every layer must have written them.
    pub(crate) fn advance(&mut self, seq: usize) {
        self.len += seq;
        for (length, start) in self.lengths.iter_mut().zip(&self.starts) {
            *length = (*length).max(self.len.saturating_sub(*start));
        }
    }

    /// Writes the keys and values `[batch, kv_heads, seq, head_dim]` of a step behind the columns in use and
    /// returns views of all columns that the step sees, from [`first_seen`] on.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
        limit: usize,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let cache = &mut self.layers[layer];
        (cache.keys.append(self.len, keys, limit), cache.values.append(self.len, values, limit))
    }

    /// A layer's buffers with room for the columns of a step, taken out to be written; [`Self::put_back`] must follow.
    /// `shape` is batch, heads and numbers of a head.
    #[cfg(feature = "gpu")]
    pub(crate) fn take_room(
        &mut self,
        layer: usize,
        shape: [usize; 3],
        step: &Step<B>,
        dtype: DType,
    ) -> Room<B> {
        let LayerCache { keys: key_buffer, values: value_buffer } = &mut self.layers[layer];
        let keys = key_buffer.take_room(self.len, shape, step, dtype);
        let values = value_buffer.take_room(self.len, shape, step, dtype);
        Room { keys, values, at: self.len - key_buffer.first, first: key_buffer.first }
    }

    /// Gives back what [`Self::take_room`] has taken.
    #[cfg(feature = "gpu")]
    pub(crate) fn put_back(&mut self, layer: usize, keys: Tensor<B, 4>, values: Tensor<B, 4>) {
        let cache = &mut self.layers[layer];
        (cache.keys.tensor, cache.values.tensor) = (Some(keys), Some(values));
    }

    /// The rows of several caches as one batch, in order.
    pub fn stack(caches: Vec<Self>) -> Option<Self> {
        let mut caches: Vec<Self> = caches.into_iter().filter(|cache| cache.batch() > 0).collect();
        if caches.len() < 2 {
            return caches.pop();
        }
        let len = caches.iter().map(Self::len).max()?;
        let starts = caches.iter().flat_map(|c| c.starts.iter().map(move |s| s + len - c.len)).collect();
        let lengths = caches.iter().flat_map(|c| c.lengths.clone()).collect();
        let layers = (0..caches[0].layers.len()).map(|layer| {
            let mut stack = |pick: fn(&mut LayerCache<B>) -> &mut Buffer<B>| {
                let window = pick(&mut caches[0].layers[layer]).window;
                let kept = |cache: &mut Self| cache.len - pick(&mut cache.layers[layer]).first;
                let columns = caches.iter_mut().map(kept).max().unwrap_or(0);
                let parts: Vec<_> = caches
                    .iter_mut()
                    .filter_map(|cache| pick(&mut cache.layers[layer]).aligned(cache.len, columns))
                    .collect();
                let tensor = (!parts.is_empty()).then(|| Tensor::cat(parts, 0));
                Buffer { tensor, first: len - columns, window }
            };
            LayerCache { keys: stack(|c| &mut c.keys), values: stack(|c| &mut c.values) }
        });
        Some(Self { layers: layers.collect(), len, starts, lengths })
    }

    /// Drops the columns behind the first `len`. Whether that can be: a layer with a sliding window may have dropped
    /// columns that a position there sees. If not, the cache is as it was.
    pub fn truncate(&mut self, len: usize) -> bool {
        let has =
            |buffer: &Buffer<B>| buffer.tensor.is_none() || buffer.first <= first_seen(len, buffer.window);
        let can = len >= self.len || self.layers.iter().all(|layer| has(&layer.keys) && has(&layer.values));
        if can {
            self.len = self.len.min(len);
        }
        can
    }

    /// Keeps the given rows, in that order, and drops columns that none of them uses.
    pub fn keep_rows(&mut self, rows: &[usize], device: &B::Device) {
        if rows.len() == self.batch() && rows.iter().enumerate().all(|(i, &row)| i == row) {
            return;
        }
        self.starts = rows.iter().map(|&row| self.starts[row]).collect();
        self.lengths = rows.iter().map(|&row| self.lengths[row]).collect();
        let unused = self.starts.iter().copied().min().unwrap_or(self.len);
        self.starts.iter_mut().for_each(|start| *start -= unused);
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_ints(index.as_slice(), device);
        for layer in &mut self.layers {
            for buffer in [&mut layer.keys, &mut layer.values] {
                buffer.keep_rows(self.len, unused, (!rows.is_empty()).then_some(&index));
            }
        }
        self.len -= unused;
    }
}

impl<B: Backend> Buffer<B> {
    /// Writes `new` `[batch, heads, seq, head_dim]` behind column `len` and returns the columns that it sees.
    fn append(&mut self, len: usize, new: Tensor<B, 4>, limit: usize) -> Tensor<B, 4> {
        let [batch, heads, seq, head_dim] = new.dims();
        let (end, seen) = (len + seq, first_seen(len, self.window));
        let assign = |buffer: Tensor<B, 4>, at: usize, part: Tensor<B, 4>| {
            let to = at + part.dims()[2];
            let assigned = B::assign_columns(buffer, at, &part);
            assigned
                .unwrap_or_else(|buffer| buffer.slice_assign([0..batch, 0..heads, at..to, 0..head_dim], part))
        };
        match self.tensor.take() {
            Some(old) if end - self.first <= old.dims()[2] => {
                let whole = assign(old, len - self.first, new);
                let view = whole.clone().narrow(2, seen - self.first, end - seen);
                self.tensor = Some(whole);
                view
            }
            old => {
                let columns = match old.filter(|_| len > seen) {
                    Some(old) => Tensor::cat(vec![old.narrow(2, seen - self.first, len - seen), new], 2),
                    None => new,
                };
                // Only what the next position sees is kept; a window of 1 keeps nothing.
                self.first = first_seen(end, self.window);
                if self.first < end {
                    let kept = columns.clone().narrow(2, self.first - seen, end - self.first);
                    let shape = [batch, heads, self.capacity(end - self.first, limit), head_dim];
                    let empty = Tensor::zeros(shape, (&columns.device(), columns.dtype()));
                    self.tensor = Some(assign(empty, 0, kept));
                }
                columns
            }
        }
    }

    /// The buffer with room for the columns of a step behind the `len` in use. If it must grow or move on, only what the
    /// step sees comes along.
    #[cfg(feature = "gpu")]
    fn take_room(
        &mut self,
        len: usize,
        [batch, heads, head_dim]: [usize; 3],
        step: &Step<B>,
        dtype: DType,
    ) -> Tensor<B, 4> {
        match self.tensor.take() {
            Some(old) if len + step.seq - self.first <= old.dims()[2] => old,
            old => {
                let seen = first_seen(len, self.window);
                let used = len - seen;
                let capacity = self.capacity(used + step.seq, step.limit).max(used + step.seq);
                let shape = [batch, heads, capacity, head_dim];
                // By way of one dimension: a device may put gaps between the rows of what is made in several.
                let len: usize = shape.iter().product();
                let empty = Tensor::<B, 1>::zeros([len], (step.device(), dtype));
                let mut new = empty.reshape(shape);
                if let Some(old) = old.filter(|_| used > 0) {
                    let kept = old.narrow(2, seen - self.first, used);
                    new = new.slice_assign([0..batch, 0..heads, 0..used, 0..head_dim], kept);
                }
                self.first = seen;
                new
            }
        }
    }

    /// Columns to allocate where `used` are in use.
    fn capacity(&self, used: usize, limit: usize) -> usize {
        match self.window {
            None => used.next_multiple_of(STEP).min(limit.max(used)),
            Some(window) => {
                let room = (window / 4).clamp(1, STEP);
                (used + 1).next_multiple_of(STEP).min(window.saturating_add(room)).min(limit.max(used))
            }
        }
    }

    /// The columns in use, behind as many zeros as make them `columns`.
    fn aligned(&mut self, len: usize, columns: usize) -> Option<Tensor<B, 4>> {
        let own = len - self.first;
        let used = self.tensor.take()?.narrow(2, 0, own);
        if own == columns {
            return Some(used);
        }
        let [batch, heads, _, head_dim] = used.dims();
        let padding = Tensor::zeros([batch, heads, columns - own, head_dim], (&used.device(), used.dtype()));
        Some(Tensor::cat(vec![padding, used], 2))
    }

    /// Keeps the rows of `index`, if any, and drops `unused` columns of the `len` in use.
    fn keep_rows(&mut self, len: usize, unused: usize, index: Option<&Tensor<B, 1, Int>>) {
        let from = self.first.max(unused);
        let old = self.tensor.take().zip(index).filter(|_| len > from);
        self.tensor =
            old.map(|(old, index)| old.narrow(2, from - self.first, len - from).select(0, index.clone()));
        self.first = from - unused;
    }
}
