//! Tests of steps that are launched before the previous tokens are known, as on GPUs. A sampler for the CPU imitates
//! a GPU: it returns its tokens only when asked, so the engine cannot wait for them earlier.

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use moi_engine::{
    Decision, DeviceSampler, Engine, InputRule, Prompt, Reading, Request, RowSpec, Scheduler,
    SchedulerOptions,
};
use moi_models::{CausalLm, Decoder, Embedding, Mixing, with_values};
use moi_pretrained::WeightForm;
use moi_tests::{batch::scheduled, steps, suite::load};

/// A greedy sampler that feeds plain tokens.
#[derive(Debug)]
struct Likeliest;

impl DeviceSampler<Flex> for Likeliest {
    fn sample_and_mix(
        &self,
        logits: &Tensor<Flex, 2>,
        embedding: &Embedding<Flex>,
        mixing: &Mixing<Flex>,
        rows: &[RowSpec],
    ) -> Option<(Tensor<Flex, 2>, Reading)> {
        if rows.iter().any(|row| row.temperature != 0.0 || row.mixes) {
            return None;
        }
        let vocab = logits.dims()[1];
        let decide = |logits: &[f32]| {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            Decision {
                token: logits.iter().position(|&logit| logit == largest).unwrap() as u32,
                logprob: 0.0,
                entropy: 0.0,
                gate: 0.0,
                largest,
                broken: false,
                token_probability: 1.0,
                likeliest: Vec::new(),
            }
        };
        let decisions: Vec<Decision> =
            with_values(logits, |values| values.chunks(vocab).map(decide).collect());
        let ids: Vec<i64> = decisions.iter().map(|decision| decision.token.into()).collect();
        let ids = Tensor::<Flex, 1, Int>::from_data(TensorData::new(ids, [rows.len()]), &logits.device());
        Some((mixing.rows(embedding, ids), Box::pin(std::future::ready(Ok(decisions)))))
    }
}

fn request(prompt: Vec<u32>, tokens: usize) -> Request<Flex> {
    let mut request = Request::new(Prompt::Ids(prompt));
    request.rule = InputRule::TOKEN;
    (request.stop.max_tokens, request.stop.ignore_eos) = (Some(tokens), true);
    request
}

fn tokens(engine: &Engine<Flex, Decoder<Flex>>, request: Request<Flex>) -> Vec<u32> {
    steps(engine, request).iter().map(|step| step.token).collect()
}

/// Sliding windows, rotary angles that depend on the sequence length, and a cache that is computed again beyond a
/// length.
const CHECKPOINTS: &[&str] = &["gemma2", "qwen2-sliding", "llama-dynamic", "phi3-longrope-beyond"];

#[test]
fn tokens_are_those_of_steps_that_wait() {
    for name in CHECKPOINTS {
        let (golden, model) = load::<Flex>(name, WeightForm::F32, &Default::default());
        let engine = Engine::new(model.clone(), Default::default());
        let ahead = Engine::new(model, Default::default()).with_device_sampler(Likeliest);
        for prompt in [1, 5, 11] {
            let request = || request(golden.cases.tokens[..prompt].to_vec(), 20);
            assert_eq!(tokens(&ahead, request()), tokens(&engine, request()), "{name} behind {prompt}");
        }
    }
}

/// Sequences that are parked while one of their steps is in flight.
#[test]
fn parked_requests_are_as_alone() {
    for name in CHECKPOINTS {
        let (golden, model) = load::<Flex>(name, WeightForm::F32, &Default::default());
        let engine = Engine::new(model.clone(), Default::default());
        let ahead = Engine::new(model, Default::default()).with_device_sampler(Likeliest);
        let room = engine.model().context_length();
        // With this length, a block ends within the generated tokens, if the context has room for two blocks.
        let long = 52.min(room - 20);
        let request = |row: usize| {
            let prompt = golden.cases.tokens.iter().cycle().skip(row).take(long + row).copied();
            request(prompt.collect(), 16)
        };
        let two_blocks = {
            let mut long = ahead.generate(request(3)).unwrap();
            (0..15).for_each(|_| drop(long.next().unwrap().unwrap()));
            ahead.cache_bytes()[0]
        };
        let options = SchedulerOptions {
            cache_bytes: Some(two_blocks * 5 / 2),
            foreseen_tokens: 1,
            ..SchedulerOptions::default()
        };
        let (found, parked) = scheduled(Scheduler::new(&ahead, options), (0..4).map(request).collect());
        // If the context has no room for two blocks, no sequence needs to be parked.
        assert_eq!(parked > 0, room >= 80, "{name}");
        for (row, found) in found.into_iter().enumerate() {
            let found: Vec<u32> = found.iter().map(|step| step.token).collect();
            assert_eq!(found, tokens(&engine, request(row)), "{name}, {row}");
        }
    }
}
