//! Drafts must change no token: whatever is drafted, a sequence gives, to the bit, what it gives without drafts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use burn_flex::Flex;
use moi_engine::{
    DrafterChoice, Engine, EngineError, Event, Markers, OwnDrafter, Prompt, Request, RequestId, Scheduler,
    SchedulerOptions, SequenceId, Speculated, Speculation, TokenEvent, Verify,
    speculation::{Chance, Draft, DraftError, DraftTree, Drafter, Growth, PassCosts},
};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{drafts::Oracle, golden::Golden, hostile::Dice};

use super::{
    each,
    requests::{bytes, constrained_request, mixed_request},
    tokens,
};

/// What speculation changes in an event by intent.
fn without_drafts(step: TokenEvent) -> TokenEvent {
    TokenEvent { row: SequenceId(0), speculated: None, ..step }
}

pub(super) fn run(engine: &Engine<Flex, Decoder<Flex>>, request: Request<Flex>) -> Vec<TokenEvent> {
    engine.generate(request).unwrap().map(Result::unwrap).collect()
}

/// A request with a drafter: one of each kind in turn, drafting the tokens of `plain` where it knows them.
fn drafting(request: &Request<Flex>, plain: &[TokenEvent], kind: usize) -> Request<Flex> {
    let Prompt::Ids(prompt) = &request.prompt else { panic!("a prompt of tokens") };
    let came = plain.iter().map(|step| step.token);
    let text: Arc<Vec<u32>> = Arc::new(prompt.iter().copied().chain(came).collect());
    let oracle = |wrong: usize| Oracle::of(&text, wrong, kind as u64);
    let drafter = match kind % 7 {
        0 => DrafterChoice::Lookup,
        1 => DrafterChoice::Recycling,
        2 => DrafterChoice::Auto,
        // Never wrong, nearly; often wrong; always wrong.
        3 => DrafterChoice::Own(oracle(1000)),
        4 => DrafterChoice::Own(oracle(4)),
        // The engine's draft model: itself, or some of its layers.
        5 => DrafterChoice::Model,
        _ => DrafterChoice::Own(oracle(1)),
    };
    let draft_budget = [1, 3, 8, 16, Speculation::MAX_BUDGET][kind % 5];
    // Inputs have to be exact, so that not a bit differs.
    let speculation = Speculation {
        drafter,
        draft_tokens: 1 + kind % 9,
        draft_budget,
        tolerance: Some(0.0),
        ..Speculation::default()
    };
    Request { speculation, ..request.clone() }
}

