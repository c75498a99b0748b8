//! Positions of one sequence in chunks of equal length, for states that decay from one position to the next.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

/// Positions per chunk.
pub(super) const CHUNK: usize = 64;
/// Minimum number of positions that are computed in chunks; fewer are computed one by one.
pub(super) const MIN_CHUNKED: usize = 16;
/// Added to the logarithm of a decay that must not count, so that its exponential is 0 in float32.
const HIDDEN: f32 = -1e30;

/// The chunks of `len` positions. The last chunk is padded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    len: usize,
    count: usize,
}

/// Decays within chunks, computed from the logarithm of each position's decay.
pub(super) struct Decays<B: Backend> {
    /// The logarithm of the decay from a chunk's beginning to each position, `[heads * chunks, chunk, 1]`.
    pub(super) left: Tensor<B, 3>,
    /// The decay from an earlier to a later position, `[heads * chunks, later, earlier]`; 0 where the order is
    /// reversed.
    pub(super) pairs: Tensor<B, 3>,
}

impl Chunks {
    pub(super) fn new(len: usize) -> Self {
        Self { len, count: len.div_ceil(CHUNK) }
    }

    /// Number of chunks.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Converts `[positions, heads, width]` to `[heads * chunks, chunk, width]`, padded with zeros.
    pub(super) fn filled<B: Backend>(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let ([_, heads, width], device) = (x.dims(), x.device());
        let x = x.swap_dims(0, 1);
        let missing = self.count * CHUNK - self.len;
        let all = match missing {
            0 => x,
            _ => Tensor::cat(vec![x, Tensor::zeros([heads, missing, width], (&device, DType::F32))], 1),
        };
        all.reshape([heads * self.count, CHUNK, width])
    }

    /// Converts one number per head, `[positions, heads]`, to `[heads * chunks, chunk, 1]`, padded with zeros.
    pub(super) fn column<B: Backend>(&self, x: Tensor<B, 2>) -> Tensor<B, 3> {
        self.filled(x.unsqueeze_dim(2))
    }

    /// One chunk of all heads: `[heads, rows, width]` of `[heads * chunks, rows, width]`.
    pub(super) fn part<B: Backend>(&self, x: &Tensor<B, 3>, chunk: usize) -> Tensor<B, 3> {
        let [all, rows, width] = x.dims();
        let heads = all / self.count;
        let x = x.clone().reshape([heads, self.count, rows * width]).narrow(1, chunk, 1);
        x.reshape([heads, rows, width])
    }

    /// Concatenates chunks `[heads, chunk, width]` without the padding of the last one: `[positions, heads, width]`.
    pub(super) fn joined<B: Backend>(&self, chunks: Vec<Tensor<B, 3>>) -> Tensor<B, 3> {
        Tensor::cat(chunks, 1).narrow(1, 0, self.len).swap_dims(0, 1)
    }

    /// The decays, from the logarithm of each position's decay, `[heads * chunks, chunk, 1]`; 0 means no decay.
    pub(super) fn decays<B: Backend>(&self, decay: Tensor<B, 3>) -> Decays<B> {
        let ([all, ..], device) = (decay.dims(), decay.device());
        let ones = triangle::<B>(&device, |row, column| if row >= column { 1.0 } else { 0.0 });
        let hidden = triangle::<B>(&device, |row, column| if row >= column { 0.0 } else { HIDDEN });
        let left = ones.expand([all, CHUNK, CHUNK]).matmul(decay);
        let pairs = (left.clone() - left.clone().swap_dims(1, 2) + hidden).exp();
        Decays { left, pairs }
    }
}

impl<B: Backend> Decays<B> {
    /// The logarithm of a whole chunk's decay, `[heads * chunks, 1, 1]`.
    pub(super) fn last(&self) -> Tensor<B, 3> {
        self.left.clone().narrow(1, CHUNK - 1, 1)
    }
}

/// A matrix `[1, chunk, chunk]` whose values are given by row and column.
pub(super) fn triangle<B: Backend>(device: &B::Device, value: impl Fn(usize, usize) -> f32) -> Tensor<B, 3> {
    square(device, CHUNK, value)
}

/// The same for any size.
pub(super) fn square<B: Backend>(
    device: &B::Device,
    size: usize,
    value: impl Fn(usize, usize) -> f32,
) -> Tensor<B, 3> {
    let values = (0..size * size).map(|at| value(at / size, at % size));
    let data = TensorData::new(values.collect::<Vec<f32>>(), [size * size]);
    Tensor::<B, 1>::from_data(data, (device, DType::F32)).reshape([1, size, size])
}
