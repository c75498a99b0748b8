//! Tests of every rule and every sampler in the engine: alone, together, and from turn to turn.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use moi_engine::{
    Dry, Engine, Markers, Mirostat, Prompt, Request, Sampling, SamplingStep, Scope, StopReason, TokenEvent,
    Xtc,
};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{
    batch::{assert_same, together},
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

const RULES: &[&str] = &[
    "token",
    "moi:support=20",
    "direct:support=3",
    "gate:gate=0.4",
    "soft-thinking",
    "soft-thinking:noise=gumbel",
    "soft-thinking:noise=dirichlet:alpha=4",
    "k-sample:k=4",
    "swir:dwell=2",
    "selar:tau=0.2",
];

fn request<B: Backend>(golden: &Golden, rule: &str, tokens: usize) -> Request<B> {
    let mut request = Request::new(Prompt::Ids(golden.cases.tokens[..9].to_vec()));
    request.rule = rule.parse().unwrap();
    request.sampling = Sampling { temperature: 0.9.into(), top_p: 0.95.into(), ..Sampling::default() };
    request.seed = 11;
    request.stop.max_tokens = Some(tokens);
    request.stop.ignore_eos = true;
    request
}

fn tokens(steps: &[TokenEvent]) -> Vec<u32> {
    steps.iter().map(|step| step.token).collect()
}

/// Every rule with several samplers must give the same in a batch as alone.
fn every_rule_with_every_sampler<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let plain = Sampling { temperature: 0.9.into(), ..Sampling::default() };
    let samplings = [
        Sampling::default(),
        Sampling { top_k: 20.into(), min_p: 0.01.into(), ..plain.clone() },
        Sampling { typical: 0.9.into(), repetition: 1.3.into(), no_repeat_ngram: 2.into(), ..plain.clone() },
        Sampling { top_n_sigma: 1.5.into(), presence: 0.5.into(), frequency: 0.2.into(), ..plain.clone() },
        Sampling {
            dry: Dry { multiplier: 0.8, sequence_breakers: Vec::new(), ..Dry::default() },
            ..plain.clone()
        },
        Sampling { xtc: Xtc { probability: 0.5, threshold: 0.05 }, ..plain.clone() },
        Sampling { mirostat: Mirostat { version: 2, tau: 3.0, ..Mirostat::default() }, ..plain.clone() },
        Sampling {
            samplers: vec![SamplingStep::TopK, SamplingStep::Temperature],
            top_k: 9.into(),
            ..plain.clone()
        },
        Sampling { logit_bias: BTreeMap::from([(7, 3.0), (9, -3.0)]).into(), banned: vec![1, 2, 3], ..plain },
    ];
    let requests = || {
        let each = RULES.iter().flat_map(|rule| samplings.iter().map(move |sampling| (rule, sampling)));
        each.map(|(rule, sampling)| Request {
            sampling: sampling.clone(),
            top: 4,
            logprobs: 3,
            ..request::<B>(&golden, rule, 7)
        })
        .collect::<Vec<_>>()
    };
    let all = together(&engine, requests());
    for (row, request) in requests().into_iter().enumerate() {
        let what = format!("{}, {:?}", request.rule, request.sampling);
        let (banned, ngram) = (request.sampling.banned.clone(), request.sampling.no_repeat_ngram.0);
        let alone = steps(&engine, request);
        assert_same(row, &all[row], &alone);
        assert_eq!(alone.len(), 7, "{what}");
        assert!(!alone.iter().any(|step| banned.contains(&step.token)), "{what}: {:?}", tokens(&alone));
        if ngram > 0 {
            // This includes rules that choose tokens themselves.
            let all = [&golden.cases.tokens[..9], &tokens(&alone)].concat();
            let repeats =
                |end: usize| all[..end].windows(2).filter(|pair| *pair == &all[end - 1..=end]).count();
            assert!((9..all.len()).all(|end| repeats(end) == 0), "{what}: {all:?}");
        }
        for step in &alone {
            assert_eq!(step.likeliest.len(), 3, "{what}");
            assert!(step.likeliest.is_sorted_by(|a, b| a.1 >= b.1), "{what}");
            assert!(step.likeliest[0].1 >= step.logprob, "{what}");
            assert!(step.top.iter().all(|weight| weight.1.is_finite()), "{what}");
        }
    }
}

