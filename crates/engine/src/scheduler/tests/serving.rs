//! What a server needs of a scheduler: pausing requests, submitting groups of them, and scoring prompts.

use std::collections::BTreeMap;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use super::*;
use crate::{Prompt, Scored};

/// Token events without their sequence ids, which depend on the other requests.
fn steps_of(steps: &[TokenEvent]) -> Vec<String> {
    steps.iter().map(|step| format!("{:?}", TokenEvent { row: SequenceId(0), ..step.clone() })).collect()
}

/// Requests are paused and resumed at random moments, with room for all of them or for few, so that some are parked.
/// Each gives exactly the events that it gives alone.
#[test]
fn who_is_paused_is_as_if_never() {
    let engine = Faulty::engine(|_| Fault::None);
    let requests = requests();
    let alone: Vec<Vec<String>> = requests
        .iter()
        .map(|request| {
            let steps: Vec<TokenEvent> =
                engine.generate(request.clone()).unwrap().map(Result::unwrap).collect();
            steps_of(&steps)
        })
        .collect();
    let block = engine.bytes_for(1);
    for seed in 0..30 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut draw = |below: usize| (random.next_u32() as usize) % below;
        let cache_bytes = [None, Some(6 * block), Some(16 * block)][draw(3)];
        let options =
            SchedulerOptions { max_running: 4, cache_bytes, foreseen_tokens: 3, ..Default::default() };
        let mut scheduler = Scheduler::new(&engine, options);
        let ids: Vec<RequestId> =
            requests.iter().map(|request| scheduler.submit("a", request.clone()).unwrap()).collect();
        let mut seen: BTreeMap<RequestId, Vec<TokenEvent>> = BTreeMap::new();
        let mut paused: Vec<RequestId> = Vec::new();
        for round in 0..3000 {
            if scheduler.is_idle() {
                break;
            }
            assert!(round < 2999, "seed {seed}: it does not come to an end");
            for event in scheduler.round() {
                match event {
                    Event::Token(id, step) => seen.entry(id).or_default().push(step),
                    Event::Failed(id, error, _) => panic!("seed {seed}: {id:?}: {error}"),
                    Event::Admitted(_) | Event::Prompt(..) => {}
                }
            }
            let id = ids[draw(ids.len())];
            if draw(3) == 0 && scheduler.pause(id) {
                paused.push(id);
            }
            if !paused.is_empty() && (draw(3) == 0 || scheduler.active() == 0) {
                let id = paused.swap_remove(draw(paused.len()));
                assert!(scheduler.resume_paused(id).is_none());
            }
        }
        for (at, id) in ids.iter().enumerate() {
            assert_eq!(steps_of(&seen[id]), alone[at], "seed {seed}, request {at}");
        }
        drop(scheduler);
        assert_eq!(engine.cache_bytes()[0], 0, "seed {seed}: all blocks came back");
    }
}

/// A paused request keeps neither memory nor a place from others.
#[test]
fn who_is_paused_keeps_nobody_out() {
    let engine = Faulty::engine(|_| Fault::None);
    let block = engine.bytes_for(1);
    let options = SchedulerOptions {
        max_running: 1,
        cache_bytes: Some(7 * block / 2),
        foreseen_tokens: 4,
        ..SchedulerOptions::default()
    };
    let mut scheduler = Scheduler::new(&engine, options);
    let slow = scheduler.submit("slow", request(0, 70, 30)).unwrap();
    while !scheduler.round().iter().any(|event| matches!(event, Event::Token(..))) {}
    assert!(scheduler.pause(slow) && !scheduler.pause(slow));
    let other = scheduler.submit("other", request(3, 90, 9)).unwrap();
    let mut seen = Outcomes::new();
    for _ in 0..200 {
        note(scheduler.round(), &mut seen);
    }
    assert_eq!(seen[&other].tokens, alone(&engine, request(3, 90, 9)));
    assert!(scheduler.preemptions() > 0 && scheduler.active() == 0 && !scheduler.is_idle());
    assert!(scheduler.resume_paused(slow).is_none());
    run(&mut scheduler, &mut seen);
    assert_eq!(seen[&slow].tokens.len(), 29);
    // A request that is cancelled while it is paused is gone.
    let gone = scheduler.submit("gone", request(1, 30, 30)).unwrap();
    while !scheduler.round().iter().any(|event| matches!(event, Event::Token(..))) {}
    assert!(scheduler.pause(gone) && scheduler.cancel(gone).is_some());
    assert!(scheduler.is_idle() && scheduler.resume_paused(gone).is_none() && !scheduler.pause(gone));
}

