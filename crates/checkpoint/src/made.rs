//! Tensors whose rows are made from several stored tensors, or computed from stored values.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use moi_formats::RowBlocks;

use crate::{LazyTensor, Storage};

/// Rows of floats that are made from stored tensors.
pub(crate) trait MadeRows: fmt::Debug + Send + Sync {
    /// Appends the values of a row.
    fn row(&self, row: usize, values: &mut Vec<f32>);

    /// Bytes of all stored tensors.
    fn num_bytes(&self) -> usize;

    /// Lets the system reclaim the memory of the tensors' mapped pages.
    fn release(&self);

    /// Whether values are computed from stored ones, which can round their last bits.
    fn is_computed(&self) -> bool {
        false
    }
}

/// The storage of a tensor made from these parts: their own if it is the same half-precision type for all, else
/// float32.
fn storage_of(parts: &[LazyTensor]) -> Storage {
    let first = parts.first().map_or(Storage::F32, LazyTensor::storage);
    let alike = parts.iter().all(|part| part.storage() == first);
    match first {
        Storage::F16 | Storage::BF16 if alike => first,
        _ => Storage::F32,
    }
}

impl LazyTensor {
    /// Interleaves several tensors into one: each part has some rows of each block. `None` if the parts do not make
    /// whole blocks.
    pub fn woven(parts: &[(RowBlocks, LazyTensor)]) -> Option<LazyTensor> {
        let (RowBlocks { blocks, block, .. }, first) = parts.first()?;
        let all = blocks * block;
        let mut places = vec![None; all];
        for (number, (rows, tensor)) in parts.iter().enumerate() {
            let fits = (rows.blocks, rows.block) == (*blocks, *block)
                && tensor.num_rows() == blocks * rows.len
                && tensor.row_width() == first.row_width();
            if !fits {
                return None;
            }
            for of in 0..*blocks {
                for at in 0..rows.len {
                    let place = places.get_mut(of * block + rows.start + at)?;
                    *place = Some((number, of * rows.len + at));
                }
            }
        }
        let places: Vec<(usize, usize)> = places.into_iter().collect::<Option<_>>()?;
        let tensors: Vec<LazyTensor> = parts.iter().map(|(_, tensor)| tensor.clone()).collect();
        let shape = first.with_rows(all);
        let storage = storage_of(&tensors);
        Some(Self::made(shape, storage, first, Arc::new(Woven { tensors, places })))
    }

    /// Transposes each of `heads` matrices that are stacked along the rows; `None` if the rows are no such stack.
    pub(crate) fn heads_transposed(&self, heads: usize) -> Option<LazyTensor> {
        let (rows, columns) = (self.num_rows(), self.row_width());
        if heads == 0 || !rows.is_multiple_of(heads) || rows == 0 {
            return None;
        }
        let each = rows / heads;
        let made = HeadsTransposed { tensor: self.clone(), each, last: Mutex::new(None) };
        let storage = storage_of(std::slice::from_ref(self));
        Some(Self::made(vec![heads * columns, each], storage, self, Arc::new(made)))
    }

    /// Reorders columns: column i of the result is column `order(i)` of this tensor.
    pub(crate) fn reorder_columns(&self, order: impl Fn(usize) -> usize) -> Option<LazyTensor> {
        let order: Vec<usize> = (0..self.row_width()).map(order).collect();
        if self.shape().len() != 2 || order.iter().any(|&column| column >= order.len()) {
            return None;
        }
        let (shape, storage) = (self.shape().to_vec(), storage_of(std::slice::from_ref(self)));
        Some(Self::made(shape, storage, self, Arc::new(Reordered { tensor: self.clone(), order })))
    }

    /// Applies a function to each value, computed in float64.
    pub(crate) fn mapped(&self, map: fn(f64) -> f64) -> LazyTensor {
        let made = Mapped { tensor: self.clone(), map };
        Self::made(self.shape().to_vec(), Storage::F32, self, Arc::new(made))
    }

    /// A vector of numbers that are in no tensor of the file; errors name the file of `like`.
    pub(crate) fn of_numbers(numbers: Vec<f32>, like: &LazyTensor) -> LazyTensor {
        Self::made(vec![numbers.len()], Storage::F32, like, Arc::new(Numbers(numbers)))
    }
}

/// Interleaved rows of several tensors.
#[derive(Debug)]
struct Woven {
    tensors: Vec<LazyTensor>,
    /// The tensor and the row in it, for each row.
    places: Vec<(usize, usize)>,
}

impl MadeRows for Woven {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let (tensor, row) = self.places[row];
        values.extend(row_of(&self.tensors[tensor], row));
    }

    fn num_bytes(&self) -> usize {
        self.tensors.iter().map(LazyTensor::num_bytes).sum()
    }

    fn release(&self) {
        self.tensors.iter().for_each(LazyTensor::release);
    }
}

/// Transposed matrices; the last matrix that was read is cached.
#[derive(Debug)]
struct HeadsTransposed {
    tensor: LazyTensor,
    each: usize,
    last: Mutex<Option<(usize, Vec<f32>)>>,
}

impl MadeRows for HeadsTransposed {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let columns = self.tensor.row_width();
        let (head, column) = (row / columns, row % columns);
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if last.as_ref().is_none_or(|(known, _)| *known != head) {
            let rows = self.tensor.slice_rows(head * self.each, self.each);
            *last = Some((head, rows.map(|rows| rows.read()).unwrap_or_default()));
        }
        if let Some((_, all)) = &*last {
            values.extend((0..self.each).map(|row| all[row * columns + column]));
        }
    }

    fn num_bytes(&self) -> usize {
        self.tensor.num_bytes()
    }

    fn release(&self) {
        self.tensor.release();
    }
}

/// A tensor with reordered columns.
#[derive(Debug)]
struct Reordered {
    tensor: LazyTensor,
    order: Vec<usize>,
}

impl MadeRows for Reordered {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let read = row_of(&self.tensor, row);
        values.extend(self.order.iter().map(|&column| read[column]));
    }

    fn num_bytes(&self) -> usize {
        self.tensor.num_bytes()
    }

    fn release(&self) {
        self.tensor.release();
    }
}

/// A tensor with a function applied to each value.
struct Mapped {
    tensor: LazyTensor,
    map: fn(f64) -> f64,
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("tensor", &self.tensor).finish_non_exhaustive()
    }
}

impl MadeRows for Mapped {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        let read = row_of(&self.tensor, row);
        values.extend(read.into_iter().map(|value| (self.map)(f64::from(value)) as f32));
    }

    fn num_bytes(&self) -> usize {
        self.tensor.num_bytes()
    }

    fn release(&self) {
        self.tensor.release();
    }

    fn is_computed(&self) -> bool {
        true
    }
}

/// Numbers held in memory.
#[derive(Debug)]
struct Numbers(Vec<f32>);

impl MadeRows for Numbers {
    fn row(&self, row: usize, values: &mut Vec<f32>) {
        values.push(self.0[row]);
    }

    fn num_bytes(&self) -> usize {
        size_of_val(self.0.as_slice())
    }

    fn release(&self) {}
}

fn row_of(tensor: &LazyTensor, row: usize) -> Vec<f32> {
    tensor.slice_rows(row, 1).map(|one| one.read()).unwrap_or_default()
}
