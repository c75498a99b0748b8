//! Tests `moi bench` as a process, on a tiny checkpoint and with random weights.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::process::Output;

use moi_tests::{
    process::{has_feature, refused, run, tiny},
    real::model_file,
};
use serde_json::Value;

const LISTS: [&str; 12] = [
    "--device",
    "cpu",
    "--prompt",
    "8,16",
    "--gen",
    "4",
    "--batch",
    "1,2",
    "--rules",
    "token,moi:support=4",
    "--repetitions",
    "1",
];
/// Per batch size: two prompts, and a generation under each of two rules.
const ROWS: usize = 8;

fn bench(model: &str, more: &[&str]) -> Output {
    run(&[&["bench", "--model", model], &LISTS[..], more].concat())
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn stdout(out: &Output) -> String {
    assert!(out.status.success(), "{}", said(&out.stderr));
    said(&out.stdout)
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_format_has_every_row() {
    let (_, path) = tiny("llama");
    let json: Vec<Value> = serde_json::from_str(&stdout(&bench(&path, &["--format", "json"]))).unwrap();
    let lines = rows(&stdout(&bench(&path, &["--format", "jsonl"])));
    for rows in [&json, &lines] {
        assert_eq!(rows.len(), ROWS);
        let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
        let batch = ["pp8", "pp16", "tg4", "tg4"];
        assert_eq!(tests[..4], batch);
        assert_eq!(tests[4..], batch.map(|test| format!("{test} b2")));
        for row in rows {
            for field in ["tokens_per_second", "best_tokens_per_second", "copy_gb_per_second", "load_seconds"]
            {
                assert!(row[field].as_f64().unwrap() > 0.0, "{field}: {row}");
            }
            let is_generation = row["prompt"] == 0;
            assert_eq!(row["read_gb_per_second"].is_f64(), is_generation);
            assert_eq!(row["rule_share"].is_f64(), row["rule"] == "moi:support=4");
            assert_eq!(row["rule"] == "-", !is_generation);
            assert_eq!((&row["device"], &row["dtype"]), (&"cpu".into(), &"f32".into()));
            let (cold, warm) = (&row["first_token_cold_seconds"], &row["first_token_warm_seconds"]);
            assert!(cold.as_f64().unwrap() > warm.as_f64().unwrap());
        }
    }
    let csv = stdout(&bench(&path, &["--format", "csv"]));
    assert_eq!(csv.lines().count(), 1 + ROWS, "{csv}");
    let table = stdout(&bench(&path, &["--threads", "1"]));
    let lines: Vec<&str> = table.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(lines.len(), 2 + ROWS, "{table}");
    assert!(lines[0].contains("tokens/s") && lines[0].contains("of copy") && !lines[0].contains("ratio"));
    assert!(table.contains("GB/s read and written"), "{table}");
}

/// Rows of drafters stand beside those without, and say how many tokens a pass gave.
#[test]
fn drafters_are_measured() {
    let model = model_file("smollm2-135m-instruct");
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("text.txt");
    std::fs::write(&text, "red green blue yellow ".repeat(8)).unwrap();
    let common = ["bench", "--model", model.to_str().unwrap(), "--quantize", "file", "--device", "cpu"];
    let lists = ["--prompt", "0", "--gen", "24", "--repetitions", "1", "--text", text.to_str().unwrap()];
    let measured = |more: &[&str]| run(&[&common[..], &lists, more].concat());
    let found = rows(&stdout(&measured(&[
        "--rules",
        "token,moi",
        "--speculate",
        "none,lookup",
        "--format",
        "jsonl",
    ])));
    let of = |row: &Value| [&row["rule"], &row["speculate"]].map(|of| of.as_str().map(str::to_owned));
    let expected = [("token", None), ("token", Some("lookup")), ("moi", None), ("moi", Some("lookup"))];
    for (row, (rule, drafter)) in found.iter().zip(expected) {
        assert_eq!(of(row), [Some(rule.to_owned()), drafter.map(str::to_owned)]);
        assert_eq!(
            row["tokens_per_pass"].as_f64().is_some_and(|pace| pace >= 1.0),
            drafter.is_some(),
            "{row}"
        );
        assert!(row["depth"].as_u64().unwrap() > 24 && row["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(found.len(), 4);
    let drawn = ["--rules", "token", "--speculate", "layers:0-28", "--verify", "greedy"];
    let table = stdout(&measured(&[&drawn[..], &["--temperature", "0.7"]].concat()));
    assert!(table.contains("layers:0-28, greedy") && table.contains("best possible"), "{table}");
    // What can gain nothing is left out, and the rest is measured.
    let out = measured(&["--rules", "token,direct", "--speculate", "none,lookup", "--format", "jsonl"]);
    assert_eq!(rows(&said(&out.stdout)).len(), 3);
    assert!(said(&out.stderr).contains("left out") && !out.status.success(), "{}", said(&out.stderr));
    let (_, tiny) = tiny("llama");
    let of_tiny = ["bench", "--model", &tiny, "--text", text.to_str().unwrap()];
    refused(&of_tiny, &["--text needs a model with a tokenizer"]);
}

#[test]
fn a_run_is_written_drawn_and_compared() {
    let (_, path) = tiny("llama");
    let directory = tempfile::tempdir().unwrap();
    let [earlier, picture] = ["earlier.jsonl", "picture.svg"].map(|name| directory.path().join(name));
    let [earlier, picture] = [&earlier, &picture].map(|path| path.to_str().unwrap());
    let plots = has_feature("plots");
    let plot: &[&str] = if plots { &["--plot", picture] } else { &[] };
    let out = bench(&path, &[&["--format", "jsonl", "--output", earlier], plot].concat());
    assert_eq!(stdout(&out), "");
    assert_eq!(rows(&std::fs::read_to_string(earlier).unwrap()).len(), ROWS);
    match plots {
        true => {
            let drawn = std::fs::read_to_string(picture).unwrap();
            assert!(drawn.starts_with("<svg") && drawn.contains("by batch"));
            assert!(drawn.contains("tg4 moi:support=4"));
        }
        // The command must fail before anything is measured.
        false => refused(&["bench", "--shape", "test-tiny", "--plot", picture], &["--features plots"]),
    }

    let out = bench(&path, &["--format", "jsonl", "--compare", earlier]);
    let compared = rows(&stdout(&out));
    assert_eq!(compared.len(), ROWS);
    for row in &compared {
        let [now, before, ratio] = ["tokens_per_second", "earlier_tokens_per_second", "ratio"]
            .map(|field| row[field].as_f64().unwrap());
        assert!((ratio - now / before).abs() < 1e-9 * ratio, "{row}");
    }
    assert!(!said(&out.stderr).contains("the earlier run"), "{}", said(&out.stderr));

    let lists = ["--device", "cpu", "--prompt", "8", "--gen", "5", "--batch", "2", "--rules", "token"];
    let table = run(&[&["bench", "--model", &path, "--compare", earlier], &lists[..]].concat());
    let errors = said(&table.stderr);
    let table = stdout(&table);
    assert!(table.contains("ratio"), "{table}");
    for part in ["not in the earlier run", "tg5 b2", "in the earlier run alone", "tg4 b2"] {
        assert!(errors.contains(part), "{errors}");
    }
}

#[test]
fn random_weights_do_without_a_model() {
    let lists = ["--prompt", "0", "--gen", "2", "--pg", "8+2", "--depth", "0,4", "--rules", "moi"];
    let more = ["--dtype", "f32,bf16", "--repetitions", "2", "--format", "jsonl", "--device", "cpu"];
    let rows = rows(&stdout(&run(&[&["bench", "--shape", "test-tiny"], &lists[..], &more].concat())));
    let tests: Vec<&str> = rows.iter().map(|row| row["test"].as_str().unwrap()).collect();
    let expected = ["tg2", "pp8+tg2", "tg2 @ d4", "pp8+tg2 @ d4"];
    assert_eq!(tests, [expected, expected].concat());
    for row in &rows {
        assert_eq!((&row["model"], &row["random_weights"]), (&"test-tiny".into(), &true.into()));
        // Without a row of `token`, there is no rule share.
        assert!(row["rule_share"].is_null());
    }
    assert_eq!((&rows[0]["dtype"], &rows[7]["dtype"]), (&"f32".into(), &"bf16".into()));
    let bytes = |row: &Value| row["weight_bytes"].as_u64().unwrap();
    assert!(bytes(&rows[7]) < bytes(&rows[0]));
}

#[test]
fn what_cannot_be_measured_does_not_keep_the_rest_from_it() {
    let (_, path) = tiny("llama");
    // Lists are combined. The context of this model has 512 positions.
    let long = bench(&path, &["--prompt", "600", "--format", "jsonl"]);
    assert_eq!(long.status.code(), Some(1));
    assert_eq!(rows(&said(&long.stdout)).len(), ROWS);
    assert!(said(&long.stderr).contains("pp600 takes 600 positions, the context holds 512"));

    // No memory may be reserved for rows that are left out.
    let deep = bench(&path, &["--depth", "0,4000000000000000000", "--format", "jsonl"]);
    assert_eq!(deep.status.code(), Some(1));
    assert_eq!(rows(&said(&deep.stdout)).len(), ROWS);
    assert!(said(&deep.stderr).contains("positions, the context holds 512"));

    let absent = bench(&path, &["--device", "vulkan:1000", "--format", "jsonl"]);
    assert_eq!(absent.status.code(), Some(1));
    assert_eq!(rows(&said(&absent.stdout)).len(), ROWS);
    let errors = said(&absent.stderr);
    assert!(errors.contains("not measured") && errors.contains("on vulkan:1000"), "{errors}");
}

#[test]
fn bad_input_gets_one_clear_error() {
    let tiny = |args: &[&str], parts: &[&str]| {
        refused(&[&["bench", "--shape", "test-tiny", "--device", "cpu"], args].concat(), parts);
    };
    refused(&["bench", "--shape", "llama-9b"], &["there is no shape `llama-9b`", "llama-8b"]);
    refused(&["bench", "--model", "no-such-model"], &["no-such-model", "smollm2-135m-instruct"]);
    tiny(&["--rules", "mio"], &["`mio` is no input rule", "token, moi, direct, gate"]);
    tiny(&["--rules", "token,moi:gamma=1"], &["`moi` has no `gamma`, but beta, support and floor"]);
    tiny(&["--rules", "gate"], &["needs gate=F"]);
    tiny(&["--quantize", "q8_0"], &["--shape has random weights", "--dtype"]);
    tiny(&["--prompt", "0", "--gen", "0"], &["nothing to measure"]);
    tiny(&["--compare", "/no/such/file"], &["/no/such/file cannot be read"]);
    tiny(&["--output", "/no/such/directory/rows.md"], &["cannot write", "no directory /no/such/directory"]);
    tiny(&["--plot", "/no/such/directory/a.svg"], &["cannot write", "no directory /no/such/directory"]);
    tiny(&["--page", "/no/such/directory/a.html"], &["cannot write", "no directory /no/such/directory"]);
    refused(&["bench", "--compare-devices", "--device", "cpu"], &["cannot be used with"]);
    refused(&["bench", "merge", "/no/such/file"], &["/no/such/file cannot be read"]);
    tiny(&["--pg", "8"], &["no pair of lengths"]);
    tiny(&["--batch", "0"], &["0 is not in"]);
}

#[test]
fn devices_are_compared_and_runs_merged() {
    let (_, path) = tiny("llama");
    let directory = tempfile::tempdir().unwrap();
    let [one, page, all] = ["one.jsonl", "page.html", "all.jsonl"]
        .map(|name| directory.path().join(name).to_str().unwrap().to_owned());
    let lists =
        ["--prompt", "8", "--gen", "4", "--rules", "token", "--repetitions", "1", "--format", "jsonl"];
    let to = ["--compare-devices", "--output", &one, "--page", &page];
    stdout(&run(&[&["bench", "--model", &path], &lists[..], &to].concat()));
    let compared = rows(&std::fs::read_to_string(&one).unwrap());
    let of = |device: &str, dtype: &str| {
        compared.iter().find(|row| row["device"] == device && row["dtype"] == dtype).unwrap()["accuracy"]
            .clone()
    };
    let (exact, portable, short) = (of("cpu", "f32"), of("ndarray", "f32"), of("cpu", "bf16"));
    assert_eq!((&exact["tokens_compared"], &exact["first_difference"]), (&128.into(), &Value::Null));
    assert!(exact["kl_max"].as_f64().unwrap() < 1e-9 && portable["kl_max"].as_f64().unwrap() < 1e-6);
    assert!(short["kl_mean"].as_f64().unwrap() > exact["kl_mean"].as_f64().unwrap());
    assert!(compared.iter().all(|row| row["machine"]["cores"] == row["cores"]));
    assert!(std::fs::read_to_string(&page).unwrap().contains("\"tokens_compared\":128"));
    // A row that is in several files counts once.
    let merge = ["bench", "merge", &one, &one, "--output", &all, "--page", &page];
    assert_eq!(stdout(&run(&merge)), "");
    assert_eq!(rows(&std::fs::read_to_string(&all).unwrap()), compared);
    assert!(stdout(&run(&["bench", "merge", &one])).contains("first difference"));
}

/// Whether a value is as a schema says, as far as the schema of rows uses JSON Schema.
fn conforms(value: &Value, schema: &Value, whole: &Value) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{value} {what}: {schema}"));
    if let Some(reference) = schema["$ref"].as_str() {
        return conforms(value, whole.pointer(reference.trim_start_matches('#')).unwrap(), whole);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = choices.iter().any(|choice| conforms(value, choice, whole).is_ok());
        return if fits { Ok(()) } else { wrong("is none of") };
    }
    let is = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the schema has the type {other}"),
    };
    let types = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    if !types.iter().any(is) {
        return wrong("has another type");
    }
    if schema["enum"].as_array().is_some_and(|values| !values.contains(value)) {
        return wrong("is not listed");
    }
    if schema["minimum"].as_f64().zip(value.as_f64()).is_some_and(|(minimum, value)| value < minimum) {
        return wrong("is too small");
    }
    for item in value.as_array().into_iter().flatten() {
        conforms(item, &schema["items"], whole)?;
    }
    let Some(fields) = value.as_object() else { return Ok(()) };
    let properties = schema["properties"].as_object().unwrap();
    if !fields.keys().eq(properties.keys()) {
        return wrong("has other fields");
    }
    fields.iter().try_for_each(|(name, field)| conforms(field, &properties[name], whole))
}

#[test]
fn rows_are_as_the_schema_says() {
    let schema = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/bench-rows.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(schema).unwrap()).unwrap();
    let (_, path) = tiny("llama");
    let compared = ["--prompt", "8", "--gen", "4", "--repetitions", "1", "--compare-devices"];
    let out = run(&[&["bench", "--model", &path, "--format", "jsonl"], &compared[..]].concat());
    let rows = rows(&stdout(&out));
    assert!(rows.iter().any(|row| row["accuracy"].is_object() && row["machine"].is_object()));
    for row in &rows {
        conforms(row, &schema, &schema).unwrap();
    }
    for (field, value) in
        [("cores", Value::from(-1)), ("accuracy", Value::from("good")), ("rule", Value::Null)]
    {
        let mut row = rows[0].clone();
        row[field] = value;
        assert!(conforms(&row, &schema, &schema).is_err(), "{field}");
    }
}
