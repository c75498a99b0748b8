//! What runs through a model at once: new positions of any number of sequences.

use burn::tensor::{Tensor, backend::Backend};
pub use moi_kernels::Visible;

use crate::BlockTable;

/// New positions of any number of sequences, one span behind the other.
#[derive(Debug)]
pub struct ForwardBatch<'a, B: Backend> {
    /// Of all spans `[tokens, d]`.
    pub inputs: Tensor<B, 2>,
    /// Whose they are.
    pub spans: Vec<Span<'a>>,
}

/// New positions of one sequence.
#[derive(Debug)]
pub struct Span<'a> {
    /// What the sequence has cached; the new positions are added to it.
    pub table: &'a mut BlockTable,
    /// How many new positions there are, 1 or more.
    pub len: usize,
    /// What they see of each other. In a tree a position is as far from the root as its path is long.
    pub visible: Visible,
}

impl<'a, B: Backend> ForwardBatch<'a, B> {
    /// The next positions `[positions, d]` of one sequence.
    pub fn one(inputs: Tensor<B, 2>, table: &'a mut BlockTable) -> Self {
        let len = inputs.dims()[0];
        Self { inputs, spans: vec![Span { table, len, visible: Visible::Causal }] }
    }

    /// The next position of each of some sequences: `[sequences, d]`.
    pub fn step(inputs: Tensor<B, 2>, tables: impl Iterator<Item = &'a mut BlockTable>) -> Self {
        let spans = tables.map(|table| Span { table, len: 1, visible: Visible::Causal });
        Self { inputs, spans: spans.collect() }
    }
}
