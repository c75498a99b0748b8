//! Answers in the format of OpenAI's responses: a list of items, whole or in events.

use std::fmt;

use moi_engine::PromptReport;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value, json};

use crate::{
    answer::{About, Event, Format, Whole},
    blocks::{Block, Blocks, Change},
    choice::{End, Piece},
    error::ApiError,
    routes::{chat::Call, new_id},
};

/// The fields of a request that a response repeats, except for very long ones.
#[derive(Debug)]
pub(crate) struct Echo(Map<String, Value>);

impl<'de> Deserialize<'de> for Echo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Echo;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Echo, A::Error> {
                let mut kept = Map::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !REPEATED.contains(&name.as_str()) {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let value = map.next_value::<Value>()?;
                    if value.to_string().len() <= MAX_REPEATED {
                        kept.insert(name, value);
                    }
                }
                Ok(Echo(kept))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

/// Fields of a request that a response repeats.
const REPEATED: &[&str] = &[
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
];
/// The most bytes of a repeated field.
const MAX_REPEATED: usize = 64 << 10;

/// An answer as a response that consists of items.
#[derive(Debug)]
pub(crate) struct ResponsesFormat {
    /// Fields of the request that a response repeats.
    echo: Echo,
    blocks: Blocks,
    /// The ids of the items.
    ids: Vec<String>,
    end: Option<End>,
    /// Number of events so far.
    sequence: usize,
}

impl ResponsesFormat {
    pub(crate) fn new(echo: Echo) -> Self {
        Self { echo, blocks: Blocks::default(), ids: Vec::new(), end: None, sequence: 0 }
    }

    /// The item of a block, with its content if `is_whole` is true.
    fn item(&self, at: usize, is_whole: bool) -> Value {
        let is_cut = self.status() == "incomplete" && at + 1 == self.blocks.all.len();
        let status = match is_whole {
            true if is_cut => "incomplete",
            true => "completed",
            false => "in_progress",
        };
        let id = &self.ids[at];
        match &self.blocks.all[at] {
            Block::Thought(text) => {
                let content =
                    if is_whole { json!([{"type": "reasoning_text", "text": text}]) } else { json!([]) };
                json!({"type": "reasoning", "id": id, "summary": [], "content": content, "status": status})
            }
            Block::Text(text) => {
                let content = if is_whole { json!([part(text)]) } else { json!([]) };
                json!({"type": "message", "id": id, "role": "assistant", "status": status, "content": content})
            }
            Block::Call(Call { id: call_id, name, arguments }) => {
                let arguments = if is_whole { arguments.as_str() } else { "" };
                json!({
                    "type": "function_call", "id": id, "call_id": call_id, "name": name, "arguments": arguments,
                    "status": status,
                })
            }
        }
    }

    /// Gives new blocks their ids.
    fn name_items(&mut self) {
        for block in &self.blocks.all[self.ids.len()..] {
            let prefix = match block {
                Block::Thought(_) => "rs_",
                Block::Text(_) => "msg_",
                Block::Call(_) => "fc_",
            };
            self.ids.push(new_id(prefix));
        }
    }

