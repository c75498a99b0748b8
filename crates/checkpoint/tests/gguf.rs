//! Compares GGUF values with the `gguf` Python package, and tests refusals of invalid files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{fs, path::Path};

use moi_checkpoint::{
    BlockFormat, Storage,
    gguf::{Gguf, Value},
};

const BLOCKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/blocks.gguf");

/// Every block type, quantised and dequantised by the package; `reference/make_blocks.py` writes the file.
#[test]
fn values_are_those_of_the_gguf_package() {
    let checkpoint = Gguf::open(Path::new(BLOCKS)).unwrap().checkpoint().unwrap();
    let tensors = checkpoint.tensors();
    let mut seen = Vec::new();
    for (name, tensor) in tensors {
        if let Some(expected) = tensors.get(&format!("{name}.expected")) {
            assert_eq!(tensor.shape(), expected.shape(), "{name}");
            let (found, expected) = (tensor.read(), expected.read());
            assert!(found.iter().map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())), "{name}");
            seen.push((name.as_str(), tensor.storage()));
        }
    }
    let mut expected = vec![("BF16", Storage::BF16), ("F16", Storage::F16), ("F32", Storage::F32)];
    // The package can only quantise to some of the formats; decoding is tested for all of them on raw bytes.
    for kind in BlockFormat::ALL {
        expected.push((kind.name(), Storage::Block(kind)));
    }
    let names: Vec<String> = expected.iter().map(|(name, _)| format!("{name}.raw")).collect();
    for (name, kind) in names.iter().skip(3).zip(BlockFormat::ALL) {
        expected.push((name, Storage::Block(kind)));
    }
    let quantised = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"];
    expected.retain(|(name, storage)| {
        !matches!(storage, Storage::Block(_)) || name.ends_with(".raw") || quantised.contains(name)
    });
    expected.sort_by_key(|(name, _)| *name);
    assert_eq!(seen, expected);
}

/// The encoded blocks are byte for byte those that the package makes of the same values.
#[test]
fn blocks_are_encoded_as_the_gguf_package_encodes_them() {
    let checkpoint = Gguf::open(Path::new(BLOCKS)).unwrap().checkpoint().unwrap();
    let tensors = checkpoint.tensors();
    for kind in BlockFormat::ALL {
        let encoded = tensors.get(&format!("{}.input", kind.name())).map(|input| kind.encode(&input.read()));
        assert_eq!(encoded.is_some(), kind.can_encode(), "{}", kind.name());
        if let Some(encoded) = encoded {
            assert_eq!(encoded, tensors[kind.name()].read_stored(), "{}", kind.name());
        }
    }
}

/// Blocks whose values were computed by hand.
#[test]
fn blocks_by_hand() {
    // d = 0.5 (f16 0x3800), m = -1 (0xbc00).
    let nibbles: Vec<u8> = (0..16).map(|i| i | ((15 - i) << 4)).collect();
    let values = |kind: u32, block: Vec<u8>| {
        let file = file(&[("t", &[32], kind, &block)], &[]);
        open(&file).unwrap().checkpoint().unwrap().tensors()["t"].read()
    };
    let q4_0 = values(2, [vec![0x00, 0x38], nibbles.clone()].concat());
    let q4_1 = values(3, [vec![0x00, 0x38, 0x00, 0xbc], nibbles].concat());
    let q8_0 = values(8, [vec![0x00, 0x38], (0..32).map(|i| (i - 16) as u8).collect()].concat());
    for i in 0..16 {
        let (low, high) = (i as f32, (15 - i) as f32);
        assert_eq!((q4_0[i], q4_0[16 + i]), (0.5 * (low - 8.0), 0.5 * (high - 8.0)));
        assert_eq!((q4_1[i], q4_1[16 + i]), (0.5 * low - 1.0, 0.5 * high - 1.0));
    }
    assert!((0..32i8).all(|i| q8_0[i as usize] == 0.5 * f32::from(i - 16)));
}

#[test]
fn metadata_of_every_type() {
    let file = Gguf::open(Path::new(BLOCKS)).unwrap();
    let meta = &file.metadata;
    assert_eq!(file.architecture().unwrap(), "test");
    assert_eq!(meta.usize("test.unsigned"), Some(7));
    assert_eq!(meta.get("test.signed"), Some(&Value::Signed(-7)));
    assert_eq!(meta.f64("test.float"), Some(0.25));
    assert_eq!(meta.bool("test.bool"), Some(true));
    assert_eq!(meta.str("test.string"), Some("naïve"));
    let strings = meta.list("test.strings", |value| value.as_str()).unwrap();
    assert_eq!(strings, ["a", "bc", ""]);
    assert_eq!(meta.list("test.numbers", Value::as_usize).unwrap(), [1, 2, 3]);
    assert_eq!(meta.list("test.numbers", |value| value.as_str()), None);
}

/// Version 2 has the same layout.
#[test]
fn version_two() {
    let mut bytes = fs::read(BLOCKS).unwrap();
    bytes[4] = 2;
    assert_eq!(open(&bytes).unwrap().checkpoint().unwrap().tensors().len(), 67);
}

type Tensor<'a> = (&'a str, &'a [u64], u32, &'a [u8]);

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// A version 3 file of tensors and string metadata.
fn file(tensors: &[Tensor<'_>], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        bytes.extend(string(key));
        bytes.extend(8u32.to_le_bytes());
        bytes.extend(string(value));
    }
    let mut offset = 0u64;
    for (name, dims, kind, data) in tensors {
        bytes.extend(string(name));
        bytes.extend((dims.len() as u32).to_le_bytes());
        bytes.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += (data.len() as u64).next_multiple_of(32);
    }
    for (.., data) in tensors {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(*data);
    }
    bytes
}

