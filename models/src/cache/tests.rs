//! Random operations on a pool are compared with a plain model of it, in which each sequence is a list of numbers.

use std::collections::BTreeSet;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use proptest::prelude::*;

use super::{BLOCK_POSITIONS, BlockTable, KvPool, first_seen, pool::CacheShape, pool::LayerShape};
use crate::{ModelError, default_kernels};

/// Two layers of one kind, one without a cache, and one with a window.
const SHAPES: [CacheShape; 4] = [
    CacheShape::Keys(LayerShape {
        kv_heads: 1,
        head_dim: 2,
        dtype: DType::F32,
        window: None,
        has_values: true,
    }),
    CacheShape::None,
    CacheShape::Keys(LayerShape {
        kv_heads: 2,
        head_dim: 1,
        dtype: DType::F32,
        window: None,
        has_values: true,
    }),
    CacheShape::Keys(LayerShape {
        kv_heads: 1,
        head_dim: 1,
        dtype: DType::F32,
        window: Some(WINDOW),
        has_values: true,
    }),
];
const WINDOW: usize = 70;
/// Bytes of a block of each kind.
const FULL_BYTES: usize = 2 * BLOCK_POSITIONS * (2 + 2) * 4;
const WINDOW_BYTES: usize = 2 * BLOCK_POSITIONS * 4;

#[derive(Clone, Debug)]
enum Operation {
    New,
    Write(usize, usize),
    Fork(usize),
    Truncate(usize, usize),
    /// Writes a tree and keeps a path through it.
    Path(usize, Vec<usize>),
    Drop(usize),
    /// Copies the sequence to the host and back.
    Park(usize),
    Shrink,
}

fn operation() -> impl Strategy<Value = Operation> {
    let which = 0usize..6;
    prop_oneof![
        2 => Just(Operation::New),
        6 => (which.clone(), 1usize..150).prop_map(|(which, len)| Operation::Write(which, len)),
        3 => which.clone().prop_map(Operation::Fork),
        2 => (which.clone(), 0usize..90).prop_map(|(which, back)| Operation::Truncate(which, back)),
        2 => (which.clone(), proptest::collection::btree_set(0usize..9, 1..5))
            .prop_map(|(which, path)| Operation::Path(which, path.into_iter().collect())),
        2 => which.clone().prop_map(Operation::Drop),
        2 => which.prop_map(Operation::Park),
        1 => Just(Operation::Shrink),
    ]
}

/// A sequence, and the numbers that its positions should have.
type Sequence = (BlockTable, Vec<f32>);

struct Test<B: Backend> {
    pool: KvPool<B>,
    sequences: Vec<Sequence>,
    written: usize,
}

impl<B: Backend> Test<B> {
    /// Writes positions, each with a number of its own, and counts them. Returns whether there was room.
    fn write(&mut self, which: usize, len: usize) -> bool {
        let (table, numbers) = &mut self.sequences[which];
        let before = table.len();
        match self.pool.reserve(table, len) {
            Ok(()) => {}
            Err(ModelError::PoolFull { .. }) => {
                table.release_reserved();
                assert_eq!(table.len(), before);
                return false;
            }
            Err(other) => panic!("{other}"),
        }
        let new: Vec<f32> = (0..len).map(|i| (self.written + i) as f32).collect();
        self.written += len;
        let places = self.pool.places(std::iter::once((&*table, len)));
        for layer in 0..SHAPES.len() {
            let Some((kind, blocks)) = self.pool.layer(layer) else { continue };
            let width = blocks.kv_heads * blocks.head_dim;
            let row = |&number: &f32| (0..width).map(move |j| number + j as f32 * 0.1);
            let keys: Vec<f32> = new.iter().flat_map(row).collect();
            let tensor = |values: Vec<f32>| {
                let data = TensorData::new(values, [len, blocks.kv_heads, blocks.head_dim]);
                Tensor::<B, 3>::from_data(data, &Default::default())
            };
            let values = keys.iter().map(|key| -key).collect();
            blocks.write(&tensor(keys), &tensor(values), &places[kind].runs);
        }
        table.advance(len);
        numbers.extend(new);
        true
    }

