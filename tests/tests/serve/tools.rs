//! Tests of function calls: in the format of each model family, by grammar if required, streamed and whole.

use std::fs;

use moi_hub::{CATALOGUE, Cache, DEFAULT_MODEL};
use moi_tests::{hostile::gguf::File, server::TestServer};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{CHAT, server, with};

/// A template that only says that there are tools, and has the markers of a format in a comment.
const TEMPLATE: &str = "\
{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}\
{% for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}\
<|im_end|>\n{% endfor %}{% if tools %}{{ tools | length }}{% endif %}\
{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The formats: a name, the text that identifies the format in a template, and the beginning of a call.
const FORMS: [(&str, &str, &str); 7] = [
    ("hermes", "<tool_call> arguments", "<tool_call>"),
    ("xml", "<tool_call><function=<parameter=", "<tool_call>"),
    ("llama", "ipython \"parameters\": ", "{\"name\""),
    ("mistral list", "[TOOL_CALLS]", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS][ARGS]", "[TOOL_CALLS]"),
    ("gemma 4", "<|tool_call>", "<|tool_call>"),
    ("functiongemma", "<start_function_call>", "<start_function_call>"),
];

fn template(form: &str) -> String {
    format!("{TEMPLATE}{{# {form} #}}")
}

fn tools() -> Value {
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome \"2\""]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": false,
    });
    json!([
        {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": weather}},
        {"type": "function", "function": {"name": "now", "strict": null}},
    ])
}

fn question(form: &str, fields: Value) -> Value {
    let body = json!({
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}], "chat_template": template(form),
        "tools": tools(), "max_tokens": 120, "temperature": 0.8, "seed": 5, "moi": {"rule": "token"},
    });
    with(body, fields)
}

fn trusting(model: Option<&str>) -> TestServer {
    let model = model.into_iter().flat_map(|model| ["--model", model]);
    TestServer::start(&["--trust-request-templates"].into_iter().chain(model).collect::<Vec<_>>())
}

/// A changed copy of the default model.
fn changed(change: impl FnOnce(File) -> File) -> (TempDir, String) {
    let entry = CATALOGUE.iter().find(|entry| entry.name == DEFAULT_MODEL).unwrap();
    let path = Cache::from_env().unwrap().path(entry);
    let file = change(File::parse(&fs::read(path).unwrap()));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.gguf");
    fs::write(&path, file.to_bytes()).unwrap();
    (directory, path.to_str().unwrap().to_owned())
}

/// The default model with a chat template.
pub(crate) fn with_template(template: &str) -> (TempDir, String) {
    changed(|file| file.with_text("tokenizer.chat_template", template))
}

/// The default model with control tokens for the markers of all formats.
fn with_control_tokens() -> (TempDir, String) {
    let markers = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|tool_call>",
        "<tool_call|>",
        "<|\"|>",
        "<start_function_call>",
        "<end_function_call>",
        "<escape>",
    ];
    // The first three control tokens end texts and turns; the later ones are never used in conversations.
    changed(|file| {
        let set = |file: File, (id, marker): (usize, &str)| {
            file.with_bytes_at("tokenizer.ggml.tokens", id, marker.as_bytes())
        };
        (4..).zip(markers).fold(file, set)
    })
}

/// The calls of a message, which must match their schemas, except a last call that was cut off.
fn calls(message: &Value, what: &str) -> Vec<(String, Value)> {
    let all = message["tool_calls"].as_array().unwrap_or_else(|| panic!("{what}: {message}"));
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().is_some_and(|id| !id.is_empty()));
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = match serde_json::from_str(arguments) {
            Ok(arguments) => arguments,
            Err(_) if all.len() > 1 && all.last() == Some(call) => return None,
            Err(error) => panic!("{what}: {error}: {call}"),
        };
        match call["function"]["name"].as_str().unwrap() {
            "weather" => {
                assert!(
                    ["Paris", "Rome \"2\""].iter().any(|city| arguments["city"] == *city),
                    "{what}: {call}"
                );
                assert!(arguments["days"].is_i64(), "{what}: {call}");
            }
            "now" => assert_eq!(arguments, json!({}), "{what}"),
            other => panic!("{what}: {other}"),
        }
        Some((call["function"]["name"].as_str().unwrap().to_owned(), arguments))
    };
    all.iter().filter_map(call).collect()
}

/// Joins the calls of a stream as OpenAI's client does, so that repeated parts would be doubled.
fn accumulated(events: &[Value]) -> (Value, Value) {
    let (mut message, mut finish) = (json!({"content": "", "tool_calls": []}), Value::Null);
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        if let Some(text) = choice["delta"]["content"].as_str() {
            message["content"] = (message["content"].as_str().unwrap().to_owned() + text).into();
        }
        let mut seen = Vec::new();
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = delta["index"].as_u64().unwrap() as usize;
            assert!(!seen.contains(&index), "an index twice in a chunk: {choice}");
            seen.push(index);
            let all = message["tool_calls"].as_array_mut().unwrap();
            let piece = delta["function"]["arguments"].as_str().unwrap();
            if index == all.len() {
                all.push(delta.clone());
                continue;
            }
            assert!(delta.get("id").is_none() && delta["function"].get("name").is_none(), "{delta}");
            let own = &mut all[index]["function"]["arguments"];
            *own = (own.as_str().unwrap().to_owned() + piece).into();
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (message, finish)
}

