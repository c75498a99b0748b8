//! Converts ggml's blocks to the parts of a packed weight.

use std::borrow::Cow;

use half::f16;
use moi_formats::PackedForm;
use moi_kernels::pack_into;

use crate::{
    LazyTensor, Storage,
    arena::{Arena, Region},
    finite::Count,
};

/// The parts of a packed matrix; each is taken when it is sent to the device.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) words: Option<Region<i32>>,
    pub(crate) scales: Option<Region<f16>>,
    pub(crate) minima: Option<Region<f16>>,
}

/// Reads a matrix as packed parts: from the file's blocks if they have the same format, else by encoding its values
/// now. `None` for a form that can be read but not encoded. Also counts NaN and infinite numbers: those of the
/// encoded values, because encoding gives undefined results for them, or those of scales and minima.
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
