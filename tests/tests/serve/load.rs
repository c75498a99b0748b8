//! Tests with many requests at once: each must be answered as if it were alone, and none may wait for ever.

use std::{
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use moi_tests::server::TestServer;
use serde_json::{Value, json};

use crate::{CHAT, TEXT, question, server, with};

/// Requests of all kinds.
fn requests(count: usize) -> Vec<(&'static str, Value)> {
    let rules = ["token", "moi", "moi:beta=0.5", "direct:support=20", "soft-thinking", "gate:gate=0.2"];
    (0..count)
        .map(|at| {
            let rule = rules[at % rules.len()];
            let mut body = json!({
                "temperature": ([0.0, 0.7, 1.2][at % 3]), "top_p": ([1.0, 0.9][at % 2]), "seed": at,
                "max_tokens": 3 + at % 5, "moi": {"rule": rule, "mix_scope": "all"}, "logprobs": 3,
            });
            if at % 7 == 3 {
                body["guided_regex"] = json!("[a-z ]{5,20}");
            }
            if at % 5 == 1 {
                body["presence_penalty"] = json!(0.5);
                body["stop"] = json!(["e", "zz"]);
            }
            match at % 4 {
                0 => {
                    body["messages"] = json!([{"role": "user", "content": format!("Question {}", at / 2)}]);
                    (body["logprobs"], body["top_logprobs"]) = (json!(true), json!(3));
                    (CHAT, body)
                }
                _ => {
                    // Many requests share a beginning that is longer than a block.
                    let words = "the same long beginning of a text ".repeat(at % 4 * 6);
                    body["prompt"] = json!(format!("{words}and then {}", at / 3));
                    (TEXT, body)
                }
            }
        })
        .collect()
}

/// The parts of an answer that must be the same, without its id.
fn essence(answer: &Value) -> Value {
    let mut usage = answer["usage"].clone();
    usage["prompt_tokens_details"] = Value::Null;
    json!([answer["choices"], usage])
}

#[test]
fn answers_are_the_same_alone_and_among_many() {
    let alone_server = TestServer::start(&["--max-rows", "1"]);
    let requests = requests(64);
    let alone: Vec<Value> =
        requests.iter().map(|(path, body)| essence(&alone_server.ask(path, body))).collect();
    drop(alone_server);
    let server = server();
    for order in [1usize, 11] {
        let streams: Vec<_> = (0..64).map(|at| at * order % 64).map(|at| (at, &requests[at])).collect();
        let streams: Vec<_> =
            streams.into_iter().map(|(at, (path, body))| (at, server.send(path, body))).collect();
        for (at, stream) in streams {
            let reply = moi_tests::server::reply(stream);
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(
                essence(&reply.json()),
                alone[at],
                "request {at} in order {order}: {:?}",
                requests[at]
            );
        }
    }
    server.wait_until_idle();
    assert!(server.metric("vllm:prefix_cache_hits_total") > 0.0);
    // Repeat it three times.
    for _ in 0..3 {
        assert_eq!(essence(&server.ask(requests[9].0, &requests[9].1)), alone[9]);
    }
}

/// A prompt that can never fit must be refused at once, and others must be served (vllm#39734).
#[test]
fn what_can_never_fit_is_refused_at_once() {
    // 1,000 positions of SmolLM2 take 46 MB in float32.
    let server = TestServer::start(&["--kv-memory", "60MB"]);
    let reply = server.post(TEXT, &json!({"prompt": "word ".repeat(3000), "max_tokens": 500}));
    assert_eq!((reply.status, &reply.error()["code"]), (400, &json!("context_length_exceeded")));
    for _ in 0..10 {
        assert_eq!(server.post(CHAT, &question("Hello", 3)).status, 200);
    }
}

/// Requests beyond the queue's limit are told to retry, and those in the queue are answered.
#[test]
fn a_full_queue_refuses() {
    let server = TestServer::start(&["--max-rows", "1", "--max-queue", "4"]);
    let mut first =
        server.send(TEXT, &json!({"prompt": "x", "max_tokens": 200, "ignore_eos": true, "stream": true}));
    first.read_exact(&mut [0u8; 1]).unwrap();
    let streams: Vec<_> =
        (0..16).map(|at| server.send(CHAT, &question(&format!("Question {at}"), 3))).collect();
    let replies: Vec<_> = streams.into_iter().map(moi_tests::server::reply).collect();
    let (taken, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
    assert!(taken.len() >= 4 && !refused.is_empty(), "{} taken", taken.len());
    for reply in refused {
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")), "{}", reply.text());
        assert_eq!(reply.error()["code"], "rate_limit_exceeded");
    }
    assert!(server.metric("moi_queue_rejected_total") > 0.0);
    // Either all samples of a request are accepted, or none.
    let reply = server.post(CHAT, &with(question("x", 2), json!({"n": 6})));
    assert_eq!((reply.status, &reply.error()["param"]), (400, &json!("n")), "{}", reply.text());
}

/// With little memory for keys and values, requests must wait or be parked, and must end as they do alone.
#[test]
fn little_memory_is_shared() {
    let bodies: Vec<Value> = (0..6)
        .map(|at| {
            let rule = if at % 2 == 0 { "moi" } else { "token" };
            json!({"prompt": format!("Item {at}:"), "max_tokens": 40, "ignore_eos": true, "temperature": 0, "moi": {"rule": rule}})
        })
        .collect();
    let roomy = server();
    let alone: Vec<Value> =
        bodies.iter().map(|body| roomy.ask(TEXT, body)["choices"][0]["text"].clone()).collect();
    drop(roomy);
    let server = TestServer::start(&["--kv-memory", "24MB"]);
    let streams: Vec<_> = bodies.iter().map(|body| server.send(TEXT, body)).collect();
    for (stream, alone) in streams.into_iter().zip(alone) {
        let reply = moi_tests::server::reply(stream);
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["choices"][0]["text"], alone);
    }
    server.wait_until_idle();
}

/// The server must answer health checks while it reads a long prompt with all CPU threads.
#[test]
fn health_is_answered_within_a_long_prompt() {
    let server = server();
    let long = server.send(TEXT, &json!({"prompt": "word ".repeat(2500), "max_tokens": 1}));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(moi_tests::server::reply(long).status, 200);
            is_done.store(true, Ordering::Relaxed);
        });
        let mut times = Vec::new();
        while !is_done.load(Ordering::Relaxed) {
            let begun = Instant::now();
            assert_eq!(server.get("/health").status, 200);
            assert_eq!(server.get("/livez").status, 200);
            times.push(begun.elapsed());
            std::thread::sleep(Duration::from_millis(10));
        }
        // The prompt takes seconds, so there must be several answers.
        assert!(times.len() > 5, "{times:?}");
    });
}

