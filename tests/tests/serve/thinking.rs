//! Tests that every route separates thoughts from answers, with a tiny model that thinks between markers.

use moi_tests::bytes;
use serde_json::json;

use crate::{
    CHAT,
    texts::{
        ANSWER, CLOSE, CONVERSATIONS, OPEN, THOUGHT, forced, say, served, stop, streamed, text, thought_out,
        tiny, told, whole,
    },
    with,
};

#[test]
fn thoughts_are_told_from_answers_on_every_route() {
    let (_directory, server) = tiny(&[OPEN, CLOSE], None);
    let tokens = thought_out(THOUGHT, ANSWER);
    let [chat, response, message] = CONVERSATIONS.map(|path| {
        let fields = json!({"n": if path == CHAT { 2 } else { 1 }});
        say(&server, path, &tokens, fields, [THOUGHT, ANSWER, "length"])
    });
    let expected = json!({"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT});
    assert_eq!(chat["choices"][1]["message"], expected);
    let items = &response["output"];
    assert_eq!(items[0]["content"], json!([{"type": "reasoning_text", "text": THOUGHT}]));
    assert_eq!((&items[0]["type"], &items[1]["type"]), (&json!("reasoning"), &json!("message")));
    let thinking = json!({"type": "thinking", "thinking": THOUGHT, "signature": ""});
    assert_eq!(message["content"], json!([thinking, {"type": "text", "text": ANSWER}]));
    // The prompt opens the thinking, and the field has both names.
    let template = bytes::TEMPLATE.to_owned() + "{% if add_generation_prompt %}<think>\n{% endif %}";
    let directory = bytes::model("llama", &[OPEN, CLOSE], Some(&template));
    let server = served(&directory, &["--thoughts-as", "both"]);
    let tokens = &thought_out(THOUGHT, "\n\nYes")[1..];
    for path in CONVERSATIONS {
        let answer = say(&server, path, tokens, json!({}), [THOUGHT, "Yes", "length"]);
        if path == CHAT {
            assert_eq!(answer["choices"][0]["message"]["reasoning"], THOUGHT);
            let details = &answer["usage"]["completion_tokens_details"];
            assert_eq!(details["reasoning_tokens"], THOUGHT.len() + 1);
        }
    }
}

/// The expected text if a stop string also counts in thoughts, where it must not cut a marker; `None` if it does not
/// occur.
fn stopped_anywhere<'a>(shown: &'a str, cut: &str) -> Option<[&'a str; 3]> {
    let close = OPEN.1.len() + THOUGHT.len();
    let markers = [0..OPEN.1.len(), close..close + CLOSE.1.len()];
    let is_border = |at: usize| !markers.iter().any(|marker| marker.start < at && at < marker.end);
    let is_there = |at: usize| {
        shown.is_char_boundary(at)
            && shown[at..].starts_with(cut)
            && is_border(at)
            && is_border(at + cut.len())
    };
    let before = &shown[..(0..shown.len()).find(|&at| is_there(at))?];
    if before.is_empty() {
        return Some(["", "", "stop"]);
    }
    let thought = before.strip_prefix(OPEN.1)?;
    if THOUGHT.starts_with(thought) {
        return Some([thought.trim_end(), "", "stop"]);
    }
    let (thought, answer) = thought.split_once(CLOSE.1)?;
    Some([thought, answer, "stop"])
}

/// Stop strings within thoughts, across markers and after them, shorter and longer than the markers.
#[test]
fn stop_strings_spare_thoughts_unless_they_are_to_end_them() {
    let (_directory, server) = tiny(&[OPEN, CLOSE], None);
    let tokens = thought_out(THOUGHT, ANSWER);
    let shown = format!("{}{THOUGHT}{}{ANSWER}", OPEN.1, CLOSE.1);
    let chars: Vec<char> = shown.chars().collect();
    for (at, cut) in [1, 4, 9, 13].into_iter().flat_map(|len| chars.windows(len)).enumerate() {
        let cut: String = cut.iter().collect();
        let path = CONVERSATIONS[at % CONVERSATIONS.len()];
        let spared = match ANSWER.split_once(&cut) {
            Some((before, _)) => [THOUGHT, before, "stop"],
            None => [THOUGHT, ANSWER, "length"],
        };
        say(&server, path, &tokens, stop(path, &cut), spared);
        let fields = with(stop(path, &cut), json!({"stop_in_thoughts": true}));
        let expected = stopped_anywhere(&shown, &cut).unwrap_or([THOUGHT, ANSWER, "length"]);
        say(&server, path, &tokens, fields, expected);
        // A stop string that never completes holds markers back. They must still be markers when they are released,
        // after it or at the end.
        let fields = with(stop(path, &format!("{cut}~")), json!({"stop_in_thoughts": true}));
        say(&server, path, &tokens, fields, [THOUGHT, ANSWER, "length"]);
    }
    let begun = |path| with(stop(path, "so</think>~"), json!({"stop_in_thoughts": true}));
    for (path, (behind, end)) in
        CONVERSATIONS.map(|path| [(path, ("", "length")), (path, ("\0", "eos"))]).concat()
    {
        say(&server, path, &thought_out(THOUGHT, behind), begun(path), [THOUGHT, "", end]);
    }
}

/// Clients get fields instead of markers: no part of a marker may be text, even if a stop string begins within it.
#[test]
fn nothing_of_a_marker_is_ever_text() {
    let (_directory, server) = tiny(&[OPEN, CLOSE], None);
    for cut in ["in", "nk>I", "hink>Yes", ">Y", "/"] {
        for path in CONVERSATIONS {
            let fields = with(stop(path, cut), json!({"stop_in_thoughts": true}));
            let body = forced(path, &thought_out(THOUGHT, ANSWER), fields);
            for [thought, answer, _] in
                [whole(&server.ask(path, &body)), streamed(&told(&server, path, &body), 1)].concat()
            {
                let is_said = THOUGHT.starts_with(&thought) && ANSWER.starts_with(&answer);
                assert!(is_said, "{path} {cut:?}: {thought:?}, {answer:?}");
            }
        }
    }
}

#[test]
fn a_budget_spent_on_thoughts_leaves_an_empty_answer() {
    let (_directory, server) = tiny(&[OPEN, CLOSE], None);
    for cut in 0..=THOUGHT.len() {
        let tokens = &thought_out(THOUGHT, "")[..=cut];
        let thought = String::from_utf8_lossy(&THOUGHT.as_bytes()[..cut]);
        for path in CONVERSATIONS {
            let answer = say(&server, path, tokens, json!({}), [thought.trim_end(), "", "length"]);
            let [choice, details] = [&answer["choices"][0], &answer["incomplete_details"]];
            let ends = [&choice["finish_reason"], &details["reason"], &answer["stop_reason"]].map(text);
            assert!(["length", "max_output_tokens", "max_tokens"].contains(&&*ends.concat()), "{answer}");
        }
    }
}
