//! Lazily read tensors in memory-mapped files.

use std::{
    borrow::Cow,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use memmap2::Mmap;

use crate::{
    CheckpointError, Storage,
    file::{html_page, lfs_pointer, open_file},
    made::MadeRows,
    quantised::Codes,
};

/// A memory-mapped file.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    map: Mmap,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, CheckpointError> {
        let error = |error| CheckpointError::Io { path: path.to_owned(), error };
        let file = open_file(path)?;
        // SAFETY: the map is only read. If another process changes the file while it is mapped, values can be wrong,
        // as when reading a file twice, but every byte pattern is a valid value of the types read. If the file is
        // truncated meanwhile, the process ends with SIGBUS before any missing data is used.
        let map = unsafe { Mmap::map(&file) }.map_err(error)?;
        if let Some(what) = lfs_pointer(&map).or_else(|| html_page(&map)) {
            return Err(CheckpointError::Format { path: path.to_owned(), place: "start".to_owned(), what });
        }
        Ok(Arc::new(Self { path: path.to_owned(), map }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the system reclaim the pages of a range; they are read again if they are needed again.
    pub(crate) fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        // SAFETY: the map is shared with the file and never written, so the pages' contents stay in the file.
        unsafe {
            // If the system refuses, it only costs memory.
            let _ =
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// A tensor whose values stay in the file until they are read. It is a whole stored tensor, or a view of a part of
/// one, possibly in another order.
///
/// The stored tensor is treated as a matrix whose rows are all axes except the last. The view takes some rows and
/// some columns of it, possibly transposes them, and may add a number.
///
/// # Examples
/// ```
/// use moi_checkpoint::open_safetensors;
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let checkpoint = open_safetensors(&path)?;
/// let weight = &checkpoint.tensors()["weight"]; // nothing is read yet
/// assert_eq!(weight.read(), [1.0, 2.0, 3.0, 4.0]);
/// assert_eq!(weight.slice_rows(1, 1).map(|row| row.read()), Some(vec![3.0, 4.0]));
/// assert_eq!(weight.transpose().map(|turned| turned.read()), Some(vec![1.0, 3.0, 2.0, 4.0]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct LazyTensor {
    shape: Vec<usize>,
    storage: Storage,
    source: Arc<Source>,
    /// The byte range of the whole stored tensor.
    range: Range<usize>,
    /// The length of a stored row. The number of stored rows follows.
    width: usize,
    num_stored_rows: usize,
    rows: RowOrder,
    columns: Columns,
    transposed: bool,
    added: f32,
    /// The source of the rows, if they are made from several stored tensors.
    made: Option<Arc<dyn MadeRows>>,
}

/// The selected values of a stored row: `len` values from `start` on, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Columns {
    start: usize,
    len: usize,
    step: usize,
}

impl Columns {
    fn of<'a>(&self, row: &'a [f32]) -> impl Iterator<Item = f32> + use<'a> {
        row.iter().copied().skip(self.start).step_by(self.step).take(self.len)
    }
}

/// The selected stored rows, in order.
#[derive(Clone, Debug)]
enum RowOrder {
    Range(Range<usize>),
    List(Arc<[usize]>),
}

impl RowOrder {
    fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::List(list) => list.len(),
        }
    }

    fn get(&self, row: usize) -> usize {
        match self {
            Self::Range(range) => range.start + row,
            Self::List(list) => list[row],
        }
    }
}

impl LazyTensor {
    /// A whole stored tensor. The length of `range` in the file must be that of the shape in this storage.
    pub(crate) fn stored(
        shape: Vec<usize>,
        storage: Storage,
        source: Arc<Source>,
        range: Range<usize>,
    ) -> Self {
        let values: usize = shape.iter().product();
        // A vector is treated as a column, so that its entries are rows; a vector of blocks is one row, because
        // blocks cannot be split.
        let width = match &shape[..] {
            [len] if storage.block().0 == 1 => (*len).min(1),
            _ => shape.last().copied().unwrap_or(1),
        };
        let num_stored_rows = values.checked_div(width).unwrap_or(0);
        let (rows, columns) =
            (RowOrder::Range(0..num_stored_rows), Columns { start: 0, len: width, step: 1 });
        let (transposed, added, made) = (false, 0.0, None);
        Self { shape, storage, source, range, width, num_stored_rows, rows, columns, transposed, added, made }
    }

    /// A whole tensor whose rows are made from this range of the file and other tensors.
    pub(crate) fn quantised(
        shape: Vec<usize>,
        storage: Storage,
        source: Arc<Source>,
        range: Range<usize>,
        rows: Arc<dyn MadeRows>,
    ) -> Self {
        Self { made: Some(rows), ..Self::stored(shape, storage, source, range) }
    }

