//! Tests of streams: the same text as whole answers, in events that every client can read.

use serde_json::{Value, json};

use crate::{CHAT, TEXT, content, question, server, streamed, with};

#[test]
fn a_stream_says_what_a_whole_answer_says() {
    let server = server();
    for fields in [
        json!({}),
        json!({"temperature": 0.9, "seed": 3, "n": 3}),
        json!({"moi": {"rule": "moi"}, "temperature": 0.9, "seed": 4}),
        json!({"logprobs": true, "top_logprobs": 3}),
    ] {
        let body = with(question("Write a line with an emoji, and one in Chinese.", 40), fields);
        let whole = server.ask(CHAT, &body);
        let events = server.stream(CHAT, &body);
        let choices = whole["choices"].as_array().unwrap();
        for (at, choice) in choices.iter().enumerate() {
            assert_eq!(streamed(&events, at), choice["message"]["content"].as_str().unwrap(), "{body}");
            let own = || {
                events
                    .iter()
                    .flat_map(|event| event["choices"].as_array().unwrap())
                    .filter(|c| c["index"] == at)
            };
            let first = own().next().unwrap();
            assert_eq!(first["delta"], json!({"role": "assistant", "content": ""}));
            let last = own().next_back().unwrap();
            assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &choice["finish_reason"]));
            assert_eq!(own().filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
            let tokens: Vec<Value> = own()
                .flat_map(|choice| choice["logprobs"]["content"].as_array().cloned().unwrap_or_default())
                .collect();
            assert_eq!(
                json!(tokens),
                if tokens.is_empty() { json!([]) } else { choice["logprobs"]["content"].clone() }
            );
        }
        // The first chunks come in the order of the choices.
        let firsts: Vec<&Value> =
            events.iter().take(choices.len()).map(|event| &event["choices"][0]["index"]).collect();
        assert!(firsts.iter().enumerate().all(|(at, index)| **index == json!(at)));
        let heads: Vec<_> =
            events.iter().map(|e| (&e["id"], &e["created"], &e["model"], &e["object"])).collect();
        assert!(heads.iter().all(|head| *head == heads[0]));
        assert_eq!(events[0]["object"], "chat.completion.chunk");
    }
}

#[test]
fn usage_comes_where_it_was_asked_for() {
    let server = server();
    for (include, continuous) in [(false, false), (true, false), (false, true), (true, true)] {
        let options = json!({"include_usage": include, "continuous_usage_stats": continuous});
        let events =
            server.stream(CHAT, &with(question("Say hello.", 5), json!({"stream_options": options})));
        let empty: Vec<&Value> = events.iter().filter(|event| event["choices"] == json!([])).collect();
        assert_eq!(empty.len(), usize::from(include));
        if include {
            assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 5);
        }
        for event in events.iter().filter(|event| event["choices"] != json!([])) {
            match (include, continuous) {
                (_, true) => assert!(event["usage"]["prompt_tokens"].is_u64()),
                (true, false) => assert!(event["usage"].is_null() && event.get("usage").is_some()),
                (false, false) => assert!(event.get("usage").is_none()),
            }
        }
    }
    assert!(server.stream(CHAT, &question("Say hello.", 5)).iter().all(|event| event.get("usage").is_none()));
}

/// A stop string at every position of a known text: no part of it may reach a client, streaming or not, and text that
/// only begins like it must not be lost.
#[test]
fn stop_strings_end_answers_wherever_tokens_are_cut() {
    let server = server();
    let body = json!({"prompt": "The days of the week are", "max_tokens": 24, "temperature": 0, "moi": {"rule": "token"}});
    let text = server.ask(TEXT, &body)["choices"][0]["text"].as_str().unwrap().to_owned();
    let chars: Vec<char> = text.chars().collect();
    assert!(chars.len() > 20, "{text:?}");
    for at in (1..chars.len().min(60) - 4).step_by(6) {
        let stop: String = chars[at..at + 4].iter().collect();
        let expected = &text[..text.find(&stop).unwrap()];
        for (stops, includes) in [(json!(stop), false), (json!(["not in it", stop]), true)] {
            let body = with(body.clone(), json!({"stop": stops, "include_stop_str_in_output": includes}));
            let whole = server.ask(TEXT, &body)["choices"][0].clone();
            let events = server.stream(TEXT, &body);
            let expected = if includes { format!("{expected}{stop}") } else { expected.to_owned() };
            assert_eq!(whole["text"], json!(expected), "{stop:?}");
            assert_eq!(streamed(&events, 0), expected, "{stop:?}");
            assert_eq!((&whole["finish_reason"], &whole["stop_reason"]), (&json!("stop"), &json!(stop)));
        }
    }
    // The text ends with the beginning of a stop string.
    let tail: String = chars[chars.len() - 3..].iter().collect();
    let body = with(body, json!({"stop": format!("{tail} and more")}));
    assert_eq!(server.ask(TEXT, &body)["choices"][0]["text"], json!(text));
    assert_eq!(streamed(&server.stream(TEXT, &body), 0), text);
}

/// A character of several tokens must arrive whole, and invalid bytes become replacement characters only at the end.
#[test]
fn events_hold_whole_characters() {
    let server = server();
    let text = "naïve 日本語 🦀🏳️‍🌈 é";
    let ids = server.ask("/tokenize", &json!({"prompt": text}))["tokens"].clone();
    let count = ids.as_array().unwrap().len();
    let body = |max: usize| json!({"prompt": "x", "max_tokens": max, "moi": {"rule": "token", "force": ids}, "stream": true});
    let reply = server.post(TEXT, &body(count));
    assert_eq!(streamed(&reply.events(), 0), text);
    for event in reply.events() {
        assert!(!event.to_string().contains('\u{FFFD}'), "{event}");
    }
    // If the answer is cut within a character, its bytes so far come at the end.
    for max in 1..count {
        let found = streamed(&server.post(TEXT, &body(max)).events(), 0);
        let whole = found.trim_end_matches('\u{FFFD}');
        assert!(text.starts_with(whole), "{found:?}");
        let whole =
            server.ask(TEXT, &with(body(max), json!({"stream": false})))["choices"][0]["text"].clone();
        assert_eq!(whole, json!(found));
    }
}

#[test]
fn a_chunk_of_events_is_no_less_for_a_slow_reader() {
    use std::io::Read;
    let server = server();
    let body = question("Count to twenty.", 60);
    let expected = content(&server.ask(CHAT, &body));
    let mut stream = server.send(CHAT, &with(body, json!({"stream": true})));
    let (mut bytes, mut one) = (Vec::new(), [0u8]);
    while stream.read(&mut one).unwrap() == 1 {
        bytes.push(one[0]);
    }
    assert_eq!(streamed(&moi_tests::server::parsed(&bytes).events(), 0), expected);
}
