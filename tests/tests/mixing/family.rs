//! Tests of the rules with several steps, against values from another implementation, and against each other at their
//! limits.

use super::reference::identity;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi::{InputRule, Markers, MixError, RowMix, RuleState, Scope, Start, mix, next_inputs};
use serde::Deserialize;

/// The values that tests/reference/rules.py computes.
const CASES: &str = include_str!("../../reference/rules.json");

#[derive(Deserialize)]
struct Case {
    rule: String,
    limit: Option<usize>,
    markers: Option<[u32; 2]>,
    steps: Vec<CaseStep>,
}

#[derive(Clone, Deserialize)]
struct CaseStep {
    logits: Vec<f32>,
    sampled: u32,
    weights: Vec<f32>,
    recorded: u32,
    drawn_from: Option<Vec<f64>>,
}

/// Runs one step of several sequences. Returns the weights of each over the vocabulary, and the report.
fn step<B: Backend>(
    rows: &mut [RuleState],
    logits: &[Vec<f32>],
    tokens: &[u32],
) -> (Vec<Vec<f32>>, Vec<RowMix>) {
    let device = B::Device::default();
    let vocab = logits[0].len();
    let matrix = |rows: &[Vec<f32>]| {
        let shape = [rows.len(), rows[0].len()];
        Tensor::<B, 2>::from_data(TensorData::new(rows.concat(), shape), &device)
    };
    let ids: Vec<i64> = tokens.iter().map(|&y| y.into()).collect();
    let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &device);
    let mixed = mix(matrix(logits), ids, &matrix(&identity(vocab)), rows, vocab).unwrap();
    let inputs: Vec<f32> = mixed.inputs.clone().into_data().iter::<f32>().collect();
    (inputs.chunks(vocab).map(<[f32]>::to_vec).collect(), mixed.into_rows())
}

fn row(rule: &str, start: Start) -> RuleState {
    RuleState::new(rule.parse().unwrap(), &start).unwrap()
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 2e-6, "{what}: {found:?} is not {expected:?}");
    }
}

const MARKERS: Markers = Markers { open: 5, name: None, close: 6 };

/// All cases in one batch, step by step.
fn values_computed_elsewhere<B: Backend>() {
    let cases: Vec<serde_json::Value> = serde_json::from_str(CASES).unwrap();
    // The cases about the noise alone belong to unit tests.
    let cases = cases.into_iter().filter(|case| case["rule"] != "gumbel");
    let cases: Vec<Case> = cases.map(|case| serde_json::from_value(case).unwrap()).collect();
    let mut rows: Vec<RuleState> = (cases.iter())
        .map(|case| {
            let markers = case.markers.map(|[open, close]| Markers::new(open, close));
            let thinking = markers.is_some();
            let scope = Some(Scope::All);
            row(&case.rule, Start { scope, markers, thinking, limit: case.limit, ..Start::default() })
        })
        .collect();
    // Cases differ in length, so a batch contains only those that still have steps.
    let longest = cases.iter().map(|case| case.steps.len()).max().unwrap();
    let mut seen = 0;
    for t in 0..longest {
        let steps: Vec<Option<&CaseStep>> = cases.iter().map(|case| case.steps.get(t)).collect();
        let here: Vec<usize> = (0..cases.len()).filter(|&i| steps[i].is_some()).collect();
        let mut batch: Vec<RuleState> = Vec::new();
        let mut rest: Vec<RuleState> = Vec::new();
        for (i, row) in rows.drain(..).enumerate() {
            if here.contains(&i) { batch.push(row) } else { rest.push(row) }
        }
        let of_batch: Vec<CaseStep> = steps.iter().flatten().map(|&step| step.clone()).collect();
        for (row, step) in batch.iter_mut().zip(&of_batch) {
            if let Some(drawn) = &step.drawn_from {
                let mut drawn: Vec<(u32, f64)> =
                    (0..).zip(drawn.iter().copied()).filter(|d| d.1 > 0.0).collect();
                drawn.sort_by(|a, b| b.1.total_cmp(&a.1));
                row.drawn_from(drawn);
            }
        }
        let logits: Vec<Vec<f32>> = of_batch.iter().map(|step| step.logits.clone()).collect();
        let tokens: Vec<u32> = of_batch.iter().map(|step| step.sampled).collect();
        let (weights, report) = step::<B>(&mut batch, &logits, &tokens);
        for (at, &case) in here.iter().enumerate() {
            let (step, what) = (&of_batch[at], format!("{}, step {t}", cases[case].rule));
            close(&weights[at], &step.weights, &what);
            assert_eq!(report[at].token.unwrap_or(step.sampled), step.recorded, "{what}");
            for &(token, weight) in &report[at].top {
                close(&[weight], &[step.weights[token as usize]], &what);
            }
            let listed = report[at].top.iter().map(|top| top.1).sum::<f32>();
            close(&[listed], &[1.0], &what);
            seen += 1;
        }
        let (mut batch, mut rest) = (batch.into_iter(), rest.into_iter());
        let whose = |i: usize| if here.contains(&i) { batch.next() } else { rest.next() };
        rows = (0..cases.len()).filter_map(whose).collect();
    }
    assert_eq!(seen, cases.iter().map(|case| case.steps.len()).sum::<usize>());
}

