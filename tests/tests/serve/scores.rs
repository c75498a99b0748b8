//! Tests of log-probabilities: of prompts, as lm-evaluation-harness sums them, and of generated tokens.

use moi_tests::process::{fed, json as printed};
use serde_json::{Value, json};

use crate::{CHAT, TEXT, question, server, with};

fn lists(choice: &Value) -> (Vec<String>, Vec<Option<f64>>, Vec<Value>, Vec<usize>) {
    let lists = &choice["logprobs"];
    let of = |name: &str| lists[name].as_array().unwrap().clone();
    (
        of("tokens").iter().map(|token| token.as_str().unwrap().to_owned()).collect(),
        of("token_logprobs").iter().map(Value::as_f64).collect(),
        of("top_logprobs"),
        of("text_offset").iter().map(|at| at.as_u64().unwrap() as usize).collect(),
    )
}

/// The log-probabilities of a prompt must equal those of `moi score` to the bit, whatever else runs.
#[test]
fn prompts_are_scored_as_by_moi_score() {
    let server = server();
    let text = "The naïve fox 🦊 jumps over 日本 and rests. ".repeat(9);
    let out = fed(&["score", "--quantize", "file", "--format", "json", "--logprobs", "3", "-"], &text);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let expected: Vec<Option<f64>> =
        report["steps"].as_array().unwrap().iter().map(|step| step["logprob"].as_f64()).collect();
    let body = json!({"prompt": text, "max_tokens": 0, "echo": true, "logprobs": 3});
    let others: Vec<_> =
        (0..6).map(|_| server.send(TEXT, &json!({"prompt": text, "max_tokens": 20}))).collect();
    for max_tokens in [0, 1, 7] {
        let answer = server.ask(TEXT, &with(body.clone(), json!({"max_tokens": max_tokens, "n": 2})));
        assert_eq!(answer["usage"]["completion_tokens"], 2 * max_tokens);
        for choice in answer["choices"].as_array().unwrap() {
            let (tokens, logprobs, dictionaries, offsets) = lists(choice);
            assert_eq!(tokens.len(), expected.len() + max_tokens);
            assert_eq!(logprobs[..expected.len()], expected);
            let whole = choice["text"].as_str().unwrap();
            assert!(whole.starts_with(&text) && (max_tokens > 0 || whole == text));
            // The token at each place, in code points.
            let chars: Vec<char> = whole.chars().collect();
            for (at, token) in tokens.iter().enumerate().filter(|(_, token)| !token.starts_with("bytes:")) {
                let found: String = chars[offsets[at]..].iter().take(token.chars().count()).collect();
                assert_eq!(&found, token, "at {at}");
            }
            assert!(dictionaries[0].is_null() && logprobs[0].is_none());
            for ((token, logprob), dictionary) in tokens.iter().zip(&logprobs).zip(&dictionaries).skip(1) {
                let entries = dictionary.as_object().unwrap();
                assert!((3..=4).contains(&entries.len()));
                assert_eq!(entries[token].as_f64(), *logprob);
            }
        }
    }
    // A stream has the same lists.
    let stream = server.stream(TEXT, &with(body.clone(), json!({"max_tokens": 3, "temperature": 0})));
    let whole =
        server.ask(TEXT, &with(body, json!({"max_tokens": 3, "temperature": 0})))["choices"][0].clone();
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let parts = stream
            .iter()
            .flat_map(|event| event["choices"][0]["logprobs"][name].as_array().cloned().unwrap_or_default());
        assert_eq!(json!(parts.collect::<Vec<_>>()), whole["logprobs"][name], "{name}");
    }
    others.into_iter().for_each(|other| assert_eq!(moi_tests::server::reply(other).status, 200));
}

/// A token is greedy if its log-probability is the largest of its dictionary, as exactly the same number.
#[test]
fn greedy_tokens_are_the_largest_of_their_dictionaries() {
    let server = server();
    let body = json!({"prompt": "The days are", "max_tokens": 30, "temperature": 0, "logprobs": 1, "moi": {"rule": "token"}});
    let choice = server.ask(TEXT, &body)["choices"][0].clone();
    let (tokens, logprobs, dictionaries, _) = lists(&choice);
    assert_eq!(tokens.len(), 30);
    for (logprob, dictionary) in logprobs.iter().zip(&dictionaries) {
        let largest = dictionary
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.as_f64().unwrap())
            .fold(f64::MIN, f64::max);
        assert_eq!(*logprob, Some(largest));
    }
    // The tokens must be greedy again when they are read as a prompt.
    let text = format!("The days are{}", choice["text"].as_str().unwrap());
    let ids = server.ask("/tokenize", &json!({"prompt": text}))["tokens"].clone();
    let body = json!({"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true});
    let (_, again, dictionaries, _) = lists(&server.ask(TEXT, &body)["choices"][0]);
    let generated = logprobs.len();
    for (at, (logprob, dictionary)) in
        again.iter().zip(&dictionaries).enumerate().rev().skip(1).take(generated - 2)
    {
        let largest = dictionary
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.as_f64().unwrap())
            .fold(f64::MIN, f64::max);
        assert_eq!(*logprob, Some(largest), "at {at}");
    }
}

