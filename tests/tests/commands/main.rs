//! Tests of the commands that show what a rule does, and of the sources of flag values.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod settings;
mod speculation;
mod trace;

use moi_tests::{
    process::{fed, ids, json, numbers, refused, run, tiny},
    real::model_file,
};
use serde_json::Value;

fn real_model() -> String {
    model_file("smollm2-135m-instruct").to_str().unwrap().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_rule_runs_by_its_name_and_is_listed() {
    let model = real_model();
    let listed = json(&["rules"]);
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = words(&text(&run(&["rules"]).stdout));
    for rule in listed.as_array().unwrap() {
        let name = rule["rule"].as_str().unwrap();
        assert!(text.contains(name) && text.contains(&words(rule["help"].as_str().unwrap())), "{name}");
        let spec = if name == "gate" { "gate:gate=0.2" } else { name };
        let sampled = ["--temperature", "0.7", "--seed", "1", "--max-tokens", "6", "--quantize", "file"];
        let found = json(&[&["generate", "--model", &model, "Hi", "--rule", spec], &sampled[..]].concat());
        assert_eq!(found["rule"]["rule"], name);
        assert_eq!(found["steps"].as_array().unwrap().len(), 6, "{name}");
    }
    assert_eq!(listed.as_array().unwrap().len(), 8);
}

#[test]
fn a_comparison_marks_where_texts_part() {
    let model = real_model();
    let base =
        ["compare", "--model", &model, "--quantize", "file", "--temperature", "0", "--max-tokens", "30"];
    let args = [&base[..], &["--rules", "token,moi:support=20,token", "Tell me of octopuses."]].concat();
    let found = json(&args);
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    assert_eq!((&runs[0]["agreement"], &runs[2]["agreement"]), (&Value::Null, &1.0.into()));
    assert_eq!(runs[2]["parts_at"], Value::Null);
    let tokens = |run: &Value| {
        run["steps"].as_array().unwrap().iter().map(|step| step["token"].clone()).collect::<Vec<_>>()
    };
    let (first, second) = (tokens(&runs[0]), tokens(&runs[1]));
    let parts = runs[1]["parts_at"].as_u64().unwrap() as usize;
    assert_eq!(first[..parts], second[..parts]);
    assert_ne!(first[parts], second[parts]);
    // The tokens must be those of a generation alone.
    let alone = json(
        &[
            &[
                "generate",
                "--model",
                &model,
                "--quantize",
                "file",
                "--temperature",
                "0",
                "--max-tokens",
                "30",
            ],
            &["--rule", "moi:support=20", "Tell me of octopuses."][..],
        ]
        .concat(),
    );
    assert_eq!(alone["tokens"], Value::Array(second));
    let table = text(&run(&args).stdout);
    for part in ["moi:support=20", "PARTS AT", "¦", "100.0%", &parts.to_string()] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains('\u{1b}'), "colours in a pipe");
    refused(&[&base[..], &["--rules", "token,mio", "x"]].concat(), &["`mio`"]);
}

