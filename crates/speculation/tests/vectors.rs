//! Replays recorded inputs, uniform numbers and outcomes: those in `vectors/speculative.json`, and those of the
//! directory that `MOI_TEST_VECTORS` names, if it does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failure must end the test")]

use std::{collections::HashMap, env, fs, path::Path};

use moi_speculation::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    verify_step: Vec<Step>,
    acceptance: Vec<Acceptance>,
    lookup: Vec<Lookup>,
    template: Vec<Template>,
    vocab_trim: Vec<Trim>,
    recycling: Vec<Recycling>,
    generation: Generation,
}

#[derive(Deserialize)]
struct Step {
    verifier: String,
    p: Vec<f64>,
    q: Vec<f64>,
    u_draft: Vec<f64>,
    drafts: Vec<u32>,
    u_verify: Vec<f64>,
    token: u32,
    accepted: Option<usize>,
    rho: Option<f64>,
}

#[derive(Deserialize)]
struct Acceptance {
    p: Vec<f64>,
    q: Vec<f64>,
    n: usize,
    alpha_with: f64,
    alpha_without: f64,
    alpha_greedy: f64,
    k_seq_rho: f64,
    k_seq: f64,
}

#[derive(Deserialize)]
struct Lookup {
    tokens: Vec<u32>,
    length: usize,
    max_ngram: usize,
    min_ngram: usize,
    latest: bool,
    draft: Vec<u32>,
}

#[derive(Deserialize)]
struct Template {
    budget: usize,
    rates: Vec<f64>,
    max_depth: usize,
    paths: Vec<Vec<usize>>,
}

#[derive(Deserialize)]
struct Trim {
    q: Vec<f64>,
    kept: Vec<u32>,
    trimmed: Vec<f64>,
}

#[derive(Deserialize)]
struct Recycling {
    target: Toy,
    temperature: f64,
    width: usize,
    paths: Vec<Vec<usize>>,
    prompt: Vec<u32>,
    u: Vec<f64>,
    rounds: Vec<RecyclingRound>,
}

#[derive(Deserialize)]
struct RecyclingRound {
    tokens: Vec<u32>,
    parents: Vec<usize>,
    emitted: Vec<u32>,
    table: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Generation {
    target: Toy,
    draft: Toy,
    parameters: HashMap<String, Parameters>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Parameters {
    paths: Option<usize>,
    length: Option<usize>,
    branching: Option<Vec<usize>>,
    budget: Option<usize>,
    threshold: Option<f64>,
}

#[derive(Deserialize)]
struct Case {
    drafter: String,
    verifier: String,
    prompt: Vec<u32>,
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Round {
    tree: Tree,
    u_draft: Vec<f64>,
    u_verify: Vec<f64>,
    emitted: Vec<u32>,
    values: Option<Vec<f64>>,
}

#[derive(Deserialize)]
struct Tree {
    tokens: Vec<u32>,
    parents: Vec<usize>,
    drafts: Vec<Vec<u32>>,
}

/// A model that is a table: the distribution behind the last `order` tokens.
#[derive(Deserialize)]
struct Toy {
    order: usize,
    rows: HashMap<String, Vec<f64>>,
}

impl Toy {
    fn row(&self, tokens: &[u32]) -> Vec<f64> {
        let last = &tokens[tokens.len().saturating_sub(self.order)..];
        let key: Vec<String> = last.iter().map(u32::to_string).collect();
        self.rows[&key.join(",")].clone()
    }
}

/// Uniform numbers in a given order.
struct Given<'a>(std::slice::Iter<'a, f64>);

impl<'a> Given<'a> {
    fn new(numbers: &'a [f64]) -> Self {
        Self(numbers.iter())
    }

    fn source(&mut self) -> impl FnMut() -> f64 + use<'_, 'a> {
        || *self.0.next().expect("enough numbers")
    }

    fn end(mut self) {
        assert!(self.0.next().is_none(), "all numbers were used");
    }
}

fn verifier(name: &str) -> Verifier {
    match name {
        "match" => Verifier::Match,
        "rrs_without" => Verifier::WithoutReplacement,
        "rrs_with" => Verifier::WithReplacement,
        "k_seq" => Verifier::KSeq,
        "greedy" => Verifier::Greedy,
        other => panic!("an unknown verifier: {other}"),
    }
}

fn all() -> Vec<Vectors> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/speculative.json");
    let more =
        env::var_os("MOI_TEST_VECTORS").map(|directory| Path::new(&directory).join("speculative.json"));
    let read = |path: &Path| {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    std::iter::once(own).chain(more.filter(|path| path.exists())).map(|path| read(&path)).collect()
}

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-9, "{what}: {found} and not {expected}");
    }
}

