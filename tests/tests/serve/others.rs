//! Tests of OpenAI's responses and Anthropic's messages: the same answers in other formats.

use moi_tests::server::{Reply, TestServer};
use serde_json::{Value, json};

use crate::{CHAT, content, question, server, with};

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

/// The events of a stream with their names, each of which must be the type of its data.
fn named(reply: &Reply) -> Vec<(String, Value)> {
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("text/event-stream")),
        "{}",
        reply.text()
    );
    let text = reply.text();
    let blocks = text.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    let event = |block: &str| {
        let (name, data) = block.split_once('\n').unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.as_str());
        (name, data)
    };
    blocks.map(event).collect()
}

fn streamed(server: &TestServer, path: &str, body: &Value) -> Vec<(String, Value)> {
    named(&server.post(path, &with(body.clone(), json!({"stream": true}))))
}

fn tool_template() -> String {
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n\
     {# <tool_call> arguments #}"
        .to_owned()
}

/// A server whose chat template lets the model call functions.
fn calling() -> (tempfile::TempDir, TestServer) {
    let (directory, model) = crate::tools::with_template(&tool_template());
    (directory, TestServer::start(&["--model", &model, "--rule", "token"]))
}

#[test]
fn messages_say_what_chat_says() {
    let server = server();
    let base = question("Write a line with an emoji.", 24);
    let text = content(&server.ask(CHAT, &base));
    let whole = server.ask(MESSAGES, &base);
    assert_eq!(whole["content"], json!([{"type": "text", "text": text}]));
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["stop_reason"]),
        (&json!("message"), &json!("assistant"), &json!("max_tokens"))
    );
    assert_eq!((&whole["usage"]["output_tokens"], &whole["stop_sequence"]), (&json!(24), &Value::Null));
    let input = |usage: &Value| {
        usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap()
    };
    let counted = server.ask("/v1/messages/count_tokens", &json!({"messages": base["messages"]}));
    assert_eq!(counted["input_tokens"], input(&whole["usage"]));

    let events = streamed(&server, MESSAGES, &base);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let begun = &events[0].1["message"];
    assert_eq!(input(&begun["usage"]), input(&whole["usage"]));
    let deltas: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(deltas, text);
    let last = &events[events.len() - 2].1;
    assert_eq!(
        (&last["delta"]["stop_reason"], &last["usage"]["output_tokens"]),
        (&json!("max_tokens"), &json!(24))
    );

    // Content blocks, a system prompt, and a stop sequence.
    let fields = json!({
        "system": [{"type": "text", "text": "Be brief."}], "stop_sequences": ["e", "a", "o"], "max_tokens": 40,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Say two words."}]}],
    });
    let stopped = server.ask(MESSAGES, &with(base.clone(), fields));
    assert_eq!(stopped["stop_reason"], "stop_sequence");
    assert!(["e", "a", "o"].contains(&stopped["stop_sequence"].as_str().unwrap()));

    let turn = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    for (fields, param) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (turn(json!([{"type": "image", "source": {}}])), "messages[0].content[0].type"),
        (turn(json!([])), "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
            "messages[1].role",
        ),
        (json!({"messages": [{"role": "robot", "content": "a"}]}), "messages[0].role"),
        (json!({"mcp_servers": [{}]}), "mcp_servers"),
        (json!({"thinking": {"type": "maybe"}}), "thinking.type"),
        (json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), "tools[0].type"),
        (json!({"tool_choice": {"type": "tool"}}), "tool_choice.name"),
        (json!({"n": 2}), "n"),
    ] {
        for stream in [false, true] {
            let reply =
                server.post(MESSAGES, &with(with(base.clone(), fields.clone()), json!({"stream": stream})));
            let error = reply.json();
            assert_eq!(reply.status, 400, "{fields}: {error}");
            assert_eq!(
                (&error["type"], &error["error"]["type"]),
                (&json!("error"), &json!("invalid_request_error"))
            );
            assert_eq!(error["error"]["param"], param, "{fields}: {error}");
        }
    }
    let missing = server.post(MESSAGES, &with(base, json!({"model": "other"})));
    assert_eq!((missing.status, &missing.json()["error"]["type"]), (404, &json!("not_found_error")));
}