#[test]
fn a_score_is_a_perplexity_of_all_windows() {
    let model = real_model();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("text.txt");
    let words = "The sea is calm tonight. The tide is full, the moon lies fair upon the straits. ".repeat(6);
    std::fs::write(&file, &words).unwrap();
    let file = file.to_str().unwrap();
    let score = |args: &[&str]| json(&[&["score", "--model", &model, file], args].concat());
    let whole = score(&["--logprobs", "2"]);
    let steps = whole["steps"].as_array().unwrap();
    assert_eq!(whole["tokens"].as_u64().unwrap() as usize, steps.len() - 1);
    assert_eq!(steps[0]["logprob"], Value::Null);
    let logprobs: Vec<f64> = steps[1..].iter().map(|step| step["logprob"].as_f64().unwrap()).collect();
    let mean = -logprobs.iter().sum::<f64>() / logprobs.len() as f64;
    assert!((whole["perplexity"].as_f64().unwrap() / mean.exp() - 1.0).abs() < 1e-9);
    let bits = mean * logprobs.len() as f64 / words.len() as f64 / 2f64.ln();
    assert!((whole["bits_per_byte"].as_f64().unwrap() - bits).abs() < 1e-9);
    assert_eq!(steps[5]["logprobs"].as_array().unwrap().len(), 2);
    // Later windows know less of the earlier text, so the perplexity is a little worse, but every token occurs once.
    let windows = score(&["--window", "32", "--overlap", "16"]);
    assert_eq!(windows["tokens"], whole["tokens"]);
    let of = |found: &Value| found["perplexity"].as_f64().unwrap();
    assert!(of(&windows) > of(&whole) && of(&windows) < 20.0 * of(&whole), "{} {}", of(&windows), of(&whole));
    let first = |found: &Value| found["steps"][20]["logprob"].as_f64().unwrap();
    assert!((first(&windows) - first(&whole)).abs() < 1e-3);
    let line = text(&fed(&["score", "--model", &model, "-"], &words).stdout);
    assert!(line.starts_with(&format!("perplexity {:.4}", of(&whole))), "{line}");
    refused(
        &["score", "--model", &model, file, "--window", "8", "--overlap", "8"],
        &["less than the window", "8"],
    );
    refused(&["score", "--model", &model, "/no/such.txt"], &["/no/such.txt"]);
}