#[test]
fn verifiers_choose_the_recorded_tokens() {
    for (index, step) in all().iter().flat_map(|vectors| &vectors.verify_step).enumerate() {
        let what = format!("step {index}, {}", step.verifier);
        let verifier = verifier(&step.verifier);
        let mut source = Given::new(&step.u_draft);
        let count = step.drafts.len();
        let rows = |_: &_, _| Ok::<_, ()>(step.q.clone());
        let tree = match verifier {
            Verifier::WithoutReplacement => draft_without_replacement(&[count], rows, &mut source.source()),
            Verifier::Greedy => draft_greedy(&[count], rows, &mut source.source()),
            _ => draft_paths(count, 1, rows, &mut source.source()),
        };
        source.end();
        assert_eq!(tree.unwrap().drafts(0), step.drafts, "{what}");
        let mut source = Given::new(&step.u_verify);
        let token = verifier.choose(&step.p, &step.q, &step.drafts, &mut source.source());
        source.end();
        assert_eq!(token, step.token, "{what}");
        assert_eq!(step.drafts.iter().position(|&draft| draft == token), step.accepted, "{what}");
        if let Some(expected) = step.rho {
            close(&[k_seq_division(&step.p, &step.q, count)], &[expected], &what);
        }
    }
}

#[test]
fn acceptance_is_as_computed_elsewhere() {
    for (index, case) in all().iter().flat_map(|vectors| &vectors.acceptance).enumerate() {
        let (p, q, n) = (&case.p, &case.q, case.n);
        let found = [
            optimal_acceptance(p, q, n, true),
            optimal_acceptance(p, q, n, false),
            greedy_acceptance(p, q, n),
            k_seq_division(p, q, n),
            k_seq_acceptance(p, q, n),
        ];
        let expected = [case.alpha_with, case.alpha_without, case.alpha_greedy, case.k_seq_rho, case.k_seq];
        close(&found, &expected, &format!("case {index}, {n} drafts"));
    }
}

#[test]
fn lookups_templates_and_trimmed_rows_are_as_recorded() {
    for vectors in all() {
        for case in vectors.lookup {
            let Lookup { tokens, length, max_ngram, min_ngram, latest, draft } = case;
            let mut index = LookupIndex::new(LookupSettings { max_ngram, min_ngram, latest, repeats: false });
            tokens.iter().for_each(|&token| index.push(token));
            assert_eq!(index.draft(length).tokens, draft, "{tokens:?}");
        }
        for Template { budget, rates, max_depth, paths } in vectors.template {
            assert_eq!(template(budget, &rates, max_depth), paths);
        }
        for Trim { q, kept, trimmed: expected } in vectors.vocab_trim {
            close(&trimmed(&q, &kept), &expected, "a trimmed row");
        }
    }
}

fn parents(tree: &DraftTree) -> Vec<usize> {
    tree.parents().into_iter().flatten().collect()
}

