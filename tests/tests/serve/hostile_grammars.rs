//! Tests of schemas, expressions and grammars that are wrong, expensive or endless.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use moi_tests::{
    hostile::{self, Dice},
    server::Client,
};
use serde_json::{Map, Value, json};

use crate::{
    CHAT, TEXT, content,
    hostile_requests::{
        GENERATING, MESSAGES, RESPONSES, TEST_TIMEOUT, asked, beside, deep, post, post_text, tiny, with_text,
    },
    with,
};

/// The kind of a constraint.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Schema,
    Regex,
    Lark,
}

/// A request with this constraint, in one of the fields for it.
fn carried(kind: Kind, text: &str, at: usize) -> (&'static str, Value) {
    // A schema that is not JSON, or too deep to be a part of a body, is sent as a string.
    let schema = || serde_json::from_str::<Value>(text).unwrap_or_else(|_| json!(text));
    let format = || json!({"type": "json_schema", "name": "n", "schema": schema()});
    let (path, fields) = match (kind, at % 7) {
        (Kind::Schema, 0) => {
            (CHAT, json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema()}}}))
        }
        (Kind::Schema, 1) => (TEXT, json!({"structured_outputs": {"json": schema()}})),
        (Kind::Schema, 2) => (CHAT, json!({"guided_json": text})),
        (Kind::Schema, 3) => {
            let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema()}});
            (CHAT, json!({"tools": [tool], "tool_choice": "required"}))
        }
        (Kind::Schema, 4) => (RESPONSES, json!({"text": {"format": format()}})),
        (Kind::Schema, 5) => (MESSAGES, json!({"output_config": {"format": format()}})),
        (Kind::Schema, _) => (TEXT, json!({"json_schema": schema()})),
        (Kind::Regex, 0 | 1) => (TEXT, json!({"guided_regex": text})),
        (Kind::Regex, 2 | 3) => (CHAT, json!({"structured_outputs": {"regex": text}})),
        (Kind::Regex, 4) => (MESSAGES, json!({"guided_json": {"type": "string", "pattern": text}})),
        (Kind::Regex, 5) => (TEXT, json!({"guided_choice": [text, ""]})),
        (Kind::Regex, _) => (RESPONSES, json!({"structured_outputs": {"choice": [text]}})),
        (Kind::Lark, 0..=3) => (TEXT, json!({"guided_grammar": text})),
        (Kind::Lark, _) => (CHAT, json!({"structured_outputs": {"grammar": text}})),
    };
    (path, with(with(asked(path), json!({"max_tokens": 3})), fields))
}

/// Whether a request is answered; otherwise, it must be refused as a client's error.
fn is_followed(client: &Client, (path, body): (&str, Value)) -> bool {
    const CODES: [&str; 5] =
        ["invalid_schema", "invalid_value", "invalid_type", "invalid_json", "context_length_exceeded"];
    let what: String = body.to_string().chars().take(400).collect();
    let begun = Instant::now();
    let reply = loop {
        let reply = post(client, path, &body);
        // While many expensive grammars are being compiled, the server refuses more and asks to retry.
        if ![503, 529].contains(&reply.status) {
            break reply;
        }
        assert!(begun.elapsed() < TEST_TIMEOUT && reply.header("retry-after").is_some(), "{what}: {reply:?}");
        sleep(Duration::from_millis(50));
    };
    assert!([200, 400].contains(&reply.status), "{path}, {what}: {}", reply.text());
    let is_typed = || CODES.iter().any(|code| reply.error()["code"] == *code);
    assert!(reply.status == 200 || is_typed(), "{path}, {what}: {}", reply.text());
    reply.status == 200
}

/// Valid schemas.
fn schemas() -> [Value; 3] {
    let object = json!({
        "type": "object", "required": ["name", "list"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^[a-z]+$"},
            "list": {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 70}, "maxItems": 4},
            "kind": {"enum": ["a", 1, null, true]}, "when": {"type": "string", "format": "date-time"},
        },
    });
    let tree = json!({
        "type": "object", "properties": {"root": {"$ref": "#/$defs/node"}}, "required": ["root"],
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "value": {"type": "number"}}}},
    });
    let mixed = json!({
        "anyOf": [{"type": "null"}, {"allOf": [{"type": "object"}, {"minProperties": 1, "properties": {"x": {"const": 5}}}]}],
        "oneOf": [{"type": "null"}, {"type": "object", "patternProperties": {"^x": {"multipleOf": 5}}}],
    });
    [object, tree, mixed]
}

