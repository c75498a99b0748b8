//! Named tensors in mapped files.

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

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    map: Mmap,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, CheckpointError> {
        let error = |error| CheckpointError::Io { path: path.to_owned(), error };
        let file = open_file(path)?;
        // SAFETY: the map is only read; a file changed by another process while it is mapped can give wrong
        // values, as reading it twice could, and every byte pattern is a valid value of the types read. One that is
        // made shorter meanwhile ends the process with SIGBUS, before anything of it is believed.
        let map = unsafe { Mmap::map(&file) }.map_err(error)?;
        if let Some(what) = lfs_pointer(&map).or_else(|| html_page(&map)) {
            return Err(CheckpointError::Format { path: path.to_owned(), place: "start".to_owned(), what });
        }
        Ok(Arc::new(Self { path: path.to_owned(), map }))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the system take back the pages of a range; they are read again if they are needed again.
    pub(crate) fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        // SAFETY: the map is shared with the file and never written: the pages' contents stay in the file.
        unsafe {
            // A refusal only costs memory.
            let _ =
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// A tensor whose values stay in the file until they are read; whole, or a part of one that is stored, in
/// another order.
///
/// What is stored counts as a matrix: its rows are all axes but the last. The view takes some rows and some
/// columns of it, possibly transposes them, and may add a number.
#[derive(Clone, Debug)]
pub struct LazyTensor {
    shape: Vec<usize>,
    storage: Storage,
    source: Arc<Source>,
    /// The whole stored tensor.
    range: Range<usize>,
    /// Length of a stored row, and how many there are.
    width: usize,
    num_stored_rows: usize,
    rows: RowOrder,
    columns: Columns,
    transposed: bool,
    added: f32,
    /// What gives the rows, where several stored tensors make them.
    made: Option<Arc<dyn MadeRows>>,
}

/// Which values of a stored row: `len` from `start` on, each so many behind the one before.
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

/// Which stored rows, in which order.
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
    /// A whole tensor, `range` of the file; its length must be the shape's in that storage.
    pub(crate) fn stored(
        shape: Vec<usize>,
        storage: Storage,
        source: Arc<Source>,
        range: Range<usize>,
    ) -> Self {
        let values: usize = shape.iter().product();
        // A vector is a column, so that its entries are rows; blocks cannot be taken apart.
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

    /// A whole tensor whose rows are made of what stands there and elsewhere.
    pub(crate) fn quantised(
        shape: Vec<usize>,
        storage: Storage,
        source: Arc<Source>,
        range: Range<usize>,
        rows: Arc<dyn MadeRows>,
    ) -> Self {
        Self { made: Some(rows), ..Self::stored(shape, storage, source, range) }
    }

    /// A tensor whose rows are made of others, of the file that one of these is of.
    pub(crate) fn made(shape: Vec<usize>, storage: Storage, of: &Self, rows: Arc<dyn MadeRows>) -> Self {
        Self { made: Some(rows), ..Self::stored(shape, storage, of.source.clone(), of.range.clone()) }
    }

    /// The stored codes, if it is a tensor of such.
    pub(crate) fn codes(&self) -> Option<Codes> {
        let Storage::Codes(kind) = self.storage else { return None };
        Some(Codes {
            shape: self.shape.clone(),
            kind,
            source: self.source.clone(),
            range: self.range.clone(),
        })
    }

    /// The file that holds it.
    pub(crate) fn path(&self) -> &Path {
        &self.source.path
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How the values are stored.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Bytes that these values take in the file.
    pub fn num_bytes(&self) -> usize {
        if let Some(made) = &self.made {
            let all = (self.num_stored_rows * self.width).max(1) as f64;
            let own = self.shape.iter().product::<usize>() as f64;
            return (made.num_bytes() as f64 * own / all) as usize;
        }
        let (block, bytes) = self.storage.block();
        (self.shape.iter().product::<usize>() / block).saturating_mul(bytes)
    }

    /// The name of the file that holds it, for messages.
    pub(crate) fn file_name(&self) -> String {
        let path = &self.source.path;
        path.file_name()
            .map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// `len` rows from `start` on of each of `blocks` blocks of `block` rows; rows are all axes but the last.
    /// None if the tensor does not consist of these blocks.
    pub fn select_rows(&self, blocks: usize, block: usize, start: usize, len: usize) -> Option<Self> {
        // What is beyond a block, or does not fit into a number, is no row.
        if start.checked_add(len).is_none_or(|end| end > block) {
            return None;
        }
        let rows = (0..blocks).flat_map(|b| b * block + start..b * block + start + len);
        if self.transposed {
            // Its rows are stored columns: only one run of them can be taken.
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

    /// All rows in pieces of some millions of values, to be held one at a time; none if they cannot be taken apart.
    pub fn pieces(&self) -> Option<Vec<Self>> {
        const VALUES: usize = 1 << 22;
        let (rows, values) = (self.num_rows(), self.shape.iter().product::<usize>());
        let step = (VALUES / (values / rows.max(1)).max(1)).max(1);
        (0..rows).step_by(step).map(|start| self.slice_rows(start, step.min(rows - start))).collect()
    }

    /// `len` rows from `start` on; none beyond the last.
    pub fn slice_rows(&self, start: usize, len: usize) -> Option<Self> {
        self.select_rows(1, self.num_rows(), start, len)
    }

    /// Rows of the matrix that it counts as: all axes but the last.
    pub fn num_rows(&self) -> usize {
        if self.transposed { self.columns.len } else { self.rows.len() }
    }

    /// Values of one of these rows.
    pub(crate) fn row_width(&self) -> usize {
        if self.transposed { self.rows.len() } else { self.columns.len }
    }

    /// The shape with so many rows.
    pub(crate) fn with_rows(&self, rows: usize) -> Vec<usize> {
        self.with_first(rows)
    }

    /// Every `step`th row from `first` on.
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

    /// Rows of each head that stand as pairs side by side, as halves: of `head` rows those behind the first `kept`, of which
    /// rows 2i and 2i + 1 become i and i + half. None if the rows are no such heads.
    pub(crate) fn pairs_as_halves(&self, head: usize, kept: usize) -> Option<Self> {
        self.reorder_turned(head, kept, |row, half| 2 * (row % half) + row / half)
    }

    /// The same the other way: halves as pairs side by side.
    pub fn halves_as_pairs(&self, head: usize, kept: usize) -> Option<Self> {
        self.reorder_turned(head, kept, |row, half| row % 2 * half + row / 2)
    }

    /// Rows of each head behind the first `kept` in another order: where each comes from, of the row and half of their number.
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

    /// Rows in another order: row i of the result is row `order(i)` of this.
    pub(crate) fn reorder_rows(&self, order: impl Fn(usize) -> usize) -> Option<Self> {
        if self.transposed {
            return None;
        }
        let list = (0..self.rows.len()).map(|row| self.rows.get(order(row))).collect();
        Some(Self { rows: RowOrder::List(list), ..self.clone() })
    }

    /// Matrix `index` of a stack of matrices `[n, rows, columns]`.
    pub fn matrix(&self, index: usize) -> Option<Self> {
        let &[count, rows, columns] = &self.shape[..] else { return None };
        let flat = Self { shape: vec![count * rows, columns], ..self.clone() };
        (index < count).then(|| flat.select_rows(1, count * rows, index * rows, rows))?
    }

    /// One row as a vector, whose entries are rows.
    pub(crate) fn as_vector(&self) -> Self {
        let len = self.shape.iter().product();
        Self { shape: vec![len], transposed: true, ..self.clone() }
    }

    /// A vector as a matrix of one row.
    pub fn as_row(&self) -> Self {
        let len = self.shape.iter().product();
        Self { shape: vec![1, len], transposed: true, ..self.clone() }
    }

    /// A stack of matrices `[n, rows, columns]` as one `[n * rows, columns]`.
    pub(crate) fn matrices_below_each_other(&self) -> Option<Self> {
        match self.shape[..] {
            [_, _] => Some(self.clone()),
            [count, rows, columns] => Some(Self { shape: vec![count * rows, columns], ..self.clone() }),
            _ => None,
        }
    }

    /// All values as a vector, whose entries are rows.
    pub(crate) fn flattened(&self) -> Option<Self> {
        /// More numbers than any vector of a layer has.
        const MOST: usize = 1 << 22;
        let values: usize = self.shape.iter().product();
        match &self.shape[..] {
            [_] => Some(self.clone()),
            // A column, or a row.
            &[n, 1] if n == values => Some(Self { shape: vec![n], ..self.clone() }),
            &[1, n] if n == values => Some(self.as_vector()),
            _ if values > MOST => None,
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

    /// A matrix as `[rows, 1, columns]`.
    pub fn with_middle_axis(&self) -> Self {
        let shape = match self.shape[..] {
            [rows, columns] => vec![rows, 1, columns],
            _ => self.shape.clone(),
        };
        Self { shape, ..self.clone() }
    }

    /// `[rows, 1, columns]` as a matrix.
    pub(crate) fn without_middle_axis(&self) -> Self {
        let shape = match self.shape[..] {
            [rows, _, columns] => vec![rows, columns],
            _ => self.shape.clone(),
        };
        Self { shape, ..self.clone() }
    }

    /// A matrix with its axes exchanged; none if it is no matrix.
    pub fn transpose(&self) -> Option<Self> {
        let &[rows, columns] = &self.shape[..] else { return None };
        Some(Self { shape: vec![columns, rows], transposed: !self.transposed, ..self.clone() })
    }

    /// With a number added to each value.
    pub(crate) fn plus(self, number: f32) -> Self {
        Self { added: self.added + number, ..self }
    }

    /// The shape with another number of rows, other axes before the last folded into it.
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

    /// One value as a vector of it.
    pub(crate) fn scalar_as_vector(&self) -> Option<Self> {
        self.shape.is_empty().then(|| Self { shape: vec![1], ..self.clone() })
    }

    /// Reads the values as float32, in the order of the shape; exact for every storage but F64.
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

    /// The selected rows, whole.
    fn read_rows(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rows.len() * self.width);
        if let Some(made) = &self.made {
            (0..self.rows.len()).for_each(|row| made.row(self.rows.get(row), &mut values));
            return values;
        }
        self.each_run(|bytes| self.storage.decode(bytes, &mut values));
        values
    }

    /// Lets the system take back the memory of the file's pages that hold the tensor, once it is read.
    pub fn release(&self) {
        match &self.made {
            Some(made) => made.release(),
            None => self.source.release(&self.range),
        }
    }

    /// Whether the values are computed from stored ones, as by adding a number, which can cost their last bits.
    pub fn is_computed(&self) -> bool {
        self.added != 0.0 || self.made.as_ref().is_some_and(|made| made.is_computed())
    }

    /// Whether the stored bytes of whole rows are the values: nothing is transposed, cut or added to.
    pub fn is_as_stored(&self) -> bool {
        self.is_in_rows() && self.added == 0.0 && self.made.is_none()
    }

    /// Whether its rows are whole rows of what is stored, so that some of them can be read without the others.
    pub(crate) fn is_in_rows(&self) -> bool {
        !self.transposed && self.columns.len == self.width
    }

    /// The bytes of the selected rows, in order: the values in their own storage, if they are as stored. They are copied
    /// only where rows do not stand together.
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

    /// A copy of what [`LazyTensor::stored_bytes`] gives.
    pub fn read_stored(&self) -> Option<Vec<u8>> {
        if !self.is_as_stored() {
            return None;
        }
        let mut stored = Vec::with_capacity(self.num_bytes());
        self.each_run(|bytes| stored.extend_from_slice(bytes));
        Some(stored)
    }

    /// Hands on the stored bytes of the rows, as long as they stand together.
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

/// `[rows, columns]` to `[columns, rows]`, in tiles that stay in the nearest cache.
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
