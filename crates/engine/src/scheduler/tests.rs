//! Tests with a model that fails on demand, and with requests of several owners.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData};
use burn_flex::Flex;
use moi_models::{Decoder, Embedding, ForwardBatch, KvPool, ModelError};

use super::*;
use crate::{InputRule, Prompt, Sampling, StopReason, Support, self_check::Known};

/// What goes wrong in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The pass fails as a whole.
    Fails,
    /// The pass takes long.
    Stalls,
    /// The hidden states of this span are NaN.
    Nan(usize),
}

/// A model that computes what a real one does, except for faults.
struct Faulty {
    model: Decoder<Flex>,
    passes: AtomicUsize,
    /// Positions of the longest span of passes with several.
    longest: AtomicUsize,
    /// The fault of each pass.
    fault: fn(usize) -> Fault,
}

impl Faulty {
    fn engine(fault: fn(usize) -> Fault) -> Engine<Flex, Self> {
        let model = Known::read().model::<Flex>(&Default::default(), FloatDType::F32).unwrap();
        Engine::new(
            Self { model, passes: AtomicUsize::new(0), longest: AtomicUsize::new(0), fault },
            Default::default(),
        )
    }
}

impl CausalLm<Flex> for Faulty {
    fn embed(&self, ids: Tensor<Flex, 1, Int>) -> Tensor<Flex, 2> {
        self.model.embed(ids)
    }

    fn forward(
        &self,
        batch: ForwardBatch<'_, Flex>,
        pool: &mut KvPool<Flex>,
    ) -> Result<Tensor<Flex, 2>, ModelError> {
        let lens: Vec<usize> = batch.spans.iter().map(|span| span.len).collect();
        let fault = (self.fault)(self.passes.fetch_add(1, Ordering::Relaxed));
        if lens.len() > 1 {
            self.longest.fetch_max(lens.iter().copied().max().unwrap_or(0), Ordering::Relaxed);
        }
        if fault == Fault::Stalls {
            std::thread::sleep(Duration::from_millis(5));
        }
        if fault == Fault::Fails {
            return Err(ModelError::PoolFull { needed: 2, budget: 1 });
        }
        let hidden = self.model.forward(batch, pool)?;
        let Fault::Nan(broken) = fault else { return Ok(hidden) };
        let factor = |(span, &len): (usize, &usize)| vec![if span == broken { f32::NAN } else { 1.0 }; len];
        let factors: Vec<f32> = lens.iter().enumerate().flat_map(factor).collect();
        let count = factors.len();
        let factors = Tensor::from_data(TensorData::new(factors, [count, 1]), (&hidden.device(), DType::F32));
        Ok(hidden * factors)
    }

    fn logits(&self, hidden: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        self.model.logits(hidden)
    }

    fn embedding(&self) -> &Embedding<Flex> {
        self.model.embedding()
    }

    fn new_pool(&self, device: &<Flex as burn::tensor::backend::BackendTypes>::Device) -> KvPool<Flex> {
        self.model.new_pool(device)
    }

    fn context_length(&self) -> usize {
        self.model.context_length()
    }
}

fn request(index: usize, prompt: usize, tokens: usize) -> Request<Flex> {
    let ids = (0..prompt).map(|i| ((i * 37 + index * 61 + 5) % 509) as u32).collect();
    let mut request = Request::new(Prompt::Ids(ids));
    request.rule =
        [InputRule::TOKEN, InputRule::default(), InputRule::moi(0.5, Support::TopK(9)).unwrap()][index % 3];
    if index % 2 == 1 {
        request.sampling = Sampling { temperature: 0.9.into(), top_p: 0.9.into(), ..Sampling::default() };
    }
    (request.seed, request.stop.max_tokens, request.stop.ignore_eos) = (index as u64, Some(tokens), true);
    request
}

/// Prompts of many lengths, up to several blocks and pieces.
fn requests() -> Vec<Request<Flex>> {
    (0..12).map(|index| request(index, 1 + index * 9, 4 + index % 5)).collect()
}

fn alone(engine: &Engine<Flex, Faulty>, request: Request<Flex>) -> Vec<u32> {
    engine.generate(request).unwrap().map(|step| step.unwrap().token).collect()
}

/// What came of each request.
#[derive(Debug, Default)]
struct Seen {
    tokens: Vec<u32>,
    stop: Option<StopReason>,
    failed: Option<String>,
}

