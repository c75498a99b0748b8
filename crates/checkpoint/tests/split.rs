//! Tests models in several GGUF files, as `llama-gguf-split` writes them: they load completely, or are refused as by
//! llama.cpp's loader.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{fs, path::Path};

use moi_checkpoint::{CheckpointError, gguf::Gguf};

/// A value of metadata.
#[derive(Clone)]
enum Meta {
    U16(u16),
    I32(i32),
    Text(Vec<u8>),
}

fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// A file of float32 tensors, each with eight equal values.
fn file(metadata: &[(&str, Meta)], tensors: &[(&str, f32)]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        bytes.extend(string(key.as_bytes()));
        let (kind, value): (u32, Vec<u8>) = match value {
            Meta::U16(n) => (2, n.to_le_bytes().to_vec()),
            Meta::I32(n) => (5, n.to_le_bytes().to_vec()),
            Meta::Text(text) => (8, string(text)),
        };
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    }
    for (index, (name, _)) in tensors.iter().enumerate() {
        bytes.extend(string(name.as_bytes()));
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(8u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend((32 * index as u64).to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    for (_, value) in tensors {
        bytes.extend(value.to_le_bytes().repeat(8));
    }
    bytes
}

fn split(number: u16, count: u16, total: i32) -> Vec<(&'static str, Meta)> {
    let mut metadata = vec![("split.no", Meta::U16(number)), ("split.count", Meta::U16(count))];
    metadata.push(("split.tensors.count", Meta::I32(total)));
    metadata
}

const NAMES: [&str; 3] = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"];

/// Three parts with four tensors. The first part holds only metadata, as is usual.
fn write(directory: &Path) {
    let mut first = split(0, 3, 4);
    first.push(("general.name", Meta::Text(b"whole".to_vec())));
    let parts: [Vec<u8>; 3] = [
        file(&first, &[]),
        file(&split(1, 3, 4), &[("a", 1.0), ("b", 2.0)]),
        file(&split(2, 3, 4), &[("c", 3.0), ("d", 4.0)]),
    ];
    for (name, part) in NAMES.iter().zip(parts) {
        fs::write(directory.join(name), part).unwrap();
    }
}

#[test]
fn any_part_opens_the_whole() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path());
    for name in NAMES {
        let opened = Gguf::open(&directory.path().join(name)).unwrap();
        assert_eq!(opened.metadata.str("general.name"), Some("whole"), "{name}");
        assert_eq!(opened.path(), directory.path().join(NAMES[0]));
        let checkpoint = opened.checkpoint().unwrap();
        let values: Vec<(&str, f32)> =
            checkpoint.tensors().iter().map(|(name, tensor)| (name.as_str(), tensor.read()[7])).collect();
        assert_eq!(values, [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)]);
    }
}

fn refused(directory: &Path, name: &str, parts: &[&str]) {
    let opened = Gguf::open(&directory.join(name)).and_then(|file| file.checkpoint());
    let error = opened.map(|_| ()).map_err(|error: CheckpointError| error.to_string()).unwrap_err();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn what_is_wrong_with_parts_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let put = |name: &str, bytes: Vec<u8>| fs::write(path.join(name), bytes).unwrap();
    let second = |metadata: &[(&str, Meta)]| file(metadata, &[("a", 1.0), ("b", 2.0)]);
    let table: [(Vec<u8>, &[&str]); 7] = [
        (second(&split(2, 3, 4)), &[NAMES[1], "split.no is 2, expected 1"]),
        (second(&[]), &[NAMES[1], "split.no is missing, expected 1"]),
        (second(&split(1, 4, 4)), &[NAMES[1], "split.count is 4, and 3"]),
        (file(&split(1, 3, 4), &[("a", 1.0)]), &[NAMES[0], "split.tensors.count is 4", "hold 3 tensors"]),
        (file(&split(1, 3, 4), &[("a", 1.0), ("c", 2.0)]), &[NAMES[2], "tensor `c`", NAMES[1]]),
        (b"GGML".to_vec(), &[NAMES[1], "not a GGUF file"]),
        (Vec::new(), &[NAMES[1]]),
    ];
    for (bytes, parts) in table {
        write(path);
        put(NAMES[1], bytes);
        refused(path, NAMES[0], parts);
    }
    // If a tensor ends outside its own file, the error names that file.
    write(path);
    let mut short = fs::read(path.join(NAMES[2])).unwrap();
    short.truncate(short.len() - 8);
    put(NAMES[2], short);
    refused(path, NAMES[1], &[NAMES[2], "tensor `d`", "ends outside the file"]);

    write(path);
    put("m.gguf", fs::read(path.join(NAMES[0])).unwrap());
    refused(path, "m.gguf", &["m.gguf", "part 1 of 3", "-00001-of-00003.gguf", "llama-gguf-split --merge"]);
    put("m.gguf", file(&split(0, 2000, 4), &[]));
    refused(path, "m.gguf", &["split.count is 2000, expected 1000 parts at most"]);
    put(NAMES[0], file(&split(0, 3, 4)[..2], &[]));
    refused(path, NAMES[1], &[NAMES[0], "`split.tensors.count` is missing"]);
}

#[test]
fn missing_parts_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    write(path);
    fs::remove_file(path.join(NAMES[1])).unwrap();
    refused(path, NAMES[2], &[NAMES[1], "this part of the model is missing; all 3 parts are needed"]);
    fs::remove_file(path.join(NAMES[0])).unwrap();
    refused(path, NAMES[2], &[NAMES[0], "this part of the model is missing (and m-00002-of-00003.gguf);"]);
}

/// A file that is the only part of its split needs no particular name.
#[test]
fn a_single_part_needs_no_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.gguf");
    fs::write(&path, file(&split(0, 1, 1), &[("a", 1.0)])).unwrap();
    assert_eq!(Gguf::open(&path).unwrap().checkpoint().unwrap().tensors().len(), 1);
}

/// Unused metadata strings that are not UTF-8 do not prevent loading, and the number of such strings is known.
#[test]
fn texts_that_are_not_utf8() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.gguf");
    let metadata = [
        ("general.description", Meta::Text(b"caf\xe9".to_vec())),
        ("general.name", Meta::Text("café".into())),
    ];
    fs::write(&path, file(&metadata, &[("a", 1.0)])).unwrap();
    let opened = Gguf::open(&path).unwrap();
    assert_eq!(opened.metadata.str("general.description"), Some("caf\u{fffd}"));
    assert_eq!(opened.metadata.num_replaced("general.description"), 1);
    assert_eq!(opened.metadata.num_replaced("general.name"), 0);
}
