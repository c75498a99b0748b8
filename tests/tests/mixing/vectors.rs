//! The test vectors of the method's specification, and its named properties.

use super::reference::{identity, layer, weight_form};
use burn::tensor::{Int, Tensor, backend::Backend};
use moi::{InputRule, MixError, Moi, RuleError, Support, next_inputs};

fn moi(beta: f64, support: Support) -> InputRule {
    InputRule::moi(beta, support).unwrap()
}

fn ln(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

fn close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= tolerance, "{found:?} is not {expected:?}");
    }
}

type Vector = (Support, &'static [f32], usize, f64, f32, &'static [f32]);

/// Support, p, y, beta, H, and the expected weights.
const VECTORS: &[Vector] = &[
    (Support::Full, &[0.6, 0.3, 0.1], 1, 1.0, 0.817345, &[0.245204, 0.713929, 0.040867]),
    (Support::Full, &[0.6, 0.3, 0.1], 0, 1.0, 0.817345, &[0.836531, 0.122602, 0.040867]),
    (Support::Full, &[0.5, 0.3, 0.15, 0.05], 2, 1.0, 0.823865, &[0.205966, 0.123580, 0.649857, 0.020597]),
    (Support::Full, &[0.5, 0.3, 0.15, 0.05], 2, 0.0, 0.823865, &[0.411933, 0.247160, 0.299714, 0.041193]),
    (Support::Full, &[0.5, 0.3, 0.15, 0.05], 2, 4.0, 0.823865, &[0.082387, 0.049432, 0.859943, 0.008239]),
    (Support::Full, &[0.25, 0.25, 0.25, 0.25], 0, 1.0, 1.0, &[0.625, 0.125, 0.125, 0.125]),
    (Support::Full, &[1.0, 0.0, 0.0, 0.0], 0, 1.0, 0.0, &[1.0, 0.0, 0.0, 0.0]),
    (Support::TopK(3), &[0.5, 0.3, 0.15, 0.05], 2, 1.0, 0.904112, &[0.237924, 0.142754, 0.619321, 0.0]),
    (Support::TopK(2), &[0.5, 0.3, 0.15, 0.05], 0, 1.0, 0.954434, &[0.821044, 0.178956, 0.0, 0.0]),
];

