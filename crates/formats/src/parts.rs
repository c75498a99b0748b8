//! Which part of a stored tensor is one weight.

/// One of several linear layers that are stored as one tensor: `len` rows from `start` on of each of `blocks` blocks
/// of `block` rows.
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

/// Heads whose rows are stored as adjacent rotary pairs, (2i, 2i + 1), and are halves in the weight, (i, i + half).
/// In each head of `head` rows, the rows behind the first `kept` ones are paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the sentences above name them all")]
pub struct PairedRows {
    pub head: usize,
    pub kept: usize,
}

/// The layout in which the linear layers of all experts of a layer share one tensor `[experts, ..]`, if they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertStacks {
    /// Each expert is `[out, in]`; in a fused tensor, gate comes before up.
    #[default]
    ByOutput,
    /// Each expert is `[in, out]`; in a fused tensor, gate comes before up.
    ByInput,
    /// Each expert is `[in, out]`; in a fused tensor, gate and up alternate.
    ByInputAlternating,
    /// Each expert is `[out, in]`; the fused tensor of gate and up is named `input_linear`, with gate first, and down
    /// is named `output_linear`.
    InputLinear,
}
