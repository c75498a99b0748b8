//! Tests of clients that disconnect, do not read, wait too long or find no free connection: their requests must be
//! dropped in every phase, or end with an explanation, without affecting others.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use moi_tests::{
    bytes,
    server::{Client, TEST_TIMEOUT, reply, until},
};
use serde_json::{Value, json};

use crate::{
    CHAT, TEXT,
    crowds::{ROUTES, asked, endless, hold, labelled, letters, phases, reading, runs, tiny},
    with,
};

/// Number of tokens of an answer that no test waits for.
const ENDLESS: usize = 60_000;

/// Disconnects as a process does that ends, or resets the connection. In the first case, the returned connection must
/// be kept until the server has dropped the request, because the server only learns that nothing more comes.
fn leave(stream: TcpStream, is_reset: bool) -> Option<TcpStream> {
    if is_reset {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        return None;
    }
    stream.shutdown(Shutdown::Both).unwrap();
    Some(stream)
}

/// All combinations of route, streaming or not, and connection reset or not.
fn ways() -> Vec<(&'static str, bool, bool)> {
    let of = |path| [(path, false, false), (path, false, true), (path, true, false), (path, true, true)];
    ROUTES.into_iter().flat_map(of).collect()
}

/// Sends a request, disconnects after it has generated `tokens` tokens (or during its prompt if that is 0), and waits
/// until the server has dropped it.
fn send_and_leave(client: &Client, path: &str, body: &Value, is_reset: bool, tokens: u64) {
    let mut stream = client.send(path, body);
    let is_there = |run: &Value| match tokens {
        0 => run["phase"] == "prompt",
        _ => run["generated_tokens"].as_u64().unwrap() >= tokens,
    };
    until("the request is under way", || runs(client).iter().any(is_there));
    if tokens > 0 && body["stream"] == true {
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "{path} has sent nothing");
    }
    let left = leave(stream, is_reset);
    until("it is forgotten", || runs(client).is_empty());
    drop(left);
}

/// A client disconnects while its request is queued, during its prompt, during decoding, and while its text is held
/// back for a possible stop string (llama.cpp#24496, #11414, vllm#9428).
#[test]
fn who_leaves_is_forgotten_wherever_it_stands() {
    let (_directory, server) = endless(&["--max-rows", "1"]);
    let long = |path: &str, stream: bool| with(asked(path, "Once", ENDLESS), json!({"stream": stream}));
    // Sixteen requests wait behind a long prompt.
    let book = hold(&server);
    let waiting: Vec<_> = ways()
        .into_iter()
        .map(|(path, stream, is_reset)| (server.send(path, &long(path, stream)), is_reset))
        .collect();
    until("all wait", || server.metric("vllm:num_requests_waiting") == 16.0);
    let left: Vec<_> = waiting.into_iter().map(|(stream, is_reset)| leave(stream, is_reset)).collect();
    until("none waits", || server.metric("vllm:num_requests_waiting") == 0.0);
    assert_eq!(phases(&server), ["prompt"], "the book was disturbed");
    drop((book, left));
    server.settled();
    // None of these prompts ends.
    for (path, stream, is_reset) in ways() {
        let body = with(asked(path, &"x".repeat(ENDLESS), 1), json!({"stream": stream}));
        send_and_leave(&server, path, &body, is_reset, 0);
    }
    server.settled();
    assert_eq!(server.metric("vllm:prompt_tokens_total"), 0.0);
    assert_eq!(server.metric("vllm:generation_tokens_total"), 0.0);
    for (path, stream, is_reset) in ways() {
        send_and_leave(&server, path, &long(path, stream), is_reset, 1);
    }
    server.settled();
    // After `said`, everything could become the stop string, for thousands of tokens.
    let (stop, forced) = (format!("h{}", "o".repeat(8100)), format!("saidh{}", "o".repeat(8000)));
    let fields = json!({"stop": stop, "moi": {"rule": "token", "force": bytes::ids(&forced)}});
    for (path, stream, is_reset) in ways() {
        send_and_leave(&server, path, &with(long(path, stream), fields.clone()), is_reset, 10);
    }
    server.settled();
    // All requests together have generated fewer tokens than one of them has asked for.
    let tokens = server.metric("vllm:generation_tokens_total");
    assert!(tokens < ENDLESS as f64, "{tokens} tokens for those who left");
    assert_eq!(labelled(&server, "vllm:request_success_total", "\"abort\""), 65.0);
    assert_eq!(server.metric("vllm:request_success_total"), 65.0);
}

/// Fifty queued clients disconnect, and nothing is computed for them: all tokens belong to the running request
/// (llama.cpp#13262).
#[test]
fn who_leaves_the_queue_costs_nothing() {
    let (_directory, server) = endless(&["--max-rows", "1"]);
    let book = server.send(TEXT, &letters(&"x".repeat(30_000), 5));
    until("the book is read", || phases(&server) == ["prompt"]);
    let waiting: Vec<TcpStream> =
        (0..50).map(|at| server.send(CHAT, &asked(CHAT, &format!("Question {at}"), 100))).collect();
    until("fifty wait", || server.metric("vllm:num_requests_waiting") == 50.0);
    let left: Vec<_> =
        waiting.into_iter().enumerate().map(|(at, stream)| leave(stream, at.is_multiple_of(2))).collect();
    until("none waits", || server.metric("vllm:num_requests_waiting") == 0.0);
    let answer = reply(book).json();
    assert_eq!(answer["usage"]["completion_tokens"], 5, "{answer}");
    drop(left);
    server.settled();
    assert_eq!(server.metric("vllm:prompt_tokens_total"), 30_000.0);
    assert_eq!(server.metric("vllm:generation_tokens_total"), 5.0);
    assert_eq!(labelled(&server, "vllm:request_success_total", "\"abort\""), 50.0);
}

