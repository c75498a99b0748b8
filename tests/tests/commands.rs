//! The commands that show what a rule does, and where flags get their values from.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use moi_tests::{
    process::{binary, ids, json, numbers, refused, run, tiny},
    real::model_file,
};
use serde_json::Value;

fn real_model() -> String {
    model_file("smollm2-135m-instruct").to_str().unwrap().to_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it with something on stdin.
fn fed(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(binary())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
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
fn flags_may_come_from_the_environment_and_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("some.toml");
    std::fs::write(
        &file,
        "[defaults]\ntemperature = 0.5\ntop-k = 7\nstop = [\"a\", \"b\"]\nsystem = \"S\"\n\
         [presets.warm]\ntemperature = 1.5\n[presets.some]\nmodels = [\"x/y\"]\nmin-p = 0.25\n",
    )
    .unwrap();
    let settings = |global: &[&str], flags: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["config", "--config", file.to_str().unwrap(), "--format", "json"]).args(global);
        command.args(["generate", "--"]).args(flags).env("MOI_TOP_P", "0.75").env_remove("MOI_DEVICE");
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
        let of = |flag: &str| {
            let rows = shown["settings"].as_array().unwrap().iter().filter(|row| row["flag"] == flag);
            rows.map(|row| format!("{} {}", row["value"].as_str().unwrap(), row["source"].as_str().unwrap()))
                .collect::<Vec<_>>()
                .join("; ")
        };
        ["temperature", "top-k", "top-p", "min-p", "stop", "seed"].map(of)
    };
    let plain =
        ["0.5 file", "7 file", "0.75 environment (MOI_TOP_P)", " default", "a file; b file", " default"];
    assert_eq!(settings(&[], &[]), plain);
    let flags = settings(&[], &["--temperature", "0", "--top-p", "0.5", "--stop", "c"]);
    assert_eq!(flags[0], "0 flag");
    assert_eq!(flags[2], "0.5 flag");
    assert_eq!(flags[4], "c flag");
    assert_eq!(settings(&["--preset", "warm"], &[])[0], "1.5 file, preset `warm`");
    assert_eq!(settings(&[], &["--model", "x/y"])[3], "0.25 file, preset `some`");

    // Switches, flags of all commands, and what comes first keeping out what conflicts with it.
    let shown = |environment: &[(&str, &str)], content: &str, args: &[&str]| {
        std::fs::write(&file, content).unwrap();
        let mut command = Command::new(binary());
        command.args(["--config", file.to_str().unwrap(), "config", "--format", "json"]).args(args);
        let out = command.envs(environment.iter().copied()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
        move |flag: &str| {
            let row =
                shown["settings"].as_array().unwrap().iter().find(|row| row["flag"] == flag).unwrap().clone();
            format!("{} {}", row["value"].as_str().unwrap(), row["source"].as_str().unwrap())
        }
    };
    let of = shown(&[("MOI_QUIET", "yes"), ("MOI_RAW", "0")], "[defaults]\nraw = true\nstats = true\n", &[]);
    assert_eq!(of("quiet"), "true environment (MOI_QUIET)");
    assert_eq!((of("raw"), of("stats")), ("false environment (MOI_RAW)".into(), "true file".into()));
    let of = shown(&[("MOI_REGEX", "a+")], "[defaults]\njson = true\nquantize = \"file\"\n", &[]);
    assert_eq!((of("regex"), of("json")), ("a+ environment (MOI_REGEX)".into(), "false default".into()));
    assert_eq!(of("quantize"), "file file");
    // Another command's flag of the name does not take it.
    let of = shown(&[], "[defaults]\nquantize = \"file\"\n", &["convert", "--", "a", "--output", "b"]);
    assert_eq!(of("quantize"), " default");
    let of = shown(
        &[],
        "[presets.a]\nmodel = \"x/y\"\n[presets.b]\nmodels = [\"x/y\"]\nmin-p = 0.5\n",
        &["--preset", "a"],
    );
    assert_eq!((of("model"), of("min-p")), ("x/y file, preset `a`".into(), "0.5 file, preset `b`".into()));
    std::fs::write(&file, "[presets.generate]\ntop-k = 3\n").unwrap();
    let (golden, path) = tiny("llama");
    let mut named = Command::new(binary());
    named.args(["--config", file.to_str().unwrap(), "--preset", "generate", "generate", "--model", &path]);
    named.args(["--tokens", &ids(&golden.cases.tokens), "--max-tokens", "1", "--format", "json"]);
    let found: Value = serde_json::from_slice(&named.output().unwrap().stdout).unwrap();
    assert_eq!(found["sampling"]["top_k"], 3);
    std::fs::write(
        &file,
        "[defaults]\ntemperature = 0.5\ntop-k = 7\nstop = [\"a\", \"b\"]\nsystem = \"S\"\n",
    )
    .unwrap();

    // They reach the command; what conflicts with a flag stays out.
    let (golden, path) = tiny("llama");
    let prompt = ids(&golden.cases.tokens);
    let mut command = Command::new(binary());
    command.args(["generate", "--config", file.to_str().unwrap(), "--model", &path, "--tokens", &prompt]);
    command.args(["--max-tokens", "1", "--format", "json"]).env("MOI_RULE", "direct").stdin(Stdio::null());
    let out = command.output().unwrap();
    // No tokenizer, so the file's stop strings are refused: they were read.
    assert!(text(&out.stderr).contains("no tokenizer, so a stop string"), "{}", text(&out.stderr));
    std::fs::write(&file, "[defaults]\ntemperature = 0.5\nsystem = \"S\"\n").unwrap();
    let found: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!((&found["sampling"]["temperature"], &found["rule"]["rule"]), (&0.5.into(), &"direct".into()));

    let file = file.to_str().unwrap();
    let wrong = |content: &str, args: &[&str], parts: &[&str]| {
        std::fs::write(file, content).unwrap();
        refused(&[&["config", "--config", file], args].concat(), parts);
    };
    wrong("[defaults]\ntemprature = 1\n", &[], &[file, "`temprature`", "did you mean `temperature`?"]);
    wrong("[defaults]\nraw = \"perhaps\"\n", &[], &["--raw is on or off", "`perhaps`", "file"]);
    wrong("[defaults]\nformat = \"odt\"\n", &[], &["`format` cannot be `odt`"]);
    wrong("defaults = 3", &[], &[file]);
    wrong("[", &[], &[file]);
    wrong("[presets.a]\n", &["--preset", "b"], &["no preset `b`", "a"]);
    refused(&["config", "--config", "/no/such.toml"], &["/no/such.toml"]);
    refused(&["config", "genrate"], &["`genrate`", "did you mean `generate`?"]);
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
    // The same tokens as of a generation alone.
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
    // Windows know less of what came before: a little worse, and every token is there once.
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
    // The second turn runs its question alone, behind all of the first.
    assert!(stats[1].1 >= stats[0].0 && stats[1].0 > stats[1].1 && stats[1].1 > 0, "{stats:?}");
    assert!(stderr.contains("moi (beta 0.5, support full)"), "{stderr}");
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
    // What is mixed is what the expression leaves: nothing but "yes" and "no" or their beginnings at first.
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
    // Thoughts are free, whatever the rule and its scope; the answer behind them is not. The template's own marks serve as
    // those of thinking here, and the prompt has opened it.
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
    wrong(&["--rule", "moi:betta=1"], &["`moi` has no `betta`, but beta and support"]);
    wrong(&["--think-open", "1"], &["--think-close"]);
    let scoped = of(&["--mix-scope", "2..4", "--rule", "direct"]);
    let gates: Vec<f64> =
        scoped["steps"].as_array().unwrap().iter().map(|step| step["gate"].as_f64().unwrap()).collect();
    assert_eq!(gates, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    // A knob's flag comes before the rule's text.
    let rule = of(&["--rule", "moi:beta=0.5:support=9", "--beta", "2"])["rule"].clone();
    assert_eq!(rule, serde_json::json!({"rule": "moi", "beta": 2.0, "support": 9}));
    wrong(&["--ban", "256"], &["token 256 (banned)", "256 tokens"]);
    wrong(&["--think-open", "999", "--think-close", "3"], &["token 999 (marker of thinking)"]);
    wrong(&["--think-open", "3", "--think-close", "3"], &["token 3 cannot both"]);
    wrong(&["--rule", "k-sample:k=18446744073709551615"], &["k must be 1 or more"]);
    wrong(&["--temperature", "1e-310"], &["temperature must be 0 (greedy) or from"]);
}

/// What Chromium is called, where there is one.
fn chromium() -> Option<&'static str> {
    let works =
        |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
    ["chromium", "chromium-browser", "google-chrome"].iter().find(works).copied()
}