    /// A tensor whose rows are made from other tensors; `of` is one of them, and names the file.
    pub(crate) fn made(shape: Vec<usize>, storage: Storage, of: &Self, rows: Arc<dyn MadeRows>) -> Self {
        Self { made: Some(rows), ..Self::stored(shape, storage, of.source.clone(), of.range.clone()) }
    }

    /// The stored codes, if the tensor consists of codes.
    pub(crate) fn codes(&self) -> Option<Codes> {
        let Storage::Codes(kind) = self.storage else { return None };
        Some(Codes {
            shape: self.shape.clone(),
            kind,
            source: self.source.clone(),
            range: self.range.clone(),
        })
    }

    /// The file that holds the tensor.
    pub(crate) fn path(&self) -> &Path {
        &self.source.path
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The storage type of the values.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Bytes that the selected values take in the file.
    pub fn num_bytes(&self) -> usize {
        if let Some(made) = &self.made {
            let all = (self.num_stored_rows * self.width).max(1) as f64;
            let own = self.shape.iter().product::<usize>() as f64;
            return (made.num_bytes() as f64 * own / all) as usize;
        }
        let (block, bytes) = self.storage.block();
        (self.shape.iter().product::<usize>() / block).saturating_mul(bytes)
    }

    /// The name of the file that holds the tensor, for messages.
    pub(crate) fn file_name(&self) -> String {
        let path = &self.source.path;
        path.file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Selects `len` rows from `start` on of each of `blocks` blocks of `block` rows, where rows are all axes except
    /// the last. `None` if the tensor does not consist of these blocks.
    pub fn select_rows(&self, blocks: usize, block: usize, start: usize, len: usize) -> Option<Self> {
        // Rows beyond a block, or beyond the range of `usize`, do not exist.
        if start.checked_add(len).is_none_or(|end| end > block) {
            return None;
        }
        let rows = (0..blocks).flat_map(|b| b * block + start..b * block + start + len);
        if self.transposed {
            // The rows of a transposed tensor are stored columns, of which only one contiguous range can be selected.
            let fits = blocks == 1 && self.columns.len == block;
            let columns =
                Columns { start: self.columns.start + start * self.columns.step, len, ..self.columns };
            return fits.then(|| Self { shape: self.with_first(len), columns, ..self.clone() });
        }
        if blocks.checked_mul(block) != Some(self.rows.len()) {
            return None;
        }
        let order = match (&self.rows, blocks) {
            (RowOrder::Range(range), 1) => RowOrder::Range(range.start + start..range.start + start + len),
            _ => RowOrder::List(rows.map(|row| self.rows.get(row)).collect()),
        };
        Some(Self { shape: self.with_first(blocks * len), rows: order, ..self.clone() })
    }

    /// All rows in pieces of some millions of values, to be read one at a time; `None` if the tensor cannot be split.
    pub fn pieces(&self) -> Option<Vec<Self>> {
        const VALUES: usize = 1 << 22;
        let (rows, values) = (self.num_rows(), self.shape.iter().product::<usize>());
        let step = (VALUES / (values / rows.max(1)).max(1)).max(1);
        (0..rows).step_by(step).map(|start| self.slice_rows(start, step.min(rows - start))).collect()
    }

    /// Selects `len` rows from `start` on; `None` if they go beyond the last row.
    pub fn slice_rows(&self, start: usize, len: usize) -> Option<Self> {
        self.select_rows(1, self.num_rows(), start, len)
    }

    /// The number of rows of the tensor as a matrix: all axes except the last.
    pub fn num_rows(&self) -> usize {
        if self.transposed { self.columns.len } else { self.rows.len() }
    }

    /// The number of values per row.
    pub(crate) fn row_width(&self) -> usize {
        if self.transposed { self.rows.len() } else { self.columns.len }
    }

    /// The shape with this number of rows.
    pub(crate) fn with_rows(&self, rows: usize) -> Vec<usize> {
        self.with_first(rows)
    }

    /// Selects every `step`th row from `first` on.
    pub(crate) fn every(&self, step: usize, first: usize) -> Option<Self> {
        let len = self.num_rows().checked_sub(first)?.div_ceil(step.max(1));
        if !self.transposed {
            let list = (0..len).map(|row| self.rows.get(first + row * step)).collect();
            return Some(Self { shape: self.with_first(len), rows: RowOrder::List(list), ..self.clone() });
        }
        let Columns { start, step: own, .. } = self.columns;
        let columns = Columns { start: start + first * own, len, step: own * step };
        Some(Self { shape: self.with_first(len), columns, ..self.clone() })
    }

    /// Converts adjacent rotary pairs to halves. In each head of `head` rows, the first `kept` rows stay; of the
    /// others, rows 2i and 2i + 1 become rows i and i + half. `None` if the rows are no whole heads.
    pub(crate) fn pairs_as_halves(&self, head: usize, kept: usize) -> Option<Self> {
        self.reorder_turned(head, kept, |row, half| 2 * (row % half) + row / half)
    }

    /// The inverse of `pairs_as_halves`: converts halves to adjacent pairs.
    pub fn halves_as_pairs(&self, head: usize, kept: usize) -> Option<Self> {
        self.reorder_turned(head, kept, |row, half| row % 2 * half + row / 2)
    }

    /// Reorders the rows of each head behind the first `kept` ones. `from` gives the source of each row, from the row
    /// and half the number of rows.
    fn reorder_turned(&self, head: usize, kept: usize, from: impl Fn(usize, usize) -> usize) -> Option<Self> {
        let turned = head.checked_sub(kept)?;
        if head == 0 || !turned.is_multiple_of(2) || !self.num_rows().is_multiple_of(head) {
            return None;
        }
        let half = turned / 2;
        self.reorder_rows(|row| {
            let (first, within) = (row / head * head, row % head);
            match within.checked_sub(kept) {
                Some(turned) => first + kept + from(turned, half),
                None => row,
            }
        })
    }

    /// Reorders rows: row i of the result is row `order(i)` of this tensor.
    pub(crate) fn reorder_rows(&self, order: impl Fn(usize) -> usize) -> Option<Self> {
        if self.transposed {
            return None;
        }
        let list = (0..self.rows.len()).map(|row| self.rows.get(order(row))).collect();
        Some(Self { rows: RowOrder::List(list), ..self.clone() })
    }

    /// Selects matrix `index` of a stack of matrices `[n, rows, columns]`.
    pub fn matrix(&self, index: usize) -> Option<Self> {
        let &[count, rows, columns] = &self.shape[..] else { return None };
        let flat = Self { shape: vec![count * rows, columns], ..self.clone() };
        (index < count).then(|| flat.select_rows(1, count * rows, index * rows, rows))?
    }

    /// A single row as a vector, whose entries are rows.
    pub(crate) fn as_vector(&self) -> Self {
        let len = self.shape.iter().product();
        Self { shape: vec![len], transposed: true, ..self.clone() }
    }

    /// A vector as a matrix with one row.
    pub fn as_row(&self) -> Self {
        let len = self.shape.iter().product();
        Self { shape: vec![1, len], transposed: true, ..self.clone() }
    }

    /// A stack of matrices `[n, rows, columns]` as one matrix `[n * rows, columns]`.
    pub(crate) fn matrices_below_each_other(&self) -> Option<Self> {
        match self.shape[..] {
            [_, _] => Some(self.clone()),
            [count, rows, columns] => Some(Self { shape: vec![count * rows, columns], ..self.clone() }),
            _ => None,
        }
    }

    /// All values as a vector, whose entries are rows.
    pub(crate) fn flattened(&self) -> Option<Self> {
        /// Most values that are read into memory here, which is more than any vector of a layer has.
        const MAX_VALUES: usize = 1 << 22;
        let values: usize = self.shape.iter().product();
        match &self.shape[..] {
            [_] => Some(self.clone()),
            // The tensor is a single column or a single row.
            &[n, 1] if n == values => Some(Self { shape: vec![n], ..self.clone() }),
            &[1, n] if n == values => Some(self.as_vector()),
            _ if values > MAX_VALUES => None,
            _ => {
                let all = self.read();
                (all.len() == values).then(|| Self::of_numbers(all, self))
            }
        }
    }

    /// The same values and rows in another shape.
    pub(crate) fn shaped(&self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.shape.iter().product::<usize>());
        Self { shape, ..self.clone() }
    }

    /// A matrix `[rows, columns]` as `[rows, 1, columns]`.
    pub fn with_middle_axis(&self) -> Self {
        let shape = match self.shape[..] {
            [rows, columns] => vec![rows, 1, columns],
            _ => self.shape.clone(),
        };
        Self { shape, ..self.clone() }
    }

    /// A tensor `[rows, 1, columns]` as a matrix.
    pub(crate) fn without_middle_axis(&self) -> Self {
        let shape = match self.shape[..] {
            [rows, _, columns] => vec![rows, columns],
            _ => self.shape.clone(),
        };
        Self { shape, ..self.clone() }
    }

    /// Transposes a matrix; `None` if the tensor is no matrix.
    pub fn transpose(&self) -> Option<Self> {
        let &[rows, columns] = &self.shape[..] else { return None };
        Some(Self { shape: vec![columns, rows], transposed: !self.transposed, ..self.clone() })
    }

    /// Adds a number to each value.
    pub(crate) fn plus(self, number: f32) -> Self {
        Self { added: self.added + number, ..self }
    }

    /// The shape with this number of rows; axes before the last are folded into one.
    fn with_first(&self, rows: usize) -> Vec<usize> {
        match &self.shape[..] {
            [] | [_] => vec![rows],
            [.., columns] => vec![rows, *columns],
        }
    }

    /// Whether both are stored as the same bytes in the same order.
    pub fn same_bytes(&self, other: &Self) -> bool {
        fn whole(tensor: &LazyTensor) -> Option<&[u8]> {
            let values: usize = tensor.shape.iter().product();
            let in_order =
                matches!(&tensor.rows, RowOrder::Range(rows) if rows.len() * tensor.width == values);
            (in_order && tensor.added == 0.0 && !tensor.transposed && tensor.made.is_none())
                .then(|| &tensor.source.bytes()[tensor.range.clone()])
        }
        self.storage == other.storage
            && self.shape == other.shape
            && whole(self).zip(whole(other)).is_some_and(|(own, others)| own == others)
    }

    /// A scalar as a vector with one value.
    pub(crate) fn scalar_as_vector(&self) -> Option<Self> {
        self.shape.is_empty().then(|| Self { shape: vec![1], ..self.clone() })
    }

    /// Reads the values as float32, in the order of the shape; the conversion is exact except for F64.
    pub fn read(&self) -> Vec<f32> {
        let mut values = self.read_rows();
        if self.columns.len < self.width {
            values = values.chunks_exact(self.width).flat_map(|row| self.columns.of(row)).collect();
        }
        if self.transposed {
            values = transposed(&values, self.rows.len(), self.columns.len);
        }
        if self.added != 0.0 {
            values.iter_mut().for_each(|value| *value += self.added);
        }
        values
    }

    /// Reads the selected rows with all their columns.
    fn read_rows(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rows.len() * self.width);
        if let Some(made) = &self.made {
            (0..self.rows.len()).for_each(|row| made.row(self.rows.get(row), &mut values));
            return values;
        }
        self.each_run(|bytes| self.storage.decode(bytes, &mut values));
        values
    }