/// A sampled end token must be in the lists, and must be counted (lm-eval sums all but the last).
#[test]
fn a_sampled_end_is_in_the_lists() {
    let server = server();
    let eos = server.ask("/tokenize", &json!({"prompt": "<|im_end|>"}))["tokens"][0].clone();
    let body = json!({
        "prompt": "x", "max_tokens": 1, "echo": true, "logprobs": 1, "moi": {"rule": "token", "force": [eos]},
        "return_token_ids": true,
    });
    let answer = server.ask(TEXT, &body);
    let (tokens, logprobs, ..) = lists(&answer["choices"][0]);
    assert_eq!((tokens.len(), logprobs.len()), (2, 2));
    assert_eq!(tokens[1], "<|im_end|>");
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]),
        (&json!("x"), &json!("stop"))
    );
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    assert_eq!(answer["choices"][0]["token_ids"], json!([eos]));
}

/// Tokens that are not whole characters, and the bytes of tokens.
#[test]
fn tokens_are_told_by_their_bytes() {
    let server = server();
    let ids = server.ask("/tokenize", &json!({"prompt": "日本🦀"}))["tokens"].clone();
    let count = ids.as_array().unwrap().len();
    let body = with(
        question("x", count as u32),
        json!({"logprobs": true, "top_logprobs": 20, "moi": {"rule": "token", "force": ids}}),
    );
    let answer = server.ask(CHAT, &body);
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(entries.len(), count);
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8))
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "日本🦀");
    assert!(entries.iter().any(|entry| entry["token"].as_str().unwrap().starts_with("bytes:\\x")));
    for entry in &entries {
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 20);
        assert!(!entry.to_string().contains('\u{FFFD}'));
    }
    let body =
        json!({"prompt": "x", "max_tokens": count, "logprobs": 2, "moi": {"rule": "token", "force": ids}});
    for body in [body.clone(), with(body, json!({"return_tokens_as_token_ids": true}))] {
        let choice = server.ask(TEXT, &body)["choices"][0].clone();
        let (_, _, dictionaries, _) = lists(&choice);
        assert!(
            dictionaries.iter().all(|dictionary| (2..=3).contains(&dictionary.as_object().unwrap().len()))
        );
    }
}

/// A prompt as embeddings, from a file with rows of the model's embedding table.
#[test]
fn inputs_are_a_prompt() {
    let server = server();
    let width = 576;
    let values: Vec<u8> = (0..3 * width).flat_map(|at| ((at % 7) as f32 * 0.01).to_le_bytes()).collect();
    let file = |dtype, shape: Vec<usize>, values: &[u8]| {
        let tensor = safetensors::tensor::TensorView::new(dtype, shape, values).unwrap();
        base64(&safetensors::serialize([("inputs", tensor)], None).unwrap())
    };
    let body = |file: String| json!({"prompt_embeds": file, "max_tokens": 5, "temperature": 0});
    let good = file(safetensors::Dtype::F32, vec![3, width], &values);
    let answer = server.ask(TEXT, &body(good.clone()));
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    assert_eq!(server.ask(TEXT, &body(good.clone()))["choices"][0]["text"], answer["choices"][0]["text"]);
    let mut broken = values.clone();
    broken[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    for bad in [
        file(safetensors::Dtype::F32, vec![3, width], &broken),
        file(safetensors::Dtype::F32, vec![width, 3], &values),
        file(safetensors::Dtype::F32, vec![3 * width], &values),
        file(safetensors::Dtype::I32, vec![3, width], &values),
        "no base64".to_owned(),
        base64(b"no safetensors"),
        base64(&values),
    ] {
        let reply = server.post(TEXT, &body(bad));
        assert_eq!(
            (reply.status, &reply.error()["param"]),
            (400, &json!("prompt_embeds")),
            "{}",
            reply.text()
        );
    }
    let reply = server.post(TEXT, &with(body(good), json!({"echo": true})));
    assert_eq!(reply.error()["param"], "echo");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            out.push(if at <= three.len() {
                DIGITS[(bits >> (18 - 6 * at)) as usize & 63] as char
            } else {
                '='
            });
        }
    }
    out
}

/// The server must answer with the text that the binary prints.
#[test]
fn the_server_says_what_generate_says() {
    let server = server();
    let generated = printed(&[
        "generate",
        "--temperature",
        "0.7",
        "--seed",
        "9",
        "--max-tokens",
        "30",
        "--beta",
        "0.5",
        "Say hi.",
    ]);
    let body = json!({
        "messages": [{"role": "user", "content": "Say hi."}], "temperature": 0.7, "seed": 9, "max_tokens": 30,
        "moi": {"rule": "moi", "beta": 0.5},
    });
    let answer = server.ask(CHAT, &body);
    assert_eq!(answer["choices"][0]["message"]["content"], generated["text"], "{generated}");
}
