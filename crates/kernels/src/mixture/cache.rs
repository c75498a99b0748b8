//! A cache of unpacked rows of packed tables, for mixtures.

use crate::{
    Packed, isa,
    packed::RowLayout,
    pool::{self, Shared},
    threshold::Weighted,
};

/// Number of rows that are allocated together.
const CHUNK: usize = 256;

/// Copies of the rows of a packed table that mixtures have read. Likely tokens recur, and reading a copy takes a
/// sixteenth of the time of reading its tile, because a tile interleaves sixteen rows.
///
/// The cache grows with the rows that are read, at most to all rows: 9 bits per value, or 10 where a scale is shared
/// by sixteen values. Sums do not depend on what it holds, because all rows are added from copies.
#[derive(Debug, Default)]
pub struct RowCache {
    /// For each row of the table, one more than the index of its copy; 0 where there is no copy.
    places: Vec<u32>,
    chunks: Vec<Vec<f32>>,
    copied: usize,
}

impl RowCache {
    /// Copies those of the listed rows that have no copy yet.
    pub(super) fn fetch<'a>(&mut self, table: &Packed<'_>, lists: impl Iterator<Item = &'a [Weighted]>) {
        let words = RowLayout::of(table).words();
        self.places.resize(table.dims()[0], 0);
        let first = self.copied;
        let mut missing = Vec::new();
        for &(row, _) in lists.flatten() {
            let place = &mut self.places[row as usize];
            if *place == 0 {
                self.copied += 1;
                *place = self.copied as u32;
                missing.push(row);
            }
        }
        while self.chunks.len() * CHUNK < self.copied {
            self.chunks.push(vec![0.0; CHUNK * words]);
        }
        let chunks: Vec<Shared<f32>> = self.chunks.iter_mut().map(|chunk| Shared::new(chunk)).collect();
        pool::run_ranges(missing.len(), 8, |start, end| {
            for (index, &row) in missing.iter().enumerate().take(end).skip(start) {
                let place = first + index;
                // SAFETY: each copy has a place of its own.
                let out = unsafe { chunks[place / CHUNK].slice(place % CHUNK * words, words) };
                table.copy_row(isa(), row as usize, out);
            }
        });
    }

    /// The copy of a row, which must have been fetched.
    fn row(&self, row: u32, words: usize) -> &[f32] {
        let place = self.places[row as usize] as usize - 1;
        &self.chunks[place / CHUNK][place % CHUNK * words..][..words]
    }

    /// Adds weighted rows, which must have been fetched, to `sums` `[columns]`.
    pub(super) fn add(&self, table: &Packed<'_>, rows: &[Weighted], sums: &mut [f32]) {
        let layout = RowLayout::of(table);
        let words = layout.words();
        for rows in rows.chunks(16) {
            let mut found = [(&[] as &[f32], 0.0); 16];
            for (found, &(row, weight)) in found.iter_mut().zip(rows) {
                *found = (self.row(row, words), weight);
            }
            layout.add(isa(), &found[..rows.len()], sums);
        }
    }
}
