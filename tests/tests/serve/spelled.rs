//! Tests of how tokens are named and how conversations are formatted, with tiny models whose tokens are bytes.

use std::fs;

use moi_tests::{
    bytes::{self, ids},
    server::TestServer,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    CHAT, TEXT,
    texts::{CONVERSATIONS, RESPONSES, forced, served, text, tiny},
    with,
};

/// Each token must have its own key, whatever its name. In this vocabulary some control tokens have the names under
/// which other tokens' bytes are written, and others have the names that would replace those. There must be as many
/// keys as tokens, and the name of the generated token must have its value.
#[test]
fn tokens_of_one_name_have_keys_of_their_own() {
    let twins = (3..63u32).map(|id| (id, format!("bytes:\\x{:02x}", id + 125)));
    let names = (63..123u32).map(|id| (id, format!("token_id:{}", id + 65)));
    let control: Vec<(u32, String)> = twins.chain(names).collect();
    let control: Vec<(u32, &str)> = control.iter().map(|(id, name)| (*id, name.as_str())).collect();
    let (_directory, server) = tiny(&control, None);
    let pairs: Vec<u32> = (3..63).flat_map(|id| [id, id + 125]).collect();
    let mut shared = 0;
    for tokens in [pairs.repeat(3), vec![]] {
        let [named, numbered] = [false, true].map(|as_ids| {
            let fields = json!({
                "prompt": [200], "max_tokens": tokens.len().max(60), "logprobs": 20, "ignore_eos": true,
                "return_token_ids": true, "return_tokens_as_token_ids": as_ids,
            });
            server.ask(TEXT, &forced(TEXT, &tokens, fields))["choices"][0].clone()
        });
        for (at, token) in named["token_ids"].as_array().unwrap().iter().enumerate() {
            let own = &named["logprobs"]["token_logprobs"][at];
            let [names, numbers] =
                [&named, &numbered].map(|of| of["logprobs"]["top_logprobs"][at].as_object().unwrap());
            assert!((20..=21).contains(&numbers.len()), "{numbers:?}");
            assert_eq!(names.len(), numbers.len(), "{names:?} of {numbers:?}");
            assert_eq!(names.get(text(&named["logprobs"]["tokens"][at])), Some(own), "{names:?}");
            assert_eq!(numbers.get(&format!("token_id:{token}")), Some(own), "{numbers:?}");
            let is_listed = |twin: &u32| numbers.contains_key(&format!("token_id:{twin}"));
            shared += usize::from(tokens.get(at ^ 1).is_some_and(is_listed));
            // The greedy token must have the largest value.
            let largest = names.values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
            assert!(!tokens.is_empty() || own.as_f64() == Some(largest), "{names:?}");
        }
    }
    assert!(shared > 0);
}

#[test]
fn tokens_are_told_by_their_own_bytes_in_chat() {
    let (_directory, server) = tiny(&[(5, "\t"), (6, "bytes:\\xff"), (8, " ")], None);
    let tokens = [vec![255, 6, 9, 5, 128, 8, 127], ids(" 日A")].concat();
    let body = forced(CHAT, &tokens, json!({"logprobs": true, "top_logprobs": 20}));
    let content = server.ask(CHAT, &body)["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), tokens.len());
    for (entry, &token) in content.iter().zip(&tokens) {
        let own = match token {
            5 => vec![9],
            6 => b"bytes:\\xff".to_vec(),
            8 => vec![32],
            byte => vec![byte as u8],
        };
        let name = match std::str::from_utf8(&own) {
            Ok(text) => text.to_owned(),
            Err(_) => format!("bytes:\\x{token:02x}"),
        };
        assert_eq!((&entry["token"], &entry["bytes"]), (&json!(name), &json!(own)));
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 20);
    }
}