type Outcomes = BTreeMap<RequestId, Seen>;

fn note(events: Vec<Event>, seen: &mut Outcomes) {
    for event in events {
        match event {
            Event::Token(id, step) => {
                let seen = seen.entry(id).or_default();
                assert!(seen.stop.is_none() && seen.failed.is_none(), "nothing comes behind an end");
                seen.tokens.push(step.token);
                seen.stop = step.stop;
            }
            Event::Admitted(_) | Event::Prompt(..) => {}
            Event::Failed(id, error, _) => seen.entry(id).or_default().failed = Some(error.to_string()),
        }
    }
}

fn run(scheduler: &mut Scheduler<'_, Flex, Faulty>, seen: &mut Outcomes) {
    for _ in 0..500 {
        if scheduler.is_idle() {
            return;
        }
        note(scheduler.round(), seen);
    }
    panic!("it does not come to an end");
}

#[test]
fn all_are_answered_as_if_they_were_alone() {
    let engine = Faulty::engine(|_| Fault::None);
    for max_running in [1, 3, 64] {
        let options = SchedulerOptions { max_running, ..SchedulerOptions::default() };
        let mut scheduler = Scheduler::new(&engine, options);
        let ids: Vec<RequestId> =
            requests().into_iter().map(|request| scheduler.submit("a", request).unwrap()).collect();
        let mut seen = Outcomes::new();
        run(&mut scheduler, &mut seen);
        for (id, request) in ids.iter().zip(requests()) {
            assert_eq!(seen[id].tokens, alone(&engine, request), "{id:?}");
            assert_eq!(seen[id].stop, Some(StopReason::Length));
        }
        assert_eq!(engine.cache_bytes()[0], 0);
    }
}

#[test]
fn a_cancelled_request_changes_no_other() {
    let engine = Faulty::engine(|_| Fault::None).with_prefill_chunk(64);
    let expected: Vec<Vec<u32>> = requests().into_iter().map(|request| alone(&engine, request)).collect();
    // Some wait, some are in their prompts, some decode.
    for cancelled in 0..12 {
        for rounds in [0, 1, 2, 3, 5] {
            let options = SchedulerOptions { max_running: 6, ..SchedulerOptions::default() };
            let mut scheduler = Scheduler::new(&engine, options);
            let ids: Vec<RequestId> =
                requests().into_iter().map(|request| scheduler.submit("a", request).unwrap()).collect();
            let mut seen = Outcomes::new();
            (0..rounds).for_each(|_| note(scheduler.round(), &mut seen));
            let ended = seen.get(&ids[cancelled]).is_some_and(|seen| seen.stop.is_some());
            assert_eq!(scheduler.cancel(ids[cancelled]).is_none(), ended);
            assert!(scheduler.cancel(ids[cancelled]).is_none());
            let before = seen.get(&ids[cancelled]).map_or(0, |seen| seen.tokens.len());
            run(&mut scheduler, &mut seen);
            for (index, id) in ids.iter().enumerate() {
                let tokens = seen.get(id).map(|seen| seen.tokens.clone()).unwrap_or_default();
                match index == cancelled {
                    true => assert_eq!(tokens, expected[index][..before], "nothing comes behind a cancel"),
                    false => assert_eq!(tokens, expected[index], "{index} beside {cancelled} after {rounds}"),
                }
            }
            assert_eq!(engine.cache_bytes()[0], 0, "all blocks came back");
        }
    }
}

#[test]
fn a_prompt_that_others_wait_for_can_be_cancelled() {
    let engine = Faulty::engine(|_| Fault::None).with_prefill_chunk(64);
    let same = |seed| Request { seed, ..request(7, 100, 5) };
    for rounds in [0, 1, 2] {
        let mut batch = engine.batch();
        let rows = batch.add_all((0..4).map(same).collect()).unwrap();
        let mut tokens = vec![Vec::new(); 4];
        let mut take = |steps: Vec<Result<TokenEvent, SequenceError>>| {
            for step in steps {
                let step = step.unwrap();
                tokens[step.row.0].push(step.token);
            }
        };
        (0..rounds).for_each(|_| take(batch.round().unwrap()));
        batch.cancel(rows[0]).unwrap();
        while !batch.is_empty() {
            take(batch.round().unwrap());
        }
        for (row, tokens) in tokens.iter().enumerate().skip(1) {
            assert_eq!(*tokens, alone(&engine, same(row as u64)), "{row} after {rounds}");
        }
    }
}

