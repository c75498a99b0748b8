//! Weights that stay quantized in memory, in blocks like ggml's.
//!
//! [`PackedForm`] documents the memory layout of a matrix, which is the same for all backends. CPU kernels compute
//! from it directly. This module has what every backend can do: it unpacks a tile of rows at a time with ordinary
//! tensor operations.

use burn::{
    module::{Module, Param},
    tensor::{DType, ElementConversion, FloatDType, Int, Tensor, backend::Backend},
};
use moi_kernels::{BLOCK, PackedForm, ROWS};

use crate::{
    Kernels,
    linear::{uninitialized, uninitialized_int},
};

/// Number of values that are unpacked at a time: few enough to stay in a CPU's cache as float32.
const TILE: usize = 1 << 18;

/// What activations are quantized to for products with packed weights, if the backend has kernels for that; otherwise
/// they are not quantized. If they are, the KV cache is in float16.
///
/// # Examples
/// ```
/// use burn::tensor::FloatDType;
/// use burn_flex::Flex;
/// use moi_models::{Activations, TensorOperations};
///
/// // Tensor operations quantize no activations, so the cache is in float32.
/// let dtype = Activations::Mixed.cache_dtype::<Flex>(&TensorOperations);
/// assert_eq!(dtype, FloatDType::F32);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Not quantized: products are as exact as float32.
    F32,
    /// 8 bits where most of the arithmetic is, in the gate and up projections of feed-forward blocks. Twice 8 bits
    /// elsewhere, which costs no time where memory bandwidth is the limit, and removes three quarters of the error of
    /// [`Self::Int8`].
    #[default]
    Mixed,
    /// 8 bits and a scale for 32 values everywhere, as in llama.cpp.
    Int8,
    /// Twice 8 bits everywhere.
    Int16,
}

impl Activations {
    /// The type of cached keys and values with such activations, with these kernels.
    pub fn cache_dtype<B: Backend>(self, kernels: &dyn Kernels<B>) -> FloatDType {
        match self {
            Self::Mixed | Self::Int8 | Self::Int16 if kernels.rounds_activations() => FloatDType::F16,
            _ => FloatDType::F32,
        }
    }
}

/// The type of block scales on a device: float16, as they are stored, if the device computes in that.
///
/// # Examples
/// ```
/// use burn::tensor::FloatDType;
/// use moi_models::scales_dtype;
///
/// // NdArray does not compute in float16.
/// let dtype = scales_dtype::<burn_ndarray::NdArray>(&Default::default());
/// assert_eq!(dtype, FloatDType::F32);
/// ```
pub fn scales_dtype<B: Backend>(device: &B::Device) -> FloatDType {
    match B::supports_dtype(device, DType::F16) {
        true => FloatDType::F16,
        false => FloatDType::F32,
    }
}

/// A packed matrix `[out, in]`.
///
/// # Examples
/// ```
/// use burn_flex::Flex;
/// use moi_models::{Activations, PackedForm, PackedMatrix};
///
/// let packed = PackedMatrix::<Flex>::new(40, 256, PackedForm::Q8_0, &Default::default());
/// assert_eq!((packed.dims(), packed.form()), ([40, 256], PackedForm::Q8_0));
/// assert_eq!(packed.rounded_to(), Activations::Int16);
/// ```
#[derive(Module, Debug)]
pub struct PackedMatrix<B: Backend> {
    /// Quants and small scales, in 32-bit words, `[tiles, words of a tile]`.
    pub words: Param<Tensor<B, 2, Int>>,
    /// Block scales, `[tiles, scales of a tile]`, in float16 if the backend has it, else in float32.
    pub scales: Param<Tensor<B, 2>>,
    /// Block minima, of the same shape and type.
    pub minima: Option<Param<Tensor<B, 2>>>,
    #[module(skip)]
    form: PackedForm,
    #[module(skip)]
    activations: Activations,
    /// Whether it is a gate or up projection of a feed-forward block.
    inward: bool,
    rows: usize,
    columns: usize,
}

