//! Blocks of ggml as the parts that a packed weight consists of.

use std::borrow::Cow;

use moi_kernels::{PackedForm, PackedParts, pack};

use crate::{LazyTensor, Storage, finite::Count, gguf::BlockKind};

/// A form by ggml's name.
pub(crate) fn packable(name: &str) -> Option<PackedForm> {
    PackedForm::ALL.into_iter().find(|form| form.name() == name)
}

/// The parts of a matrix as its file has it, or of one that is encoded now where the file has it otherwise. None for
/// a form that is read but never made. With them what is not finite: of scales and minima, or of values that were
/// encoded, which become anything.
pub(crate) fn read(tensor: &LazyTensor, form: PackedForm) -> Option<(PackedParts, Count)> {
    let kind = BlockKind::ALL.into_iter().find(|kind| kind.name() == form.name())?;
    let stored = (tensor.storage() == Storage::Block(kind)).then(|| tensor.stored_bytes()).flatten();
    let (blocks, encoded) = match stored {
        Some(blocks) => (blocks, Count::default()),
        None => {
            let values = tensor.read();
            (Cow::Owned(kind.encode(&values)?), Count::of_f32(&values))
        }
    };
    let columns = tensor.shape().last().copied().unwrap_or(0);
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let parts = pack(form, &blocks, rows, columns)?;
    let mut count = encoded;
    if count == Count::default() {
        count.add(Count::of_f16(&parts.scales));
        count.add(Count::of_f16(&parts.minima));
    }
    Some((parts, count))
}
