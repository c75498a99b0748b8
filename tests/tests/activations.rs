//! Activations in 8 bits beside exact ones, on the real models: how far distributions and perplexities move.

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use burn_flex::Flex;
use moi_engine::Engine;
use moi_models::{Activations, Decoder};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::real::{RealGolden, model_file};

type Model = Engine<Flex, Decoder<Flex>>;

const PAGE: &str = include_str!("../data/page.txt");

fn engine(model: &str, activations: Activations) -> Model {
    let device = Default::default();
    let pretrained = Pretrained::open(&model_file(model)).unwrap();
    let decoder = pretrained.load::<Flex>(&device, WeightForm::Stored, |_| {}).unwrap();
    assert!(decoder.activations().is_some(), "packed weights");
    Engine::new(decoder.with_activations(activations), device).with_tokenizer(pretrained.tokenizer.unwrap())
}

/// Log-probabilities of every position, in float64.
fn log_probabilities(engine: &Model, ids: &[u32]) -> Vec<Vec<f64>> {
    let logits = engine.logits(ids).unwrap();
    let vocab = logits.dims()[1];
    let of_row = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        row.iter().map(|&logit| f64::from(logit - max) - sum.ln()).collect()
    };
    moi_tests::values(logits).chunks(vocab).map(of_row).collect()
}

/// KL(exact || rounded) of every position, in nats.
fn divergences(exact: &[Vec<f64>], rounded: &[Vec<f64>]) -> Vec<f64> {
    let of_row = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
    exact.iter().zip(rounded).map(of_row).collect()
}

fn perplexity(of: &[Vec<f64>], ids: &[u32]) -> f64 {
    let logs: f64 = of.iter().zip(&ids[1..]).map(|(row, &next)| row[next as usize]).sum();
    (-logs / (ids.len() - 1) as f64).exp()
}

fn check(model: &str) {
    let (exact, rounded) = (engine(model, Activations::F32), engine(model, Activations::Int8));
    let mut all = Vec::new();
    for run in &RealGolden::read(model).runs {
        let [exact, rounded] = [&exact, &rounded].map(|engine| log_probabilities(engine, &run.prompt_ids));
        all.extend(divergences(&exact, &rounded));
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let ids = exact.tokenizer().unwrap().encode(PAGE, true).unwrap();
    let [exact, rounded] = [&exact, &rounded].map(|engine| log_probabilities(engine, &ids));
    let page = divergences(&exact, &rounded);
    let on_page = page.iter().sum::<f64>() / page.len() as f64;
    let [exact, rounded] = [exact, rounded].map(|of| perplexity(&of, &ids));
    println!(
        "{model}: mean KL {mean:.2e} on {} positions of prompts, {on_page:.2e} on {} of the page; perplexity {exact:.4} \
         exact, {rounded:.4} with 8 bits ({:+.3}%)",
        all.len(),
        ids.len(),
        100.0 * (rounded / exact - 1.0)
    );
    assert!(mean > 0.0 && mean <= 2e-3, "{mean}");
    assert!((rounded / exact - 1.0).abs() <= 5e-3, "{exact} {rounded}");
}

#[test]
fn smollm2_moves_little() {
    check("smollm2-135m-instruct");
}

#[test]
#[ignore = "fetches 253 MB: cargo xtask test --ignored"]
fn gemma_moves_little() {
    check("gemma-3-270m");
}
