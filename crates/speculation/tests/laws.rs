//! What verifying keeps, by enumeration of all outcomes: the law of the model that verifies, whatever was drafted.

use std::collections::BTreeMap;

use moi_speculation::*;
use proptest::prelude::*;

/// Follows one path of decisions; [`law`] walks all of them.
struct Path {
    /// Which outcome is taken, of how many, for each decision.
    taken: Vec<(usize, usize)>,
    at: usize,
    probability: f64,
}

impl Path {
    fn choose(&mut self, outcomes: &[(usize, f64)]) -> Option<usize> {
        let possible: Vec<_> = outcomes.iter().filter(|(_, probability)| *probability > 0.0).collect();
        if self.at == self.taken.len() {
            self.taken.push((0, possible.len()));
        }
        let &&(value, probability) = possible.get(self.taken[self.at].0)?;
        self.at += 1;
        self.probability *= probability;
        Some(value)
    }
}

impl Chance for Path {
    fn accept(&mut self, probability: f64) -> bool {
        let yes = probability.clamp(0.0, 1.0);
        self.choose(&[(1, yes), (0, 1.0 - yes)]) == Some(1)
    }

    fn draw(&mut self, weights: &[f64]) -> Option<usize> {
        let sum: f64 = weights.iter().sum();
        self.choose(&weights.iter().map(|weight| weight / sum).enumerate().collect::<Vec<_>>())
    }
}

/// The probability of each outcome of `run`.
fn law<T: Ord>(mut run: impl FnMut(&mut Path) -> T) -> BTreeMap<T, f64> {
    let (mut law, mut taken) = (BTreeMap::new(), Vec::new());
    loop {
        let mut path = Path { taken, at: 0, probability: 1.0 };
        let value = run(&mut path);
        *law.entry(value).or_insert(0.0) += path.probability;
        taken = path.taken;
        while taken.last().is_some_and(|&(outcome, of)| outcome + 1 >= of) {
            taken.pop();
        }
        match taken.last_mut() {
            Some(last) => last.0 += 1,
            None => return law,
        }
    }
}

/// A distribution over `vocab` tokens, with zeros in places.
fn distribution(vocab: usize) -> impl Strategy<Value = Vec<f64>> {
    let weight = prop_oneof![1 => Just(0u32), 5 => 1u32..100];
    prop::collection::vec(weight, vocab).prop_filter_map("something", |weights| {
        let sum: u32 = weights.iter().sum();
        (sum > 0).then(|| weights.iter().map(|&weight| f64::from(weight) / f64::from(sum)).collect())
    })
}

fn drafted(verifier: Verifier, q: &[f64], count: usize, source: &mut dyn Chance) -> DraftTree {
    let rows = |_: &_, _| Ok::<_, ()>(q.to_vec());
    let tree = match verifier {
        Verifier::WithoutReplacement => draft_without_replacement(&[count], rows, source),
        Verifier::Greedy => draft_greedy(&[count], rows, source),
        _ => draft_paths(count, 1, rows, source),
    };
    tree.unwrap_or_default()
}

const ALL: [Verifier; 5] = [
    Verifier::Match,
    Verifier::WithoutReplacement,
    Verifier::WithReplacement,
    Verifier::KSeq,
    Verifier::Greedy,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn tokens_follow_the_model(
        (p, q) in (2usize..5).prop_flat_map(|vocab| (distribution(vocab), distribution(vocab))),
        count in 0usize..4,
    ) {
        for verifier in ALL {
            let outcomes = law(|source| {
                let tree = drafted(verifier, &q, count, source);
                let token = verifier.choose(&p, &q, tree.drafts(0), source);
                (token, tree.drafts(0).contains(&token))
            });
            for (token, expected) in p.iter().enumerate() {
                let of = |accepted| outcomes.get(&(token as u32, accepted)).copied().unwrap_or(0.0);
                let found = of(true) + of(false);
                prop_assert!((found - expected).abs() < 1e-9, "{verifier:?}: {token} has {found}, not {expected}");
            }
            // No verifier accepts more than can be accepted, and each one by its own formula.
            let accepted: f64 = outcomes.iter().filter(|((_, accepted), _)| *accepted).map(|(_, p)| p).sum();
            let supply = q.iter().filter(|q| **q > 0.0).count();
            let with = verifier != Verifier::WithoutReplacement && verifier != Verifier::Greedy;
            if verifier != Verifier::Greedy && (with || count <= supply) {
                let most = optimal_acceptance(&p, &q, count, with);
                prop_assert!(accepted <= most + 1e-7, "{verifier:?}: {accepted} of {most}");
            }
            match verifier {
                Verifier::KSeq => prop_assert!(accepted >= k_seq_acceptance(&p, &q, count) - 1e-9),
                Verifier::Greedy if count > 0 && count <= supply => {
                    prop_assert!((accepted - greedy_acceptance(&p, &q, count)).abs() < 1e-9);
                }
                _ => {}
            }
        }
    }

    /// A tree of several layers, whose shape depends on what was drawn: two tokens by rounds, and by the model alone.
    #[test]
    fn rounds_follow_the_model(rows in prop::collection::vec(distribution(3), 6), nodes in 0usize..5) {
        let (target, draft) = rows.split_at(3);
        let round = |source: &mut Path, text: u32| {
            let rows = |tree: &DraftTree, node: usize| {
                Ok::<_, ()>(draft[tree.token(node).unwrap_or(text) as usize].clone())
            };
            let growth = Growth { nodes, ..Growth::default() };
            let (tree, _) = draft_dynamic(&growth, rows, source).unwrap_or_default();
            let (mut emitted, mut node, mut last) = (Vec::new(), 0, text);
            loop {
                let row = tree.row(node).unwrap_or(&[]);
                let p = &target[last as usize];
                last = Verifier::WithoutReplacement.choose(p, row, tree.drafts(node), source);
                emitted.push(last);
                match tree.child(node, last) {
                    Some(child) => node = child,
                    None => return emitted,
                }
            }
        };
        let found = law(|source| {
            let mut text = vec![0];
            while text.len() < 3 {
                let last = text[text.len() - 1];
                text.extend(round(source, last));
            }
            (text[1], text[2])
        });
        for (a, first) in (0u32..).zip(&target[0]) {
            for (b, second) in (0u32..).zip(&target[a as usize]) {
                let found = found.get(&(a, b)).copied().unwrap_or(0.0);
                prop_assert!((found - first * second).abs() < 1e-9, "{a}, {b}: {found}");
            }
        }
    }
}

/// Frequencies over many draws, by a generator: chi-square against the model's distribution.
#[test]
fn frequencies_follow_the_model() {
    let (p, q) = ([0.5, 0.0, 0.2, 0.29, 0.01], [0.1, 0.4, 0.0, 0.45, 0.05]);
    // A linear congruential generator: numbers for a test need no better one.
    let mut state = 7u64;
    let mut source = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    const DRAWS: usize = 100_000;
    for verifier in ALL {
        let mut counts = [0.0; 5];
        for _ in 0..DRAWS {
            let tree = drafted(verifier, &q, 2, &mut source);
            counts[verifier.choose(&p, &q, tree.drafts(0), &mut source) as usize] += 1.0;
        }
        let expected = p.map(|p| p * DRAWS as f64);
        let terms = counts.iter().zip(&expected).filter(|(_, expected)| **expected > 0.0);
        let chi: f64 = terms.map(|(found, expected)| (found - expected).powi(2) / expected).sum();
        // Three degrees of freedom: 21.1 is passed once in ten thousand.
        assert!(chi < 21.1 && counts[1] == 0.0, "{verifier:?}: {counts:?}");
    }
}
