//! The k largest entries of every row.

use std::{cmp::Ordering, collections::BinaryHeap};

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// An entry of a row, ordered so that the top of the heap is the entry to remove first.
#[derive(Clone, Copy, PartialEq)]
struct Entry {
    value: f32,
    id: u32,
}

impl Eq for Entry {}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // Largest value first, lowest id first among equals.
        other.value.total_cmp(&self.value).then(self.id.cmp(&other.id))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The `k` largest entries of each row of `values` `[n, vocab]`, best first, ties by the lower id:
/// their values `[n, k]` and ids `[n, k]`. `k` is at most the vocabulary.
///
/// Selected on the host: burn 0.21's own `topk` sorts the whole row there on every backend.
pub(crate) fn top_k<B: Backend>(values: Tensor<B, 2>, k: usize) -> (Tensor<B, 2>, Tensor<B, 2, Int>) {
    let device = values.device();
    let [n, vocab] = values.dims();
    let data = values.into_data().convert::<f32>();
    let row = data.as_slice::<f32>().unwrap_or_default();
    let (mut best, mut ids) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    for row in row.chunks(vocab) {
        for entry in select(row, k) {
            best.push(entry.value);
            ids.push(i64::from(entry.id));
        }
    }
    (
        Tensor::from_data(TensorData::new(best, [n, k]), (&device, DType::F32)),
        Tensor::from_data(TensorData::new(ids, [n, k]), &device),
    )
}

fn select(row: &[f32], k: usize) -> Vec<Entry> {
    let mut heap = BinaryHeap::with_capacity(k + 1);
    let mut worst = f32::NEG_INFINITY;
    for (id, &value) in row.iter().enumerate() {
        // The comparison keeps the heap out of the loop for all but a few entries.
        if heap.len() < k {
            heap.push(Entry { value, id: id as u32 });
        } else if value > worst {
            heap.pop();
            heap.push(Entry { value, id: id as u32 });
        } else {
            continue;
        }
        worst = heap.peek().map_or(f32::NEG_INFINITY, |entry| entry.value);
    }
    heap.into_sorted_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_largest_with_ties_by_id() {
        let row = [1.0, 5.0, 5.0, f32::NEG_INFINITY, 7.0, 5.0];
        let ids: Vec<u32> = select(&row, 3).iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [4, 1, 2]);
        assert_eq!(select(&row, 6).len(), 6);
    }
}
