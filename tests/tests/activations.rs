//! Compares rounded activations with exact ones on the real models: the divergence of the distributions and the
//! change of the perplexity. Also checks that the mean row of a mixture changes the distributions much less.

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use moi::{EmbeddingRows, Gate, InputRule, Support, next_inputs};
use moi_engine::Engine;
use moi_models::{Activations, CausalLm, Decoder, Embedding, ForwardBatch, Mixing};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::real::{RealGolden, model_file};

type Model = Engine<Flex, Decoder<Flex>>;

const PAGE: &str = include_str!("../data/page.txt");

fn engine(model: &str, activations: Activations) -> Model {
    let device = Default::default();
    let pretrained = Pretrained::open(&model_file(model)).unwrap();
    let decoder = pretrained.load::<Flex>(&device, WeightForm::Stored, |_| {}).unwrap();
    assert!(decoder.activations().is_some(), "packed weights");
    Engine::new(decoder.with_activations(activations), device)
        .with_tokenizer(pretrained.tokenizer.into_inner().unwrap())
}

/// Converts logits to log-probabilities, in float64.
fn normalised(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - max) - sum.ln()).collect()
}

/// The log-probabilities at every position.
fn log_probabilities(engine: &Model, ids: &[u32]) -> Vec<Vec<f64>> {
    let logits = engine.logits(ids).unwrap();
    let vocab = logits.dims()[1];
    moi_tests::values(logits).chunks(vocab).map(normalised).collect()
}

/// An embedding whose means are computed within a tolerance.
struct Table<'a>(&'a Embedding<Flex>, Mixing<Flex>);

impl EmbeddingRows<Flex> for Table<'_> {
    fn dims(&self) -> [usize; 2] {
        self.0.dims()
    }

    fn rows(&self, tokens: Tensor<Flex, 1, Int>) -> Tensor<Flex, 2> {
        self.1.rows(self.0, tokens)
    }

    fn weighted_sum(&self, weights: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        self.1.weighted_sum(self.0, weights)
    }

    fn means(&self, logits: &Tensor<Flex, 2>, gates: &[Gate]) -> Option<(Tensor<Flex, 2>, Tensor<Flex, 2>)> {
        let vocab = logits.dims()[1];
        self.1.means(self.0, logits, &|row, nats| gates[row].at_nats(nats, vocab))
    }
}

/// The log-probabilities of the tokens after a prompt, and these tokens: the given ones, or the most likely ones.
fn decoded(
    model: &Model,
    rule: InputRule,
    mixing: Mixing<Flex>,
    prompt: &[u32],
    given: Option<&[u32]>,
) -> (Vec<Vec<f64>>, Vec<u32>) {
    const STEPS: usize = 24;
    let (model, device) = (model.model(), Default::default());
    let table = Table(model.embedding(), mixing);
    let ids: Vec<i64> = prompt.iter().map(|&id| id.into()).collect();
    let ids = Tensor::<Flex, 1, Int>::from_data(TensorData::new(ids, [prompt.len()]), &device);
    let (mut inputs, mut pool) = (model.embed(ids), model.new_pool(&device));
    let mut sequence = pool.table();
    let (mut all, mut tokens) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        let hidden = model.forward(ForwardBatch::one(inputs, &mut sequence), &mut pool).unwrap();
        let last = hidden.dims()[0] - 1;
        let logits = model.logits(hidden.narrow(0, last, 1));
        all.push(normalised(&moi_tests::values(logits.clone())));
        let likeliest = logits.clone().argmax(1).into_data().iter::<u32>().next().unwrap();
        let token = given.map_or(likeliest, |given| given[step]);
        tokens.push(token);
        let token = Tensor::<Flex, 1, Int>::from_data(TensorData::new(vec![i64::from(token)], [1]), &device);
        inputs = next_inputs(logits, token, &table, &[rule], 0).unwrap().inputs;
    }
    (all, tokens)
}