    /// Lets the system reclaim the mapped pages that hold the tensor, once it has been read.
    pub fn release(&self) {
        match &self.made {
            Some(made) => made.release(),
            None => self.source.release(&self.range),
        }
    }

    /// Whether the values are computed from stored ones, as by adding a number, which can round their last bits.
    pub fn is_computed(&self) -> bool {
        self.added != 0.0 || self.made.as_ref().is_some_and(|made| made.is_computed())
    }

    /// Whether the stored bytes of whole rows are the values: nothing is transposed, cut off or added.
    pub fn is_as_stored(&self) -> bool {
        self.is_in_rows() && self.added == 0.0 && self.made.is_none()
    }

    /// Whether the rows are whole stored rows, so that some of them can be read without the others.
    pub(crate) fn is_in_rows(&self) -> bool {
        !self.transposed && self.columns.len == self.width
    }

    /// The bytes of the selected rows in order, if the values are unchanged from storage. They are only copied if the
    /// rows are not contiguous.
    pub fn stored_bytes(&self) -> Option<Cow<'_, [u8]>> {
        match &self.rows {
            RowOrder::Range(_) if self.is_as_stored() => {
                let mut stored = Cow::Borrowed(&[][..]);
                self.each_run(|bytes| stored = Cow::Borrowed(bytes));
                Some(stored)
            }
            _ => self.read_stored().map(Cow::Owned),
        }
    }

    /// A copy of the bytes that [`LazyTensor::stored_bytes`] returns.
    pub fn read_stored(&self) -> Option<Vec<u8>> {
        if !self.is_as_stored() {
            return None;
        }
        let mut stored = Vec::with_capacity(self.num_bytes());
        self.each_run(|bytes| stored.extend_from_slice(bytes));
        Some(stored)
    }

    /// Passes on the stored bytes of the selected rows, in runs of contiguous rows.
    fn each_run<'a>(&'a self, mut each: impl FnMut(&'a [u8])) {
        let (block, bytes) = self.storage.block();
        let stride = self.width / block * bytes;
        let all = &self.source.bytes()[self.range.clone()];
        match &self.rows {
            RowOrder::Range(rows) => each(&all[rows.start * stride..rows.end * stride]),
            RowOrder::List(rows) => rows.iter().for_each(|&row| each(&all[row * stride..][..stride])),
        }
    }
}

/// Transposes `[rows, columns]` to `[columns, rows]` in tiles that fit into the first-level cache.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for column in column_tile..(column_tile + TILE).min(columns) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_across_tiles() {
        let values: Vec<f32> = (0..40 * 70).map(|i| i as f32).collect();
        let turned = transposed(&values, 40, 70);
        assert_eq!((turned[1], turned[40], turned[69 * 40 + 39]), (70.0, 1.0, 2799.0));
        assert_eq!(transposed(&turned, 70, 40), values);
    }
}