/// A stream must not be silent for long, whatever it waits for.
#[test]
fn silence_is_broken_while_a_stream_waits() {
    let server = TestServer::start(&["--max-rows", "1", "--ping", "1"]);
    let long = server.send(TEXT, &json!({"prompt": "x", "max_tokens": 600, "ignore_eos": true}));
    std::thread::sleep(Duration::from_millis(100));
    let waiting = server.post(CHAT, &with(question("Hello", 2), json!({"stream": true})));
    assert!(waiting.text().contains(": ping\n\n"), "{}", waiting.text());
    assert_eq!(waiting.events().len(), 4);
    drop(long);
}

/// Bad schemas and expressions, one after the other, while others are answered (vllm#17248).
#[test]
fn bad_grammars_disturb_nobody() {
    let server = server();
    let body = json!({
        "prompt": "Once", "max_tokens": 100, "ignore_eos": true, "temperature": 0.8, "seed": 1,
    });
    let calm = server.ask(TEXT, &body)["choices"].clone();
    let others: Vec<_> = (0..4).map(|_| server.send(TEXT, &body)).collect();
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "array", "items": deep});
    }
    let cycle = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}});
    let bad = [
        json!({"guided_json": {"type": "nothing"}}),
        json!({"guided_json": cycle}),
        json!({"guided_json": "no json"}),
        json!({"guided_json": {"$ref": "http://elsewhere.example/schema"}}),
        json!({"guided_json": {"type": "string", "pattern": "((("}}),
        json!({"guided_regex": "(((((a+)+)+)+)+"}),
        json!({"guided_regex": "[z-a]"}),
        json!({"guided_regex": "(?=a)b"}),
        json!({"guided_grammar": "start: nothing"}),
        json!({"guided_grammar": ""}),
        json!({"structured_outputs": {"json": false}}),
    ];
    for round in 0..2 {
        for fields in &bad {
            let reply = server.post(CHAT, &with(question("x", 2), fields.clone()));
            assert_eq!(reply.status, 400, "{round}: {fields}: {}", reply.text());
            reply.error();
        }
    }
    // A schema that is deep but valid must not be an engine error.
    assert!(
        [200, 400].contains(&server.post(CHAT, &with(question("x", 2), json!({"guided_json": deep}))).status)
    );
    for stream in others {
        assert_eq!(moi_tests::server::reply(stream).json()["choices"], calm);
    }
}