/// Prompts get the same scores as alone: in pieces, beside other requests, and if they are parked halfway and run
/// again.
#[test]
fn prompts_are_scored_in_any_company() {
    let engine = Faulty::engine(|_| Fault::None).with_prefill_chunk(32).with_prefix_cache(1 << 20);
    let scored_request = |index: usize, prompt: usize| {
        let mut request = request(index, prompt, 2);
        request.prompt_logprobs = Some(3);
        request
    };
    let expected: Vec<Vec<Scored>> = (0..6)
        .map(|index| {
            let Prompt::Ids(ids) = scored_request(index, 1 + index * 24).prompt else { unreachable!() };
            if ids.len() == 1 { Vec::new() } else { engine.score(&ids, 3).unwrap() }
        })
        .collect();
    let block = engine.bytes_for(1);
    for blocks in [5, 7, 100] {
        let options = SchedulerOptions {
            cache_bytes: Some(blocks * 2 * block),
            foreseen_tokens: 2,
            ..SchedulerOptions::default()
        };
        let mut scheduler = Scheduler::new(&engine, options);
        let long = scheduler.submit("long", request(7, 20, 100)).unwrap();
        let ids: Vec<RequestId> = (0..6)
            .map(|index| scheduler.submit("a", scored_request(index, 1 + index * 24)).unwrap())
            .collect();
        let mut found: BTreeMap<RequestId, Vec<Scored>> = BTreeMap::new();
        for _ in 0..2000 {
            for event in scheduler.round() {
                if let Event::Prompt(id, report) = event {
                    assert!(found.insert(id, report.scored).is_none(), "a prompt is reported once");
                }
            }
            if scheduler.is_idle() {
                break;
            }
        }
        assert!(scheduler.is_idle() && found[&long].is_empty());
        for (id, expected) in ids.iter().zip(&expected) {
            assert_eq!(&found[id], expected, "{blocks} blocks");
        }
    }
    // The request is paused halfway through its prompt, then parked for another one, and run again.
    let options =
        SchedulerOptions { cache_bytes: Some(7 * block / 2), foreseen_tokens: 2, ..Default::default() };
    let mut scheduler = Scheduler::new(&engine, options);
    let request_of = |salt: &str| Request { salt: salt.to_owned(), ..scored_request(5, 121) };
    let scored = scheduler.submit("a", request_of("parked")).unwrap();
    assert!(!scheduler.round().iter().any(|event| matches!(event, Event::Prompt(..))));
    assert!(scheduler.pause(scored));
    let other = scheduler.submit("a", request(3, 100, 3)).unwrap();
    let mut seen = Outcomes::new();
    (0..50).for_each(|_| note(scheduler.round(), &mut seen));
    assert!(seen[&other].stop.is_some() && scheduler.preemptions() == 1);
    assert!(scheduler.resume_paused(scored).is_none());
    let mut found = Vec::new();
    while !scheduler.is_idle() {
        for event in scheduler.round() {
            if let Event::Prompt(_, report) = event {
                found.push(report.scored);
            }
        }
    }
    assert_eq!(found, [expected[5].clone()]);
}

