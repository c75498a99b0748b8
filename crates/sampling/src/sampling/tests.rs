//! Tests of several samplers together.

use super::*;
use std::collections::BTreeMap;

use crate::{History, KnobKind};
use proptest::prelude::*;

fn left(sampling: &Sampling, logits: &[f32], history: History) -> Result<Vec<u32>, SamplingError> {
    let mut candidates = Candidates::new(logits);
    sampling.apply(&mut candidates, &Past::new(history))?;
    Ok(candidates.probabilities().into_iter().map(|(id, _)| id).collect())
}

#[test]
fn the_order_is_data() {
    let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
    let sampling =
        Sampling { temperature: 1.0.into(), top_k: 2.into(), top_p: 0.75.into(), ..Sampling::default() };
    // Top-k leaves two of the four tokens, with .57 and .43, and both are needed for .75. Top-p alone needs three.
    assert_eq!(left(&sampling, &logits, History::default()).unwrap(), [0, 1]);
    let only = |steps: &[SamplingStep]| Sampling { samplers: steps.to_vec(), ..sampling.clone() };
    use SamplingStep::{MinP, Temperature, TopK, TopP};
    assert_eq!(left(&only(&[TopP]), &logits, History::default()).unwrap(), [0, 1, 2]);
    assert_eq!(left(&only(&[]), &logits, History::default()).unwrap(), [0, 1, 2, 3]);
    assert!(sampling.is_plain() && only(&[Temperature, TopK, TopP, MinP]).is_plain());
    assert!(!only(&[TopP, TopK]).is_plain() && !only(&[Temperature, TopP, TopK, MinP]).is_plain());
    assert!(!Sampling { banned: vec![1], ..sampling.clone() }.is_plain());
    assert!(!Sampling { typical: 0.5.into(), ..sampling }.is_plain());
}

#[test]
fn bans_penalties_and_ngrams_compose() {
    let history = History::new(&[1, 2, 1]);
    let sampling = Sampling { banned: vec![0], no_repeat_ngram: 2.into(), ..Sampling::default() };
    assert_eq!(left(&sampling, &[9.0, 5.0, 8.0, 4.0], history.clone()).unwrap(), [1]);
    let sampling = Sampling { repetition: 2.0.into(), ..sampling };
    assert_eq!(left(&sampling, &[9.0, 5.0, 8.0, 4.0], history.clone()).unwrap(), [3]);
    let all = Sampling { banned: vec![0, 1, 2], ..Sampling::default() };
    assert_eq!(left(&all, &[0.0; 3], history.clone()), Err(SamplingError::NothingLeft));
    let rest = Sampling { banned: vec![0], temperature: 1.0.into(), ..Sampling::default() };
    assert_eq!(left(&rest, &[0.0, f32::NEG_INFINITY], history), Err(SamplingError::NothingLeft));
}

#[test]
fn penalties_alone_leave_filters_out() {
    let sampling = Sampling {
        temperature: 0.5.into(),
        top_k: 1.into(),
        banned: vec![3],
        logit_bias: BTreeMap::from([(1, 2.0)]).into(),
        presence: 0.5.into(),
        ..Sampling::default()
    };
    let mut history = History::new(&[0]);
    history.push(2);
    let mut candidates = Candidates::new(&[1.0; 4]);
    sampling.penalise(&mut candidates, &Past::new(history));
    let logits: Vec<(u32, f64)> = candidates.iter().map(|c| (c.id, c.logit)).collect();
    assert_eq!(logits, [(0, 1.0), (1, 3.0), (2, 0.5)]);
    assert!(sampling.has_penalties());
    assert!(!Sampling { temperature: 0.5.into(), top_k: 3.into(), ..Sampling::default() }.has_penalties());
}

#[test]
fn values_are_named() {
    let none = Sampling::default();
    let cases = [
        (
            Sampling { temperature: (-1.0).into(), ..none.clone() },
            "temperature must be 0 (greedy) or from 0.0001",
        ),
        (Sampling { temperature: f64::NAN.into(), ..none.clone() }, "temperature"),
        (Sampling { temperature: 1e-310.into(), ..none.clone() }, "temperature must be"),
        (Sampling { top_p: 0.0.into(), ..none.clone() }, "top-p must be above 0"),
        (Sampling { min_p: 1.5.into(), ..none.clone() }, "min-p must be between 0 and 1, got 1.5"),
        (Sampling { typical: f64::INFINITY.into(), ..none.clone() }, "typical-p"),
        (Sampling { top_n_sigma: (-1.0).into(), ..none.clone() }, "top-n-sigma"),
        (Sampling { repetition: 0.0.into(), ..none.clone() }, "repetition-penalty must be above 0"),
        (Sampling { presence: f64::NAN.into(), ..none.clone() }, "presence-penalty must be finite"),
        (
            Sampling { logit_bias: BTreeMap::from([(3, f64::INFINITY)]).into(), ..none.clone() },
            "bias of token 3",
        ),
        (Sampling { dry: Dry { base: 0.5, ..Dry::default() }, ..none.clone() }, "dry-base must be 1 or more"),
        (
            Sampling { mirostat: Mirostat { version: 1, ..Mirostat::default() }, ..none.clone() },
            "mirostat must be 0 (off) or 2",
        ),
        (Sampling { samplers: vec![SamplingStep::TopK; 2], ..none }, "`top-k` is given twice"),
    ];
    for (sampling, part) in cases {
        let said = sampling.check().unwrap_err().to_string();
        assert!(said.contains(part), "{said}");
    }
    let unknown = "top_k".parse::<SamplingStep>().unwrap_err().to_string();
    assert!(unknown.contains("`top_k`") && unknown.contains("top-k, typical"), "{unknown}");
}

