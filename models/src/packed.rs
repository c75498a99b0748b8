//! Weights that stay quantised in memory: blocks of 32 values with a scale, and perhaps a minimum, as ggml's
//! Q8_0, Q4_0 and Q4_1 have them. Activations are float32.
//!
//! The form is one for all backends: the quants of a row stand in 32-bit words, word `j` of `W` holding values
//! `j`, `W + j`, `2W + j` ..., so that each lane of the words is a run of values. Products unpack a tile of rows at
//! a time with ordinary tensor operations; this is the room for kernels that do better.

use burn::{
    module::{Module, Param},
    tensor::{DType, ElementConversion, Int, Tensor, backend::Backend},
};

use crate::linear::{uninitialized, uninitialized_int};

/// Values that share a scale.
pub const BLOCK: usize = 32;
/// Values that are unpacked at a time: few enough to stay in a processor's cache as float32.
const TILE: usize = 1 << 18;

/// How a value comes from its quant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "ggml's own names")]
pub enum PackedForm {
    /// 8 bits: `scale * q`, q from -128 on.
    Q8_0,
    /// 4 bits: `scale * (q - 8)`.
    Q4_0,
    /// 4 bits: `scale * q + minimum`.
    Q4_1,
}

impl PackedForm {
    /// Bits of a quant.
    pub fn bits(self) -> usize {
        match self {
            Self::Q8_0 => 8,
            Self::Q4_0 | Self::Q4_1 => 4,
        }
    }

    /// What is taken from a quant as it is stored, unsigned.
    fn offset(self) -> f64 {
        match self {
            Self::Q8_0 => 128.0,
            Self::Q4_0 => 8.0,
            Self::Q4_1 => 0.0,
        }
    }
}

/// A matrix `[out, in]` of blocks.
#[derive(Module, Debug)]
pub struct PackedMatrix<B: Backend> {
    /// `[out, in * bits / 32]`, 32-bit.
    pub words: Param<Tensor<B, 2, Int>>,
    /// `[out, in / 32]`, float32.
    pub scales: Param<Tensor<B, 2>>,
    /// `[out, in / 32]`, float32.
    pub minima: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    form: PackedForm,
    columns: usize,
}

impl<B: Backend> PackedMatrix<B> {
    /// A matrix that is not allocated before it is loaded over; `columns` must be a multiple of 32.
    pub fn new(rows: usize, columns: usize, form: PackedForm, device: &B::Device) -> Self {
        let blocks = [rows, columns / BLOCK];
        Self {
            words: uninitialized_int([rows, columns * form.bits() / 32], device),
            scales: uninitialized(blocks, device),
            minima: (form == PackedForm::Q4_1).then(|| uninitialized(blocks, device)),
            form,
            columns,
        }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.words.lazy_shape()[0], self.columns]
    }

    /// `x` `[n, in]` times the transpose: `[n, out]`.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = x.cast(DType::F32);
        let tiles = self.tiles().map(|tile| x.clone().matmul(tile.transpose())).collect();
        Tensor::cat(tiles, 1)
    }

    /// `weights` `[n, out]` times the matrix: `[n, in]`.
    pub fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        let mut start = 0;
        let products = self.tiles().map(|tile| {
            let rows = tile.dims()[0];
            let part = weights.clone().narrow(1, start, rows);
            start += rows;
            part.matmul(tile)
        });
        let sum = products.reduce(|sum, product| sum + product);
        sum.unwrap_or_else(|| {
            Tensor::zeros([weights.dims()[0], self.columns], (&weights.device(), DType::F32))
        })
    }

    /// The rows of `ids` `[n]`: `[n, in]`.
    pub fn rows(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let pick = |blocks: &Param<Tensor<B, 2>>| blocks.val().select(0, ids.clone());
        let minima = self.minima.as_ref().map(pick);
        self.unpacked(self.words.val().select(0, ids.clone()), pick(&self.scales), minima)
    }

    /// The matrix, some rows at a time.
    fn tiles(&self) -> impl Iterator<Item = Tensor<B, 2>> {
        let rows = self.dims()[0];
        let step = (TILE / self.columns).max(1);
        (0..rows).step_by(step).map(move |start| {
            let len = step.min(rows - start);
            let part = |blocks: &Param<Tensor<B, 2>>| blocks.val().narrow(0, start, len);
            let minima = self.minima.as_ref().map(part);
            self.unpacked(self.words.val().narrow(0, start, len), part(&self.scales), minima)
        })
    }

    fn unpacked(
        &self,
        words: Tensor<B, 2, Int>,
        scales: Tensor<B, 2>,
        minima: Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let [rows, blocks] = scales.dims();
        let bits = self.form.bits();
        let mask = (1i64 << bits) - 1;
        let lane = |index: usize| {
            let shifted = words.clone().bitwise_right_shift_scalar(((index * bits) as i64).elem());
            shifted.bitwise_and_scalar(mask.elem()).float().cast(DType::F32)
        };
        let quants = Tensor::cat((0..32 / bits).map(lane).collect(), 1).sub_scalar(self.form.offset());
        let values = quants.reshape([rows, blocks, BLOCK]) * scales.unsqueeze_dim(2);
        match minima {
            Some(minima) => values + minima.unsqueeze_dim(2),
            None => values,
        }
        .reshape([rows, self.columns])
    }
}
