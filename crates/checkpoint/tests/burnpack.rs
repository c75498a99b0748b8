//! Tests refusals of invalid burnpack files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::fs;

use ciborium::{Value, cbor};
use moi_checkpoint::{Checkpoint, open_burnpack};

/// A file with these float32 tensors: name, size, and the begin and end of its bytes.
fn file(tensors: &[(&str, u64, [u64; 2])]) -> Vec<u8> {
    let entries = tensors.iter().map(|&(name, size, [from, to])| {
        let entry = cbor!({ "dtype" => "F32", "shape" => [size], "data_offsets" => [from, to] });
        (Value::Text(name.to_owned()), entry.unwrap())
    });
    let fields = [(Value::Text("tensors".to_owned()), Value::Map(entries.collect()))];
    let mut metadata = Vec::new();
    ciborium::into_writer(&Value::Map(fields.to_vec()), &mut metadata).unwrap();
    with_metadata(&metadata)
}

fn with_metadata(metadata: &[u8]) -> Vec<u8> {
    let size = u32::try_from(metadata.len()).unwrap();
    let mut bytes =
        [&0x4255_524eu32.to_le_bytes()[..], &1u16.to_le_bytes(), &size.to_le_bytes(), metadata].concat();
    bytes.resize(bytes.len().next_multiple_of(256) + 64, 0);
    bytes
}

fn open(bytes: &[u8]) -> Result<Checkpoint, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bpk");
    fs::write(&path, bytes).unwrap();
    open_burnpack(&path).map_err(|error| error.to_string())
}

fn refused(bytes: &[u8], parts: &[&str]) {
    let error = open(bytes).map(|_| ()).unwrap_err();
    for part in ["model.bpk"].iter().chain(parts) {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let good = file(&[("a", 8, [0, 32]), ("b", 8, [32, 64])]);
    assert_eq!(open(&good).unwrap().tensors()["b"].read(), [0.0; 8]);
    refused(
        &file(&[("a", 8, [0, 32]), ("b", 8, [0, 32])]),
        &["tensor `b`", "within tensor `a`", "make it again"],
    );
    refused(
        &file(&[("a", 8, [4, 36]), ("b", 4, [0, 16])]),
        &["tensor `a`: it begins at byte", "within tensor `b`"],
    );
    refused(&file(&[("a", 8, [0, 32]), ("a", 8, [32, 64])]), &["metadata", "`a` stands there twice"]);
    refused(&file(&[("a", 8, [0, 31])]), &["tensor `a`", "do not fit its shape or the file"]);
    refused(&file(&[("a", u64::MAX, [0, 32])]), &["tensor `a`", "do not fit its shape or the file"]);
    refused(&file(&[("a", 32, [0, 128])]), &["tensor `a`", "do not fit its shape or the file"]);
    refused(&with_metadata(b"\xa1\x63\xff\xff\xff"), &["metadata", "is no CBOR; the file is damaged"]);
    refused(&with_metadata(b"\xa1\x67tens"), &["metadata", "ends too soon; the file is damaged"]);
    refused(&with_metadata(&[0x81; 100_000]), &["metadata"]);
    refused(b"BURN-not-really", &["not a burnpack file"]);
}

/// A file that is truncated anywhere gives an error and never a panic.
#[test]
fn truncation_anywhere_is_an_error() {
    let good = file(&[("a", 8, [0, 32]), ("b", 8, [32, 64])]);
    for length in 0..good.len() {
        let opened = open(&good[..length]);
        assert!(opened.is_err(), "{length} of {} bytes were accepted", good.len());
    }
}