/// Several requests are taken together or not at all.
#[test]
fn groups_are_taken_whole() {
    let engine = Faulty::engine(|_| Fault::None);
    let options = SchedulerOptions {
        max_running: 1,
        max_queued: 4,
        max_queued_tokens: 100,
        ..SchedulerOptions::default()
    };
    let mut scheduler = Scheduler::new(&engine, options);
    let mut submit = |count: usize, prompt: usize| {
        let group = (0..count).map(|index| engine.prepare(request(index, prompt, 2)).unwrap()).collect();
        let submitted = scheduler.submit_group("a", group).map(|ids| ids.len());
        (submitted, scheduler.queued(), scheduler.queued_tokens())
    };
    assert!(matches!(submit(5, 2), (Err(Refusal::TooMany { asked: 5, tokens: 10 }), 0, 0)));
    assert!(matches!(submit(2, 60), (Err(Refusal::TooMany { asked: 2, tokens: 120 }), 0, 0)));
    assert!(matches!(submit(3, 10), (Ok(3), 3, 30)));
    assert!(matches!(submit(2, 10), (Err(Refusal::QueueFull { queued: 3, tokens: 30 }), 3, 30)));
    assert!(matches!(submit(1, 90), (Err(Refusal::QueueFull { queued: 3, tokens: 30 }), 3, 30)));
    assert!(matches!(submit(1, 10), (Ok(1), 4, 40)));
}

/// A long prompt ends after about twice the rounds that it takes alone, though a new short prompt comes in each
/// round. So does a prompt of middle length. The short prompts do not wait for either.
#[test]
fn no_prompt_waits_for_ever_behind_others() {
    let engine = Faulty::engine(|_| Fault::None).with_prefill_chunk(16);
    let mut scheduler = Scheduler::new(&engine, SchedulerOptions::default());
    let long = scheduler.submit("long", request(0, 120, 2)).unwrap();
    let middle = scheduler.submit("middle", request(1, 60, 2)).unwrap();
    let (mut prompts, mut shorts) = (BTreeMap::new(), BTreeMap::new());
    for round in 0..400 {
        if round < 100 {
            shorts.insert(scheduler.submit("short", request(2, 10, 1)).unwrap(), round);
        }
        for event in scheduler.round() {
            if let Event::Prompt(id, _) = event {
                prompts.insert(id, round);
            }
        }
    }
    assert!(scheduler.is_idle());
    // They have 8 and 4 pieces, and one piece runs in every second round.
    assert!(prompts[&long] <= 30 && prompts[&middle] <= 45, "{prompts:?}");
    let worst = shorts.iter().map(|(id, round)| prompts[id] - round).max().unwrap();
    assert!(worst <= 120, "a short prompt waited for {worst} rounds");
}

/// Smaller priorities begin first, whatever the owner and the length. Equal priorities take turns as without
/// priorities.
#[test]
fn priorities_come_before_turns() {
    let engine = Faulty::engine(|_| Fault::None);
    let mut scheduler = Scheduler::new(&engine, SchedulerOptions { max_running: 1, ..Default::default() });
    let mut submit = |owner: &str, priority: i64, prompt: usize| {
        scheduler.submit(owner, Request { priority, ..request(0, prompt, 2) }).unwrap()
    };
    let late = submit("a", 5, 1);
    let [equal_long, equal_short] = [submit("a", 0, 90), submit("b", 0, 5)];
    let [first, second] = [submit("c", -3, 100), submit("a", -1, 100)];
    let mut admitted = Vec::new();
    while !scheduler.is_idle() {
        admitted.extend(scheduler.round().into_iter().filter_map(|event| match event {
            Event::Admitted(id) => Some(id),
            _ => None,
        }));
    }
    assert_eq!(admitted[..2], [first, second]);
    assert!(admitted[2..4].contains(&equal_long) && admitted[2..4].contains(&equal_short));
    assert_eq!(admitted[4], late);
}