/// As many samples as the prompt has positions, and other numbers of samples.
#[test]
fn samples_of_a_prompt_are_drawn_behind_its_last_position() {
    let engine = Faulty::engine(|_| Fault::None);
    for (prompt, samples) in [(3, 3), (2, 2), (3, 5), (66, 2), (1, 4)] {
        let same = |seed| Request { seed, ..request(7, prompt, 4) };
        let mut batch = engine.batch();
        batch.add_all((0..samples).map(same).collect()).unwrap();
        let mut tokens = vec![Vec::new(); samples as usize];
        while !batch.is_empty() {
            for step in batch.step().unwrap() {
                let step = step.unwrap();
                tokens[step.row.0].push(step.token);
            }
        }
        for (seed, tokens) in (0..).zip(tokens) {
            assert_eq!(tokens, alone(&engine, same(seed)), "{prompt} positions, sample {seed} of {samples}");
        }
    }
}

#[test]
fn one_that_breaks_ends_alone() {
    // The second span of pass 5, counted from 0.
    let engine = Faulty::engine(|pass| if pass == 5 { Fault::Nan(1) } else { Fault::None });
    let sound = Faulty::engine(|_| Fault::None);
    let mut scheduler = Scheduler::new(&engine, SchedulerOptions::default());
    let ids: Vec<RequestId> =
        requests().into_iter().map(|request| scheduler.submit("a", request).unwrap()).collect();
    let mut seen = Outcomes::new();
    run(&mut scheduler, &mut seen);
    let failed: Vec<&String> = seen.values().filter_map(|seen| seen.failed.as_ref()).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].contains("NaN"), "{failed:?}");
    for (id, request) in ids.iter().zip(requests()) {
        let expected = alone(&sound, request);
        match &seen[id].failed {
            Some(_) => {
                assert!(expected.starts_with(&seen[id].tokens) && seen[id].tokens.len() < expected.len())
            }
            None => assert_eq!(seen[id].tokens, expected),
        }
    }
}

#[test]
fn when_the_model_fails_those_that_wait_are_still_answered() {
    let engine = Faulty::engine(|pass| if pass == 3 { Fault::Fails } else { Fault::None });
    let sound = Faulty::engine(|_| Fault::None);
    let mut scheduler =
        Scheduler::new(&engine, SchedulerOptions { max_running: 4, ..SchedulerOptions::default() });
    let ids: Vec<RequestId> =
        requests().into_iter().map(|request| scheduler.submit("a", request).unwrap()).collect();
    let mut seen = Outcomes::new();
    run(&mut scheduler, &mut seen);
    let failed = ids.iter().filter(|id| seen[id].failed.is_some()).count();
    assert!((1..=4).contains(&failed), "{failed}");
    for (id, request) in ids.iter().zip(requests()).filter(|(id, _)| seen[id].failed.is_none()) {
        assert_eq!(seen[id].tokens, alone(&sound, request));
    }
    assert_eq!(engine.cache_bytes()[0], 0);
}

#[test]
fn what_cannot_be_is_refused_at_once() {
    let engine = Faulty::engine(|_| Fault::None);
    let block = {
        let _generation = engine.generate(request(0, 1, 2)).unwrap();
        engine.cache_bytes()[0]
    };
    // Room for two requests of one block each, and for their inputs.
    let options =
        SchedulerOptions { max_queued: 3, cache_bytes: Some(5 * block / 2), ..SchedulerOptions::default() };
    let mut scheduler = Scheduler::new(&engine, options);
    let empty = Request::new(Prompt::Ids(Vec::new()));
    assert!(matches!(scheduler.submit("a", empty), Err(Refusal::Request(EngineError::EmptyPrompt))));
    // Up to 64 positions take one block of each kind of layer, and 65 to 128 positions take two.
    let small =
        Scheduler::new(&engine, SchedulerOptions { cache_bytes: Some(block), ..SchedulerOptions::default() });
    let refused = { small }.submit("a", request(0, 60, 10)).unwrap_err();
    assert!(matches!(refused, Refusal::TooLarge { budget, .. } if budget == block), "{refused}");
    for index in 0..3 {
        scheduler.submit("a", request(index, 30, 4)).unwrap();
    }
    assert!(matches!(scheduler.submit("b", request(3, 30, 4)), Err(Refusal::QueueFull { queued: 3, .. })));
    // Two of one block each run together, the third waits for one of them.
    scheduler.round();
    assert_eq!((scheduler.running(), scheduler.queued()), (2, 1));
    assert!(engine.cache_bytes()[0] <= 2 * block);
    let mut seen = Outcomes::new();
    run(&mut scheduler, &mut seen);
    assert_eq!(seen.len(), 3);
}

