//! The result of a sequence must not depend on how it is computed: it has the same bits alone and in any batch, in
//! one piece and in several, forked and computed again, and along a path of a tree. This holds on Flex; other
//! backends have the limits of the parity suite.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod guesses;
mod requests;
mod speculation;
mod verifiers;

use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use burn_flex::Flex;
use moi_models::{
    Activations, BLOCK_POSITIONS, BlockTable, CausalLm, Decoder, ForwardBatch, KvPool, PackedForm, Span,
    Visible,
};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{golden::Golden, hostile::Dice, values};

/// Together, these architectures have windows, softcaps, experts, learned positions, frequencies that depend on the
/// length, head norms and layers without attention, with every kind of weights and activations.
const MODELS: &[(&str, WeightForm, Activations)] = &[
    ("llama", WeightForm::F32, Activations::F32),
    ("llama", WeightForm::Float(FloatDType::F16), Activations::F32),
    ("llama", WeightForm::Float(FloatDType::BF16), Activations::F32),
    ("llama", WeightForm::Packed(PackedForm::Q8_0), Activations::F32),
    ("llama", WeightForm::Packed(PackedForm::Q4_1), Activations::Mixed),
    ("llama", WeightForm::Packed(PackedForm::Q4_0), Activations::Int8),
    ("llama", WeightForm::Packed(PackedForm::Q4_1), Activations::Int16),
    ("gemma2-caps", WeightForm::F32, Activations::F32),
    ("gemma3-linear", WeightForm::F32, Activations::F32),
    ("gpt2", WeightForm::F32, Activations::F32),
    ("mixtral-sliding", WeightForm::F32, Activations::F32),
    ("mixtral", WeightForm::Packed(PackedForm::Q4_0), Activations::Mixed),
    ("nemotron-nas", WeightForm::F32, Activations::F32),
    ("phi3-longrope-beyond", WeightForm::F32, Activations::F32),
    ("qwen3-moe", WeightForm::F32, Activations::F32),
    ("smollm3-sliding", WeightForm::F32, Activations::F32),
];

/// Number of positions of a sequence.
const LEN: usize = 200;

type Model = Decoder<Flex>;

fn each(test: impl Fn(&str, &Model)) {
    for (name, form, activations) in MODELS {
        let golden = Golden::read(name);
        let pretrained = Pretrained::open(&golden.path).unwrap();
        let model = pretrained.load::<Flex>(&Default::default(), *form, |_| {}).unwrap();
        test(&format!("{name}, {form:?}, {activations:?}"), &model.with_activations(*activations));
    }
}

/// The tokens of a sequence, which differ from seed to seed.
fn tokens(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * i * 31 + i * 7 + seed * 101 + 3) % 251) as u32).collect()
}

fn embedded(model: &Model, tokens: &[u32]) -> Tensor<Flex, 2> {
    let ids: Vec<i64> = tokens.iter().map(|&id| id.into()).collect();
    model.embed(Tensor::<Flex, 1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &Default::default()))
}

/// The logits of all positions of a sequence that runs in pieces after the positions of a table.
fn logits_in(
    model: &Model,
    pool: &mut KvPool<Flex>,
    table: &mut BlockTable,
    mut tokens: &[u32],
    pieces: &[usize],
) -> Vec<f32> {
    let mut logits = Vec::new();
    for &len in pieces.iter().cycle() {
        if tokens.is_empty() {
            break;
        }
        let (piece, rest) = tokens.split_at(len.min(tokens.len()));
        let hidden = model.forward(ForwardBatch::one(embedded(model, piece), table), pool).unwrap();
        logits.extend(values(model.logits(hidden)));
        tokens = rest;
    }
    logits
}

/// The logits of a sequence that runs at once in its own pool.
fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut pool = model.new_pool(&Default::default());
    let mut table = pool.table();
    logits_in(model, &mut pool, &mut table, tokens, &[tokens.len()])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Asserts that two lists have the same bits, and names the first difference.
fn same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    if let Some(at) = (0..found.len()).find(|&at| found[at].to_bits() != expected[at].to_bits()) {
        let differ = found.iter().zip(expected).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        panic!("{what}: {} and {} at {at}, {differ} of {} differ", found[at], expected[at], found.len());
    }
}

#[test]
fn pieces_are_the_whole() {
    each(|name, model| {
        let tokens = tokens(1, LEN);
        let whole = logits(model, &tokens);
        for pieces in [&[64][..], &[128], &[1], &[40, 1], &[3, 64, 1, 17], &[199, 1]] {
            let mut pool = model.new_pool(&Default::default());
            let mut table = pool.table();
            table.set_sequence_length(LEN);
            let found = logits_in(model, &mut pool, &mut table, &tokens, pieces);
            same(&format!("{name}: pieces of {pieces:?}"), &found, &whole);
        }
    });
}