/// Samples of one prompt share its computation, but each must be as if it were alone.
fn samples_share_a_prompt<B: Backend>() {
    let (engine, golden) = engine::<B>("qwen2-sliding");
    let sample = |seed| Request { seed, ..request::<B>(&golden, "moi", 6) };
    let mut batch = engine.batch();
    let rows = batch.add_all((0..4).map(sample).collect()).unwrap();
    let mut all = vec![Vec::new(); rows.len()];
    while !batch.is_empty() {
        for step in batch.step().unwrap() {
            let step = step.unwrap();
            all[step.row.0].push(step);
        }
    }
    for (seed, found) in all.iter().enumerate() {
        assert_same(seed, found, &steps(&engine, sample(seed as u64)));
    }
    assert!(all[1..].iter().any(|found| tokens(found) != tokens(&all[0])));
}

/// End tokens must not come before the minimum, and must come right after it.
fn min_tokens_hold_back_the_end<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let mut first = request::<B>(&golden, "moi", 1);
    first.sampling = Sampling::default();
    let likeliest = tokens(&steps(&engine, first.clone()))[0];
    let engine = engine.with_eos(vec![likeliest]);
    let ends = |min_tokens: usize, rule: &str| {
        let mut request = first.clone();
        request.rule = rule.parse().unwrap();
        request.stop = moi_engine::StopRules { max_tokens: Some(40), min_tokens, ..Default::default() };
        // The bias makes the end token come as soon as it may.
        request.sampling.logit_bias = BTreeMap::from([(likeliest, 1000.0)]).into();
        let steps = steps(&engine, request);
        assert_eq!(steps.last().unwrap().stop, Some(StopReason::Eos));
        tokens(&steps).iter().position(|&token| token == likeliest)
    };
    for min in [0, 1, 3] {
        for rule in ["moi", "soft-thinking", "k-sample"] {
            assert_eq!(ends(min, rule), Some(min), "{rule}");
        }
    }
    // A cold stop, which would come at every second token here, must not come before the minimum either.
    let cold = |min_tokens| {
        let mut request = request::<B>(&golden, "soft-thinking:cold_stop=2:cold_entropy=99", 40);
        request.stop.min_tokens = min_tokens;
        let steps = steps(&engine, request);
        (steps.len(), steps.last().unwrap().stop)
    };
    assert_eq!(cold(0), (2, Some(StopReason::Rule)));
    assert_eq!(cold(5), (6, Some(StopReason::Rule)));
    let mut wrong = first.clone();
    wrong.stop.min_tokens = 2;
    assert!(
        engine.generate(wrong).unwrap_err().to_string().contains("min tokens (2) is above max tokens (1)")
    );
}

/// A rule for thinking must mix only between the markers, wherever the markers come from.
fn thinking_is_told_by_markers<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let generated = tokens(&steps(&engine, request(&golden, "token", 9)));
    // The fourth token ends the thinking that the prompt has opened.
    let markers = Markers::new(golden.cases.tokens[8], generated[3]);
    assert!(!generated[..3].contains(&markers.close) && !generated.contains(&markers.open));
    let engine = engine.with_markers(Some(markers));
    // The gate is so small that the tokens are those of standard decoding.
    let mixed = |rule: &str, scope| {
        let found = steps(&engine, Request { scope, ..request::<B>(&golden, rule, 9) });
        (tokens(&found), found.iter().map(|step| step.gate > 0.0).collect::<Vec<_>>())
    };
    let inside = |range: std::ops::Range<usize>| (0..9).map(|at| range.contains(&at)).collect::<Vec<_>>();
    let little = "gate:gate=1e-7";
    assert_eq!(mixed(little, Some(Scope::Thinking)), (generated.clone(), inside(0..3)));
    assert_eq!(mixed(little, Some("2..4".parse().unwrap())), (generated.clone(), inside(2..4)));
    assert_eq!(mixed(little, None), (generated, inside(0..9)));
    // A rule for thinking has this scope by default.
    let (tokens, gates) = mixed("k-sample:k=50", None);
    let end = tokens.iter().position(|&token| token == markers.close).unwrap_or(9);
    assert_eq!(gates, inside(0..end));
}

