//! Numbers that go wrong end a generation with what had come, where they broke, and an exit code; and what else has an
//! answer though nothing sensible was asked.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use burn::tensor::backend::Backend;
use moi_engine::{Engine, Prompt, Request};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{
    broken,
    golden::Golden,
    hostile::tokenizer,
    on_cpu_backends,
    process::{ids, run, tiny},
};
use serde_json::Value;

on_cpu_backends!(broken_numbers_are_traced, all_tokens_banned);

fn broken_numbers_are_traced<B: Backend>() {
    broken::check::<B>(&Default::default());
}

fn all_tokens_banned<B: Backend>() {
    let golden = Golden::read("llama");
    let model =
        Pretrained::open(&golden.path).unwrap().load::<B>(&Default::default(), WeightForm::F32, |_| {});
    let engine = Engine::new(model.unwrap(), Default::default());
    let mut request = Request::new(Prompt::Ids(golden.cases.tokens.clone()));
    request.sampling.banned = (0..golden.vocab as u32).collect();
    let mut generation = engine.generate(request).unwrap();
    let error = generation.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("no token is left to sample: all are banned"), "{error}");
    assert!(generation.next().is_none(), "it has ended");
}

/// What was generated is printed, whatever the format; then comes the error.
#[test]
fn what_was_generated_is_kept() {
    let golden = Golden::read("nemotron-nas");
    let (directory, generated) = broken::late(&golden);
    let path = directory.path().to_str().unwrap();
    let prompt = ids(&broken::prompt(&golden));
    let args =
        ["--model", path, "--device", "cpu", "--tokens", &prompt, "--max-tokens", "20", "--temperature", "0"];
    for (command, samples) in [("generate", "1"), ("generate", "2"), ("compare", "0")] {
        let more: &[&str] =
            if command == "generate" { &["-n", samples, "--rule", "token"] } else { &["--rules", "token"] };
        let out = run(&[&[command][..], &args, more, &["--format", "json"]].concat());
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("the logits of step {} hold NaN", generated.len())), "{stderr}");
        let warned = "warning: model.safetensors: tensor `model.embed_tokens.weight` has";
        assert!(stderr.contains(warned), "{stderr}");
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        let answer = match (command, samples) {
            ("compare", _) => &report["runs"][0],
            (_, "1") => &report,
            _ => &report["samples"][1],
        };
        assert_eq!(answer["stop_reason"], "failed", "{command} {samples}");
        assert_eq!(answer["steps"].as_array().unwrap().len(), generated.len(), "{command} {samples}");
    }
    // What is streamed is what it had streamed until then, for whoever asked for so much alone.
    let mut tokenizer = tokenizer::documents()[0].clone();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    (vocab.len()..golden.vocab).for_each(|id| drop(vocab.insert(format!("[{id}]"), id.into())));
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let steps = generated.len().to_string();
    let plain = |tokens: &str| {
        run(&["generate", "--model", path, "--device", "cpu", "--tokens", &prompt, "--max-tokens", tokens]
            .into_iter()
            .chain(["--temperature", "0", "--rule", "token", "--format", "text"])
            .collect::<Vec<_>>())
    };
    let (whole, broken) = (plain(&steps), plain("20"));
    assert!(whole.status.success() && !whole.stdout.is_empty());
    assert_eq!((broken.status.code(), broken.stdout), (Some(1), whole.stdout));
    let (_, whole) = tiny("nemotron-nas");
    let out =
        run(&["generate", "--model", &whole, "--device", "cpu", "--tokens", &prompt, "--max-tokens", "3"]);
    assert!(out.status.success() && !String::from_utf8_lossy(&out.stderr).contains("warning"));
}
