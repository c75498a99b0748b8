//! Replays speculation where the next input is a mixture: `vectors/speculate_mixtures.json`, and the file of that name
//! in the directory that `MOI_TEST_VECTORS` names, if there is one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure must end the test")]

use std::{collections::HashMap, env, fs, path::Path};

use moi_speculation::{Chance, Guess, InputTolerance, Verifier, relative_error};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
    sampled: Vec<Sampled>,
}

/// A run in which drafts are what a model with the position's own number gives.
#[derive(Deserialize)]
struct Case {
    model: Soft,
    drafter: Soft,
    beta: f64,
    floor: f64,
    prompt: Vec<u32>,
    u: Vec<f64>,
    window: usize,
    tolerance: f64,
    /// Whether rows behind an input that was not near enough give the next guesses.
    reuse: bool,
    /// Whether a draft's input is the mixture by the drafter's distribution, and not the token's own embedding.
    mixed_drafts: bool,
    plain_tokens: Vec<u32>,
    plain_gates: Vec<f64>,
    tokens: Vec<u32>,
    /// Tokens that each pass gave.
    passes: Vec<usize>,
    inexact: usize,
    worst: f64,
}

/// A run in which drafts are drawn from a table, and accepted or rejected once.
#[derive(Deserialize)]
struct Sampled {
    model: Soft,
    draft: Table,
    beta: f64,
    floor: f64,
    prompt: Vec<u32>,
    tokens_asked: usize,
    window: usize,
    tolerance: f64,
    u: Vec<f64>,
    tokens: Vec<u32>,
}

/// A model of vectors: logits from the hyperbolic tangent of a sum over the last inputs.
#[derive(Deserialize)]
struct Soft {
    embedding: Vec<Vec<f64>>,
    lags: Vec<Vec<Vec<f64>>>,
    bias: Vec<f64>,
    head: Vec<Vec<f64>>,
}

/// The distribution behind the last `order` tokens.
#[derive(Deserialize)]
struct Table {
    order: usize,
    rows: HashMap<String, Vec<f64>>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Soft {
    fn embed(&self, token: u32) -> Vec<f64> {
        self.embedding[token as usize].clone()
    }

    fn row(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let mut hidden = self.bias.clone();
        for (lag, input) in self.lags.iter().zip(inputs.iter().rev()) {
            hidden.iter_mut().zip(lag).for_each(|(hidden, lag)| *hidden += dot(lag, input));
        }
        hidden.iter_mut().for_each(|value| *value = value.tanh());
        let logits: Vec<f64> = self.head.iter().map(|row| dot(row, &hidden)).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    }
}

impl Table {
    fn row(&self, tokens: &[u32]) -> Vec<f64> {
        let last = &tokens[tokens.len().saturating_sub(self.order)..];
        let key: Vec<String> = last.iter().map(u32::to_string).collect();
        self.rows[&key.join(",")].clone()
    }
}

/// Mixture of Inputs with full support and a floor.
struct Rule {
    beta: f64,
    floor: f64,
}

impl Rule {
    fn gate(&self, p: &[f64]) -> f64 {
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let gate = entropy / (p.len() as f64).ln() / (self.beta + 1.0);
        if gate >= self.floor { gate } else { 0.0 }
    }