fn turns(turns: &[(&str, &str)]) -> Value {
    turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

/// The prompt of a conversation, which must be the same for `/tokenize` and `/v1/responses`.
fn prompt(server: &TestServer, messages: &Value) -> String {
    let tokens = server.ask("/tokenize", &json!({"messages": messages}))["tokens"].clone();
    let fields = json!({"messages": messages, "return_token_ids": true});
    let answer = server.ask(CHAT, &forced(CHAT, &ids("y"), fields));
    assert_eq!(answer["choices"][0]["prompt_token_ids"], tokens);
    let answer = server.ask(RESPONSES, &forced(RESPONSES, &ids("y"), json!({"input": messages})));
    assert_eq!(answer["usage"]["input_tokens"], tokens.as_array().unwrap().len());
    text(&server.ask("/detokenize", &json!({"tokens": tokens}))["prompt"]).to_owned()
}

/// A template that refuses messages if a condition holds.
fn refusing(condition: &str, why: &str) -> String {
    let refusal = format!("{{% if {condition} %}}{{{{ raise_exception('{why}') }}}}{{% endif %}}");
    bytes::TEMPLATE.replace("{{ message.role }}", &format!("{refusal}{{{{ message.role }}}}"))
}

/// Developer messages become system messages, unless the template names them. System messages that the template
/// refuses are merged into the first one.
#[test]
fn roles_are_those_that_the_template_takes() {
    let developer = "{{ 'D' if message.role == 'developer' else message.role }}";
    let developer = bytes::TEMPLATE.replace("{{ message.role }}", developer);
    let first = refusing("message.role == 'system' and not loop.first", "It must be the first.");
    let many = [("system", "A"), ("user", "u"), ("developer", "B"), ("assistant", "a"), ("user", "v")];
    let late = [("user", "u"), ("developer", "A")];
    for (template, messages, expected) in [
        (bytes::TEMPLATE, &many[..], "system: A\nuser: u\nsystem: B\nassistant: a\nuser: v\n"),
        (bytes::TEMPLATE, &late, "user: u\nsystem: A\n"),
        (&developer, &many, "system: A\nuser: u\nD: B\nassistant: a\nuser: v\n"),
        (&first, &many, "system: A\n\nB\nuser: u\nassistant: a\nuser: v\n"),
        (&first, &late, "system: A\nuser: u\n"),
        (&first, &many[..2], "system: A\nuser: u\n"),
    ] {
        let (_directory, server) = tiny(&[], Some(template));
        assert_eq!(prompt(&server, &turns(messages)), format!("{expected}assistant: "));
    }
}

#[test]
fn what_a_template_refuses_is_400_with_its_text() {
    let template = refusing("(message.role == 'user') != (loop.index0 % 2 == 0)", "Roles must alternate.");
    let (_directory, server) = tiny(&[], Some(&template));
    let messages = turns(&[("user", "u"), ("user", "v")]);
    let others = ["/tokenize", "/v1/messages/count_tokens", "/v1/chat/completions/render"];
    for (path, stream) in
        CONVERSATIONS.into_iter().chain(others).flat_map(|path| [(path, false), (path, true)])
    {
        let field = if path == RESPONSES { "input" } else { "messages" };
        let reply = server.post(path, &forced(path, &[121], json!({ field: messages, "stream": stream })));
        let error = &reply.json()["error"];
        let code = (reply.status, text(&error["code"]), text(&error["type"]));
        assert_eq!(code, (400, "template_error", "invalid_request_error"), "{path}: {error}");
        assert!(text(&error["message"]).contains("Roles must alternate."), "{path}: {error}");
    }
    assert_eq!(prompt(&server, &turns(&[("user", "u")])), "user: u\nassistant: ");
}

/// Sets fields in a file of a model.
fn amend(directory: &TempDir, file: &str, fields: Value) {
    let path = directory.path().join(file);
    let content: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::write(path, with(content, fields).to_string()).unwrap();
}

/// A conversation has only the begin token that its template writes, a text has the tokenizer's, and ids have none.
#[test]
fn a_prompt_begins_once() {
    let template = "{{ bos_token }}".to_owned() + bytes::TEMPLATE;
    let directory = bytes::model("llama", &[(1, "<s>")], Some(&template));
    amend(&directory, "tokenizer_config.json", json!({"bos_token": "<s>"}));
    let part = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let processor = json!({
        "type": "TemplateProcessing", "pair": [part("A"), part("B")],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, part("A")],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    });
    amend(&directory, "tokenizer.json", json!({"post_processor": processor}));
    let server = served(&directory, &["--trust-request-templates"]);
    // Text in a message that looks like a begin token is text: "\x01" is the token itself.
    let messages = turns(&[("user", "<s> hi")]);
    assert_eq!(prompt(&server, &messages), "<s>user: <s> hi\nassistant: ");
    for (path, fields, expected) in [
        (CHAT, json!({"messages": messages}), "\u{1}user: <s> hi\nassistant: "),
        (CHAT, json!({"messages": messages, "chat_template": bytes::TEMPLATE}), "user: <s> hi\nassistant: "),
        (TEXT, json!({"prompt": "hi"}), "\u{1}hi"),
        (TEXT, json!({"prompt": "hi", "add_special_tokens": false}), "hi"),
        (TEXT, json!({"prompt": ids("hi")}), "hi"),
    ] {
        let fields = with(fields, json!({"return_token_ids": true}));
        let answer = server.ask(path, &forced(path, &ids("y"), fields));
        assert_eq!(answer["choices"][0]["prompt_token_ids"], json!(ids(expected)), "{path} {expected:?}");
    }
    assert_eq!(server.ask("/tokenize", &json!({"prompt": "hi"}))["tokens"], json!(ids("\u{1}hi")));
}
