//! Tests of response formats, fields and errors.

use serde_json::{Value, json};

use crate::{CHAT, TEXT, content, question, server, with};

#[test]
fn answers_have_openais_shape() {
    let server = server();
    let answer = server.ask(CHAT, &with(question("Say hello.", 6), json!({"seed": 5})));
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["model"], "smollm2-135m-instruct");
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["message"]["role"]), (&json!(0), &json!("assistant")));
    assert_eq!(choice["finish_reason"], "length");
    assert!(
        choice["message"].get("tool_calls").is_none() && choice["message"].get("reasoning_content").is_none()
    );
    assert_eq!(choice["moi"]["seed"], 5);
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 6);
    assert_eq!(usage["total_tokens"].as_u64(), Some(6 + usage["prompt_tokens"].as_u64().unwrap()));

    // The prompt must be that of `/tokenize` for the same messages.
    let messages = &question("Say hello.", 1)["messages"];
    let tokens = server.ask("/tokenize", &json!({"messages": messages, "return_token_strs": true}));
    assert_eq!(tokens["count"], usage["prompt_tokens"]);
    assert_eq!(tokens["token_strs"].as_array().unwrap().len() as u64, tokens["count"].as_u64().unwrap());
    let text = server.ask("/detokenize", &json!({"tokens": tokens["tokens"]}))["prompt"].clone();
    assert!(text.as_str().unwrap().contains("<|im_start|>user\nSay hello.<|im_end|>"), "{text}");

    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "smollm2-135m-instruct");
    assert_eq!(models["data"][0]["max_model_len"], 8192);
    assert_eq!(server.get("/v1/models/smollm2-135m-instruct").json(), models["data"][0]);
    assert_eq!(server.get("/v1/models/a%2Fb").error()["code"], "model_not_found");
    let info = server.get("/tokenizer_info").json();
    assert!(
        info["chat_template"].as_str().unwrap().contains("im_start") && info["eos_token"] == "<|im_end|>"
    );
    assert!(server.get("/docs").text().contains("/v1/chat/completions"));
    for (path, field) in [("/version", "version"), ("/load", "server_load"), ("/health", "status")] {
        assert!(server.get(path).json().get(field).is_some(), "{path}");
    }
}

#[test]
fn every_prompt_and_sample_has_its_choice() {
    let server = server();
    let body =
        json!({"prompt": ["One,", "Two, three,"], "n": 2, "max_tokens": 3, "temperature": 0.8, "seed": 1});
    let answer = server.ask(TEXT, &body);
    let choices = answer["choices"].as_array().unwrap();
    let indices: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    // Prompts count once, whatever `n` is.
    let count = |text: &str| server.ask("/tokenize", &json!({"prompt": text}))["count"].as_u64().unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"].as_u64(), Some(count("One,") + count("Two, three,")));
    // Each choice must be what its seed gives alone.
    for (choice, prompt, seed) in
        [(0, "One,", 1), (1, "One,", 2), (2, "Two, three,", 1), (3, "Two, three,", 2)]
    {
        let alone = json!({"prompt": prompt, "max_tokens": 3, "temperature": 0.8, "seed": seed});
        assert_eq!(server.ask(TEXT, &alone)["choices"][0]["text"], choices[choice]["text"]);
    }
    // Token ids are valid prompts.
    let ids = server.ask("/tokenize", &json!({"prompt": "One,"}))["tokens"].clone();
    for prompt in [ids.clone(), json!([ids])] {
        let answer =
            server.ask(TEXT, &json!({"prompt": prompt, "max_tokens": 3, "temperature": 0.8, "seed": 1}));
        assert_eq!(answer["choices"][0]["text"], choices[0]["text"]);
    }
}

#[test]
fn null_is_as_absent_and_what_is_unknown_is_told() {
    let server = server();
    let plain = server.ask(CHAT, &question("Count to three.", 8));
    let nulls = json!({
        "temperature": 0, "stop": null, "n": null, "tools": null, "stream": null, "logit_bias": null, "top_p": null,
        "response_format": null, "seed": null, "stream_options": null, "logprobs": null, "user": null,
        "max_completion_tokens": null, "tool_choice": null, "moi": {"rule": "token", "trace": null, "beta": null},
    });
    let body = with(question("Count to three.", 8), nulls);
    // `beta` is not a knob of `token`, but null is treated as absent.
    assert_eq!(content(&server.ask(CHAT, &body)), content(&plain));
    let mut body = with(question("Count to three.", 8), json!({"prompt_ids": [1], "parallel": true}));
    body["messages"][0]["refusal"] = Value::Null;
    body["messages"][0]["mood"] = json!("good");
    let reply = server.post(CHAT, &body);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-moi-ignored"), Some("parallel, prompt_ids, messages[0].mood"));
    assert_eq!(content(&reply.json()), content(&plain));
    // A chunked body, without a length.
    let body = question("Count to three.", 8).to_string();
    let (first, second) = body.split_at(10);
    let chunks = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    let mut stream = server.connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json; charset=utf-8\r\nTransfer-Encoding: \
         chunked\r\nConnection: close\r\n\r\n{chunks}"
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    assert_eq!(content(&moi_tests::server::reply(stream).json()), content(&plain));
}