    fn input(&self, model: &Soft, p: &[f64], token: u32) -> Vec<f64> {
        let (gate, own) = (self.gate(p), model.embed(token));
        if gate == 0.0 {
            return own;
        }
        let mean = |at: usize| p.iter().zip(&model.embedding).map(|(p, row)| p * row[at]).sum::<f64>();
        own.iter().enumerate().map(|(at, own)| own + gate * (mean(at) - own)).collect()
    }
}

fn draw(p: &[f64], uniform: f64) -> u32 {
    (|| uniform).draw(p).unwrap() as u32
}

fn all() -> Vec<Vectors> {
    const NAME: &str = "speculate_mixtures.json";
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(NAME);
    let more = env::var_os("MOI_TEST_VECTORS").map(|directory| Path::new(&directory).join(NAME));
    let read = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    std::iter::once(own).chain(more.filter(|path| path.exists())).map(|path| read(&path)).collect()
}

/// The distributions behind each of some inputs that follow settled ones.
fn pass(model: &Soft, settled: &[Vec<f64>], head: &[f64], guesses: &[Guess<Vec<f64>>]) -> Vec<Vec<f64>> {
    let mut fed = settled.to_vec();
    fed.push(head.to_vec());
    let mut rows = vec![model.row(&fed)];
    for guess in guesses {
        fed.push(guess.input.clone());
        rows.push(model.row(&fed));
    }
    rows
}

#[test]
fn plain_runs_give_the_recorded_tokens() {
    for case in all().iter().flat_map(|vectors| &vectors.cases) {
        let rule = Rule { beta: case.beta, floor: case.floor };
        let mut inputs: Vec<Vec<f64>> = case.prompt.iter().map(|&token| case.model.embed(token)).collect();
        for ((&uniform, &token), &gate) in case.u.iter().zip(&case.plain_tokens).zip(&case.plain_gates) {
            let p = case.model.row(&inputs);
            assert_eq!(draw(&p, uniform), token);
            assert!((rule.gate(&p) - gate).abs() < 1e-12);
            inputs.push(rule.input(&case.model, &p, token));
        }
    }
}

#[test]
fn guesses_settle_as_recorded() {
    for (index, case) in all().iter().flat_map(|vectors| &vectors.cases).enumerate() {
        let (model, rule) = (&case.model, Rule { beta: case.beta, floor: case.floor });
        let (last, before) = case.prompt.split_last().unwrap();
        let mut settled: Vec<Vec<f64>> = before.iter().map(|&token| model.embed(token)).collect();
        let (mut head, mut tokens, mut passes) = (model.embed(*last), Vec::new(), Vec::new());
        let mut guesses: Vec<Guess<Vec<f64>>> = Vec::new();
        let mut tolerance = InputTolerance::new(case.tolerance);
        while tokens.len() < case.u.len() {
            let room = case.window.min(case.u.len() - tokens.len()) - 1;
            guesses.truncate(room);
            while guesses.len() < room {
                let ahead = guesses.iter().map(|guess| guess.input.clone());
                let fed: Vec<Vec<f64>> = settled.iter().cloned().chain([head.clone()]).chain(ahead).collect();
                let q = case.drafter.row(&fed);
                let token = draw(&q, case.u[tokens.len() + guesses.len()]);
                let input = if case.mixed_drafts { rule.input(model, &q, token) } else { model.embed(token) };
                guesses.push(Guess { token, input, row: None });
            }
            let rows = pass(model, &settled, &head, &guesses);
            let (mut at, mut accepted) = (0, vec![head.clone()]);
            let is_right = loop {
                let token = draw(&rows[at], case.u[tokens.len()]);
                head = rule.input(model, &rows[at], token);
                tokens.push(token);
                let guess = guesses.get(at).filter(|guess| guess.token == token);
                let near = guess.filter(|guess| tolerance.passes(relative_error(&guess.input, &head)));
                let Some(near) = near else { break guess.is_some() };
                accepted.push(near.input.clone());
                at += 1;
            };
            passes.push(at + 1);
            guesses.clear();
            if case.reuse && is_right {
                for row in &rows[at + 1..] {
                    let token = draw(row, case.u[tokens.len() + guesses.len()]);
                    guesses.push(Guess { token, input: rule.input(model, row, token), row: None });
                }
            }
            settled.extend(accepted);
        }
        assert_eq!((&tokens, &passes), (&case.tokens, &case.passes), "case {index}");
        assert_eq!(tolerance.inexact, case.inexact, "case {index}");
        assert!((tolerance.worst - case.worst).abs() <= 1e-9, "case {index}: {}", tolerance.worst);
        assert!(case.tolerance > 0.0 || tokens == case.plain_tokens, "case {index}");
    }
}

#[test]
fn drawn_drafts_are_accepted_once_as_recorded() {
    for (index, case) in all().iter().flat_map(|vectors| &vectors.sampled).enumerate() {
        let (model, rule) = (&case.model, Rule { beta: case.beta, floor: case.floor });
        let (last, before) = case.prompt.split_last().unwrap();
        let mut settled: Vec<Vec<f64>> = before.iter().map(|&token| model.embed(token)).collect();
        let (mut head, mut tokens) = (model.embed(*last), Vec::new());
        let mut guesses: Vec<Guess<Vec<f64>>> = Vec::new();
        let mut tolerance = InputTolerance::new(case.tolerance);
        let mut numbers = case.u.iter().copied();
        let mut source = || numbers.next().expect("enough numbers");
        while tokens.len() < case.tokens_asked {
            while guesses.len() + 1 < case.window.min(case.tokens_asked - tokens.len()) {
                let ahead = guesses.iter().map(|guess| guess.token);
                let text: Vec<u32> = case.prompt.iter().chain(&tokens).copied().chain(ahead).collect();
                let q = case.draft.row(&text);
                let token = source.draw(&q).unwrap() as u32;
                guesses.push(Guess { token, input: model.embed(token), row: Some(q) });
            }
            let rows = pass(model, &settled, &head, &guesses);
            let (mut at, mut accepted) = (0, vec![head.clone()]);
            let is_right = loop {
                let (drafts, q) = guesses
                    .get(at)
                    .map_or((vec![], &[][..]), |guess| (vec![guess.token], guess.row.as_deref().unwrap()));
                let token = Verifier::WithoutReplacement.choose(&rows[at], q, &drafts, &mut source);
                head = rule.input(model, &rows[at], token);
                tokens.push(token);
                let guess = guesses.get(at).filter(|guess| guess.token == token);
                let near = guess.filter(|guess| tolerance.passes(relative_error(&guess.input, &head)));
                let Some(near) = near else { break guess.is_some() };
                accepted.push(near.input.clone());
                at += 1;
            };
            let behind = if is_right { guesses.split_off(at + 1) } else { Vec::new() };
            let refined = behind.into_iter().zip(&rows[at + 1..]);
            guesses = refined
                .map(|(guess, row)| Guess { input: rule.input(model, row, guess.token), ..guess })
                .collect();
            settled.extend(accepted);
        }
        assert_eq!(tokens, case.tokens, "case {index}");
        assert!(numbers.next().is_none(), "case {index}: all numbers were used");
    }
}
