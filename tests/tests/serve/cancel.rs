//! Tests of clients that disconnect and clients that do not read: others must not be affected, and nothing may be
//! left behind.

use std::{
    io::{Read, Write},
    net::Shutdown,
    time::{Duration, Instant},
};

use moi_tests::server::TestServer;
use serde_json::json;

use crate::{CHAT, TEXT, content, question, server, streamed, with};

/// A client disconnects at twenty moments: in the queue, during its prompt, during decoding, while text is held back;
/// streaming or not.
#[test]
fn who_leaves_is_forgotten() {
    let server = server();
    let calm = content(&server.ask(CHAT, &question("Count to twenty.", 30)));
    let prompt = "a long text, ".repeat(150);
    for moment in 0..20u64 {
        let stream = moment % 2 == 0;
        let body = json!({
            "prompt": prompt, "max_tokens": 2000, "ignore_eos": true, "stream": stream, "stop": "never comes",
            "cache_salt": moment.to_string(),
        });
        let gone = server.send(TEXT, &body);
        std::thread::sleep(Duration::from_millis(moment * 25));
        // Disconnect as a killed process does.
        gone.shutdown(Shutdown::Both).unwrap();
        drop(gone);
        // A client that stays is answered as before.
        if moment % 5 == 0 {
            assert_eq!(content(&server.ask(CHAT, &question("Count to twenty.", 30))), calm);
        }
    }
    server.wait_until_idle();
    let tokens = server.metric("vllm:generation_tokens_total");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.metric("vllm:generation_tokens_total"), tokens, "nothing goes on for those who left");
    let ends = |reason: &str| {
        let text = server.get("/metrics").text();
        let name = format!("finished_reason=\"{reason}\"");
        let line =
            text.lines().find(|line| line.starts_with("vllm:request_success_total") && line.contains(&name));
        line.unwrap().rsplit_once(' ').unwrap().1.parse::<u32>().unwrap()
    };
    // A client that left before its request was read was never a request of the engine.
    assert!((15..=20).contains(&ends("abort")) && ends("error") == 0, "{} aborted", ends("abort"));
    assert_eq!(
        server.metric("vllm:request_success_total"),
        server.metric("vllm:e2e_request_latency_seconds_count")
    );
}

/// Queued requests whose clients disconnect must cost nothing, and must not disturb the running one.
#[test]
fn who_leaves_the_queue_is_never_computed() {
    let server = TestServer::start(&["--max-rows", "1"]);
    // Long enough to still run when all others have come.
    let body = with(question("Count to one hundred.", 600), json!({"ignore_eos": true}));
    let calm = content(&server.ask(CHAT, &body));
    server.wait_until_idle();
    let before = server.metric("vllm:generation_tokens_total");
    let prompts = server.metric("vllm:prompt_tokens_total");
    let mut running = server.send(CHAT, &with(body.clone(), json!({"stream": true})));
    let mut first = [0u8; 1];
    running.read_exact(&mut first).unwrap();
    let queued: Vec<_> =
        (0..50).map(|at| server.send(CHAT, &question(&format!("Question {at}"), 100))).collect();
    let begun = Instant::now();
    while server.metric("vllm:num_requests_waiting") < 50.0 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(queued);
    let mut bytes = first.to_vec();
    running.read_to_end(&mut bytes).unwrap();
    let text = streamed(&moi_tests::server::parsed(&bytes).events(), 0);
    assert_eq!(text, calm);
    server.wait_until_idle();
    // All tokens since then must belong to the running request.
    let usage = server.ask("/tokenize", &json!({"messages": body["messages"]}))["count"].as_f64().unwrap();
    assert_eq!(server.metric("vllm:prompt_tokens_total") - prompts, usage);
    assert!(server.metric("vllm:generation_tokens_total") - before <= 600.0);
}

/// Twelve clients read little and stop: the server pauses them, then drops them, and meanwhile answers others.
#[cfg(unix)]
#[test]
fn readers_that_stop_are_given_up() {
    let server = TestServer::start(&["--stall-timeout", "1", "--max-rows", "16"]);
    let calm = content(&server.ask(CHAT, &question("Count to twenty.", 30)));
    let slow: Vec<_> = (0..12)
        .map(|at| {
            let body = json!({
                "prompt": format!("Story {at}:"), "max_tokens": 4000, "ignore_eos": true, "stream": true,
                "logprobs": 20, "moi": {"rule": "moi", "trace": 64},
            });
            let stream = server.send(TEXT, &body);
            // A small receive buffer, so that the server's output soon blocks.
            rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 4096).unwrap();
            stream
        })
        .collect();
    for mut stream in &slow[..4] {
        let mut some = [0u8; 400];
        stream.read_exact(&mut some).unwrap();
    }
    let begun = Instant::now();
    assert_eq!(content(&server.ask(CHAT, &question("Count to twenty.", 30))), calm);
    server.wait_until_idle();
    assert!(begun.elapsed() < Duration::from_secs(110));
    drop(slow);
    assert_eq!(content(&server.ask(CHAT, &question("Count to twenty.", 30))), calm);
}

