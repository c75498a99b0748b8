//! Tests with many requests at once, of all lengths and kinds, and with more than there is room for. Each must be
//! answered as if it were alone, or be told to retry, and none may wait for ever.

use std::{
    fs,
    net::TcpStream,
    sync::Barrier,
    thread::{self, JoinHandle},
};

use moi_tests::{
    bytes,
    server::{Client, Reply, TestServer, reply, until},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{CHAT, TEXT, content, streamed, with};

const RESPONSES: &str = "/v1/responses";
/// All routes that generate text.
pub(crate) const ROUTES: [&str; 4] = [CHAT, TEXT, RESPONSES, "/v1/messages"];
/// A server of a tiny model whose tokens are bytes, with a context of 512.
pub(crate) fn tiny(args: &[&str]) -> (TempDir, TestServer) {
    started(bytes::model("llama", &[], None), args)
}

/// A server of a tiny model with a context of 65,536: its longest prompts and answers take much longer than any test
/// waits.
pub(crate) fn endless(args: &[&str]) -> (TempDir, TestServer) {
    let directory = bytes::model("llama", &[], None);
    let path = directory.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(65_536);
    fs::write(&path, config.to_string()).unwrap();
    started(directory, args)
}

fn started(directory: TempDir, args: &[&str]) -> (TempDir, TestServer) {
    let model = directory.path().to_str().unwrap().to_owned();
    let own = ["--model", model.as_str(), "--device", "cpu", "--rule", "token"];
    let server = TestServer::start(&[&own[..], args].concat());
    (directory, server)
}

/// The requests in progress.
pub(crate) fn runs(client: &Client) -> Vec<Value> {
    client.get("/v1/moi/runs").json()["data"].as_array().unwrap().clone()
}

/// The phases of all requests in progress.
pub(crate) fn phases(client: &Client) -> Vec<String> {
    runs(client).iter().map(|run| run["phase"].as_str().unwrap().to_owned()).collect()
}

/// The value of a metric whose labels contain this text.
pub(crate) fn labelled(client: &Client, name: &str, label: &str) -> f64 {
    let text = client.get("/metrics").text();
    let is_it = |line: &&str| line.split(['{', ' ']).next() == Some(name) && line.contains(label);
    let values = text.lines().filter(is_it).map(|line| line.rsplit_once(' ').unwrap().1);
    values.map(|value| value.parse::<f64>().unwrap()).sum()
}

/// A request that is continued greedily with letters, so that each token is one character.
pub(crate) fn letters(prompt: &str, max_tokens: usize) -> Value {
    asked(TEXT, prompt, max_tokens)
}

/// The same request in the format of a route.
pub(crate) fn asked(path: &str, prompt: &str, max_tokens: usize) -> Value {
    let allowed = bytes::ids("abcdefghijklmnopqrstuvwxyz");
    let mut body = json!({
        "max_tokens": max_tokens, "ignore_eos": true, "temperature": 0, "allowed_token_ids": allowed,
    });
    match path {
        TEXT => body["prompt"] = json!(prompt),
        RESPONSES => body["input"] = json!(prompt),
        _ => body["messages"] = json!([{"role": "user", "content": prompt}]),
    }
    body
}

/// Reads an answer on another thread, so that the server never waits for the reader.
pub(crate) fn reading(stream: TcpStream) -> JoinHandle<Reply> {
    thread::spawn(move || reply(stream))
}

/// A request that occupies a place as long as its connection is open: a prompt of 60,000 tokens that is being read. A
/// request that decodes would release its place for moments, whenever its client is slow to read.
pub(crate) fn hold(client: &Client) -> TcpStream {
    let book = client.send(TEXT, &letters(&"x".repeat(60_000), 1));
    until("the book is read", || phases(client) == ["prompt"]);
    book
}

/// The tokens of a prompt, without end tokens. Each number below 2,000 gives tokens that differ from the first block
/// on.
fn tokens(number: usize, len: usize) -> Vec<usize> {
    let step = 37 + number / 255 * 2;
    (0..len).map(|at| (at * step + number * 61 + 5) % 255 + 1).collect()
}

/// Prompts of all lengths at once: each stream must end with the text that the same prompt gives alone (mlx-lm#199).
#[test]
fn every_length_of_prompt_comes_to_its_end() {
    let (_directory, server) = tiny(&[]);
    let body = |len: usize| {
        let prompt = tokens(len, len);
        json!({"prompt": prompt, "max_tokens": 8, "ignore_eos": true, "temperature": 0})
    };
    let lens: Vec<usize> = (0..64).map(|at| 1 + at * 510 / 63).collect();
    assert_eq!((lens[0], lens[63]), (1, 511));
    let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
    let streams: Vec<TcpStream> =
        lens.iter().map(|&len| server.send(TEXT, &with(body(len), fields.clone()))).collect();
    for (&len, stream) in lens.iter().zip(streams) {
        let reply = reply(stream);
        assert_eq!(reply.status, 200, "{len} tokens: {}", reply.text());
        let events = reply.events();
        let ends: Vec<&str> =
            events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
        assert_eq!(ends, ["length"], "{len} tokens");
        assert_eq!(events.last().unwrap()["usage"]["prompt_tokens"], len);
        let alone = server.ask(TEXT, &with(body(len), json!({"cache_salt": "alone"})));
        assert_eq!(json!(streamed(&events, 0)), alone["choices"][0]["text"], "{len} tokens");
    }
    // If there is no room for a token after the prompt, the error must come before the stream begins.
    for len in [512, 513, 2000] {
        for stream in [false, true] {
            let reply = server.post(TEXT, &with(body(len), json!({"stream": stream})));
            assert_eq!(reply.status, 400, "{len} tokens: {}", reply.text());
            let error = reply.error();
            assert_eq!(
                (&error["code"], &error["param"]),
                (&json!("context_length_exceeded"), &json!("prompt")),
                "{len} tokens"
            );
        }
    }
    server.settled();
}

/// One of 24 requests of many kinds. The prompts of twelve share their beginnings in groups of three, for longer than
/// a block of the cache.
fn mingled(at: usize) -> Value {
    let prompt = match at < 12 {
        true => [tokens(at / 3, 130), tokens(100 + at, 20 + at)].concat(),
        false => tokens(at, 195 + at),
    };
    json!({
        "prompt": prompt, "max_tokens": 8, "ignore_eos": true, "temperature": ([0.0, 0.9][at % 2]), "seed": at,
        "logprobs": 3, "moi": {"rule": (["token", "moi"][at / 2 % 2]), "mix_scope": "all"},
    })
}

/// The choices and the usage of an answer, and how many tokens of its prompt were cached.
fn essence(answer: &Value) -> (Value, u64) {
    let mut usage = answer["usage"].clone();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    usage["prompt_tokens_details"] = Value::Null;
    (json!([answer["choices"], usage]), cached)
}

/// The number of cached tokens of each prompt when all are sent a second time, one by one.
fn cached_again(server: &TestServer) -> Vec<u64> {
    let ask = || -> Vec<u64> { (0..24).map(|at| essence(&server.ask(TEXT, &mingled(at))).1).collect() };
    ask();
    ask()
}

/// Cached prompts and evicted blocks must not change an answer: repeatedly and in any order, it must equal the answer
/// without a cache (llama.cpp#27148, #23970).
#[test]
fn what_was_cached_changes_no_answer() {
    // The cache has room for 20 blocks, and the prompts have 56.
    let (_directory, server) = tiny(&["--kv-memory", "4MB"]);
    let alone = |at: usize| {
        let salt = json!({"cache_salt": format!("of {at} alone")});
        let (answer, cached) = essence(&server.ask(TEXT, &with(mingled(at), salt)));
        assert_eq!(cached, 0, "request {at}");
        answer
    };
    let alone: Vec<Value> = (0..24).map(alone).collect();
    for order in [1, 5, 7] {
        let order_of = (0..24).map(|at| at * order % 24);
        let streams: Vec<(usize, TcpStream)> =
            order_of.map(|at| (at, server.send(TEXT, &mingled(at)))).collect();
        for (at, stream) in streams {
            let reply = reply(stream);
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(essence(&reply.json()).0, alone[at], "request {at} in order {order}");
        }
    }
    let few = cached_again(&server);
    server.settled();
    assert!(server.metric("vllm:prefix_cache_hits_total") > 0.0);
    // With room for all, every whole block before the last token is cached.
    let (_other, roomy) = tiny(&[]);
    let all = cached_again(&roomy);
    for (at, &cached) in all.iter().enumerate() {
        let len = mingled(at)["prompt"].as_array().unwrap().len() as u64;
        assert!(cached > 0 && cached == (len - 1) / 64 * 64, "request {at}: {cached} of {len} tokens");
        assert_eq!(essence(&roomy.ask(TEXT, &mingled(at))).0, alone[at], "request {at}");
    }
    assert!(few.iter().sum::<u64>() < all.iter().sum::<u64>(), "nothing was given up: {few:?}");
}

/// However many prompts there were, the cache must stay within its memory limit (mlx-lm#1390, llama.cpp#26216).
#[test]
fn two_thousand_prompts_take_no_more_memory_than_they_may() {
    const BUDGET: usize = 8 << 20;
    // Allowance for the allocator and for the threads that answer. The keys and values of all prompts would take 340
    // MB.
    const SLACK: usize = 16 << 20;
    let (_directory, server) = tiny(&["--kv-memory", "8MiB"]);
    let before = server.resident();
    for number in 0..2000 {
        let prompt = tokens(number, 200 + number % 56);
        server.ask(TEXT, &json!({"prompt": prompt, "max_tokens": 2, "temperature": 0}));
    }
    // Not every system reports the memory.
    if let (Some(before), Some(after)) = (before, server.resident()) {
        assert!(after <= before + BUDGET + SLACK, "from {before} to {after} bytes");
    }
    server.settled();
    assert_eq!(server.metric("vllm:prefix_cache_hits_total"), 0.0, "no two prompts begin alike");
}

/// Twelve requests that grow beyond their estimates, with memory for two: some wait for others, and each must give
/// what it gives alone. None may be parked again and again (vllm#45387, #41951).
#[test]
fn requests_that_outgrow_the_memory_take_turns() {
    // By their estimates, three fit.
    let (_directory, server) = tiny(&["--kv-memory", "1500KB"]);
    let body = |at: usize| {
        let (prompt, rule) = (tokens(at, 20 + 3 * at), ["token", "moi"][at % 2]);
        json!({
            "prompt": prompt, "max_tokens": 450, "ignore_eos": true, "temperature": 0,
            "moi": {"rule": rule, "mix_scope": "all"},
        })
    };
    let alone: Vec<Value> =
        (0..12).map(|at| server.ask(TEXT, &body(at))["choices"][0]["text"].clone()).collect();
    assert_eq!(server.metric("vllm:num_preemptions_total"), 0.0);
    let streams: Vec<TcpStream> = (0..12).map(|at| server.send(TEXT, &body(at))).collect();
    for (at, stream) in streams.into_iter().enumerate() {
        let reply = reply(stream);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let choice = reply.json()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "length", "request {at}");
        assert_eq!(choice["text"], alone[at], "request {at}");
    }
    server.settled();
    let parked = server.metric("vllm:num_preemptions_total");
    assert!((1.0..=24.0).contains(&parked), "{parked} times a request was parked");
}