/// Logits without ties.
fn logits(seed: usize) -> Vec<f32> {
    (0..7).map(|i| 1.5 * (1.3 * (seed * 7 + i) as f32).sin()).collect()
}

/// Runs a rule for some steps. Returns its weights and the recorded tokens.
fn run<B: Backend>(rule: &str, start: Start, steps: usize) -> (Vec<Vec<f32>>, Vec<u32>) {
    let mut rows = [row(rule, start)];
    let one = |t: usize| {
        let (weights, report) = step::<B>(&mut rows, &[logits(t)], &[(t % 5) as u32]);
        (weights[0].clone(), report[0].token.unwrap_or((t % 5) as u32))
    };
    (0..steps).map(one).unzip()
}

fn limits<B: Backend>() {
    let seeded = Start { seed: 3, ..Start::default() };
    let token = run::<B>("token", seeded, 12);
    assert_eq!(run::<B>("k-sample:k=1", seeded, 12), token);
    assert_eq!(run::<B>("selar:tau=1", seeded, 12).0, token.0);
    assert_eq!(run::<B>("soft-thinking:max_topk=1", seeded, 12).0, {
        // The most likely token, whatever was sampled.
        let likeliest = |t| (0..7).max_by(|&a: &usize, &b| logits(t)[a].total_cmp(&logits(t)[b])).unwrap();
        (0..12).map(|t| identity(7)[likeliest(t)].clone()).collect::<Vec<_>>()
    });
    // Without filters, the rule gives the mean of the distribution at temperature 1, like `direct`, and many draws
    // give it approximately.
    let open = "temperature=1:top_k=0:top_p=1:min_p=0:max_topk=7:cold_stop=0";
    let direct = run::<B>("direct", seeded, 12).0;
    for (weights, direct) in run::<B>(&format!("soft-thinking:{open}"), seeded, 12).0.iter().zip(&direct) {
        close(weights, direct, "soft-thinking without filters");
    }
    for (weights, direct) in run::<B>("k-sample:k=40000", seeded, 4).0.iter().zip(&direct) {
        assert!(weights.iter().zip(direct).all(|(a, b)| (a - b).abs() < 0.02), "{weights:?} {direct:?}");
    }
    // Gumbel noise: a small tau gives a sample, which is recorded; a large one ignores the distribution. Dirichlet
    // noise: a large alpha adds no noise.
    let (weights, tokens) = run::<B>(&format!("soft-thinking:{open}:noise=gumbel:tau=1e-7"), seeded, 12);
    for (weights, token) in weights.iter().zip(tokens) {
        close(weights, &identity(7)[token as usize], "tau -> 0");
    }
    for weights in run::<B>(&format!("soft-thinking:{open}:noise=gumbel:tau=1e9"), seeded, 12).0 {
        close(&weights, &[1.0 / 7.0; 7], "tau -> infinity");
    }
    for (weights, direct) in run::<B>(&format!("soft-thinking:{open}:noise=dirichlet:alpha=1e14"), seeded, 12)
        .0
        .iter()
        .zip(&direct)
    {
        close(weights, direct, "alpha -> infinity");
    }
}

/// With Gumbel noise and a small tau, tokens must be as frequent as the distribution says.
fn gumbel_samples<B: Backend>() {
    const DRAWS: usize = 2000;
    let same = logits(1);
    let mut rows: Vec<RuleState> = (0..DRAWS)
        .map(|seed| {
            let rule = "soft-thinking:temperature=1:top_k=0:top_p=1:min_p=0:max_topk=7:noise=gumbel:tau=1e-6";
            row(rule, Start { seed: seed as u64, ..Start::default() })
        })
        .collect();
    let (_, report) = step::<B>(&mut rows, &vec![same.clone(); DRAWS], &vec![0; DRAWS]);
    let sum: f64 = same.iter().map(|&l| f64::from(l).exp()).sum();
    let chi: f64 = (0..7)
        .map(|token| {
            let expected = f64::from(same[token]).exp() / sum * DRAWS as f64;
            let found = report.iter().filter(|mix| mix.token == Some(token as u32)).count() as f64;
            (found - expected).powi(2) / expected
        })
        .sum();
    // A chi-square with 6 degrees of freedom is above 27.9 with a probability of 1e-4.
    assert!(chi < 27.9, "chi-square {chi}");
}

