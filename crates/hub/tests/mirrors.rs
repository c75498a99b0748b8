//! Tests hubs and mirrors with unusual behaviour. tests/reference/hub.py has recorded what huggingface_hub does with
//! each; where this crate behaves otherwise, the row gives the reason.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::fs;

use hub::{fetcher, mirror};
use moi_hub::ModelReference;
use serde_json::{Value, json};

/// The behaviour that the reference script recorded.
fn table() -> Value {
    serde_json::from_str(include_str!("mirrors.json")).unwrap()
}

/// The expected behaviour of this crate.
fn expected(row: &Value) -> &Value {
    row.get("ours").unwrap_or(&row["expected"])
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn mirrors_are_as_the_reference_finds_them() {
    let table = table();
    let gzip = bytes(table["gzip"].as_str().unwrap());
    let mut wrong = Vec::new();
    for row in table["mirrors"].as_array().unwrap() {
        let directory = tempfile::tempdir().unwrap();
        let fetcher = fetcher(directory.path(), &mirror::serve(row, &gzip)).with_token("hf_test");
        let (found, detail) = match fetcher.fetch_repository("owner/tiny", None, |_| {}) {
            Ok(path) if fs::read(&path).unwrap() == mirror::content() => ("fetched", String::new()),
            Ok(path) => ("fetched other bytes", path.display().to_string()),
            Err(error) => ("refused", error.to_string()),
        };
        if *expected(row) != found {
            wrong.push(format!("{}: {found}, expected {}: {detail}", row["name"], expected(row)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn addresses_are_as_the_reference_reads_them() {
    let table = table();
    let endpoint = table["endpoint"].as_str().unwrap();
    for row in table["addresses"].as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        let found = match ModelReference::parse(text, endpoint) {
            Ok(Some(found)) => {
                json!({ "repository": found.repository, "revision": found.revision, "file": found.file })
            }
            Ok(None) | Err(_) => Value::Null,
        };
        assert_eq!(found, *expected(row), "{text}");
    }
}