#[test]
fn responses_say_what_chat_says() {
    let server = server();
    let base = question("Write a line with an emoji.", 24);
    let text = content(&server.ask(CHAT, &base));
    let asked = json!({
        "input": "Write a line with an emoji.", "max_output_tokens": 24, "temperature": 0, "moi": {"rule": "token"},
        "metadata": {"a": "b"},
    });
    let whole = server.ask(RESPONSES, &asked);
    let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
    assert_eq!(whole["output"][0]["content"], json!([part]));
    assert_eq!(
        (&whole["object"], &whole["status"], &whole["store"]),
        (&json!("response"), &json!("incomplete"), &json!(false))
    );
    assert_eq!(whole["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!((&whole["usage"]["output_tokens"], &whole["metadata"]), (&json!(24), &json!({"a": "b"})));

    let events = streamed(&server, RESPONSES, &asked);
    let names: Vec<&str> =
        events.iter().map(|(name, _)| name.as_str()).filter(|name| !name.ends_with("delta")).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
    );
    assert!(events.iter().enumerate().all(|(at, (_, data))| data["sequence_number"] == at));
    let deltas: String = events.iter().filter_map(|(_, data)| data["delta"].as_str()).collect();
    assert_eq!(deltas, text);
    let last = &events.last().unwrap().1["response"];
    assert_eq!(
        (&last["output"][0]["content"], &last["usage"]["total_tokens"]),
        (&json!([part]), &whole["usage"]["total_tokens"])
    );

    // The first request of Codex: instructions, a developer message, content parts and a format.
    let fields = json!({
        "instructions": "Answer in one word.", "max_output_tokens": 60,
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Is it day?"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": null, "content": null},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
            {"type": "message", "role": "user", "content": "Sure?"},
        ],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["yes", "no"]}, "strict": true}},
        "include": ["reasoning.encrypted_content"], "store": false, "tool_choice": "auto", "tools": [],
    });
    let answer = server.ask(RESPONSES, &with(asked.clone(), fields));
    assert_eq!(answer["status"], "completed");
    assert!(
        ["\"yes\"", "\"no\""].contains(&answer["output"][0]["content"][0]["text"].as_str().unwrap()),
        "{answer}"
    );

    let item = |item: Value| json!({"input": [item]});
    for (fields, param) in [
        (json!({"input": null}), "input"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"background": true}), "background"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (item(json!({"type": "item_reference", "id": "x"})), "input[0].type"),
        (item(json!({"type": "message", "content": "a"})), "input[0].role"),
        (item(json!({"type": "function_call", "arguments": "{}"})), "input[0].name"),
        (item(json!({"role": "user", "content": [{"type": "input_image"}]})), "input[0].content[0].type"),
    ] {
        let reply = server.post(RESPONSES, &with(asked.clone(), fields.clone()));
        assert_eq!(
            (reply.status, reply.error()["param"].as_str()),
            (400, Some(param)),
            "{fields}: {}",
            reply.text()
        );
    }
}

#[test]
fn both_call_functions() {
    let (_directory, server) = calling();
    let schema =
        json!({"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]});
    let asked = json!({
        "messages": [{"role": "user", "content": "How is the weather?"}], "max_tokens": 80, "temperature": 0,
        "tools": [{"name": "weather", "description": "d", "input_schema": schema}], "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
    });
    let message = server.ask(MESSAGES, &asked);
    assert_eq!(message["stop_reason"], "tool_use", "{message}");
    let call = &message["content"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("tool_use"), &json!("weather")));
    let events = streamed(&server, MESSAGES, &asked);
    let begun = events.iter().find(|(name, _)| name == "content_block_start").unwrap();
    assert_eq!(begun.1["content_block"]["input"], json!({}));
    let written: String =
        events.iter().filter_map(|(_, data)| data["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), call["input"]);

    // The result of the call is sent back.
    let id = &call["id"];
    let turns = json!([
        asked["messages"][0], {"role": "assistant", "content": [call]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": id, "content": [{"type": "text", "text": "sunny"}]},
            {"type": "text", "text": "So?"}]},
    ]);
    server.ask(MESSAGES, &with(asked.clone(), json!({"messages": turns, "tool_choice": {"type": "none"}})));

    let asked = json!({
        "input": "How is the weather?", "max_output_tokens": 80, "temperature": 0, "tool_choice": "required",
        "tools": [{"type": "function", "name": "weather", "parameters": schema}], "parallel_tool_calls": false,
    });
    let response = server.ask(RESPONSES, &asked);
    let call = &response["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &response["status"]),
        (&json!("function_call"), &json!("weather"), &json!("completed")),
        "{response}"
    );
    assert!(serde_json::from_str::<Value>(call["arguments"].as_str().unwrap()).unwrap()["city"].is_string());
    let events = streamed(&server, RESPONSES, &asked);
    let done = events.iter().find(|(name, _)| name == "response.function_call_arguments.done").unwrap();
    assert_eq!(done.1["arguments"], call["arguments"]);
    let input = json!([
        {"role": "user", "content": "How is the weather?"},
        call, {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"},
    ]);
    server.ask(RESPONSES, &with(asked, json!({"input": input, "tool_choice": "none"})));
}