/// A client that reads slowly must get everything: its request waits for it.
#[test]
fn slow_readers_lose_nothing() {
    let server = server();
    let body = json!({
        "prompt": "Once upon a time", "max_tokens": 250, "ignore_eos": true, "temperature": 0.8, "seed": 1,
        "logprobs": 20, "moi": {"rule": "moi", "trace": 64},
    });
    let whole = server.ask(TEXT, &body)["choices"][0]["text"].clone();
    let mut stream = server.send(TEXT, &with(body, json!({"stream": true})));
    let mut bytes = Vec::new();
    let mut some = vec![0u8; 64 << 10];
    loop {
        let read = stream.read(&mut some).unwrap();
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&some[..read]);
        if bytes.len() < 1 << 20 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(json!(streamed(&moi_tests::server::parsed(&bytes).events(), 0)), whole);
}

/// The client of a long prompt disconnects, and ten requests follow (llama.cpp#27604).
#[test]
fn an_abort_within_a_prompt_stops_nothing() {
    let server = server();
    let long = server.send(TEXT, &json!({"prompt": "word ".repeat(6000), "max_tokens": 10, "stream": true}));
    std::thread::sleep(Duration::from_millis(150));
    drop(long);
    for _ in 0..10 {
        assert_eq!(server.post(CHAT, &question("Hello", 3)).status, 200);
    }
    server.wait_until_idle();
}

/// Connections that send nothing, or headers byte by byte, must be closed.
#[test]
fn who_sends_nothing_is_hung_up_on() {
    let server = server();
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    let begun = Instant::now();
    let mut byte = [0u8; 1];
    let mut closed = [false; 2];
    while closed != [true; 2] {
        assert!(begun.elapsed() < Duration::from_secs(60));
        // A write to a closed connection may fail.
        let _ = slow.write_all(b"X");
        for (stream, closed) in [&mut silent, &mut slow].into_iter().zip(&mut closed) {
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            match stream.read(&mut byte) {
                Ok(0) => *closed = true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => *closed = true,
                Err(_) => {}
            }
        }
        assert_eq!(server.get("/health").status, 200);
    }
}

/// A server that is asked to stop must finish its answers and accept no others.
#[cfg(unix)]
#[test]
fn a_server_that_stops_finishes_what_it_began() {
    let server = server();
    let body = question("Count to one hundred.", 120);
    let expected = content(&server.ask(CHAT, &body));
    let mut streams: Vec<_> =
        (0..8).map(|_| server.send(CHAT, &with(body.clone(), json!({"stream": true})))).collect();
    let idle: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for stream in &mut streams {
        stream.read_exact(&mut [0u8; 1]).unwrap();
    }
    server.signal("TERM");
    let begun = Instant::now();
    while server.get("/readyz").status != 503 {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let refused = server.post(CHAT, &body);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    for mut stream in streams {
        let mut bytes = b"H".to_vec();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(streamed(&moi_tests::server::parsed(&bytes).events(), 0), expected);
    }
    let mut server = server;
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    drop(idle);
}

/// A server that may not wait for its answers must tell the clients that it cuts off.
#[cfg(unix)]
#[test]
fn a_server_that_cannot_wait_says_so() {
    let server = TestServer::start(&["--shutdown-timeout", "0"]);
    let mut stream =
        server.send(TEXT, &json!({"prompt": "x", "max_tokens": 8000, "ignore_eos": true, "stream": true}));
    stream.read_exact(&mut [0u8; 1]).unwrap();
    server.signal("TERM");
    let mut bytes = b"H".to_vec();
    stream.read_to_end(&mut bytes).unwrap();
    let events = moi_tests::server::parsed(&bytes).events();
    assert_eq!(events.last().unwrap()["error"]["type"], "server_error", "{:?}", events.last());
    let mut server = server;
    assert_eq!(server.child.wait().unwrap().code(), Some(1));
}