#[test]
fn messages_come_in_all_their_forms() {
    let server = server();
    let ask = |messages: Value| {
        let body = json!({"messages": messages, "max_tokens": 1});
        server.ask(CHAT, &body)["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain =
        ask(json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi you"}]));
    let parts = json!([{"type": "text", "text": "Hi "}, {"type": "input_text", "text": "you"}]);
    for role in ["system", "developer"] {
        let messages = json!([{"role": role, "content": "Be brief."}, {"role": "user", "content": parts}]);
        assert_eq!(ask(messages), plain);
    }
    let null = json!([
        {"role": "user", "content": "Hi", "name": null},
        {"role": "assistant", "content": "Hello", "refusal": null, "tool_calls": null},
        {"role": "user", "content": "you"},
    ]);
    assert!(ask(null) > plain - 10);
    for (messages, param) in [
        (json!([]), "messages"),
        (json!([{"role": "user", "content": []}]), "messages[0].content"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
        (
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[0].type",
        ),
    ] {
        let reply = server.post(CHAT, &json!({"messages": messages, "max_tokens": 1}));
        assert_eq!((reply.status, &reply.error()["param"]), (400, &json!(param)), "{}", reply.text());
    }
}

#[test]
fn what_is_wrong_is_400_and_named() {
    let server = server();
    let chat = |fields: Value| (CHAT, with(question("x", 1), fields));
    let text = |fields: Value| (TEXT, with(json!({"prompt": "x", "max_tokens": 1}), fields));
    let vocabulary = 49152u64;
    let mut cases = vec![
        (chat(json!({"messages": 3})), "messages", "invalid_type"),
        (chat(json!({"temperature": "hot"})), "temperature", "invalid_type"),
        (chat(json!({"temperature": -1})), "temperature", "invalid_value"),
        (chat(json!({"top_p": 2})), "top_p", "invalid_value"),
        (chat(json!({"n": 0})), "n", "invalid_value"),
        (chat(json!({"n": 17})), "n", "invalid_value"),
        (chat(json!({"n": -1})), "n", "invalid_value"),
        (chat(json!({"best_of": 3})), "best_of", "unsupported_parameter"),
        (chat(json!({"max_tokens": 0})), "max_tokens", "invalid_value"),
        (chat(json!({"model": "gpt-4"})), "model", "model_not_found"),
        (chat(json!({"stop": 5})), "stop", "invalid_type"),
        (chat(json!({"stop": [""]})), "stop", "invalid_value"),
        (chat(json!({"stop": vec!["x"; 65]})), "stop", "invalid_value"),
        (chat(json!({"stop": "x".repeat(9000)})), "stop", "invalid_value"),
        (chat(json!({"top_logprobs": 2})), "top_logprobs", "invalid_value"),
        (chat(json!({"logprobs": true, "top_logprobs": 21})), "top_logprobs", "invalid_value"),
        (chat(json!({"logit_bias": {"a": 1}})), "logit_bias", "invalid_value"),
        (chat(json!({"logit_bias": {"1": 101}})), "logit_bias", "invalid_value"),
        (chat(json!({"response_format": {"type": "xml"}})), "response_format.type", "invalid_value"),
        (
            chat(json!({"response_format": {"type": "json_schema"}})),
            "response_format.json_schema.schema",
            "invalid_schema",
        ),
        (
            chat(
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}),
            ),
            "response_format",
            "invalid_schema",
        ),
        (chat(json!({"guided_regex": "(((("})), "guided_regex", "invalid_schema"),
        (chat(json!({"guided_regex": "a", "guided_choice": ["b"]})), "guided_choice", "invalid_value"),
        (chat(json!({"audio": {}})), "audio", "unsupported_parameter"),
        (chat(json!({"modalities": ["text", "audio"]})), "modalities", "unsupported_parameter"),
        (chat(json!({"functions": []})), "functions", "unsupported_parameter"),
        (chat(json!({"chat_template": "x"})), "chat_template", "unsupported_parameter"),
        (chat(json!({"samplers": ["magic"]})), "samplers", "invalid_value"),
        (chat(json!({"moi": {"rule": "nonsense"}})), "moi.rule", "invalid_value"),
        (chat(json!({"moi": {"rule": "moi", "betta": 1}})), "moi.betta", "invalid_value"),
        (chat(json!({"moi": {"beta": 1}})), "moi", "invalid_value"),
        (chat(json!({"moi": {"rules": ["token", "nonsense"]}})), "moi.rules[1]", "invalid_value"),
        (chat(json!({"moi": {"rules": ["token", "moi"]}, "n": 2})), "n", "invalid_value"),
        (chat(json!({"moi": {"mix_scope": "some"}})), "moi.mix_scope", "invalid_value"),
        (chat(json!({"moi": {"trace": 65}})), "moi.trace", "invalid_value"),
        (
            chat(json!({"chat_template_kwargs": {"messages": []}})),
            "chat_template_kwargs.messages",
            "invalid_value",
        ),
        (text(json!({"logprobs": -1})), "logprobs", "invalid_value"),
        (text(json!({"logprobs": 21})), "logprobs", "invalid_value"),
        (text(json!({"suffix": "y"})), "suffix", "unsupported_parameter"),
        (text(json!({"prompt": []})), "prompt", "invalid_value"),
        (text(json!({"prompt": [[1], "x"]})), "prompt", "invalid_value"),
        (text(json!({"prompt": {"x": 1}})), "prompt", "invalid_type"),
        (text(json!({"prompt": null})), "prompt", "invalid_value"),
        (text(json!({"prompt": [vec![1; 9000]]})), "prompt", "context_length_exceeded"),
        (text(json!({"prompt_embeds": "AAAA", "prompt": null})), "prompt_embeds", "invalid_value"),
    ];
    // Every field with token ids must refuse ids that the model does not have, on every route.
    for id in [json!(-1), json!(vocabulary), json!(1u64 << 31), json!(u64::MAX)] {
        for (field, value) in [
            ("stop_token_ids", json!([id])),
            ("allowed_token_ids", json!([id])),
            ("logit_bias", json!({ id.to_string(): 1 })),
            ("moi", json!({"rule": "token", "force": [id]})),
            ("prompt", json!([id])),
        ] {
            for path in [CHAT, TEXT] {
                if (field, path) != ("prompt", CHAT) {
                    let body =
                        if path == CHAT { question("x", 1) } else { json!({"prompt": "x", "max_tokens": 1}) };
                    let reply = server.post(path, &with(body, json!({ field: value })));
                    assert_eq!(reply.status, 400, "{field} {id} {path}: {}", reply.text());
                    reply.error();
                }
            }
        }
        let reply = server.post("/detokenize", &json!({"tokens": [id]}));
        assert_eq!(reply.status, 400, "{}", reply.text());
    }
    for stream in [false, true] {
        for ((path, body), param, code) in &mut cases {
            body["stream"] = json!(stream);
            let reply = server.post(path, body);
            let error = reply.error();
            let status = if *code == "model_not_found" { 404 } else { 400 };
            assert_eq!(reply.status, status, "{body}: {error}");
            assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!(code)), "{body}: {error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    // Refused requests must not occupy a place in the engine.
    assert!(!content(&server.ask(CHAT, &question("Say hello.", 4))).is_empty());
    server.wait_until_idle();
}

#[test]
fn what_is_no_request_is_an_error_of_the_same_form() {
    let server = server();
    let json = [("Content-Type", "application/json")];
    for (method, path, headers, body, status, code) in [
        ("POST", CHAT, &json[..], &b"{"[..], 400, "invalid_json"),
        ("POST", CHAT, &json, b"[]", 400, "invalid_type"),
        ("POST", CHAT, &json, b"{} {}", 400, "invalid_json"),
        ("POST", CHAT, &[("Content-Type", "text/plain")], b"{}", 415, "unsupported_media_type"),
        ("POST", "/v1/embeddings", &json, b"{}", 404, "unknown_url"),
        ("GET", "/v1/anything", &[], b"", 404, "unknown_url"),
        ("DELETE", "/v1/models", &[], b"", 405, "method_not_allowed"),
        ("GET", CHAT, &[], b"", 405, "method_not_allowed"),
    ] {
        let reply = server.request(method, path, headers, body);
        assert_eq!(
            (reply.status, &reply.error()["code"]),
            (status, &json!(code)),
            "{method} {path}: {}",
            reply.text()
        );
        assert!(reply.header("x-request-id").is_some());
        assert_eq!(reply.header("allow").is_some(), status == 405, "{method} {path}");
    }
    let reply = server.request("GET", "/health", &[("x-request-id", "mine")], b"");
    assert_eq!(reply.header("x-request-id"), Some("mine"));
    // Nesting that would overflow a stack, and a body that is too large.
    for deep in ["[".repeat(100_000), "{\"messages\":".repeat(100_000)] {
        let reply = server.request("POST", CHAT, &json, deep.as_bytes());
        assert_eq!(reply.status, 400, "{}", reply.text());
    }
    let reply = server.request("POST", CHAT, &json, &vec![b' '; (16 << 20) + 1]);
    assert_eq!((reply.status, &reply.error()["code"]), (413, &json!("request_too_large")));
}

#[test]
fn answers_follow_what_they_are_told_to() {
    let server = server();
    let schema = json!({
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
        "required": ["city", "big"], "additionalProperties": false,
    });
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": true}});
    let body = with(question("Name a city as JSON.", 60), json!({"response_format": format}));
    let answer: Value = serde_json::from_str(&content(&server.ask(CHAT, &body))).unwrap();
    assert!(answer["city"].is_string() && answer["big"].is_boolean(), "{answer}");
    let body = with(question("Yes or no?", 5), json!({"structured_outputs": {"choice": ["yes.", "no?"]}}));
    assert!(["yes.", "no?"].contains(&content(&server.ask(CHAT, &body)).as_str()));
    let body = with(question("A number.", 8), json!({"guided_regex": "[0-9]{3}"}));
    let text = content(&server.ask(CHAT, &body));
    assert!(text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    // Only two tokens are allowed, and one of them is banned by its text.
    let ids = |text: &str| server.ask("/tokenize", &json!({"prompt": text}))["tokens"].clone();
    let (one, two) = (ids(" one")[0].clone(), ids(" two")[0].clone());
    let body = json!({
        "prompt": "Count:", "max_tokens": 4, "temperature": 0, "allowed_token_ids": [one, two], "bad_words": ["two"],
    });
    assert_eq!(server.ask(TEXT, &body)["choices"][0]["text"], " one one one one");
    let body = json!({"prompt": "Count:", "max_tokens": 4, "logit_bias": {two.to_string(): 100}});
    assert_eq!(server.ask(TEXT, &body)["choices"][0]["text"], " two two two two");
    let body = json!({
        "prompt": "Count:", "max_tokens": 4, "allowed_token_ids": [one, two], "stop_token_ids": [one, two],
        "return_token_ids": true, "temperature": 0, "logit_bias": {one.to_string(): 50},
    });
    let choice = server.ask(TEXT, &body)["choices"][0].clone();
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 1);
    // The token that ends an answer is not part of its text, unless requested.
    assert_eq!(choice["text"], "");
    let shown = server.ask(TEXT, &with(body, json!({"include_stop_str_in_output": true})));
    assert_eq!(shown["choices"][0]["text"], " one");
    // Limits that leave no token are an error of the client.
    let body =
        json!({"prompt": "Count:", "max_tokens": 4, "allowed_token_ids": [one], "guided_regex": "[0-9]+"});
    assert_eq!(server.post(TEXT, &body).status, 400);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &choice["token_ids"][0]));
}

#[test]
fn names_and_rules_of_a_model() {
    let server =
        moi_tests::server::TestServer::start(&["--alias", "org/a", "--alias", "b", "--rule", "token"]);
    let ask = |model: &str| server.post(CHAT, &with(question("x", 1), json!({"model": model, "moi": null})));
    for (model, name, rule) in [
        ("org/a", "org/a", "token"),
        ("b", "b", "token"),
        ("b:moi:beta=0.5", "b", "moi:beta=0.5"),
        ("", "org/a", "token"),
    ] {
        let answer = ask(model).json();
        assert_eq!((&answer["model"], &answer["choices"][0]["moi"]["rule"]), (&json!(name), &json!(rule)));
    }
    for model in ["smollm2-135m-instruct", "b:nonsense", "bb"] {
        assert!([400, 404].contains(&ask(model).status), "{model}");
    }
    assert_eq!(server.get("/v1/models/org/a").json()["id"], "org/a");
    assert_eq!(server.get("/v1/models/org%2Fa").json()["root"], "org/a");
}