fn spec_vectors<B: Backend>() {
    for &(support, p, y, beta, entropy, weights) in VECTORS {
        let table = identity(p.len());
        let (inputs, rows) = layer::<B>(&[ln(p)], &[y], &table, &[moi(beta, support)], p.len());
        close(&[rows[0].entropy], &[entropy], 1e-6);
        close(&inputs[0], weights, 1e-6);
        for &(token, weight) in &rows[0].top {
            close(&[weight], &[weights[token as usize]], 1e-6);
        }
        let nonzero = weights.iter().filter(|&&w| w > 0.0).count();
        assert_eq!(rows[0].top.len(), nonzero, "{:?}", rows[0].top);
        assert!(rows[0].top.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

const P: &[f32] = &[0.5, 0.3, 0.15, 0.05];

/// If y is outside the support, the weights of the residual form still sum to 1.
fn sampled_outside_the_support<B: Backend>() {
    let rule = moi(1.0, Support::TopK(2));
    let (inputs, rows) = layer::<B>(&[ln(P)], &[3], &identity(4), &[rule], 4);
    let gate = 0.954434 / 2.0;
    close(&inputs[0], &[gate * 0.625, gate * 0.375, 0.0, 1.0 - gate], 1e-6);
    assert_eq!(rows[0].top[0].0, 3);
    close(&[rows[0].gate], &[gate], 1e-6);
}

/// If beta is very large, H is 0 or p is one-hot, the input is the token's embedding.
fn limits_are_standard_decoding<B: Backend>() {
    let table = identity(4);
    let token = layer::<B>(&[ln(P)], &[2], &table, &[InputRule::TOKEN], 4).0;
    close(&token[0], &table[2], 0.0);
    let far = layer::<B>(&[ln(P)], &[2], &table, &[moi(f64::MAX, Support::Full)], 4).0;
    close(&far[0], &table[2], 0.0);
    let single = layer::<B>(&[ln(P)], &[2], &table, &[moi(1.0, Support::TopK(1))], 4);
    close(&single.0[0], &table[2], 0.0);
    assert_eq!(single.1[0].entropy, 0.0);
    let one_hot = ln(&[0.0, 0.0, 1.0, 0.0]);
    for rule in [moi(1.0, Support::Full), moi(0.0, Support::TopK(20)), moi(0.25, Support::TopK(2))] {
        let (inputs, rows) = layer::<B>(std::slice::from_ref(&one_hot), &[2], &table, &[rule], 4);
        close(&inputs[0], &table[2], 0.0);
        assert_eq!((rows[0].entropy, rows[0].gate), (0.0, 0.0));
    }
}

/// If beta is 0 and H is 1, the input is qE, like that of `direct`.
fn uniform_with_beta_zero_is_direct<B: Backend>() {
    let uniform = vec![vec![0.3; 4]];
    let moi = layer::<B>(&uniform, &[1], &identity(4), &[moi(0.0, Support::Full)], 0).0;
    let direct = InputRule::direct(Support::Full).unwrap();
    let direct = layer::<B>(&uniform, &[1], &identity(4), &[direct], 0).0;
    close(&moi[0], &[0.25; 4], 1e-6);
    close(&direct[0], &[0.25; 4], 1e-6);
}

/// All rules in one batch must give what each gives alone.
fn rows_keep_their_own_rules<B: Backend>() {
    let rules = [
        InputRule::TOKEN,
        moi(1.0, Support::Full),
        InputRule::direct(Support::TopK(2)).unwrap(),
        InputRule::gate(0.3, Support::Full).unwrap(),
        moi(0.25, Support::TopK(2)),
        InputRule::TOKEN,
    ];
    let logits: Vec<Vec<f32>> = (0..6).map(|r| (0..5).map(|i| ((r * 5 + i) % 7) as f32).collect()).collect();
    let tokens = [0, 1, 2, 3, 4, 0];
    let (inputs, rows) = layer::<B>(&logits, &tokens, &identity(5), &rules, 3);
    for r in 0..rules.len() {
        let alone = layer::<B>(&logits[r..=r], &tokens[r..=r], &identity(5), &rules[r..=r], 3);
        close(&inputs[r], &alone.0[0], 1e-6);
        close(&[rows[r].entropy, rows[r].gate], &[alone.1[0].entropy, alone.1[0].gate], 1e-6);
        assert_eq!(rows[r].top.len(), alone.1[0].top.len());
        let reference =
            weight_form(&logits[r].iter().map(|&l| f64::from(l)).collect::<Vec<_>>(), tokens[r], rules[r]);
        let reference: Vec<f32> = reference.1.iter().map(|&w| w as f32).collect();
        close(&inputs[r], &reference, 1e-6);
    }
}

/// A beta between -1 and 0 mixes by more than H, but never gives the token a negative weight.
fn negative_beta_is_clamped<B: Backend>() {
    for beta in [-0.5, -0.999_999_999_999] {
        let (inputs, rows) = layer::<B>(&[vec![0.0; 4]], &[1], &identity(4), &[moi(beta, Support::Full)], 4);
        assert_eq!(rows[0].gate, 1.0);
        close(&inputs[0], &[0.25; 4], 1e-6);
    }
}

fn sizes_are_checked<B: Backend>() {
    let device = B::Device::default();
    let table = Tensor::<B, 2>::zeros([4, 2], &device);
    let logits = |batch, vocab| Tensor::<B, 2>::zeros([batch, vocab], &device);
    let tokens = |batch| Tensor::<B, 1, Int>::zeros([batch], &device);
    let error =
        |logits, tokens, rules: &[InputRule]| next_inputs(logits, tokens, &table, rules, 1).unwrap_err();
    let shape = |what, expected, found| MixError::Shape { what, expected, found };
    assert_eq!(error(logits(1, 5), tokens(1), &[InputRule::TOKEN]), shape("rows of the embedding", 5, 4));
    assert_eq!(error(logits(2, 4), tokens(1), &[InputRule::TOKEN; 2]), shape("tokens", 2, 1));
    assert_eq!(error(logits(2, 4), tokens(2), &[InputRule::TOKEN]), shape("rules", 2, 1));
    assert_eq!(error(logits(0, 4), tokens(0), &[]), MixError::Empty { what: "rows of the batch" });
    let bad = InputRule::from(Moi { beta: -1.0, ..Moi::default() });
    let found = error(logits(2, 4), tokens(2), &[InputRule::TOKEN, bad]);
    assert_eq!(
        found,
        MixError::Rule {
            row: 1,
            error: RuleError::Value { knob: "beta", allowed: "finite and above -1", value: "-1".into() }
        }
    );
    assert_eq!(found.to_string(), "rule of row 1: beta must be finite and above -1, got -1");
}

moi_tests::on_cpu_backends!(
    spec_vectors,
    sampled_outside_the_support,
    limits_are_standard_decoding,
    uniform_with_beta_zero_is_direct,
    rows_keep_their_own_rules,
    negative_beta_is_clamped,
    sizes_are_checked,
);

#[test]
fn refuses_values_by_name() {
    for beta in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -2.5] {
        let error = InputRule::moi(beta, Support::Full).unwrap_err().to_string();
        assert!(error.contains("beta") && error.contains(&beta.to_string()), "{error}");
    }
    for gate in [f64::NAN, -0.1, 1.1] {
        assert!(InputRule::gate(gate, Support::Full).unwrap_err().to_string().contains("gate"));
    }
    let zero = RuleError::Value { knob: "support", allowed: "1 or more tokens", value: "0".into() };
    assert_eq!(InputRule::direct(Support::TopK(0)), Err(zero.clone()));
    assert_eq!("0".parse::<Support>(), Err(zero));
    assert!("some".parse::<Support>().unwrap_err().to_string().contains("`some`"));
}

#[test]
fn rules_are_plain_data() {
    let json = |rule: &InputRule| serde_json::to_string(rule).unwrap();
    assert_eq!(json(&InputRule::default()), r#"{"rule":"moi","beta":1.0,"support":"full","floor":0.0}"#);
    assert_eq!(json(&moi(0.25, Support::TopK(20))), r#"{"rule":"moi","beta":0.25,"support":20,"floor":0.0}"#);
    assert_eq!(json(&InputRule::TOKEN), r#"{"rule":"token"}"#);
    let parse = |text: &str| serde_json::from_str::<InputRule>(text);
    assert_eq!(parse(r#"{"rule":"moi"}"#).unwrap(), InputRule::default());
    assert_eq!(parse(r#"{"rule":"gate","gate":0.5}"#).unwrap(), InputRule::gate(0.5, Support::Full).unwrap());
    assert_eq!(
        parse(r#"{"rule":"direct","support":20}"#).unwrap(),
        InputRule::direct(Support::TopK(20)).unwrap()
    );
    for bad in [
        r#"{"rule":"mio"}"#,
        r#"{"rule":"moi","betta":1}"#,
        r#"{"rule":"moi","support":0}"#,
        r#"{"rule":"moi","support":-3}"#,
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
