//! Measures on real models what a floor changes: how often gates lie below it, and how far the next-token distributions
//! of `moi:floor=F` are from those of `moi` over the same tokens. `cargo test --release --test floors -- --ignored
//! --nocapture` prints the tables of benches/RESULTS.md.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use burn_flex::Flex;
use moi_engine::{Engine, Prompt, Request, TokenEvent};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::real::model_file;
use moi_text::{ChatTemplate, Message};

const FLOORS: [f64; 7] = [0.0, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2];
const TOKENS: usize = 96;
const PROMPTS: [&str; 6] = [
    "Write a Python class Stack with push, pop, peek and is_empty.",
    "Write a JSON list of six people with the keys name, age and city.",
    "Explain how a bicycle stays upright.",
    "What should I see in Paris in two days?",
    "Write a short story about a lighthouse keeper.",
    "A farmer has 17 sheep and buys 5 more each week. How many has he after 8 weeks? Think step by step.",
];

/// Log-probabilities of all tokens behind a token, in order of ids.
fn row(step: &TokenEvent, vocab: usize) -> Vec<f64> {
    let mut row = vec![f64::NEG_INFINITY; vocab];
    step.likeliest.iter().for_each(|&(token, logprob)| row[token as usize] = logprob);
    row
}

/// Runs requests together, and gives each token with the index of its request.
fn run(
    engine: &Engine<Flex, Decoder<Flex>>,
    requests: Vec<Request<Flex>>,
    mut each: impl FnMut(usize, TokenEvent),
) {
    let mut batch = engine.batch();
    let ids = batch.add_all(requests).unwrap();
    while !batch.is_empty() {
        for step in batch.step().unwrap() {
            let step = step.unwrap();
            each(ids.iter().position(|id| *id == step.row).unwrap(), step);
        }
    }
}

fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let terms = p.iter().zip(q).filter(|(p, _)| **p > -1e3).map(|(p, q)| p.exp() * (p - q));
    terms.sum::<f64>().max(0.0)
}

fn first(row: &[f64]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a))).unwrap()
}

fn measure(name: &str, support: &str) {
    let pretrained = Pretrained::open(&model_file(name)).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let vocab = model.config().vocab_size;
    let Pretrained { tokenizer, chat_template, eos, .. } = pretrained;
    let template: Option<ChatTemplate> = chat_template.unwrap();
    let engine: Engine<Flex, Decoder<Flex>> =
        Engine::new(model, Default::default()).with_tokenizer(tokenizer.into_inner().unwrap()).with_eos(eos);
    let ids: Vec<Vec<u32>> = PROMPTS
        .iter()
        .map(|prompt| {
            let prompt = match &template {
                Some(template) => template.render(&[Message::new("user", prompt)], true).unwrap(),
                None => (*prompt).to_owned(),
            };
            engine.tokenizer().unwrap().encode_prompt(&prompt).unwrap()
        })
        .collect();
    let request = |seed: usize, floor: f64, forced: Vec<u32>| {
        let mut request = Request::new(Prompt::Ids(ids[seed].clone()));
        let knob = if support.is_empty() { ":" } else { "," };
        let floor = if floor > 0.0 { format!("{knob}floor={floor}") } else { String::new() };
        request.rule = format!("moi{support}{floor}").parse().unwrap();
        request.sampling.temperature = 0.7.into();
        (request.seed, request.logprobs, request.forced) = (seed as u64, vocab, forced);
        (request.stop.max_tokens, request.stop.ignore_eos) = (Some(TOKENS), true);
        request
    };
    let mut plain: Vec<Vec<TokenEvent>> = vec![Vec::new(); PROMPTS.len()];
    run(&engine, (0..PROMPTS.len()).map(|seed| request(seed, 0.0, Vec::new())).collect(), |at, step| {
        plain[at].push(step)
    });
    let expected: Vec<Vec<Vec<f64>>> =
        plain.iter().map(|steps| steps.iter().map(|step| row(step, vocab)).collect()).collect();
    let count = PROMPTS.len() * TOKENS;
    let (mut sums, mut largest) = ([0.0; FLOORS.len()], [0.0f64; FLOORS.len()]);
    let mut agree = [0usize; FLOORS.len()];
    for (at, &floor) in FLOORS.iter().enumerate() {
        let tokens = |seed: usize| plain[seed].iter().map(|step| step.token).collect();
        let requests = (0..PROMPTS.len()).map(|seed| request(seed, floor, tokens(seed))).collect();
        let mut places = [0; PROMPTS.len()];
        run(&engine, requests, |seed, step| {
            let (found, expected) = (row(&step, vocab), &expected[seed][places[seed]]);
            places[seed] += 1;
            let kl = divergence(expected, &found);
            (sums[at], largest[at]) = (sums[at] + kl, largest[at].max(kl));
            agree[at] += usize::from(first(&found) == first(expected));
        });
        assert_eq!(places, [TOKENS; PROMPTS.len()]);
    }
    let gates = || plain.iter().flatten().map(|step| f64::from(step.gate));
    let below = FLOORS.map(|floor| gates().filter(|&gate| gate < floor).count());
    println!("{name}, moi{support}, {count} tokens at temperature 0.7");
    println!("| floor | gates below | mean KL, nats | largest | same likeliest token |");
    println!("|--:|--:|--:|--:|--:|");
    let share = |part: usize| 100.0 * part as f64 / count as f64;
    for (at, floor) in FLOORS.iter().enumerate() {
        let (mean, largest) = (sums[at] / count as f64, largest[at]);
        println!(
            "| {floor} | {:.1}% | {mean:.1e} | {largest:.1e} | {:.1}% |",
            share(below[at]),
            share(agree[at])
        );
    }
    assert!(sums[0] < 1e-6 * count as f64, "forced tokens are fed as sampled ones");
    assert!(below.is_sorted() && sums[1] <= sums[6], "a larger floor changes more");
}

#[test]
#[ignore = "it measures, and runs for minutes"]
fn what_a_floor_changes() {
    for name in ["smollm2-135m-instruct", "gemma-3-270m"] {
        for support in ["", ":support=20"] {
            measure(name, support);
        }
    }
}
