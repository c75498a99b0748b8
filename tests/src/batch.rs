//! Requests of every kind, to run together and alone.

use burn::tensor::backend::Backend;
use moi_engine::{
    Engine, Event, InputRule, Prompt, Request, RequestId, Sampling, Scheduler, Support, TokenEvent,
};
use moi_models::CausalLm;

use crate::golden::Golden;

/// Requests with prompts of different lengths, with every rule, greedy and sampled, and with every stop condition.
pub fn requests<B: Backend>(golden: &Golden) -> Vec<Request<B>> {
    let rules = [
        InputRule::TOKEN,
        InputRule::moi(1.0, Support::Full).unwrap(),
        InputRule::moi(0.25, Support::TopK(20)).unwrap(),
        InputRule::gate(0.4, Support::TopK(7)).unwrap(),
        InputRule::direct(Support::Full).unwrap(),
        InputRule::TOKEN,
    ];
    let sampled = Sampling {
        temperature: 0.8.into(),
        top_k: 50.into(),
        top_p: 0.9.into(),
        min_p: 0.01.into(),
        ..Sampling::default()
    };
    let request = |(i, rule): (usize, InputRule)| {
        let mut request = Request::new(Prompt::Ids(golden.cases.tokens[i..][..1 + 5 * i].to_vec()));
        request.rule = rule;
        request.seed = 40 + i as u64;
        request.stop.max_tokens = Some([12, 3, 9, 1, 7, 16][i]);
        request.stop.ignore_eos = i % 2 == 0;
        request.sampling = if i % 2 == 0 { sampled.clone() } else { Sampling::default() };
        request.top = i;
        request
    };
    rules.into_iter().enumerate().map(request).collect()
}

/// Requests whose rules or samplers always run on the host, whatever the device.
pub fn of_the_host<B: Backend>(golden: &Golden) -> Vec<Request<B>> {
    let plain = Sampling { temperature: 0.8.into(), top_p: 0.9.into(), ..Sampling::default() };
    let rules = [
        ("soft-thinking:noise=gumbel", plain.clone()),
        ("soft-thinking:noise=dirichlet:max_topk=4", plain.clone()),
        ("k-sample:k=4", plain.clone()),
        ("swir:dwell=1", plain.clone()),
        ("selar:tau=0.1", plain.clone()),
        ("moi", Sampling { typical: 0.9.into(), repetition: 1.2.into(), ..plain.clone() }),
        ("moi:support=20", Sampling { banned: vec![1, 2], no_repeat_ngram: 2.into(), ..plain }),
    ];
    let request = |(i, (rule, sampling)): (usize, (&str, Sampling))| {
        let mut request = Request::new(Prompt::Ids(golden.cases.tokens[i..][..3 + 4 * i].to_vec()));
        request.rule = rule.parse().unwrap();
        (request.sampling, request.seed, request.top) = (sampling, 90 + i as u64, 5);
        request.stop.max_tokens = Some(6);
        request.stop.ignore_eos = true;
        request
    };
    rules.into_iter().enumerate().map(request).collect()
}

/// Runs requests of which some join while others are in progress. Returns the steps of each.
pub fn joining<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    first: Vec<Request<B>>,
    later: Vec<Request<B>>,
) -> Vec<Vec<TokenEvent>> {
    let mut steps = vec![Vec::new(); first.len() + later.len()];
    let mut batch = engine.batch();
    batch.add_all(first).unwrap();
    let mut later = Some(later);
    for round in 0.. {
        if round == 2 {
            batch.add_all(later.take().unwrap()).unwrap();
        }
        if batch.is_empty() && later.is_none() {
            break;
        }
        for step in batch.step().unwrap() {
            let step = step.unwrap();
            steps[step.row.0].push(step);
        }
    }
    steps
}

/// Asserts the same tokens, stop reasons and reports, and entropies and gates within the error of one device.
pub fn assert_same(row: usize, together: &[TokenEvent], alone: &[TokenEvent]) {
    assert_alike(row, together, alone, 1e-4);
}

/// Asserts the same tokens, stop reasons and reports, and entropies and gates within a bound.
pub fn assert_alike(row: usize, together: &[TokenEvent], alone: &[TokenEvent], bound: f32) {
    let tokens = |steps: &[TokenEvent]| steps.iter().map(|step| step.token).collect::<Vec<_>>();
    assert_eq!(tokens(together), tokens(alone), "row {row}");
    for (a, b) in together.iter().zip(alone) {
        assert_eq!(a.stop, b.stop, "row {row}");
        assert_eq!(a.top.len(), b.top.len(), "row {row}");
        // Each difference is checked on its own, because `max` ignores NaN.
        for off in [a.entropy - b.entropy, a.gate - b.gate] {
            assert!(off.abs() < bound, "row {row}: entropy or gate off by {off}");
        }
        // Sums over a batch round differently. The direct rule feeds its own rounding error back, which triples the
        // error at each step: 5e-7 at first, 1e-3 after seven.
        assert!((a.logprob - b.logprob).abs() < 5e-3, "row {row}: {} {}", a.logprob, b.logprob);
    }
}

/// Runs requests in one batch. Returns the steps of each.
pub fn together<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    requests: Vec<Request<B>>,
) -> Vec<Vec<TokenEvent>> {
    let mut batch = engine.batch();
    for request in requests {
        batch.add(request).unwrap();
    }
    let mut together = vec![Vec::new(); batch.len()];
    while !batch.is_empty() {
        for step in batch.step().unwrap() {
            let step = step.unwrap();
            together[step.row.0].push(step);
        }
    }
    assert!(batch.step().unwrap().is_empty());
    together
}

/// Runs requests through a scheduler. Returns the steps of each, and the largest number of requests parked at once.
pub fn scheduled<B: Backend, M: CausalLm<B>>(
    mut scheduler: Scheduler<'_, B, M>,
    requests: Vec<Request<B>>,
) -> (Vec<Vec<TokenEvent>>, usize) {
    let submit = |request| scheduler.submit("", request).unwrap();
    let ids: Vec<RequestId> = requests.into_iter().map(submit).collect();
    let (mut found, mut parked) = (vec![Vec::new(); ids.len()], 0);
    while !scheduler.is_idle() {
        for event in scheduler.round() {
            match event {
                Event::Token(id, step) => {
                    found[ids.iter().position(|known| *known == id).unwrap()].push(step)
                }
                Event::Admitted(_) | Event::Prompt(..) => {}
                Event::Failed(_, error, _) => panic!("{error}"),
            }
        }
        parked = parked.max(scheduler.parked());
    }
    (found, parked)
}
