//! Tests of `--speculate`.

use moi_tests::process::{ids, json, numbers, refused, run, tiny};
use serde_json::Value;

use super::{real_model, text};

/// Whatever drafts, the tokens are those of a run without drafts; the result says what drafting did.
#[test]
fn drafts_change_no_token() {
    let model = real_model();
    let repeated = "red green blue yellow ".repeat(6);
    let args = |more: &[&str]| {
        let common =
            ["generate", "--model", &model, "--quantize", "file", "--raw", &repeated, "--rule", "token"];
        let sampled = ["--temperature", "0.5", "--seed", "3", "--max-tokens", "48", "--ignore-eos"];
        json(&[&common[..], &sampled, more].concat())
    };
    let plain = args(&[]);
    assert!(plain.get("speculation").is_none() && plain["steps"][0].get("drafted").is_none());
    let own = format!("model:{model}");
    for (drafter, name) in [
        ("lookup", "lookup"),
        ("recycling", "recycling"),
        ("auto", "auto"),
        (own.as_str(), "model"),
        ("layers:0-14,20-29", "model"),
    ] {
        let found = args(&["--speculate", drafter, "--draft-min-p", "0"]);
        assert_eq!(numbers(&found["tokens"]), numbers(&plain["tokens"]), "{drafter}");
        let report = &found["speculation"];
        let number = |key: &str| report[key].as_u64().unwrap();
        assert_eq!((report["drafter"].as_str(), number("tokens")), (Some(name), 48), "{drafter}");
        assert!(number("rounds") <= 48 && number("accepted") <= number("drafted"), "{report}");
        assert_eq!(number("rounds") + number("accepted"), 48, "{report}");
        let steps = found["steps"].as_array().unwrap();
        let drafted = steps.iter().filter(|step| step["drafted"] == Value::Bool(true)).count() as u64;
        assert_eq!(drafted, number("accepted"), "{drafter}");
    }
    let out = run(&[
        "generate",
        "--model",
        &model,
        "--quantize",
        "file",
        "--raw",
        &repeated,
        "--rule",
        "token",
        "--max-tokens",
        "9",
        "--speculate",
        "lookup",
        "--stats",
    ]);
    let said = text(&out.stderr);
    assert!(said.contains("speculation by lookup: 9 tokens in"), "{said}");
}

/// Under a rule that always mixes, inputs are guessed, too: the same tokens up to rounding, and what was let through is
/// told.
#[test]
fn mixtures_are_guessed() {
    let model = real_model();
    let repeated = "red green blue yellow ".repeat(6);
    let args = |more: &[&str]| {
        let common = ["generate", "--model", &model, "--raw", &repeated, "--rule", "moi", "--seed", "3"];
        json(&[&common[..], &["--temperature", "0", "--max-tokens", "32", "--ignore-eos"], more].concat())
    };
    let plain = args(&[]);
    let found = args(&["--speculate", "lookup"]);
    assert_eq!(numbers(&found["tokens"]), numbers(&plain["tokens"]));
    let report = &found["speculation"];
    assert!(report["worst"].as_f64().unwrap() <= 1e-6 && report["verify"] == "match", "{report}");
    // Whether drafting rests depends on the machine.
    let found = args(&["--speculate", "lookup", "--speculate-tolerance", "0.01", "--speculate-window", "12"]);
    assert!(found["speculation"]["worst"].as_f64().unwrap() <= 0.01);
    let lenient = ["--speculate", "lookup", "--speculate-tolerance", "0.01", "--format", "text", "--stats"];
    let said = run(&[
        &["generate", "--model", &model, "--raw", &repeated, "--rule", "moi", "--max-tokens", "24"],
        &lenient[..],
    ]
    .concat());
    assert!(text(&said.stderr).contains("speculation by lookup: 24 tokens in"), "{}", text(&said.stderr));
}