/// A seed repeats the noise, another seed changes it, and the other sequences do not affect it.
fn noise_is_seeded<B: Backend>() {
    for rule in ["soft-thinking:noise=gumbel", "soft-thinking:noise=dirichlet", "k-sample:k=5"] {
        let of = |seed| run::<B>(rule, Start { seed, ..Start::default() }, 6).0;
        assert_eq!(of(1), of(1), "{rule}");
        assert_ne!(of(1), of(2), "{rule}");
        let start = |seed| Start { seed, ..Start::default() };
        let mut rows = [row("moi", start(0)), row(rule, start(1)), row(rule, start(2))];
        for (t, alone) in of(1).iter().enumerate() {
            let all = vec![logits(t); 3];
            let (weights, _) = step::<B>(&mut rows, &all, &[0, (t % 5) as u32, 3]);
            close(&weights[1], alone, rule);
        }
    }
}

/// A rule applies between the markers or in a range; the token that ends the thinking is fed unmixed.
fn scopes<B: Backend>() {
    let mixes = |rule: &str, start: Start, tokens: &[u32]| {
        let mut rows = [row(rule, start)];
        let one = |&token: &u32| {
            let (weights, report) = step::<B>(&mut rows, &[logits(1)], &[token]);
            let recorded = report[0].token.unwrap_or(token);
            assert_eq!(report[0].gate > 0.0, weights[0][recorded as usize] < 1.0);
            if weights[0][recorded as usize] < 1.0 { 'm' } else { '.' }
        };
        tokens.iter().map(one).collect::<String>()
    };
    let thinking = Start { scope: Some(Scope::Thinking), markers: Some(MARKERS), ..Start::default() };
    for rule in ["moi", "direct", "k-sample:k=50", "swir", "selar:tau=0", "gate:gate=0.5"] {
        assert_eq!(mixes(rule, thinking, &[1, 5, 1, 2, 6, 1, 5, 1]), "..mm...m", "{rule}");
        assert_eq!(mixes(rule, Start { thinking: true, ..thinking }, &[1, 6, 1]), "m..", "{rule}");
        let range = Start { scope: Some("1..3".parse().unwrap()), ..Start::default() };
        assert_eq!(mixes(rule, range, &[1, 1, 1, 1]), ".mm.", "{rule}");
        let from = Start { scope: Some("2..".parse().unwrap()), ..Start::default() };
        assert_eq!(mixes(rule, from, &[1, 1, 1, 1]), "..mm", "{rule}");
    }
    assert_eq!(mixes("token", Start::default(), &[1, 2]), "..");
    // The default scope of rules for thinking is the thinking if the model has markers, else everything.
    let scope = |rule, markers| row(rule, Start { markers, ..Start::default() }).scope();
    for rule in ["soft-thinking", "k-sample", "swir", "selar"] {
        assert_eq!([scope(rule, Some(MARKERS)), scope(rule, None)], [Scope::Thinking, Scope::All], "{rule}");
    }
    for rule in ["token", "moi", "direct", "gate:gate=1"] {
        assert_eq!([scope(rule, Some(MARKERS)), scope(rule, None)], [Scope::All; 2], "{rule}");
    }
}

/// A cap ends the thinking, but not an answer: outside the markers blocks simply end, and no think marker is mixed
/// in.
fn a_cap_ends_thinking_alone<B: Backend>() {
    let run = |thinking| {
        let start = Start { scope: Some(Scope::All), markers: Some(MARKERS), thinking, ..Start::default() };
        let mut rows = [row("swir:cap=1:dwell=0", start)];
        let peaked = |t: f32| (0..7).map(|i| if i == 1 { t } else { 0.0 }).collect::<Vec<f32>>();
        let mut out = Vec::new();
        for t in [0.0, 3.0, 0.0] {
            let (weights, report) = step::<B>(&mut rows, &[peaked(t)], &[2]);
            out.push((report[0].token.unwrap(), weights[0][5] > 0.2 || weights[0][6] > 0.2));
        }
        out
    };
    assert_eq!(run(true), [(2, true), (6, true), (2, false)]);
    assert_eq!(run(false), [(2, false), (2, false), (2, false)]);
}