    fn apply(&mut self, operation: Operation) {
        let count = self.sequences.len();
        let index = |which: usize| which % count.max(1);
        match operation {
            Operation::New => self.sequences.push((self.pool.table(), Vec::new())),
            Operation::Shrink => self.pool.shrink(),
            _ if count == 0 => {}
            Operation::Write(which, len) => {
                self.write(index(which), len);
            }
            Operation::Fork(which) => {
                let fork = self.sequences[index(which)].clone();
                self.sequences.push(fork);
            }
            Operation::Truncate(which, back) => {
                let (table, numbers) = &mut self.sequences[index(which)];
                let len = numbers.len().saturating_sub(back);
                let seen = table
                    .kinds
                    .iter()
                    .all(|kind| kind.first * BLOCK_POSITIONS <= first_seen(len, kind.window));
                let can = table.truncate(len);
                assert_eq!(can, seen || back == 0, "it can be where all that is seen is there");
                if can {
                    numbers.truncate(len);
                }
            }
            Operation::Path(which, path) => {
                let which = index(which);
                let before = self.sequences[which].1.len();
                if self.write(which, path.last().map_or(1, |last| last + 1)) {
                    let (table, numbers) = &mut self.sequences[which];
                    match self.pool.keep_path(table, before, &path) {
                        Ok(()) => {
                            *numbers = [
                                &numbers[..before],
                                &path.iter().map(|i| numbers[before + i]).collect::<Vec<_>>(),
                            ]
                            .concat()
                        }
                        Err(_) => panic!("nothing was shared since it was written"),
                    }
                }
            }
            Operation::Drop(which) => {
                self.sequences.swap_remove(index(which));
            }
            Operation::Park(which) => {
                let (table, numbers) = self.sequences.swap_remove(index(which));
                let parked = self.pool.park(&table);
                assert_eq!((parked.len(), parked.is_empty()), (numbers.len(), numbers.is_empty()));
                drop(table);
                // Blocks that are shared with other sequences were not freed.
                match self.pool.unpark(&parked) {
                    Ok(table) => self.sequences.push((table, numbers)),
                    Err(error) => assert!(matches!(error, ModelError::PoolFull { .. }), "{error}"),
                }
            }
        }
    }

    fn check(&mut self, budget: usize) {
        // The counts of blocks add up: the blocks in use are those in a table.
        let mut used = [BTreeSet::new(), BTreeSet::new()];
        for (table, numbers) in &self.sequences {
            assert_eq!(table.len(), numbers.len());
            for (used, kind) in used.iter_mut().zip(&table.kinds) {
                used.extend(kind.blocks.iter().map(super::blocks::Block::id));
            }
        }
        let bytes = used[0].len() * FULL_BYTES + used[1].len() * WINDOW_BYTES;
        assert_eq!(self.pool.used_bytes(), bytes);
        assert!(bytes <= self.pool.allocated_bytes() && self.pool.allocated_bytes() <= budget);
        // Every position that can be seen has its number.
        for (table, numbers) in &self.sequences {
            let places = self.pool.places(std::iter::once((table, 0)));
            for (layer, shape) in SHAPES.iter().enumerate() {
                let Some((kind, blocks)) = self.pool.layer(layer) else { continue };
                let first = places[kind].spans[0].first * BLOCK_POSITIONS;
                let window = match shape {
                    CacheShape::Keys(shape) => shape.window,
                    CacheShape::None | CacheShape::State => None,
                };
                assert!(first <= first_seen(numbers.len(), window));
                if numbers.is_empty() || first >= numbers.len() {
                    continue;
                }
                let [keys, values] = blocks.gather(&places[kind].spans[0].blocks);
                let (head_dim, columns) = (blocks.head_dim, keys.dims()[1]);
                let [keys, values] = [keys, values].map(|x| x.into_data().iter::<f32>().collect::<Vec<_>>());
                let seen = first_seen(numbers.len(), window).max(first);
                for (position, number) in numbers.iter().enumerate().skip(seen) {
                    for j in 0..blocks.kv_heads * head_dim {
                        let at = (j / head_dim * columns + position - first) * head_dim + j % head_dim;
                        let expected = number + j as f32 * 0.1;
                        assert_eq!((keys[at], values[at]), (expected, -expected), "position {position}");
                    }
                }
            }
        }
    }
}

