//! Tests of texts, thoughts and token counts on every route, with tiny models whose tokens are bytes.

use std::io::Read;

use moi_tests::{
    bytes::{self, ids},
    server::{Reply, TestServer, parsed},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{CHAT, TEXT, with};

pub(crate) const RESPONSES: &str = "/v1/responses";
pub(crate) const MESSAGES: &str = "/v1/messages";
const ROUTES: [&str; 4] = [CHAT, TEXT, RESPONSES, MESSAGES];
/// The routes that separate thoughts from the answer.
pub(crate) const CONVERSATIONS: [&str; 3] = [CHAT, RESPONSES, MESSAGES];
/// The think markers. A control token 2 would end answers, because the tiny model's configuration names it.
pub(crate) const OPEN: (u32, &str) = (3, "<think>");
pub(crate) const CLOSE: (u32, &str) = (4, "</think>");
const SPOKEN: &str = "One é, two 日本, one é; 🦀 is fin.";
pub(crate) const THOUGHT: &str = "I think: 日本, so";
pub(crate) const ANSWER: &str = "Yes é, so: 🦀.";

/// A server of the tiny model with these control tokens.
pub(crate) fn tiny(control: &[(u32, &str)], template: Option<&str>) -> (TempDir, TestServer) {
    let directory = bytes::model("llama", control, template);
    let server = served(&directory, &[]);
    (directory, server)
}

pub(crate) fn served(directory: &TempDir, args: &[&str]) -> TestServer {
    let model = ["--model", directory.path().to_str().unwrap(), "--device", "cpu"];
    TestServer::start(&[&model[..], args].concat())
}

/// A request that generates exactly these tokens.
pub(crate) fn forced(path: &str, tokens: &[u32], fields: Value) -> Value {
    let prompt = match path {
        TEXT => json!({"prompt": "x"}),
        RESPONSES => json!({"input": "x"}),
        _ => json!({"messages": [{"role": "user", "content": "x"}]}),
    };
    let moi = json!({"rule": "token", "force": tokens});
    with(with(json!({"max_tokens": tokens.len(), "temperature": 0, "moi": moi}), prompt), fields)
}

/// A stop string, in the format of a route.
pub(crate) fn stop(path: &str, text: &str) -> Value {
    if path == MESSAGES { json!({"stop_sequences": [text]}) } else { json!({"stop": [text]}) }
}

/// The tokens of a thought and of the answer after it.
pub(crate) fn thought_out(thought: &str, answer: &str) -> Vec<u32> {
    [vec![OPEN.0], ids(thought), vec![CLOSE.0], ids(answer)].concat()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The thought, the answer, and the stop reason.
type Said = [String; 3];

/// The text of each choice of a whole answer; the blocks of an answer count as one choice.
pub(crate) fn whole(answer: &Value) -> Vec<Said> {
    let end = |of: &Value| text(&of["moi"]["ended_by"]).to_owned();
    if let Some(choices) = answer["choices"].as_array() {
        let of = |choice: &Value| {
            let message = &choice["message"];
            let content = message["content"].as_str().or(choice["text"].as_str()).unwrap();
            [text(&message["reasoning_content"]).to_owned(), content.to_owned(), end(choice)]
        };
        return choices.iter().map(of).collect();
    }
    let mut all = [String::new(), String::new(), end(answer)];
    for block in answer["output"].as_array().or(answer["content"].as_array()).unwrap() {
        let own = block["thinking"].as_str().or(block["text"].as_str());
        let is_answer = !["reasoning", "thinking"].contains(&text(&block["type"]));
        all[usize::from(is_answer)] += own.or(block["content"][0]["text"].as_str()).unwrap();
    }
    vec![all]
}

/// The events of a stream of any route.
fn events(reply: &Reply) -> Vec<Value> {
    let body = reply.text();
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")), "{body}");
    let data = body.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// The events of an answer, with its usage.
pub(crate) fn told(server: &TestServer, path: &str, body: &Value) -> Vec<Value> {
    let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
    events(&server.post(path, &with(body.clone(), fields)))
}

/// The texts of the choices of a stream.
pub(crate) fn streamed(events: &[Value], choices: usize) -> Vec<Said> {
    let mut all = vec![Said::default(); choices];
    for event in events {
        let parts = event["choices"].as_array().map_or(std::slice::from_ref(event), Vec::as_slice);
        for part in parts {
            let delta = &part["delta"];
            let of_text =
                || [text(&delta["reasoning_content"]), text(&delta["content"]), text(&part["text"])];
            let (at, said) = match part["type"].as_str() {
                None => (part["index"].as_u64().unwrap() as usize, of_text()),
                Some("response.reasoning_text.delta") => (0, [text(delta), "", ""]),
                Some("response.output_text.delta") => (0, ["", text(delta), ""]),
                Some("content_block_delta") => (0, [text(&delta["thinking"]), text(&delta["text"]), ""]),
                Some(_) => (0, [""; 3]),
            };
            all[at][0] += said[0];
            all[at][1] += &said[1..].concat();
            all[at][2] += &[part, &part["response"]].map(|of| text(&of["moi"]["ended_by"])).concat();
        }
    }
    all
}

/// Generates tokens, whole and as a stream, and checks the text of each choice. Returns the whole answer.
pub(crate) fn say(
    server: &TestServer,
    path: &str,
    tokens: &[u32],
    fields: Value,
    expected: [&str; 3],
) -> Value {
    let body = forced(path, tokens, fields);
    let expected = vec![expected.map(str::to_owned); body["n"].as_u64().unwrap_or(1) as usize];
    let answer = server.ask(path, &body);
    assert_eq!(whole(&answer), expected, "{path} {body}");
    let events = told(server, path, &body);
    assert_eq!(streamed(&events, expected.len()), expected, "{path} {body}, in a stream");
    let mut usages = events.iter().rev().filter_map(|of| of.get("usage").or(of["response"].get("usage")));
    assert_eq!(usages.next(), answer.get("usage"), "{path} {body}");
    if let Some(response) = events[events.len() - 1].get("response") {
        assert_eq!(whole(response), expected, "{path} {body}, at the end of a stream");
    }
    answer
}

#[test]
fn stop_strings_end_answers_at_every_cut_on_every_route() {
    let (_directory, server) = tiny(&[], None);
    let chars: Vec<char> = SPOKEN.chars().collect();
    for cut in (1..=6).flat_map(|len| chars.windows(len)) {
        let cut: String = cut.iter().collect();
        let (before, _) = SPOKEN.split_once(&cut).unwrap();
        for path in ROUTES {
            let n = if [CHAT, TEXT].contains(&path) { 2 } else { 1 };
            let fields = with(stop(path, &cut), json!({"n": n}));
            let answer = say(&server, path, &ids(SPOKEN), fields, ["", before, "stop"]);
            let by = answer["choices"][0].get("stop_reason").or(answer.get("stop_sequence"));
            assert!(by.is_none_or(|by| *by == json!(cut)), "{answer}");
        }
    }
    server.settled();
}

/// Text that only begins like a stop string must not be lost, whether the length or a token ends the answer, within a
/// character or after it.
#[test]
fn what_is_held_back_comes_at_the_end_on_every_route() {
    let (_directory, server) = tiny(&[], None);
    for cut in (1..=SPOKEN.len()).step_by(3) {
        let spoken = String::from_utf8_lossy(&SPOKEN.as_bytes()[..cut]);
        let certain = spoken.trim_end_matches('\u{FFFD}');
        let held = certain.char_indices().rev().nth(2).map_or(certain, |(at, _)| &certain[at..]);
        for (end, ended_by) in [(None, "length"), (Some(bytes::EOS), "eos")] {
            let tokens: Vec<u32> = ids(SPOKEN)[..cut].iter().copied().chain(end).collect();
            for path in ROUTES {
                let fields = stop(path, &format!("{held}~"));
                say(&server, path, &tokens, fields, ["", &spoken, ended_by]);
            }
        }
    }
}

/// The number of tokens between markers, including the markers.
fn thoughts_among(tokens: &[Value]) -> usize {
    let mut thinks = false;
    let mut is_thought = |token: &Value| {
        let before = thinks;
        thinks = *token == OPEN.0 || (thinks && *token != CLOSE.0);
        before || thinks
    };
    tokens.iter().map(|token| usize::from(is_thought(token))).sum()
}

/// Answers that end by length, stop string, end token and chance, with thoughts: whole, in streams, and with several
/// choices.
#[test]
fn tokens_are_counted_as_they_are_listed() {
    let (_directory, server) = tiny(&[OPEN, CLOSE], None);
    let tokens = thought_out(THOUGHT, ANSWER);
    let to_the_end = [tokens.clone(), vec![bytes::EOS]].concat();
    let ended = json!({"rule": "token", "force": to_the_end});
    let allowed = [vec![bytes::EOS, OPEN.0, CLOSE.0], ids("ab ")].concat();
    let drawn = json!({"max_tokens": 60, "temperature": 1, "seed": 5, "allowed_token_ids": allowed, "moi": {"rule": "token"}});
    for fields in [
        json!({}),
        json!({"stop": "so:"}),
        json!({"max_tokens": 7}),
        json!({"max_tokens": 99, "moi": ended}),
        drawn.clone(),
        with(drawn, json!({"seed": 8, "stop": "ab"})),
    ] {
        let [one, three] = [1, 3].map(|n| with(fields.clone(), json!({"n": n, "return_token_ids": true})));
        for path in [CHAT, TEXT] {
            let body = forced(path, &tokens, three.clone());
            let (answer, events) = (server.ask(path, &body), told(&server, path, &body));
            let (mut generated, mut thought) = (0, 0);
            for (at, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
                let listed = choice["token_ids"].as_array().unwrap();
                let parts = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
                let own =
                    parts.filter(|part| part["index"] == at).filter_map(|part| part["token_ids"].as_array());
                assert_eq!(
                    own.flatten().collect::<Vec<_>>(),
                    listed.iter().collect::<Vec<_>>(),
                    "{path} {body}"
                );
                (generated, thought) = (generated + listed.len(), thought + thoughts_among(listed));
            }
            let prompt = answer["choices"][0]["prompt_token_ids"].as_array().unwrap().len();
            let usage = json!({
                "prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": thought, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
                },
            });
            assert_eq!(
                (&answer["usage"], &events[events.len() - 1]["usage"]),
                (&usage, &usage),
                "{path} {body}"
            );
        }
        let [chat, response, message] =
            CONVERSATIONS.map(|path| server.ask(path, &forced(path, &tokens, one.clone())));
        let generated = chat["choices"][0]["token_ids"].as_array().unwrap().len();
        assert_eq!(response["usage"]["output_tokens"], generated, "{fields}");
        assert_eq!(message["usage"]["output_tokens"], generated, "{fields}");
    }
    server.settled();
}

#[test]
fn usage_comes_where_it_was_asked_for_on_both_routes() {
    let (_directory, server) = tiny(&[], None);
    let tokens = ids("aé b\0");
    let cases =
        [1usize, 3].into_iter().flat_map(|n| (0..4).map(move |bits| (n, bits & 1 == 1, bits & 2 == 2)));
    for ((n, include, continuous), path) in cases.flat_map(|case| [CHAT, TEXT].map(|path| (case, path))) {
        let options = json!({"include_usage": include, "continuous_usage_stats": continuous});
        let fields = json!({"n": n, "stream": false, "stream_options": options});
        let body = forced(path, &tokens, fields);
        // A whole answer has its usage, whatever the request says about streams.
        let usage = server.ask(path, &body)["usage"].clone();
        assert_eq!(usage["completion_tokens"], n * tokens.len());
        let events = server.stream(path, &body);
        let object = if path == CHAT { "chat.completion.chunk" } else { "text_completion" };
        assert!(events.iter().all(|event| event["object"] == object), "{events:?}");
        let count = events.iter().take_while(|event| event["choices"] != json!([])).count();
        let (chunks, last) = events.split_at(count);
        let last: Vec<&Value> = last.iter().map(|event| &event["usage"]).collect();
        assert_eq!(last, if include { vec![&usage] } else { vec![] }, "{path} {body}");
        let counts: Vec<u64> =
            chunks.iter().filter_map(|of| of["usage"]["completion_tokens"].as_u64()).collect();
        match (include, continuous) {
            (_, true) => {
                assert!(counts.len() == chunks.len() && counts.is_sorted(), "{counts:?}");
                assert_eq!(counts.last().copied(), usage["completion_tokens"].as_u64());
            }
            (true, false) => assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null))),
            (false, false) => assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none())),
        }
    }
}

