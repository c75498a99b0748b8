//! Blocks of ggml as the parts that a packed weight consists of.

use std::borrow::Cow;

use half::f16;
use moi_formats::PackedForm;
use moi_kernels::pack_into;

use crate::{
    LazyTensor, Storage,
    arena::{Arena, Region},
    finite::Count,
};

/// The parts of a packed matrix that have not gone to the device yet.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) words: Option<Region<i32>>,
    pub(crate) scales: Option<Region<f16>>,
    pub(crate) minima: Option<Region<f16>>,
}

/// The parts of a matrix as its file has it, or of one that is encoded now where the file has it otherwise. None for
/// a form that is read but never made. With them what is not finite: of scales and minima, or of values that were
/// encoded, which become anything.
pub(crate) fn read(tensor: &LazyTensor, form: PackedForm, arena: &mut Arena) -> Option<(Parts, Count)> {
    let format = form.format();
    let stored = (tensor.storage() == Storage::Block(format)).then(|| tensor.stored_bytes()).flatten();
    let (blocks, encoded) = match stored {
        Some(blocks) => (blocks, Count::default()),
        None => {
            let values = tensor.read();
            (Cow::Owned(format.encode(&values)?), Count::of_f32(&values))
        }
    };
    let columns = tensor.shape().last().copied().unwrap_or(0);
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let [words, scales, minima] = form.lengths(rows, columns);
    let mut words = arena.zeroed(words);
    let [mut scales, mut minima] = [scales, minima].map(|len| arena.zeroed(len));
    let is_packed =
        pack_into(form, &blocks, [rows, columns], words.slice_mut(), scales.slice_mut(), minima.slice_mut());
    let mut count = encoded;
    if count == Count::default() {
        count.add(Count::of_f16(scales.slice()));
        count.add(Count::of_f16(minima.slice()));
    }
    let parts = Parts { words: Some(words), scales: Some(scales), minima: Some(minima) };
    is_packed.then_some((parts, count))
}
