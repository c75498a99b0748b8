//! Invariants of the method on random logits, tables and rules.

use super::reference::{identity, layer, weight_form};
use burn::tensor::backend::Backend;
use moi::{InputRule, Moi, Support};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

fn support() -> impl Strategy<Value = Support> {
    prop_oneof![Just(Support::Full), (1usize..12).prop_map(Support::TopK)]
}

fn rule() -> impl Strategy<Value = InputRule> {
    prop_oneof![
        Just(InputRule::TOKEN),
        (0.0..16.0f64, support()).prop_map(|(beta, s)| InputRule::moi(beta, s).unwrap()),
        (0.0..16.0f64, support(), 0.0..0.9f64).prop_map(|(beta, support, floor)| InputRule::from(Moi {
            beta,
            support,
            floor
        })),
        support().prop_map(|s| InputRule::direct(s).unwrap()),
        (0.0..=1.0f64, support()).prop_map(|(gate, s)| InputRule::gate(gate, s).unwrap()),
    ]
}

/// The size of the vocabulary, and rows of (logits, token, rule).
type Batch = (usize, Vec<(Vec<f32>, usize, InputRule)>);

fn batch() -> impl Strategy<Value = Batch> {
    (1usize..9).prop_flat_map(|vocab| {
        let row = (vec(-20.0..20.0f32, vocab), 0..vocab, rule());
        (Just(vocab), vec(row, 1..5))
    })
}

fn unzip(rows: Vec<(Vec<f32>, usize, InputRule)>) -> (Vec<Vec<f32>>, Vec<usize>, Vec<InputRule>) {
    let mut all = (Vec::new(), Vec::new(), Vec::new());
    for (logits, y, rule) in rows {
        all.0.push(logits);
        all.1.push(y);
        all.2.push(rule);
    }
    all
}

fn check<S: Strategy>(strategy: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    TestRunner::new(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })
        .run(&strategy, test)
        .unwrap();
}

/// Weights are not negative and sum to 1, and the residual form equals the weight form, on an identity table.
fn weights_form_a_distribution<B: Backend>() {
    check(batch(), |(vocab, rows)| {
        let (logits, tokens, rules) = unzip(rows);
        let (inputs, report) = layer::<B>(&logits, &tokens, &identity(vocab), &rules, vocab);
        for r in 0..rules.len() {
            let sum: f32 = inputs[r].iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "sum {sum}");
            prop_assert!(inputs[r].iter().all(|&w| w >= -1e-7), "{:?}", inputs[r]);
            let wide: Vec<f64> = logits[r].iter().map(|&l| f64::from(l)).collect();
            let (entropy, weights) = weight_form(&wide, tokens[r], rules[r]);
            prop_assert!((f64::from(report[r].entropy) - entropy).abs() < 1e-5);
            for (found, expected) in inputs[r].iter().zip(&weights) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} is not {expected}");
            }
            for &(token, weight) in &report[r].top {
                prop_assert!((f64::from(weight) - weights[token as usize]).abs() < 1e-5);
            }
        }
        Ok(())
    });
}

/// The result of a row does not depend on the other rows of its batch.
fn rows_are_independent<B: Backend>() {
    let table = (2usize..6).prop_flat_map(|d| vec(vec(-3.0..3.0f32, d), 9));
    check((batch(), table), |((vocab, rows), table)| {
        let table = &table[..vocab];
        let (logits, tokens, rules) = unzip(rows);
        let (inputs, report) = layer::<B>(&logits, &tokens, table, &rules, 3);
        for r in 0..rules.len() {
            let (alone, alone_report) = layer::<B>(&logits[r..=r], &tokens[r..=r], table, &rules[r..=r], 3);
            for (a, b) in inputs[r].iter().zip(&alone[0]) {
                prop_assert!((a - b).abs() <= 1e-5, "{a} is not {b}");
            }
            prop_assert!((report[r].gate - alone_report[0].gate).abs() <= 1e-6);
        }
        Ok(())
    });
}

/// A larger beta mixes less, down to the token's own embedding.
fn beta_to_infinity_is_the_token<B: Backend>() {
    check((vec(-5.0..5.0f32, 6), 0usize..6, support()), |(logits, y, support)| {
        let distance = |beta| {
            let rule = InputRule::moi(beta, support).unwrap();
            let (inputs, _) = layer::<B>(std::slice::from_ref(&logits), &[y], &identity(6), &[rule], 0);
            1.0 - inputs[0][y]
        };
        let far: Vec<f32> = [0.0, 1.0, 8.0, 1e3, 1e9].map(distance).to_vec();
        prop_assert!(far.is_sorted_by(|a, b| a + 1e-6 >= *b), "{far:?}");
        prop_assert!(far[4] < 1e-6, "{far:?}");
        Ok(())
    });
}

/// Mixed and plain inputs differ unless the distribution is one-hot, so mixing always has an effect.
fn mixing_changes_the_input<B: Backend>() {
    check((vec(-2.0..2.0f32, 6), 0usize..6), |(logits, y)| {
        let rules = [InputRule::default(), InputRule::TOKEN];
        let (inputs, _) = layer::<B>(&[logits.clone(), logits], &[y, y], &identity(6), &rules, 0);
        let moved: f32 = inputs[0].iter().zip(&inputs[1]).map(|(a, b)| (a - b).abs()).sum();
        prop_assert!(moved > 1e-3, "moved {moved}");
        Ok(())
    });
}

moi_tests::on_cpu_backends!(
    weights_form_a_distribution,
    rows_are_independent,
    beta_to_infinity_is_the_token,
    mixing_changes_the_input,
);
