//! Tests of fields that are null, and of bodies and files with false claims about themselves.

use moi_tests::{
    hostile::{Dice, weights},
    server::TestServer,
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::{
    CHAT, TEXT,
    hostile_requests::{
        COUNT, MESSAGES, MIB, RENDER, RESPONSES, asked, chunked, crowd, post, post_text, refused, tiny,
        with_text,
    },
    with,
};

/// Width of the embedding of the tiny model.
const WIDTH: usize = 64;

/// For each route with a body, a sample body with fields of all kinds.
fn samples() -> Vec<(&'static str, Value)> {
    let parameters = json!({"type": "object"});
    let function = json!({"name": "f", "description": "d", "parameters": parameters, "strict": false});
    let tools = json!([{"type": "function", "function": function}]);
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "u"},
        {"role": "assistant", "content": "y", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "z"},
    ]);
    let common = json!({
        "max_tokens": 1, "moi": {"rule": "token"}, "stream_options": {"include_usage": true}, "stop": ["zz"],
        "response_format": {"type": "text"}, "structured_outputs": {}, "logit_bias": {"65": null}, "temperature": 0,
    });
    let chat = json!({
        "messages": messages, "tools": tools, "tool_choice": "auto", "chat_template_kwargs": {"a": 1}, "logprobs": true,
        "top_logprobs": 1,
    });
    let chat = with(common.clone(), chat);
    let text = json!({"prompt": ["x"], "logprobs": 1, "echo": true});
    let responses = json!({
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "z"},
        ],
        "max_output_tokens": 1, "tools": [with(function, json!({"type": "function"}))], "tool_choice": "auto",
        "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"},
    });
    let result =
        json!({"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "z"}]});
    let turns = json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
            {"role": "user", "content": [result]},
        ],
        "system": [{"type": "text", "text": "s"}], "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"}, "output_config": {"effort": "low"},
        "stop_sequences": ["zz"],
    });
    let turns = with(common.clone(), turns);
    vec![
        (CHAT, chat.clone()),
        (TEXT, with(common.clone(), text)),
        (RESPONSES, with(common, responses)),
        (MESSAGES, turns.clone()),
        (COUNT, turns),
        (RENDER, chat.clone()),
        ("/apply-template", chat),
        ("/tokenize", json!({"messages": messages, "tools": tools, "return_token_strs": true})),
        ("/tokenize", json!({"prompt": "x"})),
        ("/detokenize", json!({"tokens": [65]})),
    ]
}

/// A schema and all schemas that it is composed of.
fn parts<'a>(document: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    let target = schema["$ref"].as_str().map(|to| document.pointer(to.trim_start_matches('#')).unwrap());
    let options =
        ["anyOf", "oneOf", "allOf"].into_iter().flat_map(|key| schema[key].as_array().into_iter().flatten());
    let inner = target.into_iter().chain(options).flat_map(|schema| parts(document, schema));
    [schema].into_iter().chain(inner).collect()
}

/// Collects the paths of all documented fields in a body, at every depth.
fn places(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for part in parts(document, schema) {
        for (name, of_field) in
            part["properties"].as_object().into_iter().flatten().filter(|_| value.is_object())
        {
            let place = format!("{at}/{name}");
            if let Some(inner) = value.get(name) {
                places(document, of_field, inner, &place, found);
            }
            found.push(place);
        }
        for (index, element) in value.as_array().into_iter().flatten().enumerate() {
            places(document, &part["items"], element, &format!("{at}/{index}"), found);
        }
    }
}

/// At every depth and on every route, a documented field that is null must be treated as absent (mlx-lm:
/// `temperature: null` drops the connection). If it is required, the error must name it. Chunked bodies must be
/// accepted.
#[test]
fn null_is_as_absent_on_every_route() {
    let (_directory, server) = tiny(&[]);
    let client = &server.client;
    let document = server.get("/openapi.json").json();
    let samples = samples();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let is_posted = methods.get("post").is_some();
        assert_eq!(is_posted, samples.iter().any(|(known, _)| known == path), "{path}");
    }
    let mut count = 0;
    for (path, body) in samples {
        assert_eq!(chunked(client, path, body.to_string().as_bytes().chunks(7), true).status, 200, "{path}");
        let operation = &document["paths"][path]["post"];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let mut found = Vec::new();
        places(&document, schema, &body, "", &mut found);
        found.sort();
        found.dedup();
        for place in &found {
            let (parent, name) = place.rsplit_once('/').unwrap();
            let (mut null, mut absent) = (body.clone(), body.clone());
            null.pointer_mut(parent).unwrap()[name] = Value::Null;
            let had = absent.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name);
            let reply = post(client, path, &null);
            let expected = if had.is_some() { post(client, path, &absent).status } else { 200 };
            assert_eq!(reply.status, expected, "{path}, {place}: {}", reply.text());
            if expected != 200 {
                refused(&reply, path, "");
            }
            count += 1;
        }
    }
    assert!(count > 400, "{count} fields");
    server.settled();
}

/// A file with inputs that replace a prompt.
fn file(dtype: Dtype, shape: &[usize], values: &[u8]) -> Vec<u8> {
    let tensor = TensorView::new(dtype, shape.to_vec(), values).unwrap();
    safetensors::serialize([("inputs", tensor)], None).unwrap()
}