#[test]
fn it_is_plain_data() {
    let text = r#"{"temperature":0.7,"banned":[3],"logit_bias":{"5":-1.0},"samplers":["top-k","min-p"]}"#;
    let sampling: Sampling = serde_json::from_str(text).unwrap();
    assert_eq!(sampling.logit_bias.0[&5], -1.0);
    assert_eq!(sampling.samplers, [SamplingStep::TopK, SamplingStep::MinP]);
    let back: Sampling = serde_json::from_str(&serde_json::to_string(&sampling).unwrap()).unwrap();
    assert_eq!(back, sampling);
    assert!(serde_json::from_str::<Sampling>(r#"{"tempersture":1}"#).is_err());
    let twice = serde_json::from_str::<Sampling>(r#"{"top_k":1,"top_k":2}"#).unwrap_err().to_string();
    assert!(twice.contains("duplicate field `top_k`"), "{twice}");
    for step in SamplingStep::ALL {
        assert_eq!(step.name().parse(), Ok(*step));
        assert_eq!(serde_json::to_string(step).unwrap(), format!("\"{step}\""));
    }
}

#[test]
fn knobs_are_set_by_their_keys() {
    let mut sampling = Sampling::default();
    let texts = |kind| match kind {
        KnobKind::Number => vec!["0.25"],
        KnobKind::Count | KnobKind::Integer => vec!["3"],
        KnobKind::Texts => vec!["a", "b"],
        KnobKind::ByToken => vec![],
    };
    let json = |sampling: &Sampling| serde_json::to_value(sampling).unwrap();
    let none = json(&sampling);
    for knob in Sampling::knobs().into_iter().filter(|knob| knob.kind != KnobKind::ByToken) {
        assert!(!knob.help.is_empty() && none.get(knob.key).is_some(), "{knob:?}");
        sampling.set(knob.key, &texts(knob.kind)).unwrap();
        assert_ne!(json(&sampling)[knob.key], none[knob.key], "{knob:?}");
        let wrong = sampling.set(knob.key, &["x"]);
        assert_eq!(wrong.is_err(), knob.kind != KnobKind::Texts, "{knob:?}");
    }
    assert_eq!(sampling.dry.sequence_breakers, ["x"]);
    sampling.set("dry_sequence_breakers", &["none"]).unwrap();
    assert!(sampling.dry.sequence_breakers.is_empty());
    let said = sampling.set("top-k", &["1"]).unwrap_err().to_string();
    assert_eq!(said, "no sampler has `top-k`");
    let wrong = sampling.set("top_p", &["high"]).unwrap_err().to_string();
    assert_eq!(wrong, "top-p must be a number, got high");
    let flags: Vec<String> = Sampling::knobs().iter().map(Knob::flag).collect();
    assert!(flags.contains(&"dry-sequence-breaker".to_owned()) && flags.contains(&"typical-p".to_owned()));
}

fn dry() -> impl Strategy<Value = Dry> {
    let parts = (0.0..2.0f64, 1.0..3.0f64, 0usize..3, -1i64..5);
    parts.prop_map(|(multiplier, base, allowed_length, penalty_last_n)| Dry {
        multiplier,
        base,
        allowed_length,
        penalty_last_n,
        ..Dry::default()
    })
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let filters = (0.0..2.0f64, 0usize..6, 0.01..=1.0f64, 0.0..=1.0f64, 0.01..=1.0f64, 0.0..3.0f64);
    let penalties = (0.5..2.0f64, -1.0..1.0f64, -1.0..1.0f64, 0usize..4, dry(), (0.0..=1.0f64, 0.0..=1.0f64));
    let order = Just(SamplingStep::ALL.to_vec()).prop_shuffle();
    (filters, penalties, order).prop_map(|(f, p, samplers)| Sampling {
        // Temperatures below 1e-4 are refused, except for 0.
        temperature: if f.0 < 1e-4 { 0.0 } else { f.0 }.into(),
        top_k: f.1.into(),
        top_p: f.2.into(),
        min_p: f.3.into(),
        typical: f.4.into(),
        top_n_sigma: f.5.into(),
        repetition: p.0.into(),
        presence: p.1.into(),
        frequency: p.2.into(),
        penalty_window: p.3.into(),
        dry: p.4,
        xtc: Xtc { probability: p.5.0, threshold: p.5.1 },
        mirostat: Mirostat { version: p.3 / 2 * 2, tau: f.0 + 0.1, ..Mirostat::default() },
        samplers,
        ..Sampling::default()
    })
}

proptest! {
    /// Whatever the values and their order, a candidate is left, and a draw returns one that is left.
    #[test]
    fn something_is_always_left(
        sampling in sampling(),
        logits in proptest::collection::vec(-30.0..30.0f32, 1..12),
        history in proptest::collection::vec(0u32..12, 0..6),
        (uniform, chance) in (0.0..1.0f64, 0.0..1.0f64),
    ) {
        sampling.check().unwrap();
        let mut candidates = Candidates::new(&logits);
        let mut past = Past::new(History::new(&history));
        past.chance = chance;
        sampling.apply(&mut candidates, &past).unwrap();
        let probabilities = candidates.clone().probabilities();
        let sum: f64 = probabilities.iter().map(|p| p.1).sum();
        prop_assert!((sum - 1.0).abs() < 1e-12);
        let token = candidates.draw(uniform);
        prop_assert!(probabilities.iter().any(|p| p.0 == token));
    }
}
