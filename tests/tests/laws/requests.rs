//! Requests together must give what each gives alone, through the batch and the scheduler.

use burn_flex::Flex;
use moi_engine::{
    Dry, Engine, Event, Grammar, Markers, Mirostat, Prompt, Request, RequestId, Sampling, Scheduler,
    SchedulerOptions, Scope, TokenEvent, Xtc,
};
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{golden::Golden, hostile::Dice};
use moi_text::Tokenizer;
use serde_json::json;

use super::tokens;

/// Requests with every rule, sampler, scope and constraint, and with prompts of one block and of several.
pub(crate) fn mixed_request(index: usize) -> Request<Flex> {
    const RULES: &[&str] = &[
        "token",
        "moi",
        "moi:support=20",
        "direct:support=3",
        "gate:gate=0.4",
        "soft-thinking",
        "soft-thinking:noise=gumbel",
        "k-sample:k=4",
        "swir:dwell=2",
        "selar:tau=0.2",
    ];
    let plain = Sampling { temperature: 0.9.into(), ..Sampling::default() };
    let samplings = [
        Sampling::default(),
        Sampling { top_k: 20.into(), top_p: 0.9.into(), min_p: 0.01.into(), ..plain.clone() },
        Sampling { typical: 0.9.into(), repetition: 1.3.into(), no_repeat_ngram: 2.into(), ..plain.clone() },
        Sampling { top_n_sigma: 1.5.into(), presence: 0.5.into(), frequency: 0.2.into(), ..plain.clone() },
        Sampling {
            dry: Dry { multiplier: 0.8, sequence_breakers: vec![], ..Dry::default() },
            ..plain.clone()
        },
        Sampling { xtc: Xtc { probability: 0.5, threshold: 0.05 }, ..plain.clone() },
        Sampling { mirostat: Mirostat { version: 2, tau: 3.0, ..Mirostat::default() }, ..plain.clone() },
        Sampling { banned: vec![1, 2, 3], ..plain },
    ];
    let prompt = [1, 9, 30, 64, 65, 100, 130][index % 7];
    let mut request = Request::new(Prompt::Ids(tokens(index % 5, prompt)));
    request.rule = RULES[index % RULES.len()].parse().unwrap();
    request.sampling = samplings[index % samplings.len()].clone();
    request.scope = [None, Some(Scope::Range { from: 1, to: Some(4) }), Some(Scope::Thinking)][index % 3];
    (request.seed, request.stop.max_tokens) = (index as u64, Some(2 + index % 7));
    request.stop.ignore_eos = index.is_multiple_of(2);
    request
}

/// Requests with grammars and stop strings, for a model whose tokens are bytes.
pub(crate) fn constrained_request(index: usize) -> Request<Flex> {
    let grammars = [
        None,
        Some(Grammar::Regex("[a-f]{2,9}(x|yz)*".to_owned())),
        None,
        Some(Grammar::JsonSchema(json!({"type": "array", "items": {"type": "integer"}, "maxItems": 3}))),
        None,
        Some(Grammar::Lark("start: (\"ja\" | \"nein\" | NUMBER)+\nNUMBER: /[0-9]{1,3}/".to_owned())),
    ];
    let mut request = mixed_request(index);
    request.grammar = grammars[index / 2 % grammars.len()].clone();
    request.mix_constrained = index % 4 == 1;
    if index % 7 == 3 {
        request.stop.strings = vec!["a".to_owned(), "zz".to_owned()];
    }
    request
}

