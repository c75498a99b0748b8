//! Laws of layers with recurrent states: pieces equal the whole, a fork equals a replay, a parked sequence can
//! continue, a sequence in a batch equals the same alone, and a new sequence starts from an empty state. Operations
//! that states do not support must be refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use moi_engine::{Engine, Prompt, Request};
use moi_models::{BlockTable, CausalLm, Decoder, ForwardBatch, KvPool, ModelError, Span, Visible};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{golden::Golden, steps, values};

const MODELS: &[&str] = &["qwen3-5", "qwen3-next", "lfm2", "lfm2-moe", "nemotron-h-moe", "granite-hybrid"];

fn each(test: impl Fn(&str, &Golden, &Decoder<Flex>)) {
    for name in MODELS {
        let golden = Golden::read(name);
        let pretrained = Pretrained::open(&golden.path).unwrap();
        test(name, &golden, &pretrained.load(&Default::default(), WeightForm::F32, |_| {}).unwrap());
    }
}

fn embedded(model: &Decoder<Flex>, tokens: &[u32]) -> Tensor<Flex, 2> {
    let ids: Vec<i64> = tokens.iter().copied().map(i64::from).collect();
    let count = ids.len();
    model.embed(Tensor::<Flex, 1, Int>::from_data(TensorData::new(ids, [count]), &Default::default()))
}

fn run(model: &Decoder<Flex>, pool: &mut KvPool<Flex>, table: &mut BlockTable, tokens: &[u32]) -> Vec<f32> {
    let batch = ForwardBatch::one(embedded(model, tokens), table);
    values(model.logits(model.forward(batch, pool).unwrap()))
}

#[test]
fn a_fork_is_a_replay() {
    each(|name, golden, model| {
        let tokens = &golden.cases.tokens;
        let mut pool = model.new_pool(&Default::default());
        let mut table = pool.table();
        run(model, &mut pool, &mut table, &tokens[..20]);
        let mut fork = table.clone();
        // Each sequence continues on its own, in turns.
        let first = run(model, &mut pool, &mut table, &tokens[20..23]);
        let second = run(model, &mut pool, &mut fork, &tokens[30..33]);
        let again = run(model, &mut pool, &mut table, &tokens[23..25]);
        drop(table);
        // A reused slot must not contain anything of its previous owner.
        let replay = |pool: &mut KvPool<Flex>, parts: &[&[u32]]| {
            let mut table = pool.table();
            parts.iter().map(|part| run(model, pool, &mut table, part)).collect::<Vec<_>>()
        };
        let found = replay(&mut pool, &[&tokens[..20], &tokens[20..23], &tokens[23..25]]);
        assert_eq!((&first, &again), (&found[1], &found[2]), "{name}");
        assert_eq!(second, replay(&mut pool, &[&tokens[..20], &tokens[30..33]])[1], "{name}");
    });
}

#[test]
fn what_is_parked_goes_on() {
    each(|name, golden, model| {
        let tokens = &golden.cases.tokens;
        let mut pool = model.new_pool(&Default::default());
        let mut table = pool.table();
        run(model, &mut pool, &mut table, &tokens[..18]);
        let parked = pool.park(&table);
        let expected = run(model, &mut pool, &mut table, &tokens[18..]);
        assert!(parked.bytes() > 0 && parked.len() == 18);
        drop(table);
        // In another pool of the model, next to a sequence that occupies a slot.
        let mut other = model.new_pool(&Default::default());
        let mut beside = other.table();
        run(model, &mut other, &mut beside, &tokens[..5]);
        let mut back = other.unpark(&parked).unwrap();
        assert_eq!(run(model, &mut other, &mut back, &tokens[18..]), expected, "{name}");
    });
}

/// Sequences of other lengths in the same batch, from the first position on and later, must not change a bit.
#[test]
fn in_company_as_alone() {
    each(|name, golden, model| {
        let tokens = &golden.cases.tokens;
        let pieces: [[&[u32]; 3]; 2] =
            [[&tokens[..20], &tokens[3..4], &tokens[..1]], [&tokens[20..21], &tokens[4..24], &tokens[1..31]]];
        let mut pool = model.new_pool(&Default::default());
        let mut tables = [pool.table(), pool.table(), pool.table()];
        let mut together: [Vec<f32>; 3] = Default::default();
        for pieces in &pieces {
            let inputs = embedded(model, &pieces.concat());
            let spans = tables.iter_mut().zip(pieces);
            let spans =
                spans.map(|(table, piece)| Span { table, len: piece.len(), visible: Visible::Causal });
            let batch = ForwardBatch { inputs, spans: spans.collect() };
            let logits = values(model.logits(model.forward(batch, &mut pool).unwrap()));
            let mut rest = &logits[..];
            for (all, piece) in together.iter_mut().zip(pieces) {
                let (own, behind) = rest.split_at(piece.len() * golden.vocab);
                all.extend_from_slice(own);
                rest = behind;
            }
        }
        for (row, together) in together.iter().enumerate() {
            let mut table = pool.table();
            let alone: Vec<f32> =
                pieces.iter().flat_map(|pieces| run(model, &mut pool, &mut table, pieces[row])).collect();
            assert_eq!(together, &alone, "{name}: sequence {row}");
        }
    });
}

