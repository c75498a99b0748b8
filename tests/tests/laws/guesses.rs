//! Where the input rule feeds mixtures, guesses of them must change no token: to the bit where they have to be exact, and
//! up to rounding with the usual tolerance.

use std::sync::Arc;

use burn_flex::Flex;
use moi_engine::{
    DrafterChoice, Engine, Event, Prompt, Request, RequestId, Sampling, Scheduler, SchedulerOptions, Scope,
    Speculation, SpeculationReport, TokenEvent,
};
use moi_models::Decoder;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{drafts::Oracle, golden::Golden, hostile::Dice};

use super::{
    speculation::{byte_engine, run},
    tokens,
};

/// A request under a rule whose sampler looks back at the text in every other case.
fn request(rule: &str, index: usize) -> Request<Flex> {
    let mut request = Request::new(Prompt::Ids(tokens(index, 20 + index % 90)));
    request.rule = rule.parse().unwrap();
    request.scope = Some(Scope::All);
    let temperature = [0.0, 0.7, 1.0][index % 3].into();
    let repetition = [1.0, 1.2][index % 2].into();
    request.sampling = Sampling { temperature, repetition, ..Sampling::default() };
    (request.seed, request.stop.max_tokens, request.stop.ignore_eos) = (index as u64, Some(32), true);
    request
}

/// With a drafter that knows what comes, and is wrong once in `wrong`.
fn guessing(
    request: &Request<Flex>,
    plain: &[TokenEvent],
    wrong: usize,
    tolerance: Option<f64>,
) -> Request<Flex> {
    let Prompt::Ids(prompt) = &request.prompt else { panic!("a prompt of tokens") };
    let text: Arc<Vec<u32>> =
        Arc::new(prompt.iter().copied().chain(plain.iter().map(|step| step.token)).collect());
    let drafter = DrafterChoice::Own(Oracle::of(&text, wrong, request.seed));
    let window = [8, 16, 2, 24][request.seed as usize % 4];
    let speculation = Speculation { tolerance, window, draft_tokens: 24, ..Speculation::by(drafter) };
    Request { speculation, ..request.clone() }
}

fn report(steps: &[TokenEvent]) -> SpeculationReport {
    *steps.last().unwrap().speculated.clone().unwrap().report.unwrap()
}

/// Compares the steps with guesses to those without, with this bound for what is reported of each.
fn compare(found: &[TokenEvent], plain: &[TokenEvent], bound: f32, what: &str) {
    let ids = |steps: &[TokenEvent]| steps.iter().map(|step| step.token).collect::<Vec<_>>();
    assert_eq!(ids(found), ids(plain), "{what}");
    for (found, plain) in found.iter().zip(plain) {
        let off = (found.entropy - plain.entropy).abs().max((found.gate - plain.gate).abs());
        assert!(off <= bound, "{what}: {found:?} and not {plain:?}");
    }
}

/// Rules that always mix: tokens as without drafts, several a pass, and what is let through is reported.
#[test]
fn guesses_settle_up_to_rounding() {
    let engine = byte_engine();
    // Gates of this model are large, so that a guess gets better slowly.
    for (rule, least) in [("moi", 1.03), ("moi:support=20", 1.0), ("gate:gate=0.2", 1.1), ("moi:beta=4", 1.1)]
    {
        let (mut rounds, mut count, mut inexact) = (0, 0, 0);
        for index in 0..24 {
            let request = request(rule, index);
            let plain = run(&engine, request.clone());
            for wrong in [1000, 4] {
                let found = run(&engine, guessing(&request, &plain, wrong, None));
                let report = report(&found);
                assert!(report.worst <= 1e-6, "{report:?}");
                compare(&found, &plain, 2e-5, &format!("{rule}, request {index}"));
                rounds += report.rounds;
                count += found.len();
                inexact += report.inexact;
            }
        }
        let pace = count as f64 / rounds as f64;
        println!("{rule}: {pace:.2} tokens a pass, {inexact} inputs off by rounding");
        assert!(pace >= least && inexact > 0, "{rule}: {pace}");
    }
}

/// A larger tolerance lets more through, and reports it.
#[test]
fn a_larger_tolerance_is_reported() {
    let engine = byte_engine();
    let (mut rounds, mut worst) = ([0, 0], 0.0f64);
    for index in 0..24 {
        let request = request("moi", index);
        let plain = run(&engine, request.clone());
        for (at, tolerance) in [1e-6, 1e-2].into_iter().enumerate() {
            let found = report(&run(&engine, guessing(&request, &plain, 1000, Some(tolerance))));
            assert!(found.worst <= tolerance, "{found:?}");
            rounds[at] += found.rounds;
            worst = worst.max(found.worst);
        }
    }
    assert!(rounds[1] < rounds[0] && worst > 1e-5, "{rounds:?} passes, {worst}");
}

/// With a floor, and for rules whose inputs take few values, guesses are exact: not a bit differs.
#[test]
fn exact_guesses_change_no_bit() {
    let engine = byte_engine();
    // Gates of this model are near 0.45, its entropies near 0.9.
    for (rule, least) in [
        ("moi:floor=0.44", 2.0),
        ("moi:floor=0.9", 2.0),
        ("moi:support=20,floor=0.3", 1.0),
        ("k-sample:k=2", 1.25),
        ("selar:tau=0.99", 2.0),
        ("swir:dwell=2", 1.3),
    ] {
        let (mut rounds, mut count) = (0, 0);
        for index in 0..24 {
            let request = request(rule, index);
            let plain = run(&engine, request.clone());
            for wrong in [1000, 4] {
                let found = run(&engine, guessing(&request, &plain, wrong, Some(0.0)));
                let report = report(&found);
                assert_eq!((report.inexact, report.worst), (0, 0.0));
                let found: Vec<TokenEvent> =
                    found.into_iter().map(|step| TokenEvent { speculated: None, ..step }).collect();
                assert_eq!(found, plain, "{rule}, request {index}");
                rounds += report.rounds;
                count += found.len();
            }
        }
        let pace = count as f64 / rounds as f64;
        println!("{rule}: {pace:.2} tokens a pass");
        assert!(pace >= least, "{rule}: {pace}");
    }
}

