//! Tests of internal faults, such as broken weights.

use moi_tests::{broken_weights, bytes, golden::Golden, server::TestServer};
use serde_json::json;

use crate::{TEXT, with};

/// A model computes NaN from some token on: the text before it is kept, a stream ends with an error event, a whole
/// answer has status 500 and says not to retry, and other requests are not affected.
#[test]
fn a_row_that_breaks_breaks_no_other() {
    let golden = Golden::read("mixtral");
    let (directory, generated) = broken_weights::late(&golden);
    bytes::add_tokenizer(directory.path(), &[], None);
    let server = TestServer::start(&["--model", directory.path().to_str().unwrap(), "--device", "cpu"]);
    let breaks = json!({
        "prompt": broken_weights::prompt(&golden), "max_tokens": 20, "temperature": 0, "moi": {"rule": "token"},
        "return_token_ids": true, "ignore_eos": true,
    });
    let whole = with(breaks.clone(), json!({"max_tokens": generated.len() - 1}));
    let expected = server.ask(TEXT, &whole)["choices"][0]["token_ids"].clone();
    for _ in 0..3 {
        let neighbour = server.send(TEXT, &with(whole.clone(), json!({"stream": true})));
        let reply = server.post(TEXT, &breaks);
        assert_eq!((reply.status, reply.header("x-should-retry")), (500, Some("false")));
        let message = reply.error()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(&format!("the logits of step {} hold NaN", generated.len())), "{message}");
        let events = server.stream(TEXT, &breaks);
        let (error, before) = events.split_last().unwrap();
        assert_eq!(error["error"]["message"], json!(message));
        assert!(before.iter().all(|event| event.get("error").is_none()) && !before.is_empty());
        let ids = |events: &[serde_json::Value]| -> Vec<serde_json::Value> {
            let ids = events.iter().filter_map(|event| event["choices"][0]["token_ids"].as_array().cloned());
            ids.flatten().collect()
        };
        assert_eq!(ids(before), generated.iter().map(|&id| json!(id)).collect::<Vec<_>>());
        assert_eq!(json!(ids(&moi_tests::server::reply(neighbour).events())), expected);
    }
    server.settled();
    let text = server.get("/metrics").text();
    assert!(
        text.lines().any(|line| line.contains("finished_reason=\"error\"") && line.ends_with(" 6")),
        "{text}"
    );
}
