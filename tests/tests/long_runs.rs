//! Many generations in one process, and long ones: memory must stay constant, except for the cache while it grows.
//! This is the short form; `cargo xtask soak` runs the long one on the real model.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{sync::Mutex, time::Instant};

use burn_flex::Flex;
use moi_engine::{Engine, InputRule, Prompt, Request};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{
    allocations::{Counting, held},
    golden::Golden,
    real::model_file,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// These tests run one at a time, because they measure the memory of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn tiny() -> (Engine<Flex, Decoder<Flex>>, Vec<u32>) {
    let golden = Golden::read("llama");
    let model = Pretrained::open(&golden.path).unwrap().load(&Default::default(), WeightForm::F32, |_| {});
    (Engine::new(model.unwrap(), Default::default()), golden.cases.tokens)
}

fn request(ids: &[u32], rule: InputRule, tokens: usize, seed: u64) -> Request<Flex> {
    let mut request = Request::new(Prompt::Ids(ids.to_vec()));
    (request.rule, request.seed, request.stop.max_tokens) = (rule, seed, Some(tokens));
    request.sampling.temperature = 0.8.into();
    request.stop.ignore_eos = true;
    request
}

/// The resident memory of the process in bytes, if the system says so.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The spread of numbers, relative to the smallest one.
fn spread(numbers: &[f64]) -> f64 {
    let (least, most) = numbers.iter().fold((f64::MAX, 0.0f64), |(a, b), &x| (a.min(x), b.max(x)));
    most / least - 1.0
}

fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[test]
fn generations_leave_nothing_behind() {
    let _alone = ALONE.lock().unwrap();
    let (engine, ids) = tiny();
    let rules = ["token", "moi", "soft-thinking", "swir"].map(|rule| rule.parse::<InputRule>().unwrap());
    let mut after = Vec::new();
    for run in 0..60 {
        let rule = rules[run % rules.len()];
        let steps = engine.generate(request(&ids, rule, 16, run as u64)).unwrap().map(Result::unwrap).count();
        assert_eq!(steps, 16);
        after.push(held() as f64);
    }
    let spread = spread(&after[10..]);
    println!("{:.0} kB held, within {:.3} %", after[59] / 1e3, spread * 100.0);
    assert!(spread < 0.02, "{after:?}");
}

#[test]
fn a_long_generation_holds_its_cache_and_no_more() {
    let _alone = ALONE.lock().unwrap();
    let (engine, ids) = tiny();
    let config = engine.model().config();
    let tokens = config.context_length - ids.len();
    let mut held_at = Vec::new();
    for step in engine.generate(request(&ids, InputRule::default(), tokens, 0)).unwrap() {
        step.unwrap();
        held_at.push(held());
    }
    let cached = |positions: usize| 4 * config.cached_values(positions.next_multiple_of(256));
    let (early, late) = (20, held_at.len() - 2);
    let grown = held_at[late] as f64 - held_at[early] as f64;
    let expected = (cached(ids.len() + late) - cached(ids.len() + early)) as f64;
    println!("{late} tokens: {grown} bytes more than after {early}, of which {expected} are cache");
    // Tokens and their texts take a few bytes per step.
    assert!(
        (grown - expected).abs() < 64.0 * late as f64 + 0.02 * held_at[early] as f64,
        "{grown} {expected}"
    );
}

/// 4,000 tokens in one generation, then 500 generations.
#[test]
#[ignore = "takes minutes: `cargo xtask soak`"]
fn soak() {
    let _alone = ALONE.lock().unwrap();
    let pretrained = Pretrained::open(&model_file("smollm2-135m-instruct")).unwrap();
    let model = pretrained.load(&Default::default(), WeightForm::Stored, |_| {}).unwrap();
    let engine: Engine<Flex, Decoder<Flex>> = Engine::new(model, Default::default());
    let engine = engine.with_tokenizer(pretrained.tokenizer.into_inner().unwrap());
    let ids = engine.tokenizer().unwrap().encode("Once upon a time", true).unwrap();
    println!("one generation:\n tokens   held MB  resident MB  ms a token");
    let mut begun = Instant::now();
    let (mut rates, mut held_at) = (Vec::new(), Vec::new());
    // The cache is in half precision, like the stored weights.
    let cached = |step: usize| {
        2.0 * engine.model().config().cached_values((ids.len() + step).next_multiple_of(256)) as f64
    };
    let steps = engine.generate(request(&ids, InputRule::default(), 4001, 7)).unwrap();
    for (step, at) in steps.zip(1..) {
        step.unwrap();
        if at % 500 == 0 {
            let each = begun.elapsed().as_secs_f64() * 2.0;
            held_at.push(held() as f64 - cached(at));
            let (held, resident) = (held() as f64 / 1e6, resident().unwrap_or(0) as f64 / 1e6);
            println!("{at:7} {held:9.1} {resident:12.1} {each:11.2}");
            rates.push(each);
            begun = Instant::now();
        }
    }
    assert_eq!(rates.len(), 8);
    let beside_cache = spread(&held_at);
    println!("beside the cache: held within {:.3} %", beside_cache * 100.0);
    assert!(beside_cache < 0.02, "{held_at:?}");
    // Each position costs as much as the one before, so the second half may add no more time than the first, except
    // for noise.
    let (first, second) = (rates[3] - rates[0], rates[7] - rates[4]);
    assert!(second < 2.0 * first.max(0.0) + 0.25 * rates[0], "a token takes longer and longer: {rates:?}");
    println!("500 generations:\n    run   held MB  resident MB  ms a run");
    let (mut held_after, mut resident_after) = (Vec::new(), Vec::new());
    let mut paces = Vec::new();
    begun = Instant::now();
    for run in 1..=500 {
        let steps = engine.generate(request(&ids, InputRule::default(), 16, run)).unwrap();
        assert_eq!(steps.map(Result::unwrap).count(), 16);
        held_after.push(held() as f64);
        resident_after.extend(resident().map(|bytes| bytes as f64));
        if run % 50 == 0 {
            let each = begun.elapsed().as_secs_f64() * 20.0;
            let (held, resident) = (held() as f64 / 1e6, resident().unwrap_or(0) as f64 / 1e6);
            println!("{run:7} {held:9.1} {resident:12.1} {each:9.1}");
            paces.push(each);
            begun = Instant::now();
        }
    }
    let (early, late) = (median(&paces[..5]), median(&paces[5..]));
    assert!(late < 1.25 * early, "the later runs took longer: {paces:?}");
    let held_spread = spread(&held_after[10..]);
    println!("after the first ten: held within {:.3} %", held_spread * 100.0);
    assert!(held_spread < 0.02);
    if resident_after.len() > 10 {
        let resident_spread = spread(&resident_after[10..]);
        println!("after the first ten: resident within {:.3} %", resident_spread * 100.0);
        assert!(resident_spread < 0.02);
    }
}