/// The page after its scripts have run, and what went to its console.
fn rendered(browser: &str, page: &Path) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let out = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=4000",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let console =
        text(&out.stderr).lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>().join("\n");
    (text(&out.stdout), console)
}

#[test]
fn a_trace_opens_in_a_browser() {
    let model = real_model();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let base = ["trace", "--model", &model, "--quantize", "file", "--temperature", "0", "--max-tokens", "24"];
    // A prompt that would break a page that does not mind what is text.
    let prompt = "Say </script><b>hello</b> & \"goodbye\"";
    let written = |name: &str, rules: &str| {
        let path = file(name);
        let out = run(&[&base[..], &["--rules", rules, "--output", &path, prompt]].concat());
        assert!(out.status.success() && out.stdout.is_empty(), "{}", text(&out.stderr));
        std::fs::read_to_string(path).unwrap()
    };
    let data: Value = serde_json::from_str(&written("trace.json", "token,moi:support=20")).unwrap();
    let steps = data["runs"][1]["steps"].as_array().unwrap();
    assert!(steps.iter().all(|step| step["likeliest"].as_array().unwrap().len() == 10));
    let csv = written("trace.csv", "moi");
    assert!(csv.starts_with("rule,step,token,text,logprob,entropy,gate\nmoi,0,"), "{csv}");
    let svg = written("trace.svg", "token,moi");
    assert!(svg.contains("</svg>") && svg.contains("entropy") && svg.contains("gate"));

    let page = written("trace.html", "token,moi:support=20");
    for link in ["http://", "https://", "src=", "href=", "@import", "url("] {
        // The one address in it names the elements of a drawing.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(link), "the page has {link}");
    }
    let Some(browser) = chromium() else {
        println!(
            "SKIPPED: there is no Chromium here (Debian: apt-get install chromium), so the page was not opened"
        );
        return;
    };
    // A step of the second run that mixes; a real click on it, and what the page shows then.
    let step = steps.iter().position(|step| step["gate"].as_f64().unwrap() > 0.1).unwrap();
    let click = format!(
        "<script>addEventListener('load', () => {{\
           document.querySelectorAll('.run')[1].querySelectorAll('.token')[{step}].click();\
           document.body.dataset.clicked = document.querySelector('#detail').textContent;\
           document.querySelector('[data-shade=gate]').click();\
           document.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowLeft'}}));\
           document.body.dataset.walked = document.querySelector('#detail').textContent;\
         }});</script></body>"
    );
    let clicked = file("clicked.html");
    std::fs::write(&clicked, page.replace("</body>", &click)).unwrap();
    let (dom, console) = rendered(browser, Path::new(&clicked));
    assert_eq!(console, "", "the page writes to the console");
    let tokens = dom.matches("class=\"token").count();
    let expected: usize =
        data["runs"].as_array().unwrap().iter().map(|run| run["steps"].as_array().unwrap().len()).sum();
    assert_eq!(tokens, expected);
    assert_eq!(dom.matches("<svg").count(), 2);
    let of = |name: &str| {
        let start = dom.find(&format!("data-{name}=\"")).unwrap_or_else(|| panic!("no {name} in {dom}"));
        dom[start..].split('"').nth(1).unwrap().to_owned()
    };
    let shown = of("clicked");
    let weight = steps[step]["top"][0]["weight"].as_f64().unwrap() * 100.0;
    for part in
        [&format!("step {step} of"), "Fed next: largest weights", "Distribution", &format!("{weight:.1}%")]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(of("walked").contains(&format!("step {} of", step.saturating_sub(1))), "{}", of("walked"));
    assert!(
        dom.contains("&lt;/script&gt;") || dom.contains("Say &lt;/script"),
        "the prompt is not shown as text"
    );
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
