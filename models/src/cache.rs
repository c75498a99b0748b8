//! Keys and values of the positions a model has seen.

use burn::tensor::{Tensor, backend::Backend};

use crate::DecoderConfig;

/// Positions a buffer grows by.
const STEP: usize = 256;

/// Keys and values of every layer, for a batch of rows of different lengths.
///
/// Rows end together: a row with fewer positions starts later, and `starts` says where. So one step writes
/// one column for all rows, whatever their lengths, and nothing is ever moved to decode. Buffers are
/// `[batch, kv_heads, capacity, head_dim]`, have one owner each (an assignment then works in place), and
/// grow in steps up to the context length.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    /// Columns in use.
    len: usize,
    /// Columns before each row's first position.
    starts: Vec<usize>,
}

/// Keys and values of one layer. Taken out while they are written, so that they have one owner.
#[derive(Clone, Debug)]
struct LayerCache<B: Backend> {
    keys: Buffer<B>,
    values: Buffer<B>,
}

#[derive(Clone, Debug)]
struct Buffer<B: Backend>(Option<Tensor<B, 4>>);

impl<B: Backend> KvCache<B> {
    /// An empty cache for `batch` rows; nothing is allocated before the first step.
    pub fn new(config: &DecoderConfig, batch: usize) -> Self {
        let empty = LayerCache { keys: Buffer(None), values: Buffer(None) };
        Self { layers: vec![empty; config.num_layers], len: 0, starts: vec![0; batch] }
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

    /// Counts `seq` columns as written; every layer must have written them.
    pub(crate) fn advance(&mut self, seq: usize) {
        self.len += seq;
    }

    /// Writes the keys and values `[batch, kv_heads, seq, head_dim]` of a step behind the columns in use and
    /// returns views of all columns up to and with them.
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

    /// The rows of several caches as one batch, in order.
    pub fn stack(caches: Vec<Self>) -> Option<Self> {
        let mut caches: Vec<Self> = caches.into_iter().filter(|cache| cache.batch() > 0).collect();
        if caches.len() < 2 {
            return caches.pop();
        }
        let len = caches.iter().map(Self::len).max()?;
        let starts = caches.iter().flat_map(|c| c.starts.iter().map(move |s| s + len - c.len)).collect();
        let layers = (0..caches[0].layers.len()).map(|layer| {
            let mut stack = |pick: fn(&mut LayerCache<B>) -> &mut Buffer<B>| {
                let parts: Vec<_> = caches
                    .iter_mut()
                    .filter_map(|cache| pick(&mut cache.layers[layer]).aligned(cache.len, len))
                    .collect();
                Buffer((!parts.is_empty()).then(|| Tensor::cat(parts, 0)))
            };
            LayerCache { keys: stack(|c| &mut c.keys), values: stack(|c| &mut c.values) }
        });
        Some(Self { layers: layers.collect(), len, starts })
    }

    /// Keeps the given rows, in that order, and drops columns that none of them uses.
    pub fn keep_rows(&mut self, rows: &[usize], device: &B::Device) {
        if rows.len() == self.batch() && rows.iter().enumerate().all(|(i, &row)| i == row) {
            return;
        }
        self.starts = rows.iter().map(|&row| self.starts[row]).collect();
        let unused = self.starts.iter().copied().min().unwrap_or(self.len);
        self.starts.iter_mut().for_each(|start| *start -= unused);
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_ints(index.as_slice(), device);
        for layer in &mut self.layers {
            for buffer in [&mut layer.keys, &mut layer.values] {
                buffer.0 = buffer
                    .0
                    .take()
                    .filter(|_| !rows.is_empty())
                    .map(|tensor| tensor.narrow(2, unused, self.len - unused).select(0, index.clone()));
            }
        }
        self.len -= unused;
    }
}

impl<B: Backend> Buffer<B> {
    fn append(&mut self, len: usize, new: Tensor<B, 4>, limit: usize) -> Tensor<B, 4> {
        let [batch, heads, seq, head_dim] = new.dims();
        let end = len + seq;
        let old = self.0.take();
        let capacity = old.as_ref().map_or(0, |old| old.dims()[2]);
        let whole = if end <= capacity {
            old
        } else {
            let capacity = end.next_multiple_of(STEP).min(limit.max(end));
            let grown = Tensor::zeros([batch, heads, capacity, head_dim], (&new.device(), new.dtype()));
            Some(match old {
                Some(old) if len > 0 => {
                    grown.slice_assign([0..batch, 0..heads, 0..len, 0..head_dim], old.narrow(2, 0, len))
                }
                _ => grown,
            })
        };
        let whole =
            whole.map(|whole| whole.slice_assign([0..batch, 0..heads, len..end, 0..head_dim], new.clone()));
        let view = whole.as_ref().map_or(new, |whole| whole.clone().narrow(2, 0, end));
        self.0 = whole;
        view
    }

    /// The columns in use, moved so that they end at `end`; what stands before them is zero.
    fn aligned(&mut self, len: usize, end: usize) -> Option<Tensor<B, 4>> {
        let used = self.0.take()?.narrow(2, 0, len);
        if len == end {
            return Some(used);
        }
        let [batch, heads, _, head_dim] = used.dims();
        let padding = Tensor::zeros([batch, heads, end - len, head_dim], (&used.device(), used.dtype()));
        Some(Tensor::cat(vec![padding, used], 2))
    }
}