/// A mutation of a valid constraint.
fn mutated(dice: &mut Dice) -> (Kind, String) {
    const REGEXES: [&str; 3] =
        [r"[a-z]+(foo|bar){1,3}\d{2}", r"(?i)hello( world)?[^\x00-\x1f]*", r"\p{Lu}[\p{L}' -]{0,20}"];
    const LARKS: [&str; 2] = [
        "start: item (\",\" item)*\nitem: NUMBER | \"[\" start \"]\"\nNUMBER: /[0-9]+/\n",
        "start: expr\nexpr: expr \"+\" term | term\nterm: WORD | \"(\" expr \")\"\nWORD[lazy]: /[a-z]+/\n",
    ];
    let of_bytes = |good: &str, dice: &mut Dice| {
        let mut text = good.as_bytes().to_vec();
        hostile::bytes::mutate(dice, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    };
    match dice.below(5) {
        0 => (Kind::Regex, of_bytes(REGEXES[dice.below(3)], dice)),
        1 => (Kind::Lark, of_bytes(LARKS[dice.below(2)], dice)),
        _ => {
            let good = dice.pick(&schemas()).clone();
            (Kind::Schema, String::from_utf8_lossy(&hostile::json::mutate(dice, &good)).into_owned())
        }
    }
}

/// Expensive constraints, and whether they must be refused.
fn hard() -> Vec<(Kind, String, bool)> {
    let chain: Map<String, Value> =
        (0..10_000).map(|at| (at.to_string(), json!({"$ref": format!("#/$defs/{}", at + 1)}))).collect();
    let itself = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}});
    let mut all = vec![
        (Kind::Schema, json!({"$ref": "#/$defs/0", "$defs": chain}).to_string(), true),
        (Kind::Schema, itself.to_string(), true),
        (Kind::Schema, json!({"$ref": "#"}).to_string(), false),
        (Kind::Schema, json!({"type": "object", "allOf": [{"$ref": "#"}]}).to_string(), false),
        (Kind::Schema, deep(100, "{\"items\":", "{}", "}"), false),
        (Kind::Lark, "start: start\n".to_owned(), true),
        (Kind::Lark, "start: a\na: b\nb: a\n".to_owned(), true),
        (Kind::Lark, "start: start \"a\" | \"a\"\n".to_owned(), false),
    ];
    for count in [10_000, 100_000] {
        all.push((Kind::Schema, deep(count, "{\"items\":", "{}", "}"), true));
        all.push((Kind::Regex, deep(count, "(", "a", ")"), true));
        all.push((Kind::Lark, format!("start: {}\n", deep(count, "(", "\"a\"", ")")), true));
        all.push((Kind::Lark, format!("start: /{}/\n", deep(count, "(", "a", ")")), true));
    }
    let repeated = [
        "(((((a+)+)+)+)+)+",
        "a{1,100000}{1,100000}",
        "(a{1,999}){1,999}",
        "(?:a?){1000}a{1000}",
        "[^a]{1,1000000}",
    ];
    all.extend(repeated.map(|regex| (Kind::Regex, regex.to_owned(), false)));
    all
}

/// Bad schemas, expressions and grammars in every field must be answered or refused, and must not disturb others
/// (vllm#17248, #17313, #19270, llama.cpp#25283, #25308, LocalAI#11020).
#[test]
fn bad_grammars_are_refused_in_every_field() {
    let (_directory, server) = tiny(&[]);
    let client = &server.client;
    beside(client, 8, || {
        let mut followed = 0;
        for seed in 0..200 {
            let (kind, text) = mutated(&mut Dice::new(seed));
            followed += usize::from(is_followed(client, carried(kind, &text, seed as usize)));
        }
        // The test only means something if some mutations are valid and some are not.
        assert!((10..190).contains(&followed), "{followed} of 200 are good");
        for (kind, text, is_bad) in hard() {
            for at in [0, 2, 3] {
                let is_followed = is_followed(client, carried(kind, &text, at));
                let what: String = text.chars().take(100).collect();
                assert!(!(is_bad && is_followed), "{kind:?} {what} is taken");
            }
        }
        // A schema that is part of a body adds to the body's depth.
        for (path, count) in GENERATING.into_iter().flat_map(|path| [(path, 10_000), (path, 100_000)]) {
            let field = format!("\"guided_json\":{}", deep(count, "{\"items\":", "{}", "}"));
            let reply = post_text(client, path, &with_text(&asked(path), &field));
            assert_eq!((reply.status, &reply.error()["code"]), (400, &json!("invalid_json")), "{path}");
        }
    });
    assert_eq!(server.get("/livez").status, 200);
    server.settled();
}

/// A model that prefers spaces and newlines must still reach the end of its JSON (vllm#38696, omlx#2990).
#[test]
fn spaces_between_tokens_come_to_an_end() {
    let (_directory, server) = tiny(&[]);
    let list = json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2});
    let schema = json!({
        "type": "object", "properties": {"a": {"type": "boolean"}, "b": list}, "required": ["a", "b"],
        "additionalProperties": false,
    });
    // The bias against quotes avoids strings where none is required, because spaces inside a string are no fault.
    let bias = json!({"32": 100, "10": 100, "9": 100, "34": -100});
    let base = json!({"max_tokens": 400, "temperature": 0, "moi": {"rule": "token"}, "logit_bias": bias});
    let ask = |fields: Value| server.ask(CHAT, &with(with(asked(CHAT), base.clone()), fields));
    for format in [
        json!({"type": "json_object"}),
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}),
    ] {
        let answer = ask(json!({"response_format": format}));
        let text = content(&answer);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{text:?}");
        assert!(serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()), "{text:?}");
        assert!(text.contains([' ', '\n']), "the bias does nothing: {text:?}");
        let spaces = " ".repeat(17);
        assert!(!["\n\n", "\t", spaces.as_str()].iter().any(|run| text.contains(*run)), "{text:?}");
    }
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    let answer = ask(json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false}));
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    let arguments = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(arguments).unwrap()["b"].is_array(), "{arguments:?}");
}