/// A client disconnects during decoding while the prompt of another one runs. Ten more requests are answered, and the
/// server stops normally (llama.cpp#27604).
#[test]
fn an_abort_beside_a_prompt_stops_nothing() {
    for is_reset in [false, true] {
        let (_directory, server) = endless(&[]);
        let decoding = server.send(TEXT, &with(letters("Once", ENDLESS), json!({"stream": true})));
        until("one decodes", || {
            runs(&server).iter().any(|run| run["generated_tokens"].as_u64().unwrap() > 0)
        });
        let book = server.send(TEXT, &letters(&"x".repeat(15_000), 2));
        until("the book is read", || phases(&server).iter().any(|phase| phase == "prompt"));
        let left = leave(decoding, is_reset);
        for at in 0..10 {
            let body = asked(CHAT, &format!("Question {at}"), 3);
            assert_eq!(server.post(CHAT, &body).status, 200);
        }
        assert_eq!(reply(book).status, 200);
        drop(left);
        server.settled();
        assert_eq!(server.stop(), Some(0));
    }
}

/// Reads a stream until it has two events.
fn read_two_events(stream: &mut TcpStream) {
    let (mut seen, mut some) = (Vec::<u8>::new(), [0u8; 1024]);
    while seen.windows(6).filter(|six| *six == b"data: ").count() < 3 {
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0, "{:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&some[..read]);
    }
}

/// Fifty clients read two events and stop, but stay connected: the server must drop all of them, buffer little for
/// them, and answer others as before (private-ai-gateway#151).
#[test]
fn fifty_readers_that_stop_are_given_up() {
    const MAX_GROWTH_BYTES: usize = 200 << 20;
    let (_directory, server) = endless(&["--stall-timeout", "1"]);
    let calm = letters("Calm", 20);
    let ask = || server.ask(TEXT, &calm)["choices"][0]["text"].clone();
    let (expected, before) = (ask(), server.resident());
    let stalled: Vec<TcpStream> = (0..50)
        .map(|at| {
            let body = json!({
                "prompt": format!("Story {at}"), "max_tokens": ENDLESS, "ignore_eos": true, "stream": true,
                "logprobs": 20, "moi": {"rule": "moi", "trace": 64},
            });
            let mut stream = server.send(TEXT, &body);
            read_two_events(&mut stream);
            stream
        })
        .collect();
    let mut most = 0;
    until("all are given up", || {
        assert_eq!(ask(), expected);
        most = most.max(server.resident().unwrap_or(0));
        labelled(&server, "vllm:request_success_total", "\"abort\"") == 50.0
    });
    server.settled();
    // Not every system reports the memory.
    if let Some(before) = before {
        assert!(most < before + MAX_GROWTH_BYTES, "from {before} to {most} bytes");
    }
    // They were connected until then.
    drop(stalled);
    assert_eq!(ask(), expected);
}

/// A connection that has been used once and is kept alive.
fn kept(client: &Client) -> TcpStream {
    let mut stream = client.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (mut seen, mut some) = (Vec::<u8>::new(), [0u8; 1024]);
    while !seen.ends_with(b"{\"status\":\"ok\"}") {
        let read = stream.read(&mut some).unwrap();
        assert!(read > 0, "{:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&some[..read]);
    }
    stream
}

/// Connections beyond the limit wait, and are served when others close.
#[test]
fn connections_without_a_place_wait_for_one() {
    let (_directory, server) = tiny(&["--max-connections", "4"]);
    let mut all: Vec<TcpStream> = (0..4).map(|_| kept(&server)).collect();
    let mut fifth = server.connect();
    fifth.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    fifth.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let read = fifth.read(&mut [0; 1]);
    assert!(read.is_err(), "a fifth one was served: {read:?}");
    drop(all.pop());
    fifth.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    assert_eq!(reply(fifth).status, 200);
    // Many clients share the one free connection.
    let client = server.client;
    thread::scope(|scope| {
        for at in 0..20 {
            scope.spawn(move || client.ask(CHAT, &asked(CHAT, &format!("Question {at}"), 3)));
        }
    });
    drop(all);
    server.settled();
}

/// Endless streams and idle connections must not keep a server from stopping: the streams get an error event, and the
/// exit code says so (axum#2673, hyper#2787).
#[test]
fn streams_without_an_end_are_cut_off_with_a_word() {
    let (_directory, server) = endless(&["--shutdown-timeout", "1"]);
    let mut idle: Vec<TcpStream> = (0..3).map(|_| kept(&server)).collect();
    let body = with(letters("Once", ENDLESS), json!({"stream": true}));
    let streams: Vec<_> = (0..8).map(|_| reading(server.send(TEXT, &body))).collect();
    until("all decode", || {
        let runs = runs(&server);
        runs.len() == 8 && runs.iter().all(|run| run["generated_tokens"].as_u64().unwrap() > 0)
    });
    let code = server.stop();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    for stream in streams {
        let events = stream.join().unwrap().events();
        let (error, before) = events.split_last().unwrap();
        assert_eq!(error["error"]["type"], "server_error", "{error}");
        assert!(!before.is_empty() && before.iter().all(|event| event.get("error").is_none()));
    }
    for stream in &mut idle {
        // Nothing more comes, however the connection is closed.
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    }
}