/// A turn that continues a session must equal a turn that reads everything before it, but only the new positions run.
fn turns_share_a_cache<B: Backend>() {
    for name in ["llama", "llama3-rope", "phi3-longrope-beyond"] {
        let (engine, golden) = engine::<B>(name);
        let greedy = |prompt: Vec<u32>, rule: &str| Request {
            prompt: Prompt::Ids(prompt),
            sampling: Sampling::default(),
            ..request::<B>(&golden, rule, 5)
        };
        let mut prompt = golden.cases.tokens[..9].to_vec();
        let mut session = engine.session();
        for turn in 0..3 {
            let mut generation = engine.resume(session, greedy(prompt.clone(), "token")).unwrap();
            let found: Vec<TokenEvent> = generation.by_ref().map(Result::unwrap).collect();
            session = generation.into_session().unwrap().1;
            let whole = steps(&engine, greedy(prompt.clone(), "token"));
            assert_same(turn, &found, &whole);
            // The last token has not been fed to the model.
            assert_eq!(session.positions(), prompt.len() + 4);
            prompt.extend(tokens(&found));
            prompt.extend(&golden.cases.tokens[9..12]);
            assert_eq!(session.reusable_len(&prompt), prompt.len() - 4);
        }
        // If the tokens differ from some place on, the cache before that place is still used.
        let mut edited = prompt[..12].to_vec();
        edited[10] = (edited[10] + 1) % 256;
        assert_eq!(session.reusable_len(&edited), 10);
        let mut generation = engine.resume(session, greedy(edited.clone(), "token")).unwrap();
        let found: Vec<TokenEvent> = generation.by_ref().map(Result::unwrap).collect();
        assert_same(9, &found, &steps(&engine, greedy(edited, "token")));
        // An answer that was dropped half-way.
        let mut generation = engine.resume(engine.session(), greedy(prompt.clone(), "token")).unwrap();
        generation.next().unwrap().unwrap();
        let session = generation.into_session().unwrap().1;
        assert_eq!(session.reusable_len(&prompt), prompt.len() - 1);
        let mut generation = engine.resume(session, greedy(prompt.clone(), "token")).unwrap();
        let found: Vec<TokenEvent> = generation.by_ref().map(Result::unwrap).collect();
        assert_same(10, &found, &steps(&engine, greedy(prompt, "token")));
    }
}

/// With a rule that mixes, cached turns hold mixtures, so the next turn differs from one that reads plain tokens.
fn cached_turns_hold_mixtures<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let turn =
        |prompt: Vec<u32>| Request { prompt: Prompt::Ids(prompt), ..request::<B>(&golden, "direct", 5) };
    let prompt = golden.cases.tokens[..9].to_vec();
    let mut generation = engine.resume(engine.session(), turn(prompt.clone())).unwrap();
    let first: Vec<TokenEvent> = generation.by_ref().map(Result::unwrap).collect();
    let session = generation.into_session().unwrap().1;
    let next = [&prompt[..], &tokens(&first), &golden.cases.tokens[9..12]].concat();
    let mut generation = engine.resume(session, turn(next.clone())).unwrap();
    let mixed = generation.next().unwrap().unwrap();
    let plain = steps(&engine, turn(next)).remove(0);
    assert!((mixed.entropy - plain.entropy).abs() > 1e-5, "{mixed:?} {plain:?}");
}