/// A byte tokenizer with an end token and think markers.
pub(crate) fn bytes() -> Tokenizer {
    let prints = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let special = [(2u32, "<end>"), (3, "<think>"), (4, "</think>")];
    let mut others = 256..;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        let character = if prints(byte) { byte } else { others.next().unwrap() };
        if special.iter().all(|&(id, _)| id != byte) {
            vocab.insert(char::from_u32(character).unwrap().to_string(), byte.into());
        }
    }
    let added = special.map(|(id, content)| {
        json!({
            "id": id, "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    special.iter().for_each(|&(id, content)| {
        vocab.insert(content.to_owned(), id.into());
    });
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(tokenizer.to_string().as_bytes()).unwrap()
}

/// All requests together, in five orders.
#[test]
fn alone_is_among_64_others_in_any_order() {
    const REQUESTS: usize = 65;
    let golden = Golden::read("gemma2-caps");
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let engine = Engine::new(model, Default::default()).with_markers(Some(Markers::new(3, 4)));
    let alone: Vec<Vec<TokenEvent>> = (0..REQUESTS)
        .map(|index| engine.generate(mixed_request(index)).unwrap().map(Result::unwrap).collect())
        .collect();
    for order in 0..5 {
        let mut dice = Dice::new(order);
        let mut indexes: Vec<usize> = (0..REQUESTS).collect();
        indexes.sort_by_cached_key(|_| dice.bits());
        let mut batch = engine.batch();
        let requests = indexes.iter().map(|&index| mixed_request(index)).collect();
        let rows = batch.add_all(requests).unwrap();
        let mut steps = vec![Vec::new(); REQUESTS];
        while !batch.is_empty() {
            for step in batch.step().unwrap() {
                let step = step.unwrap();
                let place = rows.iter().position(|row| *row == step.row).unwrap();
                steps[indexes[place]].push(TokenEvent { row: alone[0][0].row, ..step });
            }
        }
        assert_eq!(steps, alone, "order {order}");
    }
}

/// A thousand random mixes of requests whose sequences join, end, are parked and cancelled: each must give what it
/// gives alone.
#[test]
fn random_mixes_give_what_each_gives_alone() {
    const KINDS: usize = 120;
    let golden = Golden::read("qwen2-sliding");
    let pretrained = Pretrained::open(&golden.path).unwrap();
    let model = pretrained.load::<Flex>(&Default::default(), WeightForm::F32, |_| {}).unwrap();
    let engine = Engine::new(model, Default::default())
        .with_tokenizer(Some(bytes()))
        .with_markers(Some(Markers::new(3, 4)))
        .with_eos(pretrained.eos)
        .with_prefill_chunk(128);
    let largest = {
        let _longest = engine.generate(mixed_request(6)).unwrap();
        engine.cache_bytes()[0]
    };
    let engine = engine.with_prefix_cache(1 << 20);
    let alone: Vec<Vec<TokenEvent>> = (0..KINDS)
        .map(|index| engine.generate(constrained_request(index)).unwrap().map(Result::unwrap).collect())
        .collect();
    let mut parked = 0;
    let mixes = std::env::var("MOI_TEST_MIXES").ok().and_then(|mixes| mixes.parse().ok()).unwrap_or(1000);
    for mix in 0..mixes {
        let mut dice = Dice::new(mix);
        let options = SchedulerOptions {
            max_running: 1 + dice.below(8),
            cache_bytes: dice.once_in(2).then_some(largest * 3 / 2),
            foreseen_tokens: dice.below(5),
            ..SchedulerOptions::default()
        };
        let mut scheduler = Scheduler::new(&engine, options);
        let mut wanted: Vec<(RequestId, usize, Vec<TokenEvent>, bool)> = Vec::new();
        let mut left = 2 + dice.below(8);
        while left > 0 || !scheduler.is_idle() {
            while left > 0 && dice.once_in(2) {
                let index = dice.below(KINDS);
                let owner = ["a", "b"][dice.below(2)];
                wanted.push((
                    scheduler.submit(owner, constrained_request(index)).unwrap(),
                    index,
                    Vec::new(),
                    false,
                ));
                left -= 1;
            }
            if dice.once_in(12) && !wanted.is_empty() {
                let at = dice.below(wanted.len());
                wanted[at].3 |= scheduler.cancel(wanted[at].0).is_some();
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
            let expected = &alone[index];
            assert!(cancelled || steps.len() == expected.len(), "mix {mix}: {id:?}, kind {index}");
            for (found, expected) in steps.iter().zip(expected) {
                // The steps must be equal to the bit, except for their row number.
                let expected = TokenEvent { row: found.row, ..expected.clone() };
                assert_eq!(*found, expected, "mix {mix}: {id:?}, kind {index}");
            }
        }
    }
    assert!(parked > 0 || mixes < 100, "nobody was parked");
}