#[test]
fn what_states_cannot_do_is_said() {
    each(|name, golden, model| {
        let mut pool = model.new_pool(&Default::default());
        let mut table = pool.table();
        run(model, &mut pool, &mut table, &golden.cases.tokens[..9]);
        // A state cannot go back by one position, but it can be reset.
        assert!(!table.truncate(8) && table.len() == 9, "{name}");
        let tree = Span { table: &mut table, len: 2, visible: Visible::Tree(vec![None, None]) };
        let batch = ForwardBatch { inputs: embedded(model, &[1, 2]), spans: vec![tree] };
        let error = model.forward(batch, &mut pool).unwrap_err();
        assert!(matches!(error, ModelError::TreeOfStates) && error.to_string().contains("states"), "{name}");
        assert!(pool.has_states() && model.has_states());
        let expected = run(model, &mut pool, &mut table, &golden.cases.tokens[9..12]);
        assert!(table.truncate(0) && table.is_empty());
        run(model, &mut pool, &mut table, &golden.cases.tokens[..9]);
        assert_eq!(run(model, &mut pool, &mut table, &golden.cases.tokens[9..12]), expected, "{name}");
    });
}

/// A request is dropped, and one with the same prompt follows.
#[test]
fn requests_begin_from_nothing() {
    each(|name, golden, model| {
        let engine = Engine::new(model.clone(), Default::default());
        let request = |count| {
            let mut request = Request::new(Prompt::Ids(golden.cases.tokens[..30].to_vec()));
            request.stop.max_tokens = Some(count);
            request.stop.ignore_eos = true;
            request
        };
        let tokens = |count| steps(&engine, request(count)).iter().map(|step| step.token).collect::<Vec<_>>();
        let first = tokens(8);
        drop(engine.generate(request(8)).unwrap().take(3).collect::<Vec<_>>());
        assert_eq!(tokens(8), first, "{name}");
    });
}

/// A prompt must continue from the states that another prompt has left at the end of their common whole blocks, with
/// the same bits as a prompt that runs everything in the same pieces. A common beginning that ends elsewhere runs
/// again.
#[test]
fn prompts_go_on_from_states_of_others() {
    each(|name, golden, _| {
        let engine = || {
            let pretrained = Pretrained::open(&golden.path).unwrap();
            let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
            Engine::new(model, Default::default()).with_prefix_cache(1 << 30)
        };
        let tokens = |seed: u32, len: u32| (0..len).map(move |i| (i * 37 + seed * 61 + 5) % 250);
        let first: Vec<u32> = tokens(1, 150).collect();
        let warm = engine();
        for (prompt, expected) in [
            (first.clone(), 0),
            (first.clone(), 128),
            (first[..128].iter().copied().chain(tokens(2, 40)).collect(), 128),
            // States were kept at the end of the second block, but not at the end of the first.
            (first[..100].iter().copied().chain(tokens(3, 40)).collect(), 0),
            // The first run of this prompt computes the states at the end of the first block; the second run finds
            // them.
            (first[..64].iter().copied().chain(tokens(4, 9)).collect::<Vec<u32>>(), 0),
            (first[..64].iter().copied().chain(tokens(5, 9)).collect(), 64),
            (first[..40].to_vec(), 0),
        ] {
            let run = |engine: &Engine<Flex, Decoder<Flex>>| {
                let mut request = Request::new(Prompt::Ids(prompt.clone()));
                request.stop.max_tokens = Some(6);
                request.stop.ignore_eos = true;
                let generation = engine.generate(request).unwrap();
                let reused = generation.reused_positions();
                (reused, generation.map(Result::unwrap).collect::<Vec<_>>())
            };
            let (reused, found) = run(&warm);
            assert_eq!(reused, expected, "{name}: {} tokens", prompt.len());
            assert_eq!(found, run(&engine()).1, "{name}: {} tokens", prompt.len());
        }
    });
}