#[test]
fn calls_of_every_form_follow_their_functions() {
    let (_directory, control) = with_control_tokens();
    for model in [None, Some(control.as_str())] {
        let server = &trusting(model);
        std::thread::scope(|scope| {
            for (name, form, opening) in FORMS {
                scope.spawn(move || check_form(server, form, opening, &format!("{name}, {model:?}")));
            }
        });
    }
}

fn check_form(server: &TestServer, form: &str, opening: &str, what: &str) {
    let ids = server.ask("/tokenize", &json!({"prompt": opening, "add_special_tokens": false}));
    let force = json!({"rule": "token", "force": ids["tokens"]});
    for fields in [
        json!({"tool_choice": "required"}),
        json!({"tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": false}),
        json!({"tool_choice": "required", "parallel_tool_calls": false, "moi": {"rule": "moi"}}),
        json!({"parallel_tool_calls": false, "moi": force}),
    ] {
        let body = question(form, fields.clone());
        let answer = server.ask(CHAT, &body);
        let choice = &answer["choices"][0];
        // Such a small model may call functions endlessly.
        let is_cut = fields.get("parallel_tool_calls").is_none() && choice["finish_reason"] == "length";
        assert!(is_cut || choice["finish_reason"] == "tool_calls", "{what}: {choice}");
        assert!(choice["message"]["content"].is_null(), "{what}: {choice}");
        let found = calls(&choice["message"], what);
        if fields["parallel_tool_calls"] == false {
            assert_eq!(found.len(), 1, "{what}");
        }
        if fields["tool_choice"].is_object() {
            assert_eq!(found[0].0, "weather", "{what}");
        }
        if fields.get("moi").is_some() {
            continue;
        }
        let (message, finish) = accumulated(&server.stream(CHAT, &body));
        assert_eq!((calls(&message, what), finish), (found, choice["finish_reason"].clone()), "{what}");
        assert_eq!(message["content"], "");
    }
}

/// Arguments of all kinds: whatever the grammar allows must be parsed, with the names and types of the schema.
#[test]
fn arguments_of_all_kinds_are_read() {
    let (_directory, control) = with_control_tokens();
    let item = json!({"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": false});
    let schema = json!({
        "type": "object", "$defs": {"item": item},
        "properties": {
            "maybe": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
            "list": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2},
            "thing": {"$ref": "#/$defs/item"},
            "odd_name-1": {"enum": ["a\nb", "\u{7f}", "</tool_call>"]},
            "text": {"type": "string", "maxLength": 12},
        },
        "required": ["maybe", "odd_name-1"],
    });
    let tools = |form: &str| {
        let mut schema = schema.clone();
        // This format does not enforce lengths, and such a small model writes endless lists and texts.
        if form.contains("gemma") {
            let properties = schema["properties"].as_object_mut().unwrap();
            properties.retain(|name, _| !["list", "text"].contains(&name.as_str()));
        }
        json!([{"type": "function", "function": {"name": "f", "parameters": schema}}])
    };
    for model in [None, Some(control.as_str())] {
        let server = &trusting(model);
        std::thread::scope(|scope| {
            for (name, form, _) in FORMS {
                let tools = tools(name);
                scope.spawn(move || {
                    let mut whole = 0;
                    for seed in 0..2 {
                        let fields = json!({
                            "tools": tools, "tool_choice": "required", "parallel_tool_calls": false, "seed": seed,
                            "temperature": 1.2, "max_tokens": 200,
                        });
                        let answer = server.ask(CHAT, &question(form, fields));
                        let choice = &answer["choices"][0];
                        // A free text before the call may be long.
                        if choice["finish_reason"] == "length" {
                            continue;
                        }
                        assert_eq!(choice["finish_reason"], "tool_calls", "{name}, seed {seed}: {choice}");
                        let text = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
                        let arguments: Value = serde_json::from_str(text).unwrap();
                        let odd = arguments["odd_name-1"].as_str().unwrap();
                        assert!(["a\nb", "\u{7f}", "</tool_call>"].contains(&odd), "{name}: {arguments}");
                        assert!(arguments["maybe"].is_i64() || arguments["maybe"].is_null(), "{name}: {arguments}");
                        assert!(arguments.get("list").is_none_or(Value::is_array), "{name}: {arguments}");
                        assert!(arguments.get("thing").is_none_or(Value::is_object), "{name}: {arguments}");
                        whole += 1;
                    }
                    assert!(whole > 0, "{name}: no call came to its end");
                });
            }
        });
    }
}