#[test]
fn alone_is_in_any_company() {
    each(|name, model| {
        let mut dice = Dice::new(5);
        let sequences: Vec<Vec<u32>> = (0..9).map(|seed| tokens(seed, 20 + 19 * seed)).collect();
        let alone: Vec<Vec<f32>> = sequences.iter().map(|tokens| logits(model, tokens)).collect();
        for round in 0..3 {
            let mut pool = model.new_pool(&Default::default());
            let mut running: Vec<(usize, BlockTable, Vec<f32>)> =
                (0..sequences.len()).map(|index| (index, pool.table(), Vec::new())).collect();
            running.iter_mut().for_each(|row| row.1.set_sequence_length(sequences[row.0].len()));
            // In each pass, some sequences in random order continue by some positions.
            while !running.is_empty() {
                running.sort_by_cached_key(|_| dice.bits());
                let count = 1 + dice.below(running.len());
                let part = &mut running[..count];
                let longest = if round == 0 { 1 } else { 70 };
                let lens: Vec<usize> = part
                    .iter()
                    .map(|(index, table, _)| {
                        (1 + dice.below(longest)).min(sequences[*index].len() - table.len())
                    })
                    .collect();
                let inputs = part.iter().zip(&lens).map(|((index, table, _), &len)| {
                    embedded(model, &sequences[*index][table.len()..table.len() + len])
                });
                let inputs = Tensor::cat(inputs.collect(), 0);
                let spans = part.iter_mut().zip(&lens).map(|((_, table, _), &len)| Span {
                    table,
                    len,
                    visible: Visible::Causal,
                });
                let batch = ForwardBatch { inputs, spans: spans.collect() };
                let all = values(model.logits(model.forward(batch, &mut pool).unwrap()));
                let vocab = model.config().vocab_size;
                let mut first = 0;
                for ((_, _, found), &len) in part.iter_mut().zip(&lens) {
                    found.extend_from_slice(&all[first * vocab..(first + len) * vocab]);
                    first += len;
                }
                running.retain(|(index, table, found)| {
                    let ended = table.len() == sequences[*index].len();
                    if ended {
                        same(&format!("{name}: {index} in round {round}"), found, &alone[*index]);
                    }
                    !ended
                });
            }
            assert_eq!(pool.used_bytes(), 0, "{name}");
        }
    });
}

#[test]
fn a_fork_is_a_replay() {
    each(|name, model| {
        let first = tokens(1, 150);
        for at in [1, 63, 64, 65, 100, 128, 149] {
            let mut pool = model.new_pool(&Default::default());
            let mut table = pool.table();
            table.set_sequence_length(160);
            logits_in(model, &mut pool, &mut table, &first[..at], &[at]);
            let before = pool.used_bytes();
            let mut fork = table.clone();
            assert_eq!(pool.used_bytes(), before, "{name}: a fork copies nothing");
            // Both continue in turns, and neither may see what the other writes.
            let (mut own, mut of_fork) = (Vec::new(), Vec::new());
            let (rest, other) = (&first[at..], tokens(2, 160 - at));
            for step in 0..other.len() {
                of_fork.extend(logits_in(model, &mut pool, &mut fork, &other[step..=step], &[1]));
                if step < rest.len() {
                    own.extend(logits_in(model, &mut pool, &mut table, &rest[step..=step], &[1]));
                }
            }
            let mut expected = |tokens: &[u32]| {
                let mut table = pool.table();
                table.set_sequence_length(160);
                let logits = logits_in(model, &mut pool, &mut table, tokens, &[tokens.len()]);
                logits[at * model.config().vocab_size..].to_vec()
            };
            same(&format!("{name}: the first, forked at {at}"), &own, &expected(&first));
            same(
                &format!("{name}: a fork at {at}"),
                &of_fork,
                &expected(&[&first[..at], &other[..]].concat()),
            );
        }
    });
}

