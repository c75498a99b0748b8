use super::*;

#[test]
fn rules_are_read_and_written() {
    let full = Support::Full;
    for (text, rule, spec) in [
        ("token", InputRule::TOKEN, "token"),
        ("moi", InputRule::default(), "moi"),
        ("moi:beta=1:support=full", InputRule::default(), "moi"),
        ("moi:support=20", InputRule::moi(1.0, Support::TopK(20)).unwrap(), "moi:support=20"),
        (
            "moi:beta=-0.5,support=8",
            InputRule::moi(-0.5, Support::TopK(8)).unwrap(),
            "moi:beta=-0.5:support=8",
        ),
        ("moi: beta = 0.25", InputRule::moi(0.25, full).unwrap(), "moi:beta=0.25"),
        ("direct:support=full", InputRule::direct(full).unwrap(), "direct"),
        ("direct:support=3", InputRule::direct(Support::TopK(3)).unwrap(), "direct:support=3"),
        ("gate:gate=0.3", InputRule::gate(0.3, full).unwrap(), "gate:gate=0.3"),
        (
            "gate:support=20:gate=1",
            InputRule::gate(1.0, Support::TopK(20)).unwrap(),
            "gate:gate=1:support=20",
        ),
        (
            "soft-thinking:noise=gumbel:max-topk=5",
            SoftThinking { noise: Noise::Gumbel, max_topk: Some(5), ..SoftThinking::default() }.into(),
            "soft-thinking:max_topk=5:noise=gumbel",
        ),
        ("soft-thinking:cold_stop=auto", SoftThinking::default().into(), "soft-thinking"),
        ("k-sample:k=1", KSample { k: 1 }.into(), "k-sample:k=1"),
        ("swir:dwell=9:cap=0", Swir { dwell: 9, ..Swir::default() }.into(), "swir:dwell=9"),
        ("selar:tau=0.25", Selar { tau: 0.25, ..Selar::default() }.into(), "selar:tau=0.25"),
    ] {
        assert_eq!(text.parse(), Ok(rule), "{text}");
        assert_eq!(rule.spec(), spec);
        assert_eq!(spec.parse(), Ok(rule));
        let json = serde_json::to_string(&rule).unwrap();
        assert_eq!(serde_json::from_str::<InputRule>(&json).unwrap(), rule, "{json}");
    }
}

#[test]
fn texts_that_are_no_rules_are_named() {
    let names = "token, moi, direct, gate, soft-thinking, k-sample, swir and selar";
    let cases: &[(&str, &[&str])] = &[
        ("", &[names]),
        ("mio", &["`mio`", names]),
        ("support=20", &["`support=20`", names]),
        ("token:beta=1", &["`token` has no knobs", "`beta`"]),
        ("moi:gate=1", &["`moi` has no `gate`", "beta, support and floor"]),
        ("moi:beta", &["`beta` is no KNOB=VALUE"]),
        ("moi:beta=much", &["beta must be a number", "`much`"]),
        ("moi:beta=1:beta=2", &["beta is given twice"]),
        ("moi:beta=-1", &["beta must be finite and above -1"]),
        ("moi:beta=nan", &["beta must be finite and above -1, got NaN"]),
        ("moi:support=0", &["support must be `full` or a number of tokens, 1 or more, got `0`"]),
        ("moi:support=half", &["`full` or a number", "`half`"]),
        ("gate", &["`gate` needs gate=F, 0 to 1"]),
        ("gate:gate=2", &["gate must be between 0 and 1, got 2"]),
        ("soft-thinking:noise=some", &["noise must be none, gumbel or dirichlet, got `some`"]),
        ("soft-thinking:temperature=0", &["temperature must be above 0"]),
        ("soft-thinking:max_topk=0", &["max_topk must be 1 or more"]),
        ("soft-thinking:tau=inf", &["tau must be above 0, and finite, got inf"]),
        ("soft-thinking:alpha=0", &["alpha must be above 0"]),
        ("soft-thinking:cold_stop=-1", &["cold_stop must be a number, 0 or more, or `auto`"]),
        ("k-sample:k=0", &["k must be 1 or more, and at most 100000, got 0"]),
        ("k-sample:k=18446744073709551615", &["k must be 1 or more, and at most"]),
        ("soft-thinking:temperature=1e-310", &["temperature must be"]),
        ("swir:a0=1.5", &["a0 must be between 0 and 1"]),
        ("swir:dwell=x", &["dwell must be a number, 0 or more, got `x`"]),
        ("selar:k=0", &["k must be 1 or more"]),
        ("selar:tau=2", &["tau must be between 0 and 1"]),
        ("selar:lambda=-1", &["lambda must be 0 or more"]),
        ("moi:floor=2", &["floor must be from 0 to 1"]),
    ];
    for (text, parts) in cases {
        let said = text.parse::<InputRule>().unwrap_err().to_string();
        assert!(parts.iter().all(|part| said.contains(part)), "{text}: {said}");
    }
}

/// Every rule has the same name in JSON and elsewhere, and a help text for itself and each knob.
#[test]
fn every_rule_has_one_name_and_explains_itself() {
    for rule in InputRule::all() {
        let json = serde_json::to_value(rule).unwrap();
        assert_eq!(json["rule"], rule.name());
        assert_eq!(InputRule::named(rule.name()).map(|rule| rule.name()), Ok(rule.name()));
        assert!(!rule.help().is_empty());
        let keys: Vec<&str> =
            json.as_object().unwrap().keys().map(String::as_str).filter(|key| *key != "rule").collect();
        assert_eq!(rule.knobs().iter().map(|knob| knob.name).collect::<Vec<_>>(), keys);
        assert!(rule.knobs().iter().all(|knob| !knob.help.is_empty()));
        assert_eq!(
            rule.gated().is_some(),
            rule.steps(&Start::default()).unwrap().is_none(),
            "{}",
            rule.name()
        );
    }
}