/// A floor above the largest gate is the rule `token`, with the same passes.
#[test]
fn a_floor_above_all_gates_is_plain_speculation() {
    let engine = byte_engine();
    for index in 0..12 {
        let plain = run(&engine, request("token", index));
        let [found, expected] = ["moi:floor=0.99", "token"].map(|rule| {
            let request = Request { seed: 1, ..request(rule, index) };
            let plain = run(&engine, request.clone());
            report(&run(&engine, guessing(&request, &plain, 4, None)))
        });
        assert_eq!((found.rounds, found.accepted), (expected.rounds, expected.accepted), "{index}");
        assert_eq!(plain.len(), 32);
    }
}

/// Where errors need not shrink, guessing is given up, and tokens are those of a run without drafts.
#[test]
fn what_need_not_settle_is_given_up() {
    let engine = byte_engine();
    for rule in ["direct", "soft-thinking"] {
        for index in 0..6 {
            let request = request(rule, index);
            let plain = run(&engine, request.clone());
            let found = run(&engine, guessing(&request, &plain, 1, Some(1e-6)));
            let report = report(&found);
            compare(&found, &plain, 1e-3, rule);
            // Eight passes of drafts, and none behind them.
            assert!(report.drafted <= 8 * 23 && report.rounds == 32, "{rule}: {report:?}");
        }
    }
}

/// The cache holds the mixtures that were let through: later steps of a generation are those of a run without drafts, and
/// would be far from them if tokens were there instead.
#[test]
fn settled_columns_hold_mixtures() {
    let golden = Golden::read("llama");
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let engine: Engine<Flex, Decoder<Flex>> = Engine::new(model, Default::default());
    let mut off_by_tokens = 0.0f32;
    for index in 0..8 {
        let mixes = request("moi", index);
        let plain = run(&engine, mixes.clone());
        let guessed = run(&engine, guessing(&mixes, &plain, 1000, None));
        compare(&guessed, &plain, 2e-5, "moi");
        // The same tokens, fed as they are: what the last position gives is told by its entropy.
        let forced: Vec<u32> = plain.iter().map(|step| step.token).collect();
        let fed = run(&engine, Request { forced, ..request("token", index) });
        off_by_tokens = off_by_tokens.max((fed[31].entropy - plain[31].entropy).abs());
    }
    assert!(off_by_tokens > 1e-3, "mixtures and tokens give the same here, so nothing was tested");
}

/// Beside others, parked for want of memory, and paused: guesses wait with their sequences or are dropped.
#[test]
fn neighbours_and_parking_change_no_token() {
    const RULES: [&str; 4] = ["moi", "gate:gate=0.2", "moi:floor=0.44", "k-sample:k=2"];
    let engine = byte_engine();
    let all: Vec<(Request<Flex>, Vec<TokenEvent>)> = (0..16)
        .map(|index| {
            let request = request(RULES[index % 4], index);
            let plain = run(&engine, request.clone());
            (guessing(&request, &plain, 20, None), plain)
        })
        .collect();
    let largest = {
        let _longest = engine.generate(all[15].0.clone()).unwrap();
        engine.cache_bytes()[0]
    };
    let (mut parked, mut rounds, mut count) = (0, 0, 0);
    for mix in 0..12 {
        let mut dice = Dice::new(mix);
        let options = SchedulerOptions {
            max_running: 2 + dice.below(6),
            cache_bytes: dice.once_in(2).then_some(largest * 3),
            ..SchedulerOptions::default()
        };
        let mut scheduler = Scheduler::new(&engine, options);
        let ids: Vec<RequestId> =
            all.iter().map(|(request, _)| scheduler.submit("a", request.clone()).unwrap()).collect();
        let mut found: Vec<Vec<TokenEvent>> = vec![Vec::new(); all.len()];
        let mut paused: Vec<RequestId> = Vec::new();
        while !scheduler.is_idle() {
            let id = ids[dice.below(ids.len())];
            paused.extend(scheduler.pause(id).then_some(id));
            if dice.once_in(2) {
                paused.drain(..).for_each(|id| assert!(scheduler.resume_paused(id).is_none()));
            }
            parked += scheduler.parked();
            for event in scheduler.round() {
                match event {
                    Event::Token(id, step) => found[ids.iter().position(|of| *of == id).unwrap()].push(step),
                    Event::Admitted(_) | Event::Prompt(..) => {}
                    Event::Failed(id, error, _) => panic!("mix {mix}: {id:?}: {error}"),
                }
            }
        }
        for (index, (found, (_, plain))) in found.iter().zip(&all).enumerate() {
            compare(found, plain, 2e-5, &format!("mix {mix}, request {index}"));
            rounds += report(found).rounds;
            count += found.len();
        }
    }
    assert!(parked > 0 && count > rounds, "{parked} parked, {count} tokens in {rounds} passes");
}