#[test]
fn no_owner_waits_for_all_of_another() {
    let engine = Faulty::engine(|_| Fault::None);
    let mut scheduler =
        Scheduler::new(&engine, SchedulerOptions { max_running: 2, ..SchedulerOptions::default() });
    let many: Vec<RequestId> =
        (0..20).map(|index| scheduler.submit("many", request(index, 100, 20)).unwrap()).collect();
    let one = scheduler.submit("one", request(3, 100, 20)).unwrap();
    let mut seen = Outcomes::new();
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        note(scheduler.round(), &mut seen);
        for id in seen.keys().filter(|id| !order.contains(*id)).copied().collect::<Vec<_>>() {
            order.push(id);
        }
    }
    let place = order.iter().position(|id| *id == one).unwrap();
    assert!(place <= 8, "it came as number {place} of {}", order.len());
    assert_eq!(order.len(), many.len() + 1);
}

#[test]
fn short_prompts_go_first_and_long_ones_are_not_forgotten() {
    let engine = Faulty::engine(|_| Fault::None);
    let mut scheduler =
        Scheduler::new(&engine, SchedulerOptions { max_running: 1, ..SchedulerOptions::default() });
    let long = scheduler.submit("a", request(0, 100, 2)).unwrap();
    let short = scheduler.submit("a", request(1, 5, 2)).unwrap();
    let mut seen = Outcomes::new();
    let mut order = Vec::new();
    // New short requests keep coming.
    for index in 0..60 {
        scheduler.submit("a", request(index, 5, 2)).unwrap();
        note(scheduler.round(), &mut seen);
        for id in seen.keys().filter(|id| !order.contains(*id)).copied().collect::<Vec<_>>() {
            order.push(id);
        }
    }
    assert_eq!(order[0], short);
    assert!(order.contains(&long), "{order:?}");
}

/// Requests that came last make room for the others, and still give the same tokens as alone: computed again from
/// their inputs, or copied to the host and back.
#[test]
fn parked_requests_go_on_as_if_nothing_had_happened() {
    let engine = Faulty::engine(|_| Fault::None).with_prefill_chunk(64);
    let longer = |index| request(index, 20 + 9 * index, 27);
    let expected: Vec<Vec<u32>> = (0..9).map(|index| alone(&engine, longer(index))).collect();
    // The largest has three blocks of each kind of layer.
    let budget = engine.pool().bytes_for(127, 64) * 2;
    for (replays, foreseen_tokens) in [(true, 1), (true, 16), (false, 1), (false, 16)] {
        let options =
            SchedulerOptions { cache_bytes: Some(budget), foreseen_tokens, ..SchedulerOptions::default() };
        let mut scheduler = Scheduler::new(&engine, options);
        if !replays {
            scheduler.batch = engine.batch();
        }
        let ids: Vec<RequestId> = (0..9).map(|index| scheduler.submit("a", longer(index)).unwrap()).collect();
        let (mut seen, mut parked) = (Outcomes::new(), 0);
        while !scheduler.is_idle() {
            note(scheduler.round(), &mut seen);
            parked = parked.max(scheduler.parked());
            let used = engine.cache_bytes()[0];
            assert!(used <= budget, "{used} of {budget} bytes");
        }
        assert!(parked > 0, "nobody was parked");
        for (id, expected) in ids.iter().zip(&expected) {
            assert_eq!(seen[id].tokens, *expected, "replays: {replays}, {foreseen_tokens} foreseen");
        }
        assert_eq!(engine.cache_bytes()[0], 0);
    }
}

