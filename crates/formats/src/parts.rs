//! Which part of a stored tensor is one weight.

/// `len` rows from `start` on of each of `blocks` blocks of `block` rows: one of several maps that are stored as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the sentence above names them all")]
pub struct RowBlocks {
    pub blocks: usize,
    pub block: usize,
    pub start: usize,
    pub len: usize,
}

impl RowBlocks {
    /// The rows from `start` on of a tensor of `all` rows.
    pub fn range(start: usize, len: usize, all: usize) -> Self {
        Self { blocks: 1, block: all, start, len }
    }
}

/// Heads of rows that are stored as pairs side by side, (2i, 2i + 1), and are halves in the weight, (i, i + half). Of each
/// `head` rows those behind the first `kept` are paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the sentences above name them all")]
pub struct PairedRows {
    pub head: usize,
    pub kept: usize,
}

/// How maps of all experts of a layer stand in one tensor `[experts, ..]`, where they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertStacks {
    /// Each `[out, in]`; of gate and up, the gate first.
    #[default]
    ByOutput,
    /// Each `[in, out]`; of gate and up, the gate first.
    ByInput,
    /// Each `[in, out]`; gate and up alternate.
    ByInputAlternating,
    /// Each `[out, in]`; gate and up are called `input_linear`, the gate first, and down `output_linear`.
    InputLinear,
}