fn run<B: Backend>(operations: Vec<Operation>, budget: usize) {
    let pool = KvPool::<B>::new(&SHAPES, 0, default_kernels::<B>().cache_layout(), &Default::default())
        .with_budget(budget);
    let mut test = Test { pool, sequences: Vec::new(), written: 0 };
    for operation in operations {
        test.apply(operation);
        test.check(budget);
    }
    test.sequences.clear();
    test.pool.shrink();
    assert_eq!((test.pool.used_bytes(), test.pool.allocated_bytes()), (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_pool_is_its_model(
        operations in proptest::collection::vec(operation(), 1..40),
        blocks in 4usize..40,
    ) {
        let budget = blocks * (FULL_BYTES + WINDOW_BYTES);
        run::<burn_flex::Flex>(operations.clone(), budget);
        run::<burn_ndarray::NdArray>(operations, budget);
    }
}

#[test]
fn so_many_positions_can_be_taken_back() {
    let pool = KvPool::<Flex>::new(&SHAPES, 0, default_kernels::<Flex>().cache_layout(), &Default::default());
    let mut test = Test { pool, sequences: Vec::new(), written: 0 };
    test.apply(Operation::New);
    for len in 1..400 {
        assert!(test.write(0, 1));
        let mut back = test.sequences[0].0.clone();
        assert!(back.truncate(len - BLOCK_POSITIONS.min(len)), "{len}");
    }
}

/// The lengths of other sequences cost nothing: little more is allocated than the blocks in use.
#[test]
fn a_long_sequence_among_short_ones_takes_no_more_than_its_blocks() {
    let pool = KvPool::<Flex>::new(&SHAPES, 0, default_kernels::<Flex>().cache_layout(), &Default::default());
    let mut test = Test { pool, sequences: Vec::new(), written: 0 };
    for row in 0..64 {
        test.apply(Operation::New);
        // The sizes are as in a server: pieces of a prompt, then one position at a time.
        for piece in if row == 40 { vec![512; 15] } else { vec![150] } {
            assert!(test.write(row, piece));
        }
    }
    for row in 0..64 {
        let more = if row == 40 { 8000 - 15 * 512 } else { 50 };
        (0..more).for_each(|_| assert!(test.write(row, 1)));
    }
    let (used, allocated) = (test.pool.used_bytes(), test.pool.allocated_bytes());
    let full = (63 * 200usize.div_ceil(BLOCK_POSITIONS) + 8000 / BLOCK_POSITIONS) * FULL_BYTES;
    assert!(used >= full && allocated <= used * 11 / 10, "{allocated} bytes for {used}");
}

/// A fork of a long sequence copies one block of each kind when it runs on.
#[test]
fn a_fork_copies_one_block_of_each_kind() {
    let pool = KvPool::<Flex>::new(&SHAPES, 0, default_kernels::<Flex>().cache_layout(), &Default::default());
    let mut test = Test { pool, sequences: Vec::new(), written: 0 };
    test.apply(Operation::New);
    assert!(test.write(0, 4000));
    let before = test.pool.used_bytes();
    test.apply(Operation::Fork(0));
    assert_eq!(test.pool.used_bytes(), before);
    assert!(test.write(1, 1));
    assert_eq!(test.pool.used_bytes(), before + FULL_BYTES + WINDOW_BYTES);
    test.check(usize::MAX);
}
