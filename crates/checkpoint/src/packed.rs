//! Blocks of ggml as the words, scales and minima that a packed weight consists of.

use half::f16;

use crate::{LazyTensor, Storage, gguf::BlockKind};

/// A matrix of blocks of 32. Word `j` of the `W` words of a row holds the quants of values `j`, `W + j`,
/// `2W + j` ..., lowest bits first, without a sign: Q8_0's are moved up by 128.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackedBlocks {
    pub(crate) words: Vec<i32>,
    pub(crate) scales: Vec<f32>,
    /// Empty but for Q4_1.
    pub(crate) minima: Vec<f32>,
}

/// Formats that can be held packed.
pub(crate) fn packable(name: &str) -> Option<BlockKind> {
    BlockKind::ALL.into_iter().find(|kind| kind.name() == name && kind.can_encode())
}

/// Values in one 32-bit word.
pub(crate) fn per_word(kind: BlockKind) -> usize {
    if kind == BlockKind::Q8_0 { 4 } else { 8 }
}

impl PackedBlocks {
    /// A matrix as its file has it, or encoded now where the file has it otherwise.
    pub(crate) fn read(tensor: &LazyTensor, kind: BlockKind) -> Self {
        let stored = (tensor.storage() == Storage::Block(kind)).then(|| tensor.read_stored()).flatten();
        let blocks = stored.or_else(|| kind.encode(&tensor.read())).unwrap_or_default();
        let columns = tensor.shape().last().copied().unwrap_or(0);
        Self::of(&blocks, kind, columns)
    }

    fn of(blocks: &[u8], kind: BlockKind, columns: usize) -> Self {
        let (len, size) = kind.size();
        let head = if kind == BlockKind::Q4_1 { 4 } else { 2 };
        let number = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let all = || blocks.chunks_exact(size);
        let scales = all().map(|block| number(block, 0)).collect();
        let minima = if head == 4 { all().map(|block| number(block, 2)).collect() } else { Vec::new() };
        let (lanes, words_per_row) = (per_word(kind), columns / per_word(kind));
        let bits = 32 / lanes;
        let mut words = vec![0u32; blocks.len() / size * len / lanes];
        for (index, block) in all().enumerate() {
            let (row, start) = (index * len / columns, index * len % columns);
            let mut put = |value: usize, quant: u8| {
                let (lane, word) = ((start + value) / words_per_row, (start + value) % words_per_row);
                words[row * words_per_row + word] |= u32::from(quant) << (lane * bits);
            };
            for (at, &byte) in block[head..].iter().enumerate() {
                match kind {
                    BlockKind::Q8_0 => put(at, byte.wrapping_add(128)),
                    _ => {
                        put(at, byte & 15);
                        put(len / 2 + at, byte >> 4);
                    }
                }
            }
        }
        Self { words: words.into_iter().map(|word| word as i32).collect(), scales, minima }
    }
}
