//! Tests of `moi eval`: its samples, its reports, and runs that were killed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use moi_tests::{
    process::{binary, refused, run},
    real::model_file,
};
use serde_json::Value;

const BASE: &[&str] = &[
    "--quantize",
    "file",
    "--problems",
    "4",
    "--seeds",
    "2",
    "--rules",
    "token,moi:support=20",
    "--max-tokens",
    "24",
    "--format",
    "json",
];

fn model() -> String {
    model_file("smollm2-135m-instruct").to_str().unwrap().to_owned()
}

fn report(args: &[&str]) -> Value {
    let out = run(args);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn a_killed_run_goes_on_to_the_same_report() {
    let model = model();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // Run one answer at a time, so that the batches of a killed run cannot differ.
    let args = |output: &str| {
        let own = ["eval", "countdown", "--model", &model, "--batch", "1", "--output", output];
        [&own[..], BASE].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let whole = file("whole.jsonl");
    let expected = report(&args(&whole).iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(expected["summary"]["complete"], true);
    assert_eq!(expected["summary"]["rules"][1]["samples"], 8);

    let killed = file("killed.jsonl");
    let arguments = args(&killed);
    let lines = || fs::read(&killed).map_or(0, |bytes| bytes.iter().filter(|&&byte| byte == b'\n').count());
    let mut kills = 0;
    for wanted in [2, 5, 9] {
        let mut child = Command::new(binary())
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while lines() < wanted && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // `kill` sends SIGKILL.
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        child.wait().unwrap();
    }
    assert!(kills > 0, "it was never killed in time");
    // Append a partial line, as if the last kill had interrupted a write.
    let bytes = fs::read(&killed).unwrap();
    fs::write(&killed, &bytes[..bytes.len() - 20]).unwrap();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_eq!(report(&arguments), expected);
    // All samples exist, so no more are generated, and the report is the same.
    let after = fs::read(&killed).unwrap();
    assert_eq!(report(&arguments), expected);
    assert_eq!(fs::read(&killed).unwrap(), after);
    assert_eq!(after.iter().filter(|&&byte| byte == b'\n').count(), 17);
    // Samples of a different run must be refused.
    refused(
        &[&arguments[..], &["--temperature", "0.1"]].concat(),
        &["killed.jsonl", "another run", "sampling"],
    );
}

#[test]
fn tasks_of_a_file_are_asked_and_reported() {
    let model = model();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let task = file("sums.jsonl");
    fs::write(
        &task,
        "{\"question\": \"What is 1 + 1?\", \"answer\": 2}\n\
         {\"question\": \"Which is a colour?\", \"choices\": [\"red\", \"table\"], \"answer\": \"A\"}\n\
         {\"numbers\": [1, 2], \"target\": 3}\n",
    )
    .unwrap();
    let (output, page) = (file("out.jsonl"), file("report.html"));
    let own =
        ["eval", &task, "--model", &model, "--output", &output, "--report", &page, "--temperature", "0"];
    let rest = ["--quantize", "file", "--rules", "token,moi,k-sample", "--max-tokens", "20"];
    let out = run(&[&own[..], &rest].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for part in ["sums: 3 problems", "k-sample", "beside token", "p = ", "equal budgets"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && html.contains("k-sample") && !html.contains("http"));
    let lines = fs::read_to_string(&output).unwrap();
    let sample: Value = serde_json::from_str(lines.lines().nth(1).unwrap()).unwrap();
    assert!(sample["text"].is_string() && sample["tokens"].as_u64().unwrap() <= 20);
    assert_eq!(lines.lines().count(), 10);
    // Another configuration of a rule in the same file counts, even if it is not compared. A changed problem is a
    // different problem.
    let more = ["--quantize", "file", "--rules", "token,moi:beta=0.5,k-sample", "--max-tokens", "20"];
    refused(&[&own[..], &more].concat(), &["moi 2, token 1", "--unequal-budgets"]);
    fs::write(&task, "{\"question\": \"What is 1 + 2?\", \"answer\": 3}\n").unwrap();
    refused(&[&own[..], &rest].concat(), &["out.jsonl", "another problem `1`"]);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let model = model();
    let base = ["eval", "countdown", "--model", &model, "--output", "/dev/null/x"];
    refused(
        &[&base[..], &["--rules", "token,moi,moi:beta=2"]].concat(),
        &["more configurations", "--unequal-budgets"],
    );
    refused(&[&base[..], &["--rules", "moi,moi:beta=1"]].concat(), &["`moi` is given twice"]);
    refused(&[&base[..], &["--rules", "moi,mio"]].concat(), &["`mio`"]);
    refused(&base, &["/dev/null/x"]);
    refused(&["eval", "no-such-task", "--model", &model], &["no task `no-such-task`"]);
    let directory = tempfile::tempdir().unwrap();
    let task = directory.path().join("bad.jsonl");
    fs::write(&task, "{\"question\": \"x\", \"answer\": 1}\n{\"question\": \"x\"}\n").unwrap();
    refused(&["eval", task.to_str().unwrap(), "--model", &model], &["bad.jsonl", "line 2", "no `answer`"]);
    fs::write(
        &task,
        "{\"id\": 1, \"question\": \"x\", \"answer\": 1}\n{\"id\": 1, \"question\": \"x\", \"answer\": 1}\n",
    )
    .unwrap();
    refused(&["eval", task.to_str().unwrap(), "--model", &model], &["the id `1`"]);
}

/// Shards of several machines, merged, must equal a run on one machine: the same samples and the same report.
#[test]
fn shards_make_the_whole() {
    let model = model();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let args = |output: &str, more: &[&str]| {
        let own = ["eval", "countdown", "--model", &model, "--batch", "1", "--output", output];
        let all = [&own[..], BASE, more].concat();
        report(&all)
    };
    let whole = args(&file("whole.jsonl"), &[]);
    let parts: Vec<String> = (1..=3).map(|index| file(&format!("{index}.jsonl"))).collect();
    for (index, part) in (1..).zip(&parts) {
        let found = args(part, &["--shard", &format!("{index}/3")]);
        assert_eq!(found["summary"]["complete"], true, "{found}");
    }
    let all = file("all.jsonl");
    let merge: Vec<&str> = ["eval", "--merge"].into_iter().chain(parts.iter().map(String::as_str)).collect();
    let merged = report(&[&merge[..], &["--output", &all, "--format", "json"]].concat());
    assert_eq!(merged, whole);
    let lines = |path: &str| {
        let text = fs::read_to_string(path).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&all), lines(&file("whole.jsonl")));
    // The merged file can be continued like one that was never split.
    assert_eq!(args(&all, &[]), whole);

    // A failed answer is reported as in a run on one machine.
    let text = fs::read_to_string(&parts[0]).unwrap();
    let stop = text.lines().nth(1).unwrap().split("\"stop\":\"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(&parts[0], text.replacen(&format!("\"stop\":\"{stop}\""), "\"stop\":\"failed\"", 1)).unwrap();
    let out = run(&[&merge[..], &["--output", &file("failed.jsonl")]].concat());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("1 answers failed"), "{said}");

    let one = parts[0].as_str();
    refused(
        &["eval", "--merge", one, "--output", &file("x.jsonl")],
        &["of its 3 shards there is no 2/3, 3/3"],
    );
    refused(
        &[&merge[..], &[one, "--output", &file("x.jsonl")]].concat(),
        &["it is the shard 1/3, and so is"],
    );
    refused(&[&merge[..], &["--output", &all]].concat(), &["is there already"]);
    refused(&["eval", "countdown", "--model", &model, "--shard", "4/3"], &["is no shard"]);
    refused(&["eval", "--merge", one], &["--output"]);
}
