//! Tests of sequences of different lengths in one pass, with pieces of prompts and trees; and tests of parked
//! sequences.

use burn::tensor::{Tensor, backend::Backend};
use moi_backends::{DeviceName, Job};
use moi_engine::{Engine, Prompt, Request, Sampling, Scheduler, SchedulerOptions};
use moi_models::{CausalLm, Decoder, ForwardBatch, Span, Visible};
use moi_pretrained::WeightForm;

use super::{LOGIT_ERROR, ids, load};
use crate::{
    batch::{assert_same, scheduled},
    golden::Golden,
    relative_error, steps, values,
};

/// Models with different attention: rotary positions, some with angles that depend on the sequence length, learned
/// positions, windows, softcaps, head norms, experts, sinks, and keys of other layers.
const CHECKPOINTS: &[&str] = &[
    "llama3-rope",
    "llama-dynamic",
    "gemma2-caps",
    "gemma3",
    "qwen3-moe",
    "gpt2-scales",
    "gpt-oss",
    "gemma4-ple",
    "qwen3-5",
];

/// Every sequence is the golden one at its own position. Compares the logits with transformers.
#[derive(Debug)]
pub(super) struct RaggedBatches(pub(super) DeviceName);

/// Number of new positions per sequence and pass: prompts next to steps, pieces that end inside blocks, and ends of
/// blocks.
const PASSES: [[usize; 3]; 6] = [[5, 0, 0], [1, 17, 0], [1, 1, 30], [9, 1, 1], [1, 11, 3], [2, 1, 1]];

impl Job for RaggedBatches {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for name in CHECKPOINTS {
            let (golden, model) = load::<B>(name, WeightForm::F32, device);
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            for (logits, positions) in ragged(&golden, &model, device) {
                found.extend(logits);
                positions.iter().for_each(|&position| {
                    expected.extend_from_slice(&golden.logits[position * golden.vocab..][..golden.vocab]);
                });
            }
            let error = relative_error(&found, &expected);
            println!("{}: {name}, ragged: {error:.1e}", self.0);
            assert!(error <= LOGIT_ERROR, "{}: {name}, ragged: {error}", self.0);
            // The requests below need two blocks, which the context of gpt2-scales has no room for.
            assert_eq!(model.context_length() < 80, *name == "gpt2-scales", "{name}");
            if model.context_length() >= 80 {
                parked(&golden, Engine::new(model, device.clone()));
            }
        }
    }
}

/// Per pass, the logits and the positions of the golden sequence that they belong to.
fn ragged<B: Backend>(
    golden: &Golden,
    model: &Decoder<B>,
    device: &B::Device,
) -> Vec<(Vec<f32>, Vec<usize>)> {
    let tokens = &golden.cases.tokens;
    let mut pool = model.new_pool(device);
    let mut tables: Vec<_> = (0..3).map(|_| pool.table()).collect();
    // Rotary frequencies may depend on the length of the whole sequence.
    tables.iter_mut().for_each(|table| table.set_sequence_length(tokens.len()));
    let mut all = Vec::new();
    for pass in PASSES {
        let (mut inputs, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        for (table, len) in tables.iter_mut().zip(pass).filter(|(_, len)| *len > 0) {
            let new = table.len()..(table.len() + len).min(tokens.len());
            inputs.extend_from_slice(&tokens[new.clone()]);
            spans.push(Span { table, len: new.len(), visible: Visible::Causal });
            positions.extend(new);
        }
        let batch = ForwardBatch { inputs: model.embed(ids(&inputs, device)), spans };
        all.push((values(model.logits(model.forward(batch, &mut pool).unwrap())), positions));
    }
    // Next, a tree with right and wrong tokens runs beside a single step. Recurrent states cannot branch, so such
    // models stop here.
    if pool.has_states() {
        return all;
    }
    let (one, rest) = tables.split_first_mut().unwrap();
    let at = one.len();
    let wrong = |token: u32| (token + 1) % golden.vocab as u32;
    let tree = [tokens[at], wrong(tokens[at]), tokens[at + 1], wrong(tokens[at + 1]), tokens[at + 2]];
    let parents = vec![None, None, Some(0), Some(1), Some(2)];
    let next = rest[0].len();
    let inputs: Vec<u32> = tree.into_iter().chain([tokens[next]]).collect();
    let spans = vec![
        Span { table: one, len: 5, visible: Visible::Tree(parents) },
        Span { table: &mut rest[0], len: 1, visible: Visible::Causal },
    ];
    let batch = ForwardBatch { inputs: model.embed(ids(&inputs, device)), spans };
    let logits = model.logits(model.forward(batch, &mut pool).unwrap());
    let rows = [(0, at), (2, at + 1), (4, at + 2), (5, next)];
    let picked = Tensor::cat(rows.map(|(row, _)| logits.clone().narrow(0, row, 1)).to_vec(), 0);
    all.push((values(picked), rows.map(|(_, position)| position).to_vec()));
    // The step after the kept path.
    pool.keep_path(&mut tables[0], at, &[0, 2, 4]).unwrap();
    let batch = ForwardBatch::one(model.embed(ids(&tokens[at + 3..][..1], device)), &mut tables[0]);
    all.push((values(model.logits(model.forward(batch, &mut pool).unwrap())), vec![at + 3]));
    all
}

/// Tests requests that do not fit together: the parked ones must give what each gives alone.
fn parked<B: Backend>(golden: &Golden, engine: Engine<B, Decoder<B>>) {
    let request = |row: usize| {
        let prompt = golden.cases.tokens.iter().cycle().skip(row).take(58 + row).copied().collect();
        let mut request: Request<B> = Request::new(Prompt::Ids(prompt));
        if row % 2 == 1 {
            request.sampling = Sampling { temperature: 0.8.into(), top_k: 50.into(), ..Sampling::default() };
        }
        (request.seed, request.stop.max_tokens, request.stop.ignore_eos) = (row as u64, Some(12), true);
        request
    };
    let block = {
        let _short = engine.generate(Request::new(Prompt::Ids(vec![1, 2]))).unwrap();
        engine.cache_bytes()[0]
    };
    let options =
        SchedulerOptions { cache_bytes: Some(5 * block), foreseen_tokens: 1, ..SchedulerOptions::default() };
    let (found, most) = scheduled(Scheduler::new(&engine, options), (0..4).map(request).collect());
    assert!(most > 0, "nobody was parked");
    for (row, found) in found.iter().enumerate() {
        assert_same(row, found, &steps(&engine, request(row)));
    }
}