#[test]
fn a_tree_is_its_paths_and_one_of_them_can_be_kept() {
    each(|name, model| {
        let mut dice = Dice::new(9);
        for past in [0, 5, 61, 127, 180] {
            let nodes = if past == 0 { 5 } else { 12 };
            let parents: Vec<Option<usize>> =
                (0..nodes).map(|node: usize| dice.below(node + 1).checked_sub(1)).collect();
            let (before, of_nodes) = (tokens(3, past), tokens(4, nodes));
            let mut pool = model.new_pool(&Default::default());
            let mut table = pool.table();
            // The length of the longest path, so that frequencies that depend on the length are the same on all
            // paths.
            table.set_sequence_length(LEN + 40);
            logits_in(model, &mut pool, &mut table, &before, &[past.max(1)]);
            let root = table.clone();
            let tree = Visible::Tree(parents);
            let spans = vec![Span { table: &mut table, len: nodes, visible: tree.clone() }];
            let batch = ForwardBatch { inputs: embedded(model, &of_nodes), spans };
            let found = values(model.logits(model.forward(batch, &mut pool).unwrap()));
            let vocab = model.config().vocab_size;
            for node in 0..nodes {
                let path = tree.path(node);
                let along: Vec<u32> = path.iter().map(|&node| of_nodes[node]).collect();
                let mut alone = root.clone();
                let expected = logits_in(model, &mut pool, &mut alone, &along, &[1]);
                same(
                    &format!("{name}: node {node} of a tree behind {past}"),
                    &found[node * vocab..][..vocab],
                    &expected[expected.len() - vocab..],
                );
                // The path becomes the sequence.
                let mut kept = table.clone();
                pool.keep_path(&mut kept, past, &path).unwrap();
                assert_eq!(kept.len(), past + path.len());
                let next = tokens(6, 3);
                same(
                    &format!("{name}: behind node {node} of a tree behind {past}"),
                    &logits_in(model, &mut pool, &mut kept, &next, &[1]),
                    &logits_in(model, &mut pool, &mut alone, &next, &[1]),
                );
            }
        }
    });
}

#[test]
fn truncated_positions_leave_no_trace() {
    each(|name, model| {
        let tokens = tokens(1, LEN);
        let mut pool = model.new_pool(&Default::default());
        for (len, back) in [(200, 137), (70, 6), (64, 63), (65, 64), (130, 129)] {
            let mut table = pool.table();
            table.set_sequence_length(LEN);
            logits_in(model, &mut pool, &mut table, &tokens[..len], &[len]);
            assert!(table.truncate(back), "{name}");
            let found = logits_in(model, &mut pool, &mut table, &tokens[back..], &[50]);
            let whole = logits(model, &tokens);
            same(
                &format!("{name}: {len} taken back to {back}"),
                &found,
                &whole[back * model.config().vocab_size..],
            );
        }
    });
}

#[test]
fn a_broken_sequence_breaks_no_other() {
    each(|name, model| {
        let good = tokens(1, 90);
        let expected = logits(model, &good);
        let mut pool = model.new_pool(&Default::default());
        let (mut table, mut broken) = (pool.table(), pool.table());
        let width = model.config().hidden_size;
        let nan = Tensor::<Flex, 2>::full([30, width], f32::NAN, &Default::default());
        let mut found = Vec::new();
        for piece in good.chunks(30) {
            let piece = embedded(model, piece);
            let inputs = Tensor::cat(vec![nan.clone().cast(piece.dtype()), piece], 0);
            let spans =
                [&mut broken, &mut table].map(|table| Span { table, len: 30, visible: Visible::Causal });
            let batch = ForwardBatch { inputs, spans: spans.into() };
            let hidden = model.forward(batch, &mut pool).unwrap();
            found.extend(values(model.logits(hidden.narrow(0, 30, 30))));
        }
        same(name, &found, &expected);
        // A new sequence reuses blocks that held NaN or infinity.
        drop(broken);
        let mut next = pool.table();
        same(name, &logits_in(model, &mut pool, &mut next, &good, &[90]), &expected);
    });
}

#[test]
fn a_full_pool_refuses_and_loses_nothing() {
    let golden = Golden::read("qwen2-sliding");
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let mut unlimited = model.new_pool(&Default::default());
    let mut table = unlimited.table();
    logits_in(&model, &mut unlimited, &mut table, &tokens(1, BLOCK_POSITIONS), &[64]);
    let block = unlimited.used_bytes();
    let mut pool = model.new_pool(&Default::default()).with_budget(3 * block);
    let (mut first, mut second) = (pool.table(), pool.table());
    let expected = logits(&model, &tokens(1, 128));
    let mut found = logits_in(&model, &mut pool, &mut first, &tokens(1, 128)[..100], &[50]);
    let refused = model
        .forward(ForwardBatch::one(embedded(&model, &tokens(2, 70)), &mut second), &mut pool)
        .unwrap_err()
        .to_string();
    assert!(refused.contains(&format!("may have {}", 3 * block)), "{refused}");
    assert!(second.is_empty() && pool.used_bytes() <= 3 * block && pool.allocated_bytes() <= 3 * block);
    found.extend(logits_in(&model, &mut pool, &mut first, &tokens(1, 128)[100..], &[28]));
    assert_eq!(bits(&found), bits(&expected));
    // Dropping a sequence frees its blocks.
    drop(first);
    logits_in(&model, &mut pool, &mut second, &tokens(2, 70), &[70]);
    drop(second);
    pool.shrink();
    assert_eq!((pool.used_bytes(), pool.allocated_bytes()), (0, 0));
}