/// A sliding window drops older positions. A session cannot continue from an earlier place then, so everything must
/// run again, with the right result.
fn windows_begin_anew_where_they_must<B: Backend>() {
    let (engine, golden) = engine::<B>("qwen2-sliding");
    let turn = |prompt: Vec<u32>| Request {
        prompt: Prompt::Ids(prompt),
        sampling: Sampling::default(),
        ..request::<B>(&golden, "token", 30)
    };
    let prompt: Vec<u32> = golden.cases.tokens.iter().copied().cycle().take(60).collect();
    let mut generation = engine.resume(engine.session(), turn(prompt.clone())).unwrap();
    assert_eq!(generation.by_ref().map(Result::unwrap).count(), 30);
    let session = generation.into_session().unwrap().1;
    let mut edited = prompt[..20].to_vec();
    edited[9] = (edited[9] + 1) % 256;
    let mut generation = engine.resume(session, turn(edited.clone())).unwrap();
    let found: Vec<TokenEvent> = generation.by_ref().map(Result::unwrap).collect();
    assert_same(0, &found, &steps(&engine, turn(edited)));
}

/// The scores of a text in pieces must equal the log-probabilities of its logits.
fn scores_are_log_probabilities<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let ids = &golden.cases.tokens[..20];
    let scored = engine.with_prefill_chunk(7).score(ids, 2).unwrap();
    assert_eq!(scored.len(), 19);
    for (at, score) in scored.iter().enumerate() {
        let logits = &golden.logits[at * golden.vocab..][..golden.vocab];
        let largest = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - largest).exp()).sum();
        let expected = f64::from(logits[ids[at + 1] as usize] - largest) - sum.ln();
        assert_eq!(score.token, ids[at + 1]);
        assert!((score.logprob - expected).abs() < 1e-4, "{at}: {} {expected}", score.logprob);
        assert!(score.likeliest[0].1 >= score.logprob && score.likeliest.len() == 2);
        let entropy: f64 =
            logits.iter().map(|&l| f64::from(l - largest) - sum.ln()).map(|l| -l * l.exp()).sum();
        assert!((score.entropy - entropy).abs() < 1e-4);
    }
}

fn what_cannot_be_is_refused<B: Backend>() {
    let (engine, golden) = engine::<B>("llama");
    let refused = |change: &dyn Fn(&mut Request<B>)| {
        let mut request = request::<B>(&golden, "moi", 4);
        change(&mut request);
        engine.generate(request).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(&|r| r.scope = Some(Scope::Thinking)).contains("the scope `thinking` needs the tokens"));
    assert!(refused(&|r| r.rule = "swir:cap=1".parse().unwrap()).contains("cap of swir"));
    assert!(refused(&|r| r.grammar = Some(moi_engine::Grammar::Regex("a+".into()))).contains("no tokenizer"));
    assert!(refused(&|r| r.sampling.typical = 2.0.into()).contains("typical-p must be"));
    assert!(
        refused(&|r| r.sampling.banned = vec![256])
            .contains("token 256 (banned) is outside the vocabulary of 256")
    );
    assert!(
        refused(&|r| r.sampling.logit_bias = BTreeMap::from([(999, 1.0)]).into())
            .contains("token 999 (biased)")
    );
    let everything = (0..golden.vocab as u32).collect::<Vec<_>>();
    let mut all = request::<B>(&golden, "moi", 4);
    all.sampling.banned = everything;
    let mut generation = engine.generate(all.clone()).unwrap();
    assert!(generation.next().unwrap().unwrap_err().to_string().contains("no token is left to sample"));
    let engine = engine.with_markers(Some(Markers::new(3, 256)));
    let error = engine.generate(all).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("token 256 (marker of thinking)"), "{error}");
}

on_cpu_backends!(
    every_rule_with_every_sampler,
    samples_share_a_prompt,
    min_tokens_hold_back_the_end,
    thinking_is_told_by_markers,
    turns_share_a_cache,
    cached_turns_hold_mixtures,
    windows_begin_anew_where_they_must,
    scores_are_log_probabilities,
    what_cannot_be_is_refused,
);