/// If the most likely token is the marker, it ends the thinking; after it, sampling is ordinary.
fn soft_thinking_ends_by_its_own_token<B: Backend>() {
    let mut ends = vec![0.0; 7];
    ends[6] = 9.0;
    let start = Start { markers: Some(MARKERS), thinking: true, ..Start::default() };
    let mut rows = [row("soft-thinking", start)];
    let (_, first) = step::<B>(&mut rows, &[logits(1)], &[2]);
    assert_eq!((first[0].gate, first[0].token), (1.0, Some(4)));
    let (weights, marker) = step::<B>(&mut rows, &[ends], &[2]);
    assert_eq!((marker[0].gate, marker[0].token), (0.0, Some(6)));
    close(&weights[0], &identity(7)[6], "the marker");
    let (weights, behind) = step::<B>(&mut rows, &[logits(1)], &[2]);
    assert_eq!(behind[0].token, Some(2));
    close(&weights[0], &identity(7)[2], "behind");
}

/// A cold stop comes at exactly its step, and a warm step resets the count.
fn cold_stop_at_exactly_its_step<B: Backend>() {
    let mut cold = vec![0.0; 7];
    cold[1] = 30.0;
    let run = |start: Start, warm: usize, steps: usize| {
        let mut rows = [row("soft-thinking:cold_stop=4", start)];
        let mut out = Vec::new();
        for t in 0..steps {
            let logits = if t == warm { logits(1) } else { cold.clone() };
            let (_, report) = step::<B>(&mut rows, &[logits], &[2]);
            out.push((report[0].token.unwrap(), report[0].ends));
        }
        out
    };
    let ended = |out: &[(u32, bool)]| out.iter().position(|step| step.1);
    let closed = |out: &[(u32, bool)]| out.iter().position(|step| step.0 == 6);
    let thinking = Start { markers: Some(MARKERS), thinking: true, ..Start::default() };
    let out = run(thinking, 99, 9);
    // The thinking ends at the fourth cold step. The answer is cold as well, and ends four steps later.
    assert_eq!((closed(&out), ended(&out)), (Some(3), Some(7)));
    let out = run(thinking, 2, 7);
    assert_eq!((closed(&out), ended(&out)), (Some(6), None));
    // Cold steps of the thinking do not count for the answer after it.
    let mut rows = [row("soft-thinking:cold_stop=4", thinking)];
    let mut out = Vec::new();
    for t in 0..8 {
        let mut logits = cold.clone();
        if t == 2 {
            logits[6] = 60.0;
        }
        out.push(step::<B>(&mut rows, &[logits], &[2]).1[0].ends);
    }
    // The thinking ends with its own token at step 2, so the answer's fourth cold step is 6.
    assert_eq!(out.iter().position(|&ends| ends), Some(6));
    // Without markers, everything is the answer.
    let out = run(Start::default(), 99, 4);
    assert_eq!((closed(&out), ended(&out)), (None, Some(3)));
    let never = Start { scope: Some(Scope::All), ..Start::default() };
    let mut rows = [row("soft-thinking:cold_stop=0", never)];
    assert!((0..9).all(|_| !step::<B>(&mut rows, std::slice::from_ref(&cold), &[2]).1[0].ends));
}

fn what_cannot_be_is_refused<B: Backend>() {
    let refused =
        |rule: &str, start: Start| RuleState::new(rule.parse().unwrap(), &start).unwrap_err().to_string();
    let thinking = Start { scope: Some(Scope::Thinking), ..Start::default() };
    assert!(refused("moi", thinking).contains("the scope `thinking` needs the tokens"));
    assert!(refused("swir:cap=2", Start::default()).contains("cap of swir"));
    let same = Start { markers: Some(Markers::new(3, 3)), ..Start::default() };
    assert!(refused("moi", same).contains("token 3 cannot both"));
    for text in ["all", "thinking", "0..5", "7.."] {
        assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
    }
    for text in ["", "some", "5..5", "6..2", "-1..2", "1...2", "x.."] {
        let said = text.parse::<Scope>().unwrap_err().to_string();
        assert!(said.contains("all, thinking or a range") && said.contains(&format!("`{text}`")), "{said}");
    }
    let device = B::Device::default();
    let (logits, tokens) = (Tensor::<B, 2>::zeros([1, 4], &device), Tensor::<B, 1, Int>::zeros([1], &device));
    let table = Tensor::<B, 2>::zeros([4, 2], &device);
    let error = next_inputs(logits, tokens, &table, &["swir".parse::<InputRule>().unwrap()], 0).unwrap_err();
    assert!(
        matches!(error, MixError::Rule { row: 0, .. }) && error.to_string().contains("`swir`"),
        "{error}"
    );
}

moi_tests::on_cpu_backends!(
    values_computed_elsewhere,
    limits,
    gumbel_samples,
    noise_is_seeded,
    scopes,
    soft_thinking_ends_by_its_own_token,
    a_cap_ends_thinking_alone,
    cold_stop_at_exactly_its_step,
    what_cannot_be_is_refused,
);