/// A file whose header makes any claim about its values.
fn claimed(shape: Value, offsets: Value, values: &[u8]) -> Vec<u8> {
    let header = json!({"inputs": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), values].concat()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let four = |three: &[u8]| {
        let bits = (0..3).fold(0, |bits, at| (bits << 8) | usize::from(three.get(at).copied().unwrap_or(0)));
        let digit = |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at)) & 63]);
        (0..4).map(|at| if at <= three.len() { digit(at) } else { '=' }).collect::<String>()
    };
    bytes.chunks(3).map(four).collect()
}

/// Untrusted files of inputs must be read or refused, whatever their headers claim (dynamo#9013).
#[test]
fn files_of_inputs_are_read_or_refused() {
    let (_directory, server) = tiny(&[]);
    let client = &server.client;
    let bytes_of = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let rows =
        |count: usize| bytes_of(&(0..count * WIDTH).map(|at| (at % 7) as f32 * 0.01).collect::<Vec<_>>());
    let whole = |count: usize| file(Dtype::F32, &[count, WIDTH], &rows(count));
    let ask = |file: &[u8]| {
        post(client, TEXT, &json!({"prompt_embeds": base64(file), "max_tokens": 2, "temperature": 0}))
    };
    let good = whole(3);
    let said = ask(&good).json()["choices"][0]["text"].clone();
    assert!(said.is_string(), "{said}");
    let parsed = weights::File::parse(&good);
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let mut bytes = weights::mutate(&mut dice, &parsed);
        if dice.once_in(2) && !bytes.is_empty() {
            let at = bytes.len() - 1 - dice.below(bytes.len().min(3 * WIDTH * 4));
            bytes[at] ^= 1 << dice.below(8);
        }
        let reply = ask(&bytes);
        assert!([200, 400].contains(&reply.status), "seed {seed}: {}", reply.text());
        if reply.status == 400 {
            refused(&reply, TEXT, "prompt");
        }
    }
    let with_first = |value: f32| [&value.to_le_bytes()[..], &rows(3)[4..]].concat();
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        refused(&ask(&file(Dtype::F32, &[3, WIDTH], &with_first(value))), TEXT, "prompt_embeds");
    }
    for value in [f32::MAX, f32::MIN, 1e30, f32::MIN_POSITIVE, -0.0] {
        let reply = ask(&file(Dtype::F32, &[3, WIDTH], &with_first(value)));
        assert!([200, 400].contains(&reply.status), "{value}: {}", reply.text());
    }
    // Infinity in 16-bit types.
    for (dtype, infinity) in [(Dtype::F16, 0x7c00u16), (Dtype::BF16, 0x7f80)] {
        let values = infinity.to_le_bytes().repeat(WIDTH);
        refused(&ask(&file(dtype, &[1, WIDTH], &values)), TEXT, "prompt_embeds");
    }
    let size = 3 * WIDTH * 4;
    for bad in [
        claimed(json!([1u64 << 40, WIDTH]), json!([0, 0]), b""),
        claimed(json!([1u64 << 62, 4]), json!([0, size]), &rows(3)),
        claimed(json!([u64::MAX, u64::MAX]), json!([0, size]), &rows(3)),
        claimed(json!([3, WIDTH]), json!([0, u64::MAX]), &rows(3)),
        claimed(json!([3, WIDTH]), json!([size, 0]), &rows(3)),
        claimed(json!([0, WIDTH]), json!([0, 0]), b""),
        claimed(json!(vec![1; 1000]), json!([0, 4]), &[0; 4]),
        [&u64::MAX.to_le_bytes()[..], &good[8..]].concat(),
        // The context has no room for an answer after the inputs, or for the inputs.
        whole(512),
        whole(600),
    ] {
        refused(&ask(&bad), TEXT, "prompt");
    }
    assert_eq!(ask(&whole(511)).status, 200);
    assert_eq!(ask(&good).json()["choices"][0]["text"], said);
    server.settled();
}

/// The peak memory of a server in bytes, if the system says so.
fn peak(server: &TestServer) -> Option<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kilobytes| kilobytes << 10)
}

/// Long unused lists must not take many times the memory of the body that contains them.
#[test]
fn long_lists_take_little_memory() {
    let (_directory, server) = tiny(&[]);
    assert_eq!(post(&server, TEXT, &asked(TEXT)).status, 200);
    let numbers = format!("[{}]", vec!["0"; 8_000_000].join(","));
    let tools = format!("[{}]", vec!["{\"type\":\"f\"}"; 1_000_000].join(","));
    for (path, body) in [
        ("/tokenize", crowd()),
        (CHAT, with_text(&asked(CHAT), &format!("\"tools\":{tools}"))),
        (TEXT, with_text(&asked(TEXT), &format!("\"metadata\":{numbers}"))),
        (RESPONSES, with_text(&asked(RESPONSES), &format!("\"zzz\":{numbers}"))),
    ] {
        let before = peak(&server);
        let reply = post_text(&server, path, &body);
        assert!([200, 400].contains(&reply.status), "{path}: {}", reply.text());
        let grown = peak(&server).zip(before).map(|(after, before)| after - before);
        assert!(grown.is_none_or(|grown| grown < 300 * MIB), "{path}: {grown:?} bytes for {}", body.len());
    }
}