/// Whether a request was accepted. If so, it must be complete; otherwise, it must say when to retry.
fn was_taken(is_stream: bool, reply: &Reply) -> bool {
    if reply.status == 429 {
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.error()["code"], "rate_limit_exceeded");
        return false;
    }
    assert_eq!(reply.status, 200, "{}", reply.text());
    let finish = match is_stream {
        true => reply.events().last().unwrap()["choices"][0]["finish_reason"].clone(),
        false => reply.json()["choices"][0]["finish_reason"].clone(),
    };
    assert_eq!(finish, "length");
    true
}

/// A hundred clients each try three times at once, with room for 34: each try must be answered or refused at once,
/// and all must be counted (mlx-lm#1255).
#[test]
fn a_crowd_that_comes_again_is_answered_or_refused() {
    let (_directory, server) = tiny(&["--max-rows", "2", "--max-queue", "32", "--ping", "1"]);
    let (client, gate) = (server.client, Barrier::new(100));
    let tries = |at: usize| -> Vec<bool> {
        let (path, is_stream) = ([CHAT, TEXT][at % 2], (at / 2).is_multiple_of(2));
        let body = with(asked(path, "Try", 150), json!({"stream": is_stream}));
        gate.wait();
        (0..3).map(|_| was_taken(is_stream, &client.post(path, &body))).collect()
    };
    let taken: Vec<bool> = thread::scope(|scope| {
        let clients: Vec<_> = (0..100).map(|at| scope.spawn(move || tries(at))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let accepted = taken.iter().filter(|taken| **taken).count();
    let refused = taken.len() - accepted;
    assert!(taken.len() == 300 && accepted >= 32 && refused > 0, "{accepted} accepted, {refused} refused");
    server.settled();
    assert_eq!(server.metric("moi_queue_rejected_total"), refused as f64);
    assert_eq!(labelled(&server, "moi_queue_rejected_total", "\"queue_full\""), refused as f64);
    assert_eq!(server.metric("vllm:request_success_total"), accepted as f64);
    assert_eq!(labelled(&server, "vllm:request_success_total", "\"length\""), accepted as f64);
    assert_eq!(server.get("/livez").status, 200);
}

/// Short requests one after the other are answered next to a long one, and must not slow it down (open-webui#28413).
#[test]
fn titles_and_a_chat_go_on_beside_each_other() {
    const TOKENS: usize = 3000;
    let (_directory, server) = endless(&[]);
    let chat = asked(CHAT, "A long story, please.", TOKENS);
    let alone = content(&server.ask(CHAT, &chat));
    assert_eq!(alone.len(), TOKENS);
    let stream = reading(server.send(CHAT, &with(chat, json!({"stream": true}))));
    let mut titles = 0;
    while !stream.is_finished() {
        let title = server.ask(CHAT, &asked(CHAT, &format!("A title for {titles}"), 8));
        assert_eq!(content(&title).len(), 8);
        titles += 1;
        // Each of them takes eight rounds, in each of which the chat could generate a token.
        assert!(titles < TOKENS / 2, "the chat stands still");
    }
    // If they waited for its end, there would be only one.
    assert!(titles > 5, "{titles} titles");
    assert_eq!(streamed(&stream.join().unwrap().events(), 0), alone);
    server.settled();
}

/// A short prompt must not wait for a long one that came before it, and the long one must still end.
#[test]
fn a_title_passes_a_book() {
    let (_directory, server) = endless(&[]);
    let book = server.send(TEXT, &letters(&"x".repeat(30_000), 1));
    until("the book is read", || phases(&server) == ["prompt"]);
    for at in 0..3 {
        server.ask(CHAT, &asked(CHAT, &format!("A title for {at}"), 3));
        assert_eq!(phases(&server), ["prompt"], "title {at} came behind the book");
    }
    assert_eq!(reply(book).status, 200);
    server.settled();
}

/// Of the waiting requests, those with the smallest priority number must run first, however late they came and
/// however long they are.
#[test]
fn smaller_priorities_come_first() {
    let (_directory, server) = endless(&["--max-rows", "1", "--priority"]);
    let book = hold(&server);
    let mut streams = Vec::new();
    for (priority, len) in [(0, 20), (-1, 30)] {
        let body = with(letters(&"x".repeat(len), 200), json!({"priority": priority}));
        streams.extend((0..5).map(|_| server.send(TEXT, &body)));
        until("all wait", || server.metric("vllm:num_requests_waiting") == streams.len() as f64);
    }
    drop(book);
    let mut was_seen = false;
    until("all are answered", || {
        let runs = runs(&server);
        let of = |len: usize| runs.iter().filter(move |run| run["prompt_tokens"] == len);
        let waiting = |len: usize| of(len).filter(|run| run["phase"] == "queued").count();
        assert!(waiting(20) == 5 || waiting(30) == 0, "{runs:?}");
        was_seen |= waiting(20) == 5 && of(30).count() < 5;
        runs.is_empty()
    });
    assert!(was_seen, "one of the smaller ones was answered while all others waited");
    for stream in streams {
        let reply = reply(stream);
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    server.settled();
}

/// A server without --priority must say so, instead of silently ignoring priorities.
#[test]
fn priorities_are_refused_where_they_are_not_taken() {
    let (_directory, server) = tiny(&[]);
    for path in ROUTES {
        for (priority, status) in [(json!(1), 400), (json!(-1), 400), (json!(0), 200), (Value::Null, 200)] {
            let body = with(asked(path, "Hello", 2), json!({"priority": priority}));
            let reply = server.post(path, &body);
            assert_eq!(reply.status, status, "{path}, {priority}: {}", reply.text());
            if status == 400 {
                let error = reply.error();
                assert_eq!(
                    (&error["param"], &error["code"]),
                    (&json!("priority"), &json!("unsupported_parameter")),
                    "{path}, {priority}"
                );
            }
        }
    }
    server.settled();
}