/// Checks that the mean row changes the distributions by less than a tenth of what rounded activations do.
fn check_mixtures(model: &str) {
    let (exact, rounded) = (engine(model, Activations::F32), engine(model, Activations::Mixed));
    for rule in [InputRule::moi(1.0, Support::Full).unwrap(), InputRule::direct(Support::Full).unwrap()] {
        let (mut by_rounding, mut by_mean_row) = (Vec::new(), Vec::new());
        for run in RealGolden::read(model).runs.iter().take(6) {
            let whole = || Mixing::new(0.0, exact.model().kernels());
            let (of_exact, tokens) = decoded(&exact, rule, whole(), &run.prompt_ids, None);
            let again =
                |model: &Model, mixing| decoded(model, rule, mixing, &run.prompt_ids, Some(&tokens)).0;
            // Measure the mean row without rounded activations, which answer the smallest change of an input with
            // other errors of the same size.
            let kernels = || rounded.model().kernels();
            let auto = Mixing::auto(rounded.model().embedding(), kernels()).tolerance();
            let auto = Mixing::new(auto, kernels());
            by_rounding.extend(divergences(&of_exact, &again(&rounded, whole())));
            by_mean_row.extend(divergences(&of_exact, &again(&exact, auto)));
        }
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
        let (rounding, mean_row, count) = (mean(&by_rounding), mean(&by_mean_row), by_rounding.len());
        println!(
            "{model}, {rule}: mean KL {rounding:.2e} by rounding, {mean_row:.2e} by the mean row ({count} steps)"
        );
        assert!(mean_row >= 0.0 && mean_row <= 0.1 * rounding, "{mean_row} beside {rounding}");
    }
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

/// The kinds of rounding, with the largest mean divergence and the largest change of the perplexity of a page.
const LIMITS: [(Activations, f64, f64); 3] =
    [(Activations::Int16, 1e-5, 2e-4), (Activations::Mixed, 2e-3, 5e-3), (Activations::Int8, 8e-3, 1e-2)];

fn check(model: &str) {
    let exact = engine(model, Activations::F32);
    let means =
        LIMITS.map(|(activations, most, farthest)| check_rounded(model, &exact, activations, most, farthest));
    assert!(means.is_sorted_by(|finer, coarser| 2.0 * finer < *coarser), "{means:?}: as near as each other");
}

/// Checks one kind of rounding, and returns its mean divergence.
fn check_rounded(model: &str, exact: &Model, activations: Activations, most: f64, farthest: f64) -> f64 {
    let rounded = engine(model, activations);
    let mut all = Vec::new();
    for run in &RealGolden::read(model).runs {
        let [exact, rounded] = [exact, &rounded].map(|engine| log_probabilities(engine, &run.prompt_ids));
        all.extend(divergences(&exact, &rounded));
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let ids = exact.tokenizer().unwrap().encode(PAGE, true).unwrap();
    let [exact, rounded] = [exact, &rounded].map(|engine| log_probabilities(engine, &ids));
    let page = divergences(&exact, &rounded);
    let on_page = page.iter().sum::<f64>() / page.len() as f64;
    let [exact, rounded] = [exact, rounded].map(|of| perplexity(&of, &ids));
    println!(
        "{model}, {activations:?}: mean KL {mean:.2e} on {} positions of prompts, {on_page:.2e} on {} of the page; perplexity {exact:.4} \
         exact, {rounded:.4} rounded ({:+.3}%)",
        all.len(),
        ids.len(),
        100.0 * (rounded / exact - 1.0)
    );
    assert!(mean > 0.0 && mean <= most, "{activations:?}: {mean}");
    assert!((rounded / exact - 1.0).abs() <= farthest, "{activations:?}: {exact} {rounded}");
    mean
}

#[test]
fn smollm2_moves_little() {
    check("smollm2-135m-instruct");
}

#[test]
fn mixtures_of_smollm2_move_less_than_by_rounding() {
    check_mixtures("smollm2-135m-instruct");
}

#[test]
#[ignore = "fetches 253 MB: cargo xtask test --ignored"]
fn gemma_moves_little() {
    check("gemma-3-270m");
}

#[test]
#[ignore = "fetches 253 MB: cargo xtask test --ignored"]
fn mixtures_of_gemma_move_less_than_by_rounding() {
    check_mixtures("gemma-3-270m");
}