/// A parked request can be cancelled, and running requests then use its room.
#[test]
fn parked_requests_can_be_cancelled() {
    let engine = Faulty::engine(|_| Fault::None).with_prefill_chunk(64);
    let options = SchedulerOptions {
        cache_bytes: Some(engine.pool().bytes_for(64, 64) * 3),
        foreseen_tokens: 1,
        ..SchedulerOptions::default()
    };
    let mut scheduler = Scheduler::new(&engine, options);
    let ids: Vec<RequestId> =
        (0..3).map(|index| scheduler.submit("a", request(index, 55, 40)).unwrap()).collect();
    let mut seen = Outcomes::new();
    while scheduler.parked() == 0 {
        note(scheduler.round(), &mut seen);
    }
    scheduler.cancel(ids[2]).unwrap();
    assert_eq!(scheduler.parked() + scheduler.running(), 2);
    run(&mut scheduler, &mut seen);
    for (index, id) in ids[..2].iter().enumerate() {
        assert_eq!(seen[id].tokens, alone(&engine, request(index, 55, 40)));
    }
}

/// A request that is prepared on another thread gives the same tokens as one that is not.
#[test]
fn requests_are_prepared_outside_of_rounds() {
    let engine = Faulty::engine(|_| Fault::None);
    let mut scheduler = Scheduler::new(&engine, SchedulerOptions::default());
    let prepared = std::thread::scope(|scope| {
        scope.spawn(|| engine.prepare(request(1, 30, 5)).unwrap()).join().unwrap()
    });
    assert_eq!(prepared.prompt_positions(), 30);
    let id = scheduler.submit_prepared("a", prepared).unwrap();
    let mut seen = Outcomes::new();
    run(&mut scheduler, &mut seen);
    assert_eq!(seen[&id].tokens, alone(&engine, request(1, 30, 5)));
    let refused = engine.prepare(request(1, 0, 5)).unwrap_err();
    assert!(matches!(refused, EngineError::EmptyPrompt));
    let other = Faulty::engine(|_| Fault::None).prepare(request(1, 30, 5)).unwrap();
    let refused = scheduler.submit_prepared("a", other).unwrap_err();
    assert!(matches!(refused, Refusal::Request(EngineError::ForeignRequest)), "{refused}");
}

/// A slow pass changes no token, and it makes the pieces of prompts beside decoding sequences small.
#[test]
fn a_pass_that_stalls_only_takes_time() {
    // All passes in which a prompt runs beside four sequences.
    let engine = Faulty::engine(|pass| if pass > 2 { Fault::Stalls } else { Fault::None });
    let sound = Faulty::engine(|_| Fault::None);
    let mut scheduler = Scheduler::new(&engine, SchedulerOptions::default());
    let four: Vec<RequestId> =
        (0..4).map(|index| scheduler.submit("a", request(index, 5, 30)).unwrap()).collect();
    let mut seen = Outcomes::new();
    (0..3).for_each(|_| note(scheduler.round(), &mut seen));
    let late = scheduler.submit("a", request(7, 100, 5)).unwrap();
    run(&mut scheduler, &mut seen);
    for (index, id) in four.iter().enumerate() {
        assert_eq!(seen[id].tokens, alone(&sound, request(index, 5, 30)));
    }
    assert_eq!(seen[&late].tokens, alone(&sound, request(7, 100, 5)));
    let longest = engine.model().longest.load(Ordering::Relaxed);
    assert_eq!(longest, 64, "the prompt of 100 positions came in pieces");
}

/// Parked requests took no part in a round that failed, and go on.
#[test]
fn parked_requests_outlive_a_failure_of_the_model() {
    let engine = Faulty::engine(|pass| if pass == 20 { Fault::Fails } else { Fault::None });
    let sound = Faulty::engine(|_| Fault::None);
    let longer = |index| request(index, 55, 40);
    let options = SchedulerOptions {
        cache_bytes: Some(sound.pool().bytes_for(64, 64) * 3),
        foreseen_tokens: 1,
        ..SchedulerOptions::default()
    };
    let mut scheduler = Scheduler::new(&engine, options);
    let ids: Vec<RequestId> = (0..2).map(|index| scheduler.submit("a", longer(index)).unwrap()).collect();
    let mut seen = Outcomes::new();
    while scheduler.parked() == 0 {
        note(scheduler.round(), &mut seen);
    }
    run(&mut scheduler, &mut seen);
    assert!(seen[&ids[0]].failed.is_some() && seen[&ids[1]].failed.is_none());
    assert_eq!(seen[&ids[1]].tokens, alone(&sound, longer(1)));
    assert_eq!(engine.cache_bytes()[0], 0);
}

mod serving;