fn open(bytes: &[u8]) -> Result<Gguf, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Gguf::open(&path).map_err(|error| error.to_string())
}

fn refused(bytes: &[u8], parts: &[&str]) {
    let opened = open(bytes).and_then(|file| file.checkpoint().map_err(|error| error.to_string()));
    let error = opened.map(|_| ()).unwrap_err();
    for part in ["model.gguf"].iter().chain(parts) {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let good = file(&[("a.weight", &[32, 2], 8, &[0; 68])], &[("k", "v")]);
    assert!(open(&good).unwrap().checkpoint().is_ok());
    refused(b"GGML\x03\0\0\0", &["not a GGUF file", "byte 4"]);
    refused(b"", &["4 bytes expected, 0 left"]);
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    refused(&patched(4, &1u32.to_le_bytes()), &["version 1 is not supported", "2, 3"]);
    refused(&patched(4, &3u32.to_be_bytes()), &["big-endian"]);
    refused(&patched(8, &u64::MAX.to_le_bytes()), &["18446744073709551615 tensors announced"]);
    refused(&patched(24, &u64::MAX.to_le_bytes()), &["bytes of a string announced"]);
    // The tensor's type stands behind its name, number of axes and sizes.
    let kind = good.windows(8).position(|w| w == b"a.weight").unwrap() + 8 + 4 + 16;
    refused(&patched(kind, &12u32.to_le_bytes()), &["a.weight", "32 values", "Q4_K blocks of 256"]);
    refused(&patched(kind, &15u32.to_le_bytes()), &["a.weight", "Q8_K is not supported", "Q4_1", "IQ4_XS"]);
    refused(&patched(kind, &31u32.to_le_bytes()), &["a.weight", "Q4_0_4_4 is not supported"]);
    refused(&patched(kind, &35u32.to_le_bytes()), &["a.weight", "32 values", "TQ2_0 blocks of 256"]);
    refused(&patched(kind, &77u32.to_le_bytes()), &["a.weight", "77 is not defined"]);
    refused(&patched(kind + 4, &64u64.to_le_bytes()), &["a.weight", "ends outside the file"]);
    refused(&patched(kind + 4, &3u64.to_le_bytes()), &["offset 3 is not a multiple of 32"]);
    refused(&patched(kind - 8, &(1u64 << 62).to_le_bytes()), &["a.weight", "ends outside the file"]);
    refused(&patched(kind - 16, &33u64.to_le_bytes()), &["a.weight", "33 values", "blocks of 32"]);
    let twice = file(&[("a", &[1], 0, &[0; 4]), ("a", &[1], 0, &[0; 4])], &[]);
    refused(&twice, &["`a` stands in the table twice"]);
    let key_twice = file(&[], &[("k", "1"), ("k", "2")]);
    refused(&key_twice, &["`k` stands there twice"]);
}

/// Tests overlapping tensors, and names that are no UTF-8.
#[test]
fn tensors_share_no_bytes() {
    let good = file(&[("a", &[8], 0, &[0; 32]), ("b", &[8], 0, &[0; 32])], &[]);
    assert!(open(&good).unwrap().checkpoint().is_ok());
    let entry = good.windows(9).position(|window| window == b"\x01\0\0\0\0\0\0\0b").unwrap() + 8;
    let (sizes, offset) = (entry + 1 + 4, entry + 1 + 4 + 8 + 4);
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    refused(&patched(offset, &[0]), &["tensor `b`", "within tensor `a`", "damaged, fetch it again"]);
    // An empty tensor shares no bytes.
    assert!(open(&patched(sizes, &[0])).unwrap().checkpoint().is_ok());
    let within = file(&[("a", &[16], 0, &[0; 64]), ("b", &[8], 0, &[0; 32])], &[]);
    let mut middle = within.clone();
    let entry = within.windows(9).position(|window| window == b"\x01\0\0\0\0\0\0\0b").unwrap() + 8;
    middle[entry + 1 + 4 + 8 + 4] = 32;
    refused(&middle, &["tensor `b`: it begins at byte", "within tensor `a`, which ends at byte"]);
    refused(&patched(entry, &[0xff]), &["a string is not UTF-8"]);
}

/// A file that is truncated anywhere gives an error and never a panic.
#[test]
fn truncation_anywhere_is_an_error() {
    let good = file(&[("a", &[32, 2], 8, &[7; 68]), ("b", &[3], 0, &[1; 12])], &[("key", "value")]);
    for length in 0..good.len() {
        let opened = open(&good[..length]).and_then(|f| f.checkpoint().map_err(|error| error.to_string()));
        assert!(opened.is_err(), "{length} of {} bytes were accepted", good.len());
    }
}

/// Metadata that lacks a key which the config needs.
#[test]
fn a_missing_key_is_named() {
    let error =
        |metadata: &[(&str, &str)]| open(&file(&[], metadata)).unwrap().config().unwrap_err().to_string();
    assert!(error(&[]).contains("`general.architecture` is missing"));
    let llama = error(&[("general.architecture", "llama")]);
    assert!(llama.contains("`llama.attention.head_count` is missing"), "{llama}");
    let other = open(&file(&[], &[("general.architecture", "mamba")])).unwrap().config().unwrap();
    assert_eq!(other, serde_json::json!({ "model_type": "mamba" }));
}