/// The events with drafts; `None` if the request's rule can gain nothing by them.
fn run_drafting(engine: &Engine<Flex, Decoder<Flex>>, request: Request<Flex>) -> Option<Vec<TokenEvent>> {
    match engine.generate(request) {
        Ok(generation) => Some(generation.map(Result::unwrap).collect()),
        Err(EngineError::NoSpeculation(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// In every architecture and every form of weights, windows that are shorter than the text included.
#[test]
fn every_model_gives_the_same_with_drafts() {
    let accepted = AtomicUsize::new(0);
    each(|name, model| {
        let engine = Engine::new(model.clone(), Default::default())
            .with_pass_costs(PassCosts::new(vec![(1, 1.0), (16, 1.5)]))
            .with_draft_model(model.clone())
            .unwrap();
        for kind in 0..7 {
            let mut request = Request::new(Prompt::Ids(tokens(kind, 90)));
            request.rule = "token".parse().unwrap();
            request.sampling.temperature = [0.0, 0.7][kind % 2].into();
            (request.seed, request.stop.max_tokens) = (kind as u64, Some(24));
            let plain = run(&engine, request.clone());
            let Some(found) = run_drafting(&engine, drafting(&request, &plain, kind)) else {
                assert!(name.starts_with("phi3-longrope"), "{name}");
                continue;
            };
            let last = found.last().unwrap().speculated.clone();
            accepted.fetch_add(report(last).0, Ordering::Relaxed);
            let found: Vec<TokenEvent> = found.into_iter().map(without_drafts).collect();
            assert_eq!(found, plain, "{name}, kind {kind}");
        }
    });
    let accepted = accepted.into_inner();
    assert!(accepted > 300, "only {accepted} drafts were right, so little was tested");
}

/// Accepted drafts and passes by the last event of a sequence.
fn report(last: Option<Speculated>) -> (usize, usize) {
    last.and_then(|last| last.report).map_or((0, 0), |report| (report.accepted, report.rounds))
}

/// With every rule, sampler, scope, grammar and stop rule, alone.
#[test]
fn every_request_gives_the_same_with_drafts() {
    let engine = byte_engine();
    let (mut accepted, mut refused) = (0, 0);
    for index in 0..120 {
        let mut request = constrained_request(index);
        request.stop.max_tokens = Some(2 + index % 23);
        (request.logprobs, request.top) = (index % 3, index % 4);
        let plain = run(&engine, request.clone());
        for kind in [index, index + 3] {
            let Some(found) = run_drafting(&engine, drafting(&request, &plain, kind)) else {
                assert!(request.rule.mixes(), "{}", request.rule);
                refused += 1;
                continue;
            };
            accepted += report(found.last().unwrap().speculated.clone()).0;
            let found: Vec<TokenEvent> = found.into_iter().map(without_drafts).collect();
            assert_eq!(found, plain, "request {index}, kind {kind}");
        }
    }
    assert!(accepted > 150 && refused > 10, "{accepted} accepted, {refused} refused");
}

pub(super) fn byte_engine() -> Engine<Flex, Decoder<Flex>> {
    let golden = Golden::read("qwen2-sliding");
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let some = model.with_layers(&[0]).unwrap();
    Engine::new(model, Default::default())
        .with_tokenizer(Some(bytes()))
        .with_markers(Some(Markers::new(3, 4)))
        .with_eos(pretrained.eos)
        .with_prefill_chunk(128)
        .with_pass_costs(PassCosts::new(vec![(1, 1.0), (16, 1.2)]))
        .with_draft_model(some)
        .unwrap()
}

/// Beside others with and without drafts, which join, end, are parked, paused and cancelled.
#[test]
fn neighbours_change_nothing_with_drafts() {
    const KINDS: usize = 60;
    let engine = byte_engine();
    let largest = {
        let _longest = engine.generate(mixed_request(6)).unwrap();
        engine.cache_bytes()[0]
    };
    let requests: Vec<(Request<Flex>, Vec<TokenEvent>)> = (0..KINDS)
        .map(|index| {
            let request = constrained_request(index);
            let plain = run(&engine, request.clone());
            let drafting = drafting(&request, &plain, index);
            let can = engine.prepare(drafting.clone()).is_ok();
            (if can && index % 4 != 3 { drafting } else { request }, plain)
        })
        .collect();
    let mut parked = 0;
    for mix in 0..200 {
        let mut dice = Dice::new(mix);
        let options = SchedulerOptions {
            max_running: 1 + dice.below(8),
            cache_bytes: dice.once_in(2).then_some(largest * 3 / 2),
            foreseen_tokens: dice.below(5),
            ..SchedulerOptions::default()
        };
        let mut scheduler = Scheduler::new(&engine, options);
        let mut wanted: Vec<(RequestId, usize, Vec<TokenEvent>, bool)> = Vec::new();
        let mut paused: Vec<RequestId> = Vec::new();
        let mut left = 2 + dice.below(8);
        while left > 0 || !scheduler.is_idle() {
            while left > 0 && dice.once_in(2) {
                let index = dice.below(KINDS);
                let id = scheduler.submit("a", requests[index].0.clone()).unwrap();
                wanted.push((id, index, Vec::new(), false));
                left -= 1;
            }
            if dice.once_in(12) && !wanted.is_empty() {
                let at = dice.below(wanted.len());
                wanted[at].3 |= scheduler.cancel(wanted[at].0).is_some();
            }
            if dice.once_in(6) && !wanted.is_empty() {
                let id = wanted[dice.below(wanted.len())].0;
                paused.extend(scheduler.pause(id).then_some(id));
            }
            if dice.once_in(3) {
                paused.drain(..).for_each(|id| assert!(scheduler.resume_paused(id).is_none()));
            }
            let events = scheduler.round();
            parked += scheduler.parked();
            for event in events {
                match event {
                    Event::Token(id, step) => wanted.iter_mut().find(|row| row.0 == id).unwrap().2.push(step),
                    Event::Admitted(_) | Event::Prompt(..) => {}
                    Event::Failed(id, error, _) => panic!("mix {mix}: {id:?}: {error}"),
                }
            }
        }
        for (id, index, steps, cancelled) in wanted {
            let expected = &requests[index].1;
            assert!(cancelled || steps.len() == expected.len(), "mix {mix}: {id:?}, kind {index}");
            for (found, expected) in steps.into_iter().zip(expected) {
                assert_eq!(without_drafts(found), *expected, "mix {mix}: {id:?}, kind {index}");
            }
        }
    }
    assert!(parked > 0, "nobody was parked");
}

/// A text that repeats its prompt, and a drafter that is always right: as many tokens a pass as are drafted.
#[test]
fn passes_give_as_many_tokens_as_are_drafted() {
    let golden = Golden::read("llama");
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let engine = Engine::new(model, Default::default());
    let mut request = Request::new(Prompt::Ids(tokens(1, 40)));
    request.rule = "token".parse().unwrap();
    request.stop.max_tokens = Some(41);
    request.stop.ignore_eos = true;
    let plain = run(&engine, request.clone());
    let Prompt::Ids(prompt) = &request.prompt else { unreachable!() };
    let text: Arc<Vec<u32>> =
        Arc::new(prompt.iter().copied().chain(plain.iter().map(|step| step.token)).collect());
    #[derive(Debug)]
    struct Right(Arc<Vec<u32>>, usize);
    impl Drafter for Right {
        fn draft(&mut self, ahead: &[u32], growth: &Growth, _: &mut dyn Chance) -> Result<Draft, DraftError> {
            let rest = &self.0[self.1 + ahead.len()..];
            let tokens = &rest[..rest.len().min(growth.depth)];
            Ok(Draft { tree: DraftTree::chain(tokens), values: vec![1.0; tokens.len()] })
        }

        fn push(&mut self, _: u32) {
            self.1 += 1;
        }
    }
    let own = OwnDrafter::new(move || Box::new(Right(Arc::clone(&text), 0)));
    let speculation = Speculation { draft_tokens: 4, ..Speculation::by(DrafterChoice::Own(own)) };
    let found = run(&engine, Request { speculation, ..request });
    // The prompt's pass gives one token, and each of eight passes gives five.
    assert_eq!(report(found.last().unwrap().speculated.clone()), (32, 9));
    assert_eq!(found.into_iter().map(without_drafts).collect::<Vec<_>>(), plain);
}

/// A drafter that ignores its limits, promises nothing and drafts what cannot come must harm nobody.
#[test]
fn a_reckless_drafter_changes_nothing() {
    #[derive(Debug)]
    struct Reckless(u32);
    impl Drafter for Reckless {
        fn draft(&mut self, _: &[u32], _: &Growth, _: &mut dyn Chance) -> Result<Draft, DraftError> {
            // End tokens and tokens that no vocabulary has are among them.
            let tokens: Vec<u32> = (0..200).map(|at| (self.0 + at) % 300).chain([u32::MAX]).collect();
            let mut tree = DraftTree::chain(&tokens);
            tree.add(0, 7);
            Ok(Draft { tree, values: Vec::new() })
        }

        fn push(&mut self, token: u32) {
            self.0 = token + 1;
        }
    }
    let engine = byte_engine();
    for prompt in [5, 200] {
        let mut request = Request::new(Prompt::Ids(tokens(3, prompt)));
        request.rule = "token".parse().unwrap();
        request.stop.max_tokens = Some(60);
        let plain = run(&engine, request.clone());
        let own = OwnDrafter::new(|| Box::new(Reckless(0)));
        request.speculation = Speculation::by(DrafterChoice::Own(own));
        let found: Vec<TokenEvent> = run(&engine, request).into_iter().map(without_drafts).collect();
        assert_eq!(found, plain);
    }
}

/// What cannot gain is refused by name, and `auto` then drafts nothing.
#[test]
fn what_cannot_gain_is_refused() {
    let engine = byte_engine();
    let mut request = mixed_request(0);
    (request.rule, request.scope) = ("moi".parse().unwrap(), None);
    request.speculation = Speculation { tolerance: Some(0.0), ..Speculation::by(DrafterChoice::Lookup) };
    let error = engine.prepare(request.clone()).unwrap_err().to_string();
    assert!(error.contains("mixture behind every token") && error.contains("`none`"), "{error}");
    let direct = Request { rule: "direct".parse().unwrap(), ..request.clone() };
    let speculation = Speculation::by(DrafterChoice::Lookup);
    let error = engine.prepare(Request { speculation, ..direct }).unwrap_err().to_string();
    assert!(error.contains("nothing but a mixture") && error.contains("tolerance"), "{error}");
    request.speculation = Speculation::by(DrafterChoice::Auto);
    assert!(run(&engine, request.clone()).iter().all(|step| step.speculated.is_none()));
    request.speculation.draft_budget = 0;
    assert!(engine.prepare(request.clone()).unwrap_err().to_string().contains("from 1 to 48, got 0"));
    for (speculation, expected) in [
        (Speculation { draft_tokens: 0, ..Speculation::default() }, "draft tokens"),
        (Speculation { tolerance: Some(1.0), ..Speculation::default() }, "below 1, got 1"),
        (Speculation { tolerance: Some(f64::NAN), ..Speculation::default() }, "below 1, got NaN"),
        (Speculation { window: 1, ..Speculation::default() }, "from 2 to 49, got 1"),
        (
            Speculation { verify: Verify::KSeq, ..Speculation::by(DrafterChoice::Auto) },
            "`k-seq` verifies drafts",
        ),
    ] {
        let error = engine.prepare(Request { speculation, ..request.clone() }).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
