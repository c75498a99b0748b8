//! Tests of the features that other servers lack: a rule per request, its mixtures, and forks.

use serde_json::{Value, json};

use crate::{CHAT, TEXT, content, question, server, with};

fn steps(answer: &Value, choice: usize) -> Vec<Value> {
    answer["choices"][choice]["moi"]["steps"].as_array().unwrap().clone()
}

/// One choice per rule, with the same seed; each must be what its rule gives alone.
#[test]
fn rules_are_compared_in_one_request() {
    let server = server();
    let base = || with(question("Tell me of the sea.", 30), json!({"temperature": 0.8, "seed": 11}));
    let rules = json!(["token", "moi", {"rule": "moi", "beta": 0.25}, "soft-thinking:max_topk=5"]);
    let moi = json!({"rules": rules, "mix_scope": "all"});
    let answer = server.ask(CHAT, &with(base(), json!({"moi": moi})));
    let choices = answer["choices"].as_array().unwrap();
    let named: Vec<&str> = choices.iter().map(|choice| choice["moi"]["rule"].as_str().unwrap()).collect();
    assert_eq!(named, ["token", "moi", "moi:beta=0.25", "soft-thinking:max_topk=5"]);
    for (choice, rule) in choices.iter().zip(&named) {
        let alone = with(base(), json!({"moi": {"rule": rule, "mix_scope": "all"}}));
        assert_eq!(json!(content(&server.ask(CHAT, &alone))), choice["message"]["content"], "{rule}");
        assert_eq!(choice["moi"]["seed"], 11);
    }
    let texts: std::collections::BTreeSet<_> =
        choices.iter().map(|c| c["message"]["content"].as_str().unwrap()).collect();
    assert!(texts.len() > 2, "{texts:?}");
    assert_eq!(choices[0]["moi"]["mean_gate"], 0.0);
    assert!(choices[2]["moi"]["mean_gate"].as_f64() > Some(0.0));
}

/// Each token comes with its mixture in the chunk of its text.
#[test]
fn mixtures_are_told_as_they_come() {
    let server = server();
    let body = with(
        question("An emoji, please: 🦀", 25),
        json!({"moi": {"rule": "moi", "trace": 4}, "temperature": 0}),
    );
    let whole = server.ask(CHAT, &body);
    let events = server.stream(CHAT, &body);
    let traced: Vec<Value> = events
        .iter()
        .map(|event| event["choices"][0]["moi"].clone())
        .filter(|moi| moi.get("i").is_some())
        .collect();
    assert_eq!(json!(traced), whole["choices"][0]["moi"]["steps"]);
    assert_eq!(traced.len() as u64, whole["usage"]["completion_tokens"].as_u64().unwrap());
    for (at, step) in traced.iter().enumerate() {
        assert_eq!(step["i"], at);
        let weights: Vec<f64> =
            step["top"].as_array().unwrap().iter().map(|top| top[2].as_f64().unwrap()).collect();
        let gate = step["gate"].as_f64().unwrap();
        assert!(weights.len() <= 4 && weights.is_sorted_by(|a, b| a >= b), "{step}");
        // MoI with beta 1: the gate is half the entropy, and the token keeps the rest of the weight.
        assert!((gate - step["entropy"].as_f64().unwrap() / 2.0).abs() < 1e-6, "{step}");
        let own = step["top"].as_array().unwrap().iter().find(|top| top[0] == step["token"]);
        assert!(own.unwrap()[2].as_f64().unwrap() >= 1.0 - gate - 1e-6, "{step}");
    }
    // A request without `trace` gets no steps.
    let quiet = server.ask(CHAT, &with(body, json!({"moi": {"rule": "moi"}})));
    assert!(quiet["choices"][0]["moi"].get("steps").is_none());
}

/// With the seed and the tokens of another answer, the mixtures and the following tokens must be the same to the bit.
/// With another token at the end, the answer differs from there on.
#[test]
fn forced_tokens_are_an_exact_fork() {
    let server = server();
    for rule in ["token", "moi", "direct", "soft-thinking", "k-sample", "selar", "swir", "gate:gate=0.3"] {
        let moi = |force: &[Value]| json!({"rule": rule, "mix_scope": "all", "trace": 8, "force": force});
        let body = |force: &[Value]| {
            json!({"prompt": "It was a dark", "max_tokens": 14, "temperature": 0.9, "seed": 2, "ignore_eos": true,
                   "logprobs": 5, "moi": moi(force), "return_token_ids": true})
        };
        let first = server.ask(TEXT, &body(&[]));
        let ids = first["choices"][0]["token_ids"].as_array().unwrap().clone();
        assert_eq!(ids.len(), 14);
        for count in [9, 14] {
            let again = server.ask(TEXT, &body(&ids[..count]));
            assert_eq!(again["choices"], first["choices"], "{rule}, {count} tokens forced");
        }
        let mut other = ids[..9].to_vec();
        let likeliest = first["choices"][0]["logprobs"]["top_logprobs"][9].as_object().unwrap();
        let own = first["choices"][0]["logprobs"]["tokens"][9].as_str().unwrap();
        let token = likeliest.keys().find(|text| *text != own && !text.contains(':')).unwrap();
        let new = server.ask("/tokenize", &json!({"prompt": token, "add_special_tokens": false}))["tokens"]
            [0]
        .clone();
        other.push(new.clone());
        let fork = server.ask(TEXT, &body(&other));
        let (before, after) = (steps(&first, 0), steps(&fork, 0));
        assert_eq!(before[..9], after[..9], "{rule}");
        assert_eq!(after[9]["token"], new, "{rule}");
        assert_eq!(after[9]["entropy"], before[9]["entropy"], "{rule}");
        assert_eq!(steps(&server.ask(TEXT, &body(&other)), 0), after, "{rule}");
    }
}

