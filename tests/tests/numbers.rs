//! Tests that NaN and infinity end a generation with the text so far, the place of the fault and an exit code; and
//! that unusual requests get a clear answer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use burn::tensor::backend::Backend;
use moi_engine::{Engine, InputRule, Prompt, Request};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{
    broken_weights,
    golden::Golden,
    hostile::tokenizer,
    on_cpu_backends,
    process::{ids, run, tiny},
};
use serde_json::Value;

on_cpu_backends!(broken_numbers_are_traced, all_tokens_banned, a_broken_row_ends_alone);

fn broken_numbers_are_traced<B: Backend>() {
    broken_weights::check::<B>(&Default::default());
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

/// A sequence with NaN, and one for which no token is left, must end with their own errors; the others must give what
/// each gives alone.
fn a_broken_row_ends_alone<B: Backend>() {
    let golden = Golden::read("nemotron-nas");
    let (directory, generated) = broken_weights::late(&golden);
    let model = Pretrained::open(directory.path()).unwrap();
    let model = model.load::<B>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let engine = Engine::new(model, Default::default());
    let request = |banned: Vec<u32>| {
        let mut request = Request::new(Prompt::Ids(broken_weights::prompt(&golden)));
        (request.rule, request.stop.max_tokens) = (InputRule::TOKEN, Some(12));
        request.sampling.banned = banned;
        request
    };
    // The embedding of the last generated token is NaN.
    let last = generated[generated.len() - 1];
    let whole = request(vec![last]);
    let alone: Vec<u32> = engine.generate(whole.clone()).unwrap().map(|step| step.unwrap().token).collect();
    let all = request((0..golden.vocab as u32).collect());
    let mut batch = engine.batch();
    batch.add_all(vec![whole.clone(), request(Vec::new()), all, whole]).unwrap();
    let (mut tokens, mut errors) = (vec![Vec::new(); 4], Vec::new());
    while !batch.is_empty() {
        for step in batch.step().unwrap() {
            match step {
                Ok(step) => tokens[step.row.0].push(step.token),
                Err(error) => errors.push((error.row.0, error.to_string())),
            }
        }
    }
    assert_eq!(tokens, [alone.clone(), generated.clone(), Vec::new(), alone]);
    assert!(matches!(&errors[..], [(2, _), (1, _)]), "{errors:?}");
    assert!(errors[0].1.contains("no token is left to sample"), "{errors:?}");
    let (step, weight) = (generated.len(), "`model.embed_tokens.weight` is not finite");
    assert!(
        errors[1].1.starts_with(&format!("the logits of step {step} hold NaN"))
            && errors[1].1.contains(weight),
        "{errors:?}"
    );
}

/// The generated text is printed in every format, followed by the error.
#[test]
fn what_was_generated_is_kept() {
    let golden = Golden::read("nemotron-nas");
    let (directory, generated) = broken_weights::late(&golden);
    let path = directory.path().to_str().unwrap();
    let prompt = ids(&broken_weights::prompt(&golden));
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
    // A stream prints what it prints when only that number of tokens is requested.
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
