//! Tests of `moi serve` over real sockets, with the default model or a tiny one: for faults that other servers were
//! reported for, and for the features of this server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod cancel;
mod crowds;
mod faults;
mod hostile_fields;
mod hostile_grammars;
mod hostile_requests;
#[cfg(unix)]
mod leaving;
mod load;
#[cfg(unix)]
mod logs;
mod mixtures;
#[cfg(unix)]
mod operations;
mod others;
mod scores;
mod security;
mod spelled;
mod streams;
mod texts;
mod thinking;
mod tools;
mod wire;

use moi_tests::server::TestServer;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A conversation of one question, answered greedily without mixing.
fn question(text: &str, max_tokens: u32) -> Value {
    json!({
        "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0,
        "moi": {"rule": "token"},
    })
}

/// The body with other fields.
fn with(mut body: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// The text of one choice of a stream.
fn streamed(events: &[Value], choice: usize) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|of| of["index"] == choice);
    own.map(|of| of["delta"]["content"].as_str().or(of["text"].as_str()).unwrap_or_default()).collect()
}

fn server() -> TestServer {
    TestServer::start(&[])
}
