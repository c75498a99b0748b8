//! Sequences with different prompts, rules, samplers and lengths must give in one batch what each gives alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use burn::tensor::backend::Backend;
use moi_engine::{Engine, Prompt, Request, SequenceId, StopReason, Support};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{
    batch::{assert_alike, assert_same, requests, together},
    golden::Golden,
    on_cpu_backends, steps,
};

fn engine<B: Backend>(name: &str) -> (Engine<B, Decoder<B>>, Golden) {
    let device = B::Device::default();
    let golden = Golden::read(name);
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let decoder = pretrained.load::<B>(&device, WeightForm::F32, |_| {}).unwrap();
    (Engine::new(decoder, device).with_eos(pretrained.eos), golden)
}

fn together_as_alone<B: Backend>() {
    // Besides plain models: windows, learned positions, experts, and frequencies that depend on a sequence's length.
    let windows = ["qwen2-sliding", "gemma3-linear", "mixtral-sliding"];
    for name in
        ["llama", "llama3-rope", "gpt2", "llama-dynamic", "phi3-longrope-beyond"].into_iter().chain(windows)
    {
        let (engine, golden) = engine::<B>(name);
        let together = together(&engine, requests(&golden));
        // This model computes its cache again at a certain length; the six mixtures after that amplify how ndarray
        // rounds a batch.
        let bound = if name == "phi3-longrope-beyond" { 1e-3 } else { 1e-4 };
        for (row, request) in requests(&golden).into_iter().enumerate() {
            assert_alike(row, &together[row], &steps(&engine, request), bound);
        }
    }
}

/// Sequences that join while others are in progress, both longer and shorter ones.
fn joining_later<B: Backend>() {
    ["llama", "qwen2-sliding"].into_iter().for_each(join_later::<B>);
}

fn join_later<B: Backend>(name: &str) {
    let (engine, golden) = engine::<B>(name);
    let mut batch = engine.batch();
    let mut together = vec![Vec::new(); 6];
    let mut waiting = requests(&golden).into_iter();
    loop {
        if let Some(request) = waiting.next() {
            let row = batch.add(request).unwrap();
            assert!(together[row.0].is_empty());
        } else if batch.is_empty() {
            break;
        }
        for _ in 0..2 {
            for step in batch.step().unwrap() {
                let step = step.unwrap();
                together[step.row.0].push(step);
            }
        }
    }
    for (row, request) in requests(&golden).into_iter().enumerate() {
        assert_same(row, &together[row], &steps(&engine, request));
    }
}

fn refusals_leave_the_batch_as_it_was<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let mut batch = engine.batch();
    let ids = golden.cases.tokens.clone();
    let refuse = |change: fn(&mut Request<B>)| {
        let mut request = Request::new(Prompt::Ids(ids.clone()));
        change(&mut request);
        engine.generate(request).map(|_| ()).unwrap_err().to_string()
    };
    for (message, change) in [
        (
            "beta must be finite and above -1, got -1",
            (|r| r.rule = moi::Moi { beta: -1.0, ..moi::Moi::default() }.into()) as fn(&mut Request<B>),
        ),
        ("support must be 1 or more", |r| r.rule = moi::Direct { support: Support::TopK(0) }.into()),
        ("temperature must be", |r| r.sampling.temperature = f64::NAN.into()),
        ("max tokens must be 1 or more", |r| r.stop.max_tokens = Some(0)),
        ("a stop string is empty", |r| r.stop.strings = vec![String::new()]),
        ("no tokenizer, so a stop string", |r| r.stop.strings = vec!["x".into()]),
        ("no tokenizer, so a text prompt", |r| r.prompt = Prompt::Text("x".into())),
        ("the prompt is empty", |r| r.prompt = Prompt::Ids(Vec::new())),
        ("prompt token 256 is outside the vocabulary of 256", |r| r.prompt = Prompt::Ids(vec![1, 256])),
        ("the prompt has 513 tokens but the model's context holds 512", |r| {
            r.prompt = Prompt::Ids(vec![1; 513])
        }),
    ] {
        let found = refuse(change);
        assert!(found.contains(message), "{found}");
    }
    batch.add(Request::new(Prompt::Ids(ids.clone()))).unwrap();
    assert!(batch.add(Request::new(Prompt::Ids(Vec::new()))).is_err());
    let steps = batch.step().unwrap();
    assert_eq!((steps.len(), steps[0].as_ref().unwrap().row), (1, SequenceId(0)));
}

/// A full context ends a sequence, and its last position is used.
fn the_context_fills_up<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let prompt: Vec<u32> = golden.cases.tokens.iter().copied().cycle().take(508).collect();
    let mut request = Request::new(Prompt::Ids(prompt));
    request.stop.ignore_eos = true;
    let steps = steps(&engine, request);
    // 508 positions of the prompt, 4 inputs after it, and a last token that needs no position.
    assert_eq!(steps.len(), 5);
    assert_eq!(steps[4].stop, Some(StopReason::Context));
}

on_cpu_backends!(together_as_alone, joining_later, refusals_leave_the_batch_as_it_was, the_context_fills_up);