/// Token by token, and for a client that reads byte by byte: characters of two, three and four bytes, some composed
/// of several, and invalid bytes, which are replaced in place.
#[test]
fn events_hold_whole_characters_on_every_route() {
    let (_directory, server) = tiny(&[], None);
    let scripts =
        "aé\u{7ff}日本ก 🦀\u{1F469}\u{1F3FD}\u{200D}\u{1F680} \u{1F3F3}\u{FE0F}\u{200D}\u{1F308}e\u{301}";
    let spoken: [&[u8]; 9] = [
        scripts.as_bytes(),
        b"a\xffb",
        b"\x80",
        b"ab\xe6\x97",
        b"\xe6\x97x\xa5y",
        b"\xc3\xc3\xa9.",
        b"\xed\xa0\x80z",
        b"\xf4\x90\x80\x80",
        b"a \xff\xff\xe6\x97\xa5",
    ];
    for (spoken, path) in spoken.iter().flat_map(|spoken| ROUTES.map(|path| (spoken, path))) {
        let tokens: Vec<u32> = spoken.iter().copied().map(u32::from).collect();
        let replaced = String::from_utf8_lossy(spoken);
        let expected: [&str; 3] = ["", &replaced, "length"];
        say(&server, path, &tokens, json!({}), expected);
        let mut stream = server.send(path, &forced(path, &tokens, json!({"stream": true})));
        let (mut read, mut one) = (Vec::new(), [0u8]);
        while stream.read(&mut one).unwrap() == 1 {
            read.push(one[0]);
        }
        let events = events(&parsed(&read));
        assert_eq!(streamed(&events, 1), [expected.map(str::to_owned)]);
        let is_whole = events.iter().all(|event| !event.to_string().contains('\u{FFFD}'));
        assert!(is_whole || std::str::from_utf8(spoken).is_err(), "{events:?}");
    }
}
