//! Writes keys and values of new positions into blocks of the KV cache.

use crate::{
    attention::CACHE_BLOCK,
    pool::{self, Shared},
};

/// Consecutive new positions that lie in one block of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the first one among all new positions.
    pub first: usize,
    /// Number of positions.
    pub len: usize,
    /// Index of the block in the slab.
    pub block: usize,
    /// The position in the block at which they begin.
    pub at: usize,
}

/// Writes `new` `[positions, heads, head_dim]` into the blocks of a slab: each block is
/// `[heads, head_dim, CACHE_BLOCK]` if `by_value`, the layout of keys, else `[heads, CACHE_BLOCK, head_dim]`.
///
/// # Panics
/// If a run is outside of the slab, or of `new`.
pub fn write_columns<T: Copy + Send + Sync>(
    slab: &mut [T],
    new: &[T],
    [heads, head_dim]: [usize; 2],
    runs: &[Run],
    by_value: bool,
) {
    let (row, block) = (heads * head_dim, heads * head_dim * CACHE_BLOCK);
    for run in runs {
        assert!(
            (run.first + run.len) * row <= new.len() && run.at + run.len <= CACHE_BLOCK,
            "a run of new positions"
        );
        assert!((run.block + 1) * block <= slab.len(), "a block of the slab");
    }
    let slab = Shared::new(slab);
    let positions = runs.iter().map(|run| run.len).sum::<usize>() / runs.len().max(1);
    let write = |index: usize| {
        let (run, head) = (runs[index / heads], index % heads);
        let size = CACHE_BLOCK * head_dim;
        let to = slab.at((run.block * heads + head) * size, size);
        let from = |position: usize| &new[(run.first + position) * row + head * head_dim..][..head_dim];
        // SAFETY: the writes are inside the head's part of the block, at positions that no other run has.
        unsafe {
            if by_value {
                // The outer loop is over values, so that writes are contiguous.
                for i in 0..head_dim {
                    for position in 0..run.len {
                        to.add(i * CACHE_BLOCK + run.at + position).write(from(position)[i]);
                    }
                }
            } else {
                for position in 0..run.len {
                    let to = to.add((run.at + position) * head_dim);
                    to.copy_from_nonoverlapping(from(position).as_ptr(), head_dim);
                }
            }
        }
    };
    // Writing few positions takes less time than waking a thread.
    if positions * runs.len() * row < 1 << 14 {
        (0..runs.len() * heads).for_each(write);
    } else {
        pool::run(runs.len() * heads, write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_written_where_they_belong() {
        let (heads, head_dim) = (2, 3);
        let block = heads * head_dim * CACHE_BLOCK;
        for positions in [2, 70, 3000] {
            let new: Vec<u16> = (0..positions * heads * head_dim).map(|i| i as u16).collect();
            let (mut runs, mut first, mut at) = (Vec::new(), 0, 5);
            while first < positions {
                let len = (CACHE_BLOCK - at).min(positions - first);
                // The blocks are in reverse order.
                runs.push(Run { first, len, block: positions / CACHE_BLOCK + 1 - runs.len(), at });
                (first, at) = (first + len, 0);
            }
            for by_value in [true, false] {
                let mut slab = vec![u16::MAX; (positions / CACHE_BLOCK + 2) * block];
                write_columns(&mut slab, &new, [heads, head_dim], &runs, by_value);
                for run in &runs {
                    for (position, head, i) in (0..run.len)
                        .flat_map(|p| (0..heads).flat_map(move |h| (0..head_dim).map(move |i| (p, h, i))))
                    {
                        let base = run.block * block + head * CACHE_BLOCK * head_dim;
                        let column = run.at + position;
                        let place = if by_value { i * CACHE_BLOCK + column } else { column * head_dim + i };
                        let from = ((run.first + position) * heads + head) * head_dim + i;
                        assert_eq!(slab[base + place], new[from]);
                        slab[base + place] = u16::MAX;
                    }
                }
                assert!(slab.iter().all(|&value| value == u16::MAX), "nothing else was written");
            }
        }
    }

    #[test]
    #[should_panic(expected = "a block of the slab")]
    fn blocks_outside_are_refused() {
        write_columns(&mut [0u16; 64], &[0], [1, 1], &[Run { first: 0, len: 1, block: 1, at: 0 }], false);
    }
}