#[test]
fn a_conversation_keeps_its_cache() {
    let model = real_model();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kept.json");
    let file = file.to_str().unwrap();
    let chat = ["chat", "--model", &model, "--quantize", "file", "--temperature", "0", "--max-tokens", "16"];
    let lines = format!(
        "Say hello.\n/stats\nAnd now?\n/stats\n/retry\n/rule\n/beta 0.5\n/system Be brief.\n/save {file}\n"
    );
    let out = fed(&chat, &lines);
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{stderr}");
    assert!(stdout.lines().count() >= 3, "{stdout}");
    let cached = |line: &str| {
        let number = |before: &str| {
            let at = line.find(before).unwrap();
            line[..at].trim_end().rsplit([' ', ';']).next().unwrap().parse::<usize>().unwrap()
        };
        (number(" prompt tokens"), number(" were cached"))
    };
    let stats: Vec<(usize, usize)> =
        stderr.lines().filter(|line| line.contains("were cached")).map(cached).collect();
    assert_eq!(stats[0].1, 0);
    // The second turn must run only its question, after the cached first turn.
    assert!(stats[1].1 >= stats[0].0 && stats[1].0 > stats[1].1 && stats[1].1 > 0, "{stats:?}");
    assert!(stderr.contains("moi (beta 0.5, support full, floor 0)"), "{stderr}");
    let kept: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let roles: Vec<&str> = kept["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    let out = fed(&[&chat[..], &["--load", file]].concat(), "/undo\nGo on.\n");
    assert!(out.status.success() && text(&out.stderr).contains("5 messages, "), "{}", text(&out.stderr));
    for (line, part) in [("/nosuch\n", "there is no command /nosuch"), ("/retry\n", "nothing was asked yet")]
    {
        let out = fed(&chat, line);
        assert!(!out.status.success() && text(&out.stderr).contains(part), "{}", text(&out.stderr));
    }
    let (_, path) = tiny("llama");
    refused(&["chat", "--model", &path], &["no tokenizer"]);
}

#[test]
fn answers_follow_a_grammar() {
    let model = real_model();
    let schema = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer"}},
                     "required":["name","age"],"additionalProperties":false}"#;
    let base = ["generate", "--model", &model, "--quantize", "file", "--max-tokens", "80", "--seed", "2"];
    let sampled = ["--temperature", "0.8", "A person, please."];
    for rule in ["token", "moi:support=20", "soft-thinking:max_topk=3", "k-sample"] {
        let args = [&base[..], &["--rule", rule, "--json-schema", schema], &sampled].concat();
        let found = json(&args);
        let answer: Value = serde_json::from_str(found["text"].as_str().unwrap()).unwrap();
        assert!(answer["name"].is_string() && answer["age"].is_i64(), "{rule}: {answer}");
        assert!(["eos", "grammar"].contains(&found["stop_reason"].as_str().unwrap()), "{found}");
    }
    let args =
        [&base[..], &["--regex", "(yes|no), (I|we) (do|don't)\\.", "--mix-constrained"], &sampled].concat();
    let found = json(&args);
    let answer = found["text"].as_str().unwrap();
    assert!(answer.starts_with("yes, ") || answer.starts_with("no, "), "{answer}");
    assert!(answer.ends_with("do.") || answer.ends_with("don't."), "{answer}");
    // With --mix-constrained, the first mixtures contain only "yes", "no" and their beginnings.
    let mixed = |args: &[&str]| {
        let own =
            ["compare", "--model", &model, "--quantize", "file", "--max-tokens", "3", "--rules", "direct"];
        let found = json(&[&own[..], &["--regex", "(yes|no), .*", "A word, please."], args].concat());
        let top = found["runs"][0]["steps"][0]["top"].as_array().unwrap().clone();
        top.iter().map(|weight| weight["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let begins = |text: &String| ["yes,", "no,"].iter().any(|word| word.starts_with(text.as_str()));
    assert!(mixed(&["--mix-constrained"]).iter().all(begins), "{:?}", mixed(&["--mix-constrained"]));
    assert!(!mixed(&[]).iter().all(begins), "{:?}", mixed(&[]));
    // Thoughts are not constrained, whatever the rule and its scope; the answer after them is. Here the markers of
    // the chat template serve as think markers, and the prompt has already opened the thinking.
    let marked =
        ["--think-open", "<|im_start|>", "--think-close", "<|im_end|>", "--ignore-eos", "--temperature", "0"];
    let closes = ["--logit-bias", "<|im_end|>=1000", "--regex", "[0-9]{5}", "Five digits."];
    for rule in ["token", "moi", "moi:support=20", "soft-thinking", "k-sample", "swir"] {
        for scope in ["all", "thinking", "0..9"] {
            let args = [&base[..], &marked, &closes, &["--rule", rule, "--mix-scope", scope]].concat();
            let found = json(&args);
            let answer = found["text"].as_str().unwrap();
            assert!(
                answer.len() == 5 && answer.bytes().all(|byte| byte.is_ascii_digit()),
                "{rule}, {scope}: {found}"
            );
            assert_eq!(found["stop_reason"], "grammar");
        }
    }
    refused(&[&base[..], &["--regex", "(", "x"]].concat(), &["the grammar cannot be used"]);
    refused(&[&base[..], &["--json-schema", "{", "x"]].concat(), &["--json-schema is not valid JSON"]);
    refused(&[&base[..], &["--grammar", "/no/such.lark", "x"]].concat(), &["/no/such.lark"]);
    refused(&[&base[..], &["--mix-constrained", "x"]].concat(), &["--mix-constrained needs"]);
}

#[test]
fn samplers_and_samples_of_the_command_line() {
    let (golden, path) = tiny("llama");
    let prompt = ids(&golden.cases.tokens);
    let base = ["generate", "--model", &path, "--tokens", &prompt, "--max-tokens", "6"];
    let of = |args: &[&str]| json(&[&base[..], args].concat());
    let several = of(&["-n", "3", "--temperature", "1", "--logprobs", "2", "--seed", "3"]);
    let samples = several["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    for (sample, seed) in samples.iter().zip(3..) {
        assert_eq!(sample["seed"], seed);
        let alone = of(&["--temperature", "1", "--seed", &seed.to_string()]);
        assert_eq!(sample["tokens"], alone["tokens"]);
        assert_eq!(sample["steps"][0]["logprobs"].as_array().unwrap().len(), 2);
    }
    let greedy = numbers(&of(&["--temperature", "0"])["tokens"]);
    let ban = greedy[0].to_string();
    assert_ne!(numbers(&of(&["--temperature", "0", "--ban", &ban])["tokens"])[0], greedy[0]);
    let bias = format!("{ban}=-100");
    assert_ne!(numbers(&of(&["--temperature", "0", "--logit-bias", &bias])["tokens"])[0], greedy[0]);
    let repeated = numbers(&of(&["--temperature", "0", "--no-repeat-ngram", "1"])["tokens"]);
    assert!(repeated.iter().all(|token| !golden.cases.tokens.contains(token)), "{repeated:?}");
    let wrong = |args: &[&str], parts: &[&str]| refused(&[&base[..], args].concat(), parts);
    wrong(&["--samplers", "top-k,top_p"], &["`top_p`", "top-p"]);
    wrong(&["--samplers", "top-k,top-k"], &["`top-k` is given twice"]);
    wrong(&["--samplers", "top-k", "--top-p", "0.5"], &["--top-p does nothing", "`top-p`"]);
    wrong(&["--ban", "word"], &["`word`", "no tokenizer"]);
    wrong(&["--logit-bias", "5"], &["TOKEN=F", "`5`"]);
    wrong(&["--typical-p", "0"], &["typical-p must be above 0"]);
    wrong(&["--min-tokens", "9"], &["min tokens (9) is above max tokens (6)"]);
    wrong(&["--mix-scope", "thinking"], &["the scope `thinking` needs the tokens", "--think-open"]);
    wrong(&["--mix-scope", "5..2"], &["5..2"]);
    wrong(&["--rule", "moi:betta=1"], &["`moi` has no `betta`, but beta, support and floor"]);
    wrong(&["--think-open", "1"], &["--think-close"]);
    let scoped = of(&["--mix-scope", "2..4", "--rule", "direct"]);
    let gates: Vec<f64> =
        scoped["steps"].as_array().unwrap().iter().map(|step| step["gate"].as_f64().unwrap()).collect();
    assert_eq!(gates, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    // A knob's own flag overrides the text of --rule.
    let rule = of(&["--rule", "moi:beta=0.5:support=9", "--beta", "2"])["rule"].clone();
    assert_eq!(rule, serde_json::json!({"rule": "moi", "beta": 2.0, "support": 9, "floor": 0.0}));
    wrong(&["--ban", "256"], &["token 256 (banned)", "256 tokens"]);
    wrong(&["--think-open", "999", "--think-close", "3"], &["token 999 (marker of thinking)"]);
    wrong(&["--think-open", "3", "--think-close", "3"], &["token 3 cannot both"]);
    wrong(&["--rule", "k-sample:k=18446744073709551615"], &["k must be 1 or more"]);
    wrong(&["--temperature", "1e-310"], &["temperature must be 0 (greedy) or from"]);
}

#[test]
fn beginners_are_told_what_to_do() {
    refused(
        &["generate", "--model", "smolm2-135m-instruct", "hi"],
        &["did you mean `smollm2-135m-instruct`?"],
    );
    let model = real_model();
    let quiet =
        run(&["generate", "--model", &model, "--quantize", "file", "--quiet", "--max-tokens", "2", "Hi"]);
    assert!(quiet.status.success() && quiet.stderr.is_empty());
    let alike = ["--rule", "soft-thinking", "-n", "2", "--max-tokens", "2", "Hi"];
    let alike = run(&[&["generate", "--model", &model, "--quantize", "file"], &alike[..]].concat());
    assert!(text(&alike.stderr).contains("samples are alike"), "{}", text(&alike.stderr));
    let greedy = run(&[
        "generate",
        "--model",
        &model,
        "--quantize",
        "file",
        "--rule",
        "selar",
        "--temperature",
        "0",
        "--max-tokens",
        "2",
        "Hi",
    ]);
    assert!(text(&greedy.stderr).contains("add --temperature"), "{}", text(&greedy.stderr));
}
