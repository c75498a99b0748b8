//! Requests that are wrong on purpose: each must be refused with an error that says what is wrong, without affecting
//! others.

use std::{
    io::{Cursor, Read, Write},
    sync::atomic::{AtomicBool, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use moi_tests::{
    bytes,
    server::{Client, Reply, TestServer},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::{CHAT, TEXT, streamed, with};

pub(crate) const RESPONSES: &str = "/v1/responses";
pub(crate) const MESSAGES: &str = "/v1/messages";
pub(crate) const RENDER: &str = "/v1/chat/completions/render";
pub(crate) const COUNT: &str = "/v1/messages/count_tokens";
/// The routes that generate text; the next list has the other routes with a body.
pub(crate) const GENERATING: [&str; 4] = [CHAT, TEXT, RESPONSES, MESSAGES];
const OTHERS: [&str; 5] = [RENDER, "/apply-template", COUNT, "/tokenize", "/detokenize"];
const JSON: [(&str, &str); 1] = [("Content-Type", "application/json")];
pub(crate) const MIB: usize = 1 << 20;
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(120);
/// Ids that a model of 256 tokens does not have. The fourth would be valid if it were cut to 32 bits.
const IDS: [&str; 6] =
    ["-1", "256", "2147483648", "4294967297", "9223372036854775808", "18446744073709551616"];

/// A server of a tiny model whose tokens are bytes, and whose template calls functions as Hermes does.
pub(crate) fn tiny(args: &[&str]) -> (TempDir, TestServer) {
    let template = format!("{}{{# <tool_call> arguments #}}", bytes::TEMPLATE);
    let directory = bytes::model("llama", &[], Some(&template));
    let model = ["--model", directory.path().to_str().unwrap(), "--device", "cpu"];
    let server = TestServer::start(&[args, &model].concat());
    (directory, server)
}

/// A reply whose status and body agree.
fn agreed(reply: Reply) -> Reply {
    let body = reply.json();
    let error = body.get("error").filter(|error| !error.is_null());
    assert_eq!(reply.status >= 400, error.is_some(), "{}: {body}", reply.status);
    if error.is_some() {
        let code = reply.error()["code"].as_u64();
        assert!(code.is_none_or(|code| code == u64::from(reply.status)), "{}: {body}", reply.status);
    }
    reply
}

pub(crate) fn post(client: &Client, path: &str, body: &Value) -> Reply {
    agreed(client.post(path, body))
}

pub(crate) fn post_text(client: &Client, path: &str, body: &str) -> Reply {
    agreed(client.request("POST", path, &JSON, body.as_bytes()))
}

/// Posts a chunked body. The last chunk is sent only if `ends` is true.
pub(crate) fn chunked<'a>(
    client: &Client,
    path: &str,
    pieces: impl Iterator<Item = &'a [u8]>,
    ends: bool,
) -> Reply {
    let mut stream = client.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n",
        client.address
    );
    stream.write_all(head.as_bytes()).unwrap();
    let last = ends.then_some(&b""[..]);
    for piece in pieces.chain(last) {
        let size = format!("{:x}\r\n", piece.len());
        // The write may fail, because a server may answer before it has read everything.
        let _ = stream.write_all(&[size.as_bytes(), piece, b"\r\n"].concat());
    }
    agreed(moi_tests::server::reply(stream))
}

/// The smallest valid body of a route.
pub(crate) fn asked(path: &str) -> Value {
    match path {
        TEXT => json!({"prompt": "x", "max_tokens": 1}),
        RESPONSES => json!({"input": "x", "max_output_tokens": 1}),
        _ => json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
    }
}

/// A body with one more field, which is given as text.
pub(crate) fn with_text(body: &Value, field: &str) -> String {
    format!("{},{field}}}", body.to_string().strip_suffix('}').unwrap())
}

/// Checks that a request is refused in the error format of its route's API, and that the error names the field.
pub(crate) fn refused(reply: &Reply, path: &str, field: &str) {
    assert_eq!(reply.status, 400, "{path}, {field}: {}", reply.text());
    let error = reply.error();
    assert_eq!(error["type"], "invalid_request_error", "{path}, {field}: {error}");
    assert_eq!(reply.json()["type"] == "error", path.starts_with(MESSAGES), "{path}: {}", reply.text());
    let param = error["param"].as_str().unwrap_or_else(|| panic!("{path}, {field}: no param: {error}"));
    assert!(param.starts_with(field), "{path}, {field}: {error}");
}

/// Checks that a server holds not much more memory than before.
fn is_flat(server: &TestServer, before: Option<usize>) {
    let grown = server.resident().zip(before).map(|(after, before)| after.saturating_sub(before));
    assert!(grown.is_none_or(|grown| grown < 300 * MIB), "{grown:?} more bytes are held");
}

/// Sets a flag when it is dropped, also during a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while other clients stream repeatedly; each stream must equal what it is alone.
pub(crate) fn beside(client: &Client, streams: u64, work: impl FnOnce()) {
    let said = |seed: u64| {
        let body = json!({"prompt": "Once", "max_tokens": 200, "ignore_eos": true, "temperature": 0.8, "seed": seed});
        streamed(&client.stream(TEXT, &body), 0)
    };
    let calm: Vec<(u64, String)> = (0..streams).map(|seed| (seed, said(seed))).collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over(&is_over);
        for (seed, calm) in &calm {
            let (said, is_over) = (&said, &is_over);
            scope.spawn(move || {
                loop {
                    assert_eq!(said(*seed), *calm, "stream {seed}");
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        work();
    });
}

pub(crate) fn deep(count: usize, open: &str, within: &str, close: &str) -> String {
    format!("{}{within}{}", open.repeat(count), close.repeat(count))
}

/// Every field with token ids must refuse ids that the model does not have, on every route, without affecting the
/// other sequences (vllm#16529, #54195, #48824, #45441, llama.cpp#12178).
#[test]
fn ids_that_the_model_has_not_are_refused_everywhere() {
    let (_directory, server) = tiny(&[]);
    let client = &server.client;
    let fields = |id: &str| {
        [
            ("stop_token_ids", format!("\"stop_token_ids\":[1,{id}]")),
            ("allowed_token_ids", format!("\"allowed_token_ids\":[1,{id}]")),
            ("logit_bias", format!("\"logit_bias\":{{\"{id}\":1}}")),
            ("moi.force", format!("\"moi\":{{\"rule\":\"token\",\"force\":[1,{id}]}}")),
        ]
    };
    beside(client, 1, || {
        for (id, stream) in IDS.into_iter().flat_map(|id| [(id, false), (id, true)]) {
            for (path, (field, text)) in
                GENERATING.into_iter().flat_map(|path| fields(id).map(|of| (path, of)))
            {
                let base = with(asked(path), json!({"stream": stream}));
                refused(&post_text(client, path, &with_text(&base, &text)), path, field);
            }
            let base = json!({"max_tokens": 1, "stream": stream});
            for list in
                [format!("[{id}]"), format!("[1,{id}]"), format!("[[{id}]]"), format!("[[1],[1,{id}]]")]
            {
                let body = with_text(&base, &format!("\"prompt\":{list}"));
                refused(&post_text(client, TEXT, &body), TEXT, "prompt");
            }
            let tokens = format!("{{\"tokens\":[1,{id}]}}");
            refused(&post_text(client, "/detokenize", &tokens), "/detokenize", "tokens");
            // These routes generate nothing and do not use ids, so they may check them or not.
            for path in OTHERS {
                for (field, text) in fields(id) {
                    let reply = post_text(client, path, &with_text(&asked(path), &text));
                    assert!([200, 400].contains(&reply.status), "{path}, {field}: {}", reply.text());
                }
            }
        }
    });
    server.settled();
}

fn texts(count: usize) -> Vec<&'static str> {
    vec!["x"; count]
}

fn turns(count: usize) -> Vec<Value> {
    vec![json!({"role": "user", "content": ""}); count]
}

/// Functions in the formats of all three APIs.
fn tools(kind: &str, count: usize) -> Value {
    let name = |at: usize| format!("f{at}");
    let tool = |at: usize| json!({"type": kind, "name": name(at), "function": {"name": name(at)}});
    json!({"tools": (0..count).map(tool).collect::<Vec<Value>>()})
}

/// A logit bias with this number of keys, for the ids of 256 tokens.
fn bias(count: usize) -> Value {
    let key = |at: usize| format!("{:0width$}", at % 256, width = 4 + at / 256);
    json!({"logit_bias": (0..count).map(|at| (key(at), json!(1))).collect::<Map<String, Value>>()})
}

type Make = fn(usize) -> Value;

/// The limits: route, field, largest number, and a function that makes a body with a given number.
const CAPS: &[(&str, &str, usize, Make)] = &[
    (CHAT, "n", 16, |n| json!({"n": n})),
    (TEXT, "n", 16, |n| json!({"n": n})),
    (RESPONSES, "n", 1, |n| json!({"n": n})),
    (MESSAGES, "n", 1, |n| json!({"n": n})),
    (TEXT, "logprobs", 20, |n| json!({"logprobs": n})),
    (CHAT, "top_logprobs", 20, |n| json!({"logprobs": true, "top_logprobs": n})),
    (TEXT, "stop", 64, |n| json!({"stop": texts(n)})),
    (CHAT, "stop", 8192, |n| json!({"stop": "x".repeat(n)})),
    (MESSAGES, "stop_sequences", 64, |n| json!({"stop_sequences": texts(n)})),
    (CHAT, "logit_bias", 512, bias),
    (CHAT, "stop_token_ids", 512, |n| json!({"stop_token_ids": vec![1; n]})),
    (TEXT, "bad_words", 512, |n| json!({"bad_words": texts(n)})),
    (CHAT, "moi.trace", 64, |n| json!({"moi": {"trace": n}})),
    (CHAT, "moi.rules", 8, |n| json!({"moi": {"rules": vec!["token"; n]}})),
    (TEXT, "moi.force", 512, |n| json!({"moi": {"force": vec![1; n]}})),
    (CHAT, "messages", 4096, |n| json!({"messages": turns(n)})),
    (MESSAGES, "messages", 4096, |n| json!({"messages": turns(n)})),
    (RESPONSES, "input", 4096, |n| json!({"input": turns(n)})),
    (CHAT, "tools", 512, |n| tools("function", n)),
    (RESPONSES, "tools", 512, |n| tools("function", n)),
    (MESSAGES, "tools", 512, |n| tools("custom", n)),
    (TEXT, "prompt", 1024, |n| json!({"prompt": texts(n)})),
    // Each of these has 16 choices.
    (TEXT, "n", 64, |n| json!({"prompt": texts(n), "n": 16})),
];

/// One more than a limit must be refused by name before it takes memory (local-inference-lab/vllm#264). A request at
/// the limit is answered, unless the context has no room for it.
#[test]
fn one_more_than_a_cap_is_refused_and_named() {
    let (_directory, server) = tiny(&["--max-queue", "2048"]);
    let client = &server.client;
    assert_eq!(post(client, TEXT, &asked(TEXT)).status, 200);
    let before = server.resident();
    for &(path, field, cap, make) in CAPS {
        refused(&post(client, path, &with(asked(path), make(cap + 1))), path, field);
        let reply = post(client, path, &with(asked(path), make(cap)));
        let has_no_room = || reply.status == 400 && reply.error()["code"] == "context_length_exceeded";
        assert!(reply.status == 200 || has_no_room(), "{path}, {field}: {}", reply.text());
    }
    // The limit on listed tokens is checked before the first token.
    let moi = json!({"rule": "token", "trace": 64});
    let listed = json!({"prompt": texts(64), "n": 16, "max_tokens": 500, "logprobs": 20, "moi": moi});
    refused(&post(client, TEXT, &listed), TEXT, "max_tokens");
    server.settled();
    is_flat(&server, before);
}

/// A valid request of 100 MiB that is compressed to a few bytes.
fn gzip_bomb() -> Vec<u8> {
    let text = format!("{{\"prompt\":\"x\",\"max_tokens\":1{}}}", " ".repeat(100 * MIB));
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    writer.start_file("x", options).unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    let mut archive = ZipArchive::new(writer.finish().unwrap()).unwrap();
    let mut member = archive.by_index_raw(0).unwrap();
    let end = [member.crc32(), member.size() as u32];
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    member.read_to_end(&mut out).unwrap();
    out.extend(end.iter().flat_map(|number| number.to_le_bytes()));
    out
}

/// A body with a million messages.
pub(crate) fn crowd() -> String {
    let crowd = format!("{{\"messages\":[{}]}}", vec!["{\"role\":\"u\"}"; 1_000_000].join(","));
    assert!(crowd.len() < 16 * MIB);
    crowd
}

/// Bodies that are too large, too deep or compressed must be refused, and must not stay in memory.
#[test]
fn bodies_that_are_too_much_leave_nothing_behind() {
    let (_directory, server) = tiny(&[]);
    let client = &server.client;
    let calm = || {
        let body = json!({"prompt": "Once", "temperature": 0, "max_tokens": 20});
        server.ask(TEXT, &body)["choices"][0]["text"].clone()
    };
    let (said, before) = (calm(), server.resident());
    let crowd = crowd();
    for path in [CHAT, MESSAGES, RENDER, COUNT, "/tokenize", RESPONSES] {
        let name = if path == RESPONSES { "input" } else { "messages" };
        let reply = post_text(client, path, &crowd.replacen("messages", name, 1));
        let error = reply.error();
        assert_eq!((reply.status, &error["type"]), (400, &json!("invalid_request_error")), "{path}: {error}");
    }
    // A body that declares its excessive size must be refused before any of it is sent.
    let mut stream = server.connect();
    let head = format!("POST {TEXT} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", server.address);
    stream.write_all(format!("{head}Content-Length: 100000000\r\n\r\n").as_bytes()).unwrap();
    let large = json!("request_too_large");
    let declared = agreed(moi_tests::server::reply(stream));
    assert_eq!((declared.status, &declared.error()["code"]), (413, &large));
    // A body without a declared size must be refused when it exceeds the limit, without waiting for its end.
    let (piece, last) = (vec![b' '; MIB], [b' ']);
    let pieces = std::iter::repeat_n(&piece[..], 16).chain([&last[..]]);
    let told = chunked(client, TEXT, pieces, false);
    assert_eq!((told.status, &told.error()["code"]), (413, &large));
    let bomb = gzip_bomb();
    assert!(bomb.len() < MIB, "{} bytes", bomb.len());
    let packed = agreed(server.request("POST", TEXT, &[JSON[0], ("Content-Encoding", "gzip")], &bomb));
    assert!([400, 415].contains(&packed.status), "{}", packed.text());
    for path in GENERATING.into_iter().chain(OTHERS) {
        for open in ["[", "{\"messages\":", "{\"prompt\":[", "{\"moi\":", "{\"tools\":["] {
            let reply = post_text(client, path, &open.repeat(100_000));
            assert_eq!(reply.status, 400, "{path}, {open}: {}", reply.text());
        }
        // No code reads this field, however deep it is.
        let field = format!("\"zzz\":{}", deep(100_000, "[", "", "]"));
        let reply = post_text(client, path, &with_text(&asked(path), &field));
        assert!([200, 400].contains(&reply.status), "{path}: {}", reply.text());
    }
    assert_eq!(calm(), said);
    server.settled();
    is_flat(&server, before);
}

/// While a server loads its model or stops, the status of every refusal must match its body (textgen#7257).
#[cfg(unix)]
#[test]
fn status_and_body_agree_while_nothing_is_taken() {
    let check = |server: &TestServer, path: &str| {
        let health = agreed(server.get(path));
        assert!(health.status == 200 || health.error()["code"] == 503, "{}", health.text());
        health.status
    };
    let loading = TestServer::start_loading(&[]);
    let begun = Instant::now();
    while check(&loading, "/health") != 200 {
        for (path, status) in [(CHAT, 503), (TEXT, 503), (RESPONSES, 503), (MESSAGES, 529)] {
            let reply = post(&loading, path, &asked(path));
            // The model may be loaded by now.
            assert!([200, status].contains(&reply.status), "{path}: {}", reply.text());
        }
        assert!(begun.elapsed() < TEST_TIMEOUT);
        sleep(Duration::from_millis(20));
    }
    drop(loading);
    let (_directory, server) = tiny(&[]);
    // An unread answer that is larger than the output buffers keeps the server from stopping.
    let moi = json!({"rule": "token", "trace": 64});
    let large =
        json!({"n": 16, "max_tokens": 490, "ignore_eos": true, "stream": true, "logprobs": 20, "moi": moi});
    let mut slow = server.send(TEXT, &with(asked(TEXT), large));
    slow.read_exact(&mut [0; 1]).unwrap();
    server.signal("TERM");
    let begun = Instant::now();
    while check(&server, "/readyz") == 200 {
        assert!(begun.elapsed() < TEST_TIMEOUT);
    }
    assert_eq!((check(&server, "/health"), check(&server, "/v1/health")), (503, 503));
    for (path, status) in [(CHAT, 503), (TEXT, 503), (RESPONSES, 503), (MESSAGES, 529)] {
        let reply = post(&server, path, &asked(path));
        assert_eq!((reply.status, reply.header("retry-after")), (status, Some("1")), "{path}");
    }
    drop(slow);
}
