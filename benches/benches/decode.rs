//! What decoding the default model costs, and what each rule adds, beside a memory copy measured in the same
//! run. `cargo bench -p moi-benches --bench decode`
//!
//! Decoding one sequence reads every weight once per token, so its limit is weight bytes / memory bandwidth.
//! Rules take turns, so that a machine that changes its speed changes it for all of them; the best of several
//! rounds counts.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that fails must end")]

use std::{thread, time::Instant};

use burn::tensor::{Int, Tensor};
use burn_flex::Flex;
use moi::next_inputs;
use moi_engine::{Engine, InputRule, Prompt, Request, Support};
use moi_hub::{Cache, DEFAULT_MODEL, Fetcher};
use moi_models::CausalLm;
use moi_models::{Decoder, Matrix};
use moi_pretrained::{Pretrained, WeightForm};

const ROUNDS: usize = 5;
const PROMPT: usize = 128;
const TOKENS: usize = 64;

fn main() {
    let entry = moi_hub::find(DEFAULT_MODEL).unwrap();
    let file = Fetcher::new(Cache::from_env().unwrap()).fetch(entry, |line| eprintln!("{line}")).unwrap();
    let device = Default::default();
    let decoder = Pretrained::open(&file).unwrap().load::<Flex>(&device, WeightForm::F32, |_| {}).unwrap();
    let bytes = decoder.bytes_per_token();
    let engine = Engine::new(decoder, device);

    let rules = [
        InputRule::Token,
        InputRule::moi(1.0, Support::TopK(20)).unwrap(),
        InputRule::moi(1.0, Support::Full).unwrap(),
        InputRule::direct(Support::Full).unwrap(),
    ];
    let mut copy = 0.0f64;
    let mut best = [[f64::INFINITY; 3]; 4];
    for _ in 0..ROUNDS {
        copy = copy.max(copy_bandwidth());
        for (rule, best) in rules.iter().zip(&mut best) {
            let (prefill, step) = run(&engine, *rule);
            for (best, time) in best.iter_mut().zip([prefill, step, input_layer(&engine, *rule)]) {
                *best = best.min(time);
            }
        }
    }

    println!("{DEFAULT_MODEL}, float32, {} threads, best of {ROUNDS} rounds", threads());
    println!("memory copy: {:.1} GB/s read and written, {:.1} GB/s read", copy / 1e9, copy / 2e9);
    println!("weights per token: {:.1} MB", bytes as f64 / 1e6);
    let token = best[0][1];
    println!(
        "| rule | prefill {PROMPT}, tokens/s | decode, tokens/s | GB/s of weights | of the copy | over token \
         | input layer, ms | of the step |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (rule, [prefill, step, layer]) in rules.iter().zip(best) {
        println!(
            "| {rule} | {:.0} | {:.1} | {:.1} | {:.0}% | {:+.1}% | {:.2} | {:.1}% |",
            PROMPT as f64 / prefill,
            1.0 / step,
            bytes as f64 / step / 1e9,
            100.0 * bytes as f64 / step / copy,
            100.0 * (step / token - 1.0),
            1e3 * layer,
            100.0 * layer / step,
        );
    }
}

/// Seconds until the first token, and per token after it.
fn run(engine: &Engine<Flex, Decoder<Flex>>, rule: InputRule) -> (f64, f64) {
    let mut request = Request::new(Prompt::Ids((1000..).take(PROMPT).collect()));
    request.rule = rule;
    request.stop.max_tokens = Some(TOKENS + 1);
    request.stop.ignore_eos = true;
    let start = Instant::now();
    let mut generation = engine.generate(request).unwrap();
    generation.next().unwrap().unwrap();
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    assert_eq!(generation.by_ref().map(Result::unwrap).count(), TOKENS);
    (prefill, start.elapsed().as_secs_f64() / TOKENS as f64)
}

/// Seconds of the input layer alone, as the decode loop calls it, on logits that the model gives.
fn input_layer(engine: &Engine<Flex, Decoder<Flex>>, rule: InputRule) -> f64 {
    let logits = engine.logits(&[1]).unwrap();
    let token = Tensor::<Flex, 1, Int>::from_ints([504], &Default::default());
    let Matrix::Dense(table) = &engine.model().embedding().weight else { unreachable!("loaded as floats") };
    let table = table.val();
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = Instant::now();
        let mixed = next_inputs(logits.clone(), token.clone(), &table, &[rule], 5).unwrap();
        std::hint::black_box((mixed.inputs.clone().into_data(), mixed.into_rows()));
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes read plus bytes written per second, by all threads, on buffers that no cache holds.
fn copy_bandwidth() -> f64 {
    const BYTES: usize = 1 << 28;
    let from = vec![1u8; BYTES];
    let mut to = vec![0u8; BYTES];
    let piece = BYTES.div_ceil(threads());
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        thread::scope(|scope| {
            for (to, from) in to.chunks_mut(piece).zip(from.chunks(piece)) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    std::hint::black_box(&to);
    2.0 * BYTES as f64 / best
}
