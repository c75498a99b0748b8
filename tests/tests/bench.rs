//! `moi bench` as a process, on a tiny checkpoint and on random weights.

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use std::process::Output;

use moi_tests::process::{refused, run, tiny};
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
/// For each batch two prompts, and a generation under each of two rules.
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

#[test]
fn a_run_is_written_drawn_and_compared() {
    let (_, path) = tiny("llama");
    let directory = tempfile::tempdir().unwrap();
    let [earlier, picture] = ["earlier.jsonl", "picture.svg"].map(|name| directory.path().join(name));
    let [earlier, picture] = [&earlier, &picture].map(|path| path.to_str().unwrap());
    let out = bench(&path, &["--format", "jsonl", "--output", earlier, "--plot", picture]);
    assert_eq!(stdout(&out), "");
    assert_eq!(rows(&std::fs::read_to_string(earlier).unwrap()).len(), ROWS);
    let drawn = std::fs::read_to_string(picture).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("by batch") && drawn.contains("tg4 moi:support=4"));

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
        // Without `token` there is nothing that a rule's share would be of.
        assert!(row["rule_share"].is_null());
    }
    assert_eq!((&rows[0]["dtype"], &rows[7]["dtype"]), (&"f32".into(), &"bf16".into()));
    let bytes = |row: &Value| row["weight_bytes"].as_u64().unwrap();
    assert!(bytes(&rows[7]) < bytes(&rows[0]));
}

#[test]
fn what_cannot_be_measured_does_not_keep_the_rest_from_it() {
    let (_, path) = tiny("llama");
    // Lists add up; its context holds 512 positions.
    let long = bench(&path, &["--prompt", "600", "--format", "jsonl"]);
    assert_eq!(long.status.code(), Some(1));
    assert_eq!(rows(&said(&long.stdout)).len(), ROWS);
    assert!(said(&long.stderr).contains("pp600 takes 600 positions, the context holds 512"));

    // Nothing is reserved for what is left out.
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
    tiny(&["--rules", "token,moi:gamma=1"], &["`moi` has no `gamma`, but beta and support"]);
    tiny(&["--rules", "gate"], &["needs gate=F"]);
    tiny(&["--quantize", "q8_0"], &["--shape has random weights", "--dtype"]);
    tiny(&["--prompt", "0", "--gen", "0"], &["nothing to measure"]);
    tiny(&["--compare", "/no/such/file"], &["/no/such/file cannot be read"]);
    tiny(&["--output", "/no/such/directory/rows.md"], &["cannot write", "no directory /no/such/directory"]);
    tiny(&["--plot", "/no/such/directory/a.svg"], &["cannot write", "no directory /no/such/directory"]);
    tiny(&["--pg", "8"], &["no pair of lengths"]);
    tiny(&["--batch", "0"], &["0 is not in"]);
}