/// If a stop string occurs within the arguments, the call is incomplete, and the client must not be asked to run it.
#[test]
fn a_call_that_is_cut_is_none() {
    let server = trusting(None);
    for stop in ["days", "Paris", "Rome"] {
        let fields = json!({"tool_choice": "required", "stop": [stop], "parallel_tool_calls": false});
        let answer = server.ask(CHAT, &question(FORMS[0].1, fields));
        let choice = &answer["choices"][0];
        if choice["stop_reason"] == stop {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
        }
    }
    let fields = json!({"tool_choice": "required", "max_tokens": 30, "parallel_tool_calls": false});
    let answer = server.ask(CHAT, &question(FORMS[0].1, fields));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[test]
fn answers_that_call_nothing_are_as_without_tools() {
    let server = trusting(None);
    for (name, form, _) in FORMS {
        // These templates say that there are tools, but not which.
        let silent = template(form).replace("{{ tools | length }}", "");
        let body = question(form, json!({"chat_template": silent, "temperature": 0, "max_tokens": 24}));
        let with_tools = server.ask(CHAT, &body);
        let mut without = body;
        without["tools"] = Value::Null;
        let without = server.ask(CHAT, &without);
        assert_eq!(with_tools["choices"][0]["message"], without["choices"][0]["message"], "{name}");
        assert_eq!(with_tools["choices"][0]["finish_reason"], "length");
    }
    // With a response format, the answer is either a call or has that format.
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}});
    let answer =
        server.ask(CHAT, &question(FORMS[0].1, json!({"response_format": format, "temperature": 0})));
    let choice = &answer["choices"][0];
    match choice["finish_reason"].as_str().unwrap() {
        "tool_calls" => drop(calls(&choice["message"], "beside a format")),
        _ => assert!(
            ["\"yes\"", "\"no\""].contains(&choice["message"]["content"].as_str().unwrap()),
            "{choice}"
        ),
    }
    // With `tool_choice` "none", the model gets no tools.
    let body = question(FORMS[0].1, json!({"tool_choice": "none", "max_tokens": 4}));
    assert!(server.ask(CHAT, &body)["choices"][0]["message"].get("tool_calls").is_none());
    // Calls and their results are turns of the conversation.
    let turns = json!([
        {"role": "user", "content": "How is it in Paris?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Paris\"}"}}]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"},
    ]);
    let body = json!({"messages": turns, "tools": tools(), "chat_template": template(FORMS[0].1)});
    let rendered = server.ask(CHAT, &with(body, json!({"return_token_ids": true, "max_tokens": 1})));
    let ids = &rendered["choices"][0]["prompt_token_ids"];
    let text = server.ask("/detokenize", &json!({"tokens": ids}));
    let text = text["prompt"].as_str().unwrap();
    assert!(text.contains("weather{\"city\": \"Paris\"}") && text.contains("sunny"), "{text}");
}

#[test]
fn wrong_tools_are_named() {
    let server = trusting(None);
    let function = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    for (fields, param) in [
        (function(json!({"name": "a b"})), "tools[0].function.name"),
        (function(json!({"name": ""})), "tools[0].function.name"),
        (function(json!({"name": "a".repeat(129)})), "tools[0].function.name"),
        (
            function(json!({"name": "a", "parameters": {"type": "string"}})),
            "tools[0].function.parameters.type",
        ),
        (function(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
        (
            function(json!({"name": "a", "strict": true, "parameters": {"type": "object", "properties": {
            "x": {"not": {"type": "string"}}}}})),
            "tools",
        ),
        (function(json!({"name": "a", "parameters": {"$ref": "#/nowhere"}})), "tools"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"tools": [tools()[0], tools()[0]]}), "tools[1].function.name"),
        (json!({"tools": null, "tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "other"}}}), "tool_choice"),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (json!({"structured_outputs": {"regex": "a+"}}), "tools"),
        (json!({"chat_template": TEMPLATE}), "tools"),
    ] {
        let reply = server.post(CHAT, &question(FORMS[0].1, fields.clone()));
        assert_eq!(
            (reply.status, reply.error()["param"].as_str()),
            (400, Some(param)),
            "{fields}: {}",
            reply.text()
        );
    }
    // A schema that cannot be enforced completely is enforced in part.
    let lenient = function(json!({"name": "a", "parameters": {"type": "object", "properties": {
        "x": {"not": {"type": "string"}}}}}));
    server.ask(CHAT, &question(FORMS[0].1, with(lenient, json!({"max_tokens": 2}))));
    // The default model's own template does not support tools.
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "tools": tools()});
    let reply = self::server().post(CHAT, &body);
    assert_eq!((reply.status, &reply.error()["code"]), (400, &json!("unsupported_parameter")));
}
