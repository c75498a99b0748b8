//! Tests of decoding: golden greedy decodes, sequences in a batch, and sampling with a seed.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use moi_backends::{DeviceName, Job};
use moi_engine::{
    DrafterChoice, Engine, EngineError, Prompt, Request, Speculation, TokenEvent, speculation::PassCosts,
};
use moi_models::CausalLm;
use moi_pretrained::WeightForm;

use super::{decoded_checkpoints, load};
use crate::{
    batch::{assert_alike, assert_same, joining, of_the_host, requests, together},
    drafts::Oracle,
    golden, steps,
};

/// Compares all greedy decodes with transformers, with whole prompts and in chunks.
#[derive(Debug)]
pub(super) struct GreedyDecodes(pub(super) DeviceName);

impl Job for GreedyDecodes {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) {
        for name in decoded_checkpoints() {
            let (golden, model) = load::<B>(name, WeightForm::F32, device);
            golden::check_decodes(&golden, &model, device, &format!("{}: {name}", self.0));
        }
    }
}

/// Models whose layers differ in batches: rotary, learned and no positions, sliding windows, experts.
const BATCHED: &[&str] = &["llama3-rope", "gemma2", "qwen3-moe", "gpt2-scales"];

/// Number of requests that the device samples itself; the requests for the host come after them.
const DEVICE_ROWS: usize = 6;

/// Runs requests with different prompts, rules, samplers and lengths together and alone. Returns the steps of all.
#[derive(Debug)]
pub(super) struct Batches(pub(super) DeviceName);

impl Job for Batches {
    type Output = Vec<Vec<Vec<TokenEvent>>>;

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        let of = |name: &&str| {
            let (golden, model) = load::<B>(name, WeightForm::F32, device);
            let engine = Engine::new(model.clone(), device.clone())
                .with_pass_costs(PassCosts::new(vec![(1, 1.0), (16, 1.2)]))
                .with_draft_model(model)
                .unwrap();
            let mut together = together(&engine, requests(&golden));
            for (row, request) in requests(&golden).into_iter().enumerate() {
                assert_same(row, &together[row], &steps(&engine, request));
            }
            // A cancelled request must not leave anything in the cache that affects the next one.
            for request in requests(&golden) {
                let mut given_up = engine.generate(request).unwrap();
                drop(given_up.next());
                drop(given_up);
            }
            assert_same(0, &together[0], &steps(&engine, requests(&golden).swap_remove(0)));
            // The requests for the host join those that the device samples.
            let device_rows = together.len();
            assert_eq!(device_rows, DEVICE_ROWS);
            let joined = joining(&engine, requests(&golden), of_the_host(&golden));
            for (row, request) in of_the_host(&golden).into_iter().enumerate() {
                assert_same(device_rows + row, &joined[device_rows + row], &steps(&engine, request));
            }
            together.extend(joined.into_iter().skip(device_rows));
            let accepted = drafted(&engine, requests(&golden), &together);
            let tokens: usize = together.iter().map(Vec::len).sum();
            println!(
                "{}: {name}: {tokens} tokens of {} rows together as alone, and the same with {accepted} accepted drafts",
                self.0,
                together.len()
            );
            together
        };
        BATCHED.iter().map(of).collect()
    }
}

/// Runs requests with drafters of each kind. Returns how many drafts were accepted.
fn drafted<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    requests: Vec<Request<B>>,
    plain: &[Vec<TokenEvent>],
) -> usize {
    let mut accepted = 0;
    for (row, (request, plain)) in requests.into_iter().zip(plain).enumerate() {
        let Prompt::Ids(prompt) = &request.prompt else { panic!("a prompt of tokens") };
        let text: Vec<u32> = prompt.iter().copied().chain(plain.iter().map(|step| step.token)).collect();
        let text = Arc::new(text);
        let drafters = [
            DrafterChoice::Lookup,
            DrafterChoice::Recycling,
            DrafterChoice::Model,
            // Trees whose right tokens are among wrong ones.
            DrafterChoice::Own(Oracle::of(&text, 4, row as u64)),
            DrafterChoice::Own(Oracle::of(&text, 1, row as u64)),
        ];
        guessed(engine, (row, &request), plain, &text);
        for drafter in drafters {
            // Rules that feed a mixture behind every token draft nothing.
            let speculation = Speculation { optional: true, draft_tokens: 4, ..Speculation::by(drafter) };
            let found = steps(engine, Request { speculation, ..request.clone() });
            assert_same(row, &found, plain);
            let last = found.last().and_then(|step| step.speculated.as_ref()?.report.as_ref());
            accepted += last.map_or(0, |report| report.accepted);
        }
    }
    assert!(accepted > 10, "only {accepted} drafts were right, so little was tested");
    accepted
}

/// Runs a request under a rule that mixes with guesses of its inputs: the same tokens, up to rounding.
fn guessed<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    (row, request): (usize, &Request<B>),
    plain: &[TokenEvent],
    text: &Arc<Vec<u32>>,
) {
    for wrong in [4, 1000] {
        let oracle = DrafterChoice::Own(Oracle::of(text, wrong, row as u64));
        let speculation = Speculation { draft_tokens: 6, window: 7, ..Speculation::by(oracle) };
        match engine.generate(Request { speculation, ..request.clone() }) {
            Ok(steps) => {
                let found: Vec<TokenEvent> = steps.map(Result::unwrap).collect();
                assert_alike(row, &found, plain, 1e-4);
            }
            // Where the token has no share of its own in the input, a tolerance has to be asked for.
            Err(EngineError::NoSpeculation(why)) => assert!(why.contains("nothing but a mixture"), "{why}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Checks that a seed gives the same tokens, entropies and gates on a device as on the CPU.
pub(super) fn seeded(device: DeviceName, found: &[Vec<Vec<TokenEvent>>], expected: &[Vec<Vec<TokenEvent>>]) {
    assert_eq!(found.len(), expected.len());
    for (name, (found, expected)) in BATCHED.iter().zip(found.iter().zip(expected)) {
        assert_eq!(found.len(), expected.len());
        for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
            // The rules that run on the host feed most of their own rounding error back at each step.
            let bound = if row < DEVICE_ROWS { 1e-4 } else { 1e-3 };
            assert_alike(row, found, expected, bound);
        }
        println!("{device}: {name}: the tokens of a seed are the CPU's");
    }
}