impl<B: Backend> PackedMatrix<B> {
    /// A matrix that is not allocated before it is loaded. `columns` must be a multiple of the form's
    /// [span](PackedForm::span).
    pub fn new(rows: usize, columns: usize, form: PackedForm, device: &B::Device) -> Self {
        let tiles = rows.div_ceil(ROWS);
        let scales = || uninitialized([tiles, form.num_scales(ROWS, columns)], device);
        Self {
            words: uninitialized_int([tiles, form.quant_bytes(ROWS, columns) / 4], device),
            scales: scales(),
            minima: form.has_minima().then(scales),
            form,
            activations: Activations::default(),
            inward: false,
            rows,
            columns,
        }
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The packed form.
    pub fn form(&self) -> PackedForm {
        self.form
    }

    /// What activations are quantized to, as set for the model.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// What activations are quantized to for this matrix, which is never [`Activations::Mixed`].
    pub fn rounded_to(&self) -> Activations {
        match self.activations {
            Activations::Mixed if self.inward => Activations::Int8,
            Activations::Mixed => Activations::Int16,
            other => other,
        }
    }

    pub(crate) fn set_activations(&mut self, activations: Activations, inward: bool) {
        (self.activations, self.inward) = (activations, inward);
    }

    /// Multiplies `x` `[n, in]` with the transpose: `[n, out]`. By tensor operations.
    pub fn products(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.products_by(x, TILE, |_, _| None)
    }

    /// The same, with about `tile` values unpacked at a time. `unpack`, given the first row and the number of rows,
    /// may compute these by a kernel, `[rows, in]`.
    pub(crate) fn products_by(
        &self,
        x: Tensor<B, 2>,
        tile: usize,
        unpack: impl Fn(usize, usize) -> Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let x = x.cast(DType::F32);
        let tiles = self.unpacked_tiles(tile, unpack).map(|tile| x.clone().matmul(tile.transpose()));
        Tensor::cat(tiles.collect(), 1)
    }

    /// Multiplies `weights` `[n, out]` with the matrix: `[n, in]`. By tensor operations.
    pub fn weighted_sum(&self, weights: Tensor<B, 2>) -> Tensor<B, 2> {
        self.weighted_sum_by(weights, TILE, |_, _| None)
    }

    /// Like [`Self::weighted_sum`], with `unpack` as in [`Self::products_by`].
    pub(crate) fn weighted_sum_by(
        &self,
        weights: Tensor<B, 2>,
        tile: usize,
        unpack: impl Fn(usize, usize) -> Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let mut start = 0;
        let products = self.unpacked_tiles(tile, unpack).map(|tile| {
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
        let [n] = ids.dims();
        let device = ids.device();
        let rows = ROWS as i64;
        let within = ids.clone().remainder_scalar(rows.elem::<B::IntElem>());
        let tiles = (ids - within.clone()).div_scalar(rows.elem::<B::IntElem>());
        let pick = |numbers: &Param<Tensor<B, 2>>| numbers.val().select(0, tiles.clone());
        let minima = self.minima.as_ref().map(pick);
        let values = self.unpacked(self.words.val().select(0, tiles.clone()), pick(&self.scales), minima);
        let firsts = Tensor::<B, 1, Int>::arange(0..n as i64, &device).mul_scalar(rows.elem::<B::IntElem>());
        values.select(0, firsts + within)
    }

    /// The unpacked matrix, some rows at a time, of about `size` values.
    fn unpacked_tiles(
        &self,
        size: usize,
        unpack: impl Fn(usize, usize) -> Option<Tensor<B, 2>>,
    ) -> impl Iterator<Item = Tensor<B, 2>> {
        let tiles = self.rows.div_ceil(ROWS);
        let step = (size / (self.columns * ROWS)).max(1);
        (0..tiles).step_by(step).map(move |start| {
            let len = step.min(tiles - start);
            let rows = (len * ROWS).min(self.rows - start * ROWS);
            if let Some(values) = unpack(start * ROWS, rows) {
                return values;
            }
            let part = |numbers: &Param<Tensor<B, 2>>| numbers.val().narrow(0, start, len);
            let minima = self.minima.as_ref().map(part);
            let values = self.unpacked(self.words.val().narrow(0, start, len), part(&self.scales), minima);
            values.narrow(0, 0, rows)
        })
    }

    /// Unpacks whole tiles: words `[tiles, ..]` to values `[tiles * 16, in]`.
    fn unpacked(
        &self,
        words: Tensor<B, 2, Int>,
        scales: Tensor<B, 2>,
        minima: Option<Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let (tiles, blocks, form) = (words.dims()[0], self.columns / BLOCK, self.form);
        let words = words.reshape([tiles, blocks, form.block_bytes() / 4]);
        let quants = quants(&words, form).sub_scalar(form.offset());
        // The scale for each half of a block's columns, and the minimum, which is to be added.
        let spread = |numbers: Tensor<B, 2>| {
            let spans = self.columns / form.span();
            let numbers = numbers.cast(DType::F32).reshape([tiles, spans, 1, 1, ROWS]);
            numbers.repeat_dim(2, blocks / spans).reshape([tiles, blocks, 1, ROWS])
        };
        let (mut scale, mut minimum) = (spread(scales), minima.map(spread));
        if form.is_k() {
            // Two small scales per row: those of the scale and the minimum, or those of the halves.
            let small =
                bytes(words.narrow(2, form.block_bytes() / 4 - 8, 8)).reshape([tiles, blocks, 2, ROWS]);
            match minimum.take() {
                Some(least) => {
                    scale = scale * small.clone().narrow(2, 0, 1);
                    minimum = Some((least * small.narrow(2, 1, 1)).neg());
                }
                None => {
                    let signed =
                        small.clone() - small.greater_elem(127).float().cast(DType::F32).mul_scalar(256);
                    scale = scale * signed;
                }
            }
        }
        let halves = scale.dims()[2];
        let scale = scale.reshape([tiles, blocks, halves, 1, ROWS, 1]);
        let mut values = quants.reshape([tiles, blocks, halves, 8 / halves, ROWS, 4]) * scale;
        if let Some(minimum) = minimum {
            values = values + minimum.reshape([tiles, blocks, 1, 1, ROWS, 1]);
        }
        let values = values.reshape([tiles, blocks, 8, ROWS, 4]).permute([0, 3, 1, 2, 4]);
        values.reshape([tiles * ROWS, self.columns])
    }
}

/// Extracts `count` bits from bit `shift` on of 32-bit words, as floats.
fn bits<B: Backend, const D: usize>(words: &Tensor<B, D, Int>, shift: usize, count: usize) -> Tensor<B, D> {
    let shifted = words.clone().bitwise_right_shift_scalar((shift as i64).elem());
    shifted.bitwise_and_scalar(((1i64 << count) - 1).elem()).float().cast(DType::F32)
}

/// The bytes of words `[.., n]`, the lowest first: `[.., n * 4]`.
fn bytes<B: Backend>(words: Tensor<B, 3, Int>) -> Tensor<B, 3> {
    let [tiles, blocks, count] = words.dims();
    let all: Vec<Tensor<B, 3>> = (0..4).map(|i| bits(&words, 8 * i, 8)).collect();
    Tensor::stack::<4>(all, 3).reshape([tiles, blocks, count * 4])
}

/// The unsigned quants of words `[tiles, blocks, words]`: `[tiles, blocks, 8, 16 rows, 4]`.
fn quants<B: Backend>(words: &Tensor<B, 3, Int>, form: PackedForm) -> Tensor<B, 5> {
    let [tiles, blocks, _] = words.dims();
    // Four numbers from each word, from bit `first` on.
    let four = |words: Tensor<B, 4, Int>, first: usize, count: usize| {
        Tensor::stack::<5>((0..4).map(|i| bits(&words, first + 8 * i, count)).collect(), 4)
    };
    if form.bits() == 8 {
        return four(words.clone().reshape([tiles, blocks, 8, ROWS]), 0, 8);
    }
    let low = words.clone().narrow(2, 0, 64).reshape([tiles, blocks, 4, ROWS]);
    let halves = vec![four(low.clone(), 0, 4), four(low, 4, 4)];
    let mut quants = Tensor::stack::<6>(halves, 3).reshape([tiles, blocks, 8, ROWS, 4]);
    for plane in 0..form.bits() - 4 {
        let words = words.clone().narrow(2, 64 + ROWS * plane, ROWS);
        let single: Vec<Tensor<B, 3>> = (0..32).map(|bit| bits(&words, bit, 1)).collect();
        let plane_bits = Tensor::stack::<4>(single, 3).reshape([tiles, blocks, 8, ROWS, 4]);
        quants = quants + plane_bits.mul_scalar(16 << plane);
    }
    quants
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use burn_flex::Flex;
    use moi_kernels::{Packed, pack};

    use super::*;

    /// Blocks of arbitrary bytes, with float16 numbers between 2^-4 and 2^-1 where the form has scales and minima.
    fn blocks(form: PackedForm, count: usize) -> Vec<u8> {
        let (_, size) = form.format().size();
        let mut blocks: Vec<u8> = (0..count * size).map(|i| (i * 7919 % 251 + i / 13) as u8).collect();
        for block in blocks.chunks_mut(size) {
            let numbers: &[usize] = match form {
                PackedForm::Q6_K => &[208],
                _ if form.has_minima() => &[0, 2],
                _ => &[0],
            };
            numbers.iter().for_each(|&at| block[at + 1] = 0x2c | block[at + 1] & 0x83);
        }
        blocks
    }

    #[test]
    fn tensor_operations_unpack_what_kernels_do() {
        let device = Default::default();
        for form in PackedForm::ALL {
            let (rows, columns) = (37, 2 * form.span());
            let parts =
                pack(form, &blocks(form, rows * columns / form.format().size().0), rows, columns).unwrap();
            let view =
                Packed::new(form, [rows, columns], &parts.words, &parts.scales, &parts.minima).unwrap();
            let mut expected = Vec::new();
            view.rows(&(0..rows).collect::<Vec<_>>(), &mut expected);

            let mut packed = PackedMatrix::<Flex>::new(rows, columns, form, &device);
            let numbers = |values: &[half::f16], shape: [usize; 2]| {
                let values: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
                Param::from_tensor(Tensor::<Flex, 2>::from_data(TensorData::new(values, shape), &device))
            };
            let words: [usize; 2] = packed.words.lazy_shape().dims();
            let scales: [usize; 2] = packed.scales.lazy_shape().dims();
            let words = TensorData::new(parts.words.clone(), words);
            packed.words = Param::initialized(
                burn::module::ParamId::new(),
                Tensor::from_data(words, (&device, DType::I32)),
            );
            packed.scales = numbers(&parts.scales, scales);
            packed.minima = form.has_minima().then(|| numbers(&parts.minima, scales));

            let tiles = Tensor::cat(packed.unpacked_tiles(TILE, |_, _| None).collect(), 0);
            assert_eq!(tiles.dims(), [rows, columns]);
            assert_eq!(tiles.clone().into_data().to_vec::<f32>().unwrap(), expected, "{form:?}");
            let ids = Tensor::<Flex, 1, Int>::from_ints([36, 0, 17], &device);
            let picked = packed.rows(ids.clone()).into_data();
            assert_eq!(picked, tiles.select(0, ids).into_data(), "{form:?}");
        }
    }
}
