//! How long decoding sequences wait for a token while a long prompt is prefilled.
//! `cargo bench -p moi-benches --bench gap -- FILE.gguf`, on the CPU, with the file's quantized weights.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use burn_flex::Flex;
use moi_engine::{Batch, Engine, Prompt, Request};
use moi_models::{CausalLm, Decoder};
use moi_pretrained::{Pretrained, WeightForm};

/// Number of sequences that decode.
const ROWS: usize = 4;
/// Number of rounds that are measured before the prompt is added.
const ROUNDS: usize = 40;

fn main() {
    let Some(path) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else {
        println!("gap: give the model's file: cargo bench -p moi-benches --bench gap -- FILE.gguf");
        return;
    };
    let pretrained = Pretrained::open(Path::new(&path)).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::Stored, |_| {}).unwrap();
    let vocab = model.config().vocab_size;
    let long = model.context_length().min(8192) - 200;
    let engine = Engine::new(model, Default::default());
    let request = |seed: usize, prompt: usize| {
        let ids = (0..prompt).map(|i| ((i * 7919 + seed * 131 + 1) % vocab) as u32);
        let mut request = Request::new(Prompt::Ids(ids.collect()));
        request.stop.ignore_eos = true;
        request
    };
    let mut batch = engine.batch();
    batch.add_all((0..ROWS).map(|row| request(row, 128)).collect()).unwrap();
    batch.run_prompts().unwrap();
    let before: Vec<Duration> = (0..ROUNDS).map(|_| round(&mut batch).0).collect();
    report("before the prompt", before);
    batch.add(request(ROWS, long)).unwrap();
    let mut during = Vec::new();
    loop {
        let (took, tokens) = round(&mut batch);
        during.push(took);
        if tokens > ROWS {
            break;
        }
    }
    report(&format!("while a prompt of {long} positions comes in"), during);
}

/// The duration of a round, and the number of tokens that it returned.
fn round(batch: &mut Batch<'_, Flex, Decoder<Flex>>) -> (Duration, usize) {
    let begun = Instant::now();
    let tokens = batch.step().unwrap().len();
    (begun.elapsed(), tokens)
}

fn report(what: &str, mut rounds: Vec<Duration>) {
    rounds.sort_unstable();
    let (median, longest) = (rounds[rounds.len() / 2], rounds[rounds.len() - 1]);
    println!(
        "gap: {what}: {} rounds, {:.1} ms between tokens at the median, {:.1} ms at most, {:.1} times the median",
        rounds.len(),
        median.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3,
        longest.as_secs_f64() / median.as_secs_f64()
    );
}