/// A mixed answer becomes a prompt of plain tokens in the next turn, whatever is cached of it, in both orders.
#[test]
fn mixtures_are_never_shared_by_their_tokens() {
    let server = server();
    let long = "Say something of the weather in the north, and of the sea. ".repeat(8);
    let ask = |rule: &str, salt: &str, prompt: Value| {
        let body = json!({
            "prompt": prompt, "max_tokens": 90, "temperature": 0, "ignore_eos": true, "logprobs": 2, "seed": 1,
            "moi": {"rule": rule, "mix_scope": "all"}, "cache_salt": salt, "return_token_ids": true,
        });
        server.ask(TEXT, &body)["choices"][0].clone()
    };
    let ids = server.ask("/tokenize", &json!({"prompt": long}))["tokens"].as_array().unwrap().clone();
    let mixed = ask("moi:beta=0.25", "a", json!(ids));
    let next: Vec<Value> = ids.iter().chain(mixed["token_ids"].as_array().unwrap()).cloned().collect();
    // After the mixture with the same salt, and with a salt under which nothing was mixed.
    assert_eq!(ask("token", "a", json!(next)), ask("token", "b", json!(next)));
    // The mixture again, after plain tokens with the same ids.
    let again = ask("moi:beta=0.25", "a", json!(ids));
    assert_eq!((&again["token_ids"], &again["logprobs"]), (&mixed["token_ids"], &mixed["logprobs"]));
}

#[test]
fn rules_are_listed() {
    let server = server();
    let rules = server.get("/v1/moi/rules").json()["data"].as_array().unwrap().clone();
    assert!(rules.iter().any(|rule| rule["rule"] == "moi" && rule["knobs"][0]["name"] == "beta"));
    assert_eq!(server.get("/v1/moi/runs").json()["running"], 0);
}

/// Drafts must change no answer, and are counted. What cannot gain is refused where a request asks for it.
#[test]
fn drafts_change_no_answer() {
    let server = server();
    let base =
        json!({"prompt": "one two three four ".repeat(8), "max_tokens": 40, "temperature": 0.3, "seed": 5});
    let asked = |moi: Value| server.ask(TEXT, &with(base.clone(), json!({"moi": moi})));
    let plain = asked(json!({"rule": "token"}));
    let counts = |answer: &Value| {
        let details = &answer["usage"]["completion_tokens_details"];
        ["accepted_prediction_tokens", "rejected_prediction_tokens"].map(|key| details[key].as_u64().unwrap())
    };
    assert_eq!(counts(&plain), [0, 0]);
    for drafter in ["lookup", "recycling", "auto"] {
        let drafted = asked(json!({"rule": "token", "speculate": drafter, "draft_tokens": 5}));
        assert_eq!(drafted["choices"][0]["text"], plain["choices"][0]["text"], "{drafter}");
        // How many drafts pay depends on the machine.
        let tokens = drafted["usage"]["completion_tokens"].as_u64().unwrap();
        assert!(counts(&drafted)[0] <= tokens, "{drafter}: {:?}", counts(&drafted));
    }
    let floor = |speculate: &str| asked(json!({"rule": "moi", "floor": 0.05, "speculate": speculate}));
    let (drafted, plain) = (floor("lookup"), floor("none"));
    assert_eq!(drafted["choices"][0]["text"], plain["choices"][0]["text"]);
    assert_eq!(drafted["choices"][0]["moi"]["rule"], "moi:floor=0.05");
    for (moi, param) in [
        (json!({"rule": "moi", "speculate": "lookup", "speculate_tolerance": 0}), "moi.speculate"),
        (json!({"rule": "moi", "speculate": "lookup", "speculate_tolerance": 2}), "moi.speculate_tolerance"),
        (json!({"rule": "moi", "speculate": "lookup", "speculate_window": 1}), "moi.speculate_window"),
        (json!({"rule": "token", "speculate": "lookup", "verify": "k-seq"}), "moi.verify"),
        (json!({"rule": "token", "speculate": "lookup", "verify": "guess"}), "moi.verify"),
        (json!({"rule": "token", "speculate": "guessing"}), "moi.speculate"),
        (json!({"rule": "token", "speculate": "lookup", "draft_budget": 99}), "moi.draft_budget"),
        (json!({"rule": "token", "speculate": "lookup", "draft_tokens": 0}), "moi.draft_tokens"),
    ] {
        let refused = server.post(TEXT, &with(base.clone(), json!({"moi": moi})));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(param)), "{moi}");
    }
}