    fn response(&self, about: &About<'_>, status: &str, error: Value) -> Value {
        let is_over = status != "in_progress";
        let output: Value = match is_over {
            true => (0..self.blocks.all.len()).map(|at| self.item(at, true)).collect(),
            false => json!([]),
        };
        let of = |name: &str, default: Value| match self.echo.0.get(name) {
            Some(value) if !value.is_null() => value.clone(),
            _ => default,
        };
        let usage = about.usage;
        let counts = json!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.prompt + usage.completion,
        });
        json!({
            "id": about.options.id,
            "object": "response",
            "created_at": about.created,
            "status": status,
            "error": error,
            "incomplete_details": if status == "incomplete" { json!({"reason": "max_output_tokens"}) } else { Value::Null },
            "instructions": of("instructions", Value::Null),
            "max_output_tokens": of("max_output_tokens", Value::Null),
            "metadata": of("metadata", json!({})),
            "model": about.options.plan.model,
            "output": output,
            "parallel_tool_calls": of("parallel_tool_calls", json!(true)),
            "previous_response_id": null,
            "reasoning": of("reasoning", json!({"effort": null, "summary": null})),
            "store": false,
            "temperature": of("temperature", Value::Null),
            "text": of("text", json!({"format": {"type": "text"}})),
            "tool_choice": of("tool_choice", json!("auto")),
            "tools": of("tools", json!([])),
            "top_p": of("top_p", Value::Null),
            "truncation": "disabled",
            "usage": if is_over { counts } else { Value::Null },
            "moi": self.end.as_ref().map_or(Value::Null, |end| end.moi.clone()),
        })
    }

    /// The status of an answer that has ended.
    fn status(&self) -> &'static str {
        let is_cut = self.end.as_ref().is_some_and(|end| end.finish == "length");
        if is_cut { "incomplete" } else { "completed" }
    }

    fn event(&mut self, name: &'static str, mut data: Value) -> Event {
        data["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        Event::named(name, data)
    }

    fn change(&mut self, at: usize, change: Change) -> Vec<Event> {
        let id = self.ids[at].clone();
        let place = || json!({"item_id": id, "output_index": at, "content_index": 0});
        let with = |mut place: Value, key: &str, value: Value| {
            place[key] = value;
            place
        };
        let is_text = matches!(self.blocks.all[at], Block::Text(_));
        let is_thought = matches!(self.blocks.all[at], Block::Thought(_));
        match change {
            Change::Begins => {
                let item = self.item(at, false);
                let added =
                    self.event("response.output_item.added", json!({"output_index": at, "item": item}));
                let mut events = vec![added];
                if is_text {
                    events.push(self.event("response.content_part.added", with(place(), "part", part(""))));
                }
                events
            }
            Change::Grows(text) if is_thought => {
                vec![self.event("response.reasoning_text.delta", with(place(), "delta", json!(text)))]
            }
            Change::Grows(text) if is_text => {
                let delta = with(with(place(), "delta", json!(text)), "logprobs", json!([]));
                vec![self.event("response.output_text.delta", delta)]
            }
            Change::Grows(text) => {
                let delta = json!({"item_id": id, "output_index": at, "delta": text});
                vec![self.event("response.function_call_arguments.delta", delta)]
            }
            Change::Ends => {
                let mut events = match self.blocks.all[at].clone() {
                    Block::Thought(text) => {
                        vec![self.event("response.reasoning_text.done", with(place(), "text", json!(text)))]
                    }
                    Block::Text(text) => {
                        let done = with(with(place(), "text", json!(text)), "logprobs", json!([]));
                        let done = self.event("response.output_text.done", done);
                        vec![
                            done,
                            self.event("response.content_part.done", with(place(), "part", part(&text))),
                        ]
                    }
                    Block::Call(Call { name, arguments, .. }) => {
                        let done =
                            json!({"item_id": id, "output_index": at, "name": name, "arguments": arguments});
                        vec![self.event("response.function_call_arguments.done", done)]
                    }
                };
                let item = self.item(at, true);
                events
                    .push(self.event("response.output_item.done", json!({"output_index": at, "item": item})));
                events
            }
        }
    }

    fn changes(&mut self, changes: Vec<(usize, Change)>) -> Vec<Event> {
        self.name_items();
        changes.into_iter().flat_map(|(at, change)| self.change(at, change)).collect()
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

impl Format for ResponsesFormat {
    fn waits(&self, _choice: usize) -> bool {
        false
    }

    fn begin(&mut self, about: &About<'_>) -> Vec<Event> {
        let response = self.response(about, "in_progress", Value::Null);
        ["response.created", "response.in_progress"]
            .into_iter()
            .map(|name| self.event(name, json!({"response": response})))
            .collect()
    }

    fn prompt(&mut self, _about: &About<'_>, _choice: usize, _report: &PromptReport) -> Vec<Event> {
        Vec::new()
    }

    fn piece(&mut self, _about: &About<'_>, _choice: usize, piece: &Piece) -> Vec<Event> {
        let mut changes = self.blocks.push(piece);
        if piece.end.is_some() {
            self.end.clone_from(&piece.end);
            changes.extend(self.blocks.finish());
        }
        self.changes(changes)
    }

    fn end(&mut self, about: &About<'_>) -> Vec<Event> {
        let status = self.status();
        let response = self.response(about, status, Value::Null);
        let name = if status == "incomplete" { "response.incomplete" } else { "response.completed" };
        vec![self.event(name, json!({"response": response}))]
    }

    fn error(&mut self, about: &About<'_>, error: &ApiError) -> Vec<Event> {
        let changes = self.blocks.finish();
        let mut events = self.changes(changes);
        let error = json!({"code": error.code.unwrap_or("server_error"), "message": error.message});
        let response = self.response(about, "failed", error);
        events.push(self.event("response.failed", json!({"response": response})));
        events
    }

    fn closing(&self) -> &'static str {
        ""
    }

    fn add(&mut self, _about: &About<'_>, _choice: usize, piece: &Piece) {
        self.blocks.push(piece);
    }

    fn whole(&mut self, about: &About<'_>, wholes: Vec<Whole>) -> Value {
        self.end = wholes.into_iter().next().and_then(|whole| whole.end);
        self.name_items();
        self.response(about, self.status(), Value::Null)
    }
}