/// What recycling has learned is kept for later runs: a second run of a text accepts more than the first.
#[test]
fn the_table_of_successors_is_kept() {
    let model = real_model();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("successors");
    let table = path.to_str().unwrap();
    let base = ["generate", "--model", &model, "--quantize", "file", "--rule", "token", "--temperature", "0"];
    let asked = ["--max-tokens", "40", "--ignore-eos", "--speculate", "recycling", "Name ten rivers."];
    let kept = [&base[..], &asked, &["--draft-table", table]].concat();
    let (first, second) = (json(&kept), json(&kept));
    assert_eq!(numbers(&first["tokens"]), numbers(&second["tokens"]));
    let accepted = |found: &Value| found["speculation"]["accepted"].as_u64().unwrap();
    assert!(accepted(&second) > accepted(&first), "{} and {}", accepted(&first), accepted(&second));
    // A word for the width, and eight successors of each of 49,152 tokens.
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 * (1 + 8 * 49_152));
    std::fs::write(&path, "something else").unwrap();
    refused(&kept, &["is no table of this model's 49152 tokens", "remove it"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "something else");
    let lookup = [&base[..], &["--speculate", "lookup", "--draft-table", table, "a"]].concat();
    refused(&lookup, &["--draft-table keeps what recycling drafts from"]);
    refused(&[&base[..], &asked, &["--draft-table", "/nowhere/t"]].concat(), &["/nowhere"]);
}

/// Drafts that are drawn and then accepted or rejected: without temperature the tokens of a run without drafts.
#[test]
fn drawn_drafts_are_verified() {
    let model = real_model();
    let own = format!("model:{model}");
    let args = |more: &[&str]| {
        let common = ["generate", "--model", &model, "--quantize", "file", "--rule", "token", "A story."];
        json(&[&common[..], &["--max-tokens", "24", "--ignore-eos", "--seed", "1"], more].concat())
    };
    for verify in ["rejection", "k-seq", "greedy"] {
        let drafts = ["--speculate", &own, "--verify", verify, "--draft-min-p", "0"];
        let found = args(&[&drafts[..], &["--temperature", "0"]].concat());
        assert_eq!(numbers(&found["tokens"]), numbers(&args(&["--temperature", "0"])["tokens"]), "{verify}");
        assert_eq!(found["speculation"]["verify"], verify);
        let sampled = [&drafts[..], &["--temperature", "0.8"]].concat();
        assert_eq!(numbers(&args(&sampled)["tokens"]).len(), 24, "{verify}");
    }
}

#[test]
fn what_cannot_draft_is_refused() {
    let (golden, path) = tiny("llama");
    let tokens = ids(&golden.cases.tokens[..5]);
    let base = ["generate", "--model", &path, "--tokens", &tokens, "--max-tokens", "4"];
    let refuses = |more: &[&str], parts: &[&str]| refused(&[&base[..], more].concat(), parts);
    refuses(
        &["--speculate", "lookup", "--speculate-tolerance", "0"],
        &["a mixture behind every token", "tolerance of 0", "moi:floor=F"],
    );
    refuses(&["--rule", "direct", "--speculate", "lookup"], &["nothing but a mixture", "set a tolerance"]);
    refuses(&["--speculate", "lookup", "--speculate-tolerance", "1.5"], &["from 0 to below 1, got 1.5"]);
    refuses(&["--speculate", "lookup", "--speculate-window", "1"], &["from 2 to 49, got 1"]);
    refuses(
        &["--rule", "token", "--speculate", "lookup", "--verify", "greedy"],
        &["`greedy` verifies drafts"],
    );
    refuses(
        &["--rule", "token", "--verify", "guess"],
        &["`guess` verifies nothing", "match, rejection, k-seq"],
    );
    refuses(&["--speculate", "guess"], &["`guess` drafts nothing", "recycling, model:PATH, layers:SPEC"]);
    refuses(
        &["--rule", "token", "--speculate", "layers:99"],
        &["layers:99", "there is no layer 99; the model has 3"],
    );
    refuses(&["--rule", "token", "--speculate", "layers:3-1"], &["0-9,20-29"]);
    refuses(&["--rule", "token", "--speculate", "model:/nowhere"], &["/nowhere"]);
    let other = format!("model:{path}");
    refuses(&["--rule", "token", "--speculate", &other], &["cannot draft", "no tokenizer"]);
    refuses(&["--rule", "token", "--speculate", "lookup", "--draft-budget", "0"], &["from 1 to 48, got 0"]);
    refuses(
        &["--rule", "token", "--speculate", "lookup", "--draft-tokens", "0"],
        &["draft tokens must be 1 or more"],
    );
    refuses(&["--rule", "token", "--speculate", "lookup", "--draft-min-p", "2"], &["from 0 to 1, got 2"]);
    // A floor makes drafts possible, and is part of the rule's name.
    let floor = [&base[..], &["--rule", "moi:floor=0.1", "--speculate", "lookup"]].concat();
    let found = json(&floor);
    assert_eq!(found["rule"]["floor"], 0.1);
    assert!(found["steps"].as_array().unwrap().iter().all(|step| {
        let gate = step["gate"].as_f64().unwrap();
        gate == 0.0 || gate >= 0.1
    }));
}