#[test]
fn recycling_replays() {
    for case in all().iter().flat_map(|vectors| &vectors.recycling) {
        let vocab = case.target.row(&[]).len();
        let mut table = RecyclingTable::new(vocab, case.width);
        let (mut text, mut source) = (case.prompt.clone(), Given::new(&case.u));
        for round in &case.rounds {
            let tree = table.draft(text[text.len() - 1], &case.paths);
            assert_eq!((tree.tokens(), parents(&tree)), (round.tokens.clone(), round.parents.clone()));
            let row = |path: &[u32]| case.target.row(&[&text[..], path].concat());
            let target = |path: &[u32]| match row(path) {
                row if case.temperature == 0.0 => {
                    let best = greedy_split(&row, 2).0[0] as usize;
                    (0..vocab).map(|id| f64::from(u8::from(id == best))).collect()
                }
                row => row,
            };
            let emitted = walk(&tree, Verifier::Match, &mut source.source(), &target);
            assert_eq!(emitted, round.emitted);
            for node in 0..tree.len() {
                let fed = tree.token(node).unwrap_or(text[text.len() - 1]);
                let logits: Vec<f32> = row(&tree.path(node)).iter().map(|p| p.ln() as f32).collect();
                table.learn(fed, &likeliest(&logits, case.width));
            }
            let rows: Vec<Vec<u32>> =
                (0..vocab as u32).map(|token| table.successors(token).to_vec()).collect();
            assert_eq!(rows, round.table);
            text.extend(emitted);
        }
        source.end();
    }
}

/// One round: the tokens of an accepted path and one more. `target` gives the model's distribution behind a path.
fn walk(
    tree: &DraftTree,
    verifier: Verifier,
    source: &mut dyn Chance,
    target: &dyn Fn(&[u32]) -> Vec<f64>,
) -> Vec<u32> {
    let (mut emitted, mut node) = (Vec::new(), 0);
    loop {
        let p = target(&emitted);
        let token = verifier.choose(&p, tree.row(node).unwrap_or(&[]), tree.drafts(node), source);
        emitted.push(token);
        match tree.child(node, token) {
            Some(child) => node = child,
            None => return emitted,
        }
    }
}

#[test]
fn generations_replay() {
    for vectors in all() {
        let Generation { target, draft, parameters, cases } = &vectors.generation;
        for case in cases {
            let given = &parameters[&case.drafter];
            let mut text = case.prompt.clone();
            for round in &case.rounds {
                let mut source = Given::new(&round.u_draft);
                let rows = |tree: &DraftTree, node: usize| {
                    Ok::<_, ()>(draft.row(&[&text[..], &tree.path(node)].concat()))
                };
                let (tree, values) = match (given.paths.zip(given.length), &given.branching) {
                    (Some((paths, length)), _) => {
                        (draft_paths(paths, length, rows, &mut source.source()), None)
                    }
                    (_, Some(branching)) if case.drafter == "greedy" => {
                        (draft_greedy(branching, rows, &mut source.source()), None)
                    }
                    (_, Some(branching)) => {
                        (draft_without_replacement(branching, rows, &mut source.source()), None)
                    }
                    _ => {
                        let growth = Growth {
                            nodes: given.budget.unwrap_or(usize::MAX),
                            threshold: given.threshold.unwrap_or(0.0),
                            ..Growth::default()
                        };
                        let (tree, values) = draft_dynamic(&growth, rows, &mut source.source()).unwrap();
                        (Ok(tree), Some(values))
                    }
                };
                source.end();
                let (tree, what) = (tree.unwrap(), &case.drafter);
                assert_eq!(
                    (tree.tokens(), parents(&tree)),
                    (round.tree.tokens.clone(), round.tree.parents.clone())
                );
                for (node, drafts) in round.tree.drafts.iter().enumerate() {
                    assert_eq!(tree.drafts(node), drafts, "{what}");
                }
                if let Some(expected) = &round.values {
                    close(&values.unwrap(), expected, what);
                }
                let mut source = Given::new(&round.u_verify);
                let row = |path: &[u32]| target.row(&[&text[..], path].concat());
                assert_eq!(
                    walk(&tree, verifier(&case.verifier), &mut source.source(), &row),
                    round.emitted,
                    "{what}"
                );
                source.end();
                text.extend(&round.emitted);
            }
        }
    }
}
