//! Tests loading into a module: names and shapes are compared first, and every difference is named.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{fs, path::Path};

use burn::{
    module::{Module, Param, ParamId},
    tensor::{DType, FloatDType, Tensor, backend::Backend},
};
use burn_flex::Flex;
use moi_checkpoint::{CheckpointError, ExpertStacks, LoadProgress, Storage, Upload, load, open_safetensors};
use safetensors::{Dtype, tensor::TensorView};

#[derive(Module, Debug)]
struct Inner<B: Backend> {
    weight: Param<Tensor<B, 2>>,
    bias: Option<Param<Tensor<B, 1>>>,
}

#[derive(Module, Debug)]
struct Model<B: Backend> {
    layers: Vec<Inner<B>>,
}

fn param<const D: usize>(shape: [usize; D]) -> Param<Tensor<Flex, D>> {
    let unread = |_: &_, _| unreachable!("loading must not make the value that it replaces");
    Param::uninitialized(ParamId::new(), unread, Default::default(), false, shape.into())
}

fn model() -> Model<Flex> {
    let inner = |bias: bool| Inner { weight: param([2, 3]), bias: bias.then(|| param([2])) };
    Model { layers: vec![inner(true), inner(false)] }
}

fn write(path: &Path, tensors: &[(&str, Dtype, &[usize])]) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| {
            let one: &[u8] = match dtype {
                Dtype::F32 => &[0, 0, 0xc0, 0x3f],
                Dtype::F16 => &[0x00, 0x3e],
                Dtype::BF16 => &[0xc0, 0x3f],
                _ => &[1, 0, 0, 0, 0, 0, 0, 0],
            };
            one.repeat(shape.iter().product())
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|(&(name, dtype, shape), data)| (name, TensorView::new(dtype, shape.to_vec(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

const GOOD: &[(&str, Dtype, &[usize])] = &[
    ("layers.0.weight", Dtype::F16, &[2, 3]),
    ("layers.0.bias", Dtype::BF16, &[2]),
    ("layers.1.weight", Dtype::F32, &[2, 3]),
];

fn load_from(path: &Path) -> Result<Model<Flex>, CheckpointError> {
    load(
        model(),
        &open_safetensors(path)?,
        |name| name == "ignored",
        |_| FloatDType::F32,
        Upload::Whole,
        |_| {},
    )
}

fn refused(path: &Path, parts: &[&str]) {
    let error = load_from(path).map(|_| ()).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn loads_every_type_and_reports_progress() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write(&path, &[GOOD, &[("ignored", Dtype::F32, &[1])]].concat());
    let checkpoint = open_safetensors(directory.path()).unwrap();
    let mut seen = Vec::new();
    let loaded = load(
        model(),
        &checkpoint,
        |name| name == "ignored",
        |_| FloatDType::F32,
        Upload::Whole,
        |LoadProgress { bytes, total_bytes, .. }| seen.push((bytes, total_bytes)),
    )
    .unwrap();
    for layer in &loaded.layers {
        assert!(layer.weight.val().into_data().iter::<f32>().all(|x| x == 1.5));
    }
    assert!(loaded.layers[0].bias.as_ref().unwrap().val().into_data().iter::<f32>().all(|x| x == 1.5));
    assert_eq!(seen, [(12, 40), (16, 40), (40, 40)]);
}

#[test]
fn every_difference_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write(
        &path,
        &[
            ("layers.0.weight", Dtype::F32, &[3, 2]),
            ("layers.0.bias", Dtype::F32, &[2]),
            ("extra", Dtype::F32, &[1]),
        ],
    );
    refused(
        &path,
        &[
            "model.safetensors does not fit the model",
            "model.safetensors: tensor `layers.0.weight` has the wrong shape: expected [2, 3], found [3, 2]",
            "`layers.1.weight` is missing (expected shape [2, 3])",
            "`extra` is not known to the model (found with shape [1])",
        ],
    );
    write(&path, &[GOOD, &[("h.0.attn.bias", Dtype::I64, &[1])]].concat());
    assert!(load_from(&path).is_ok(), "a mask is no weight");
    for name in [
        "rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "h.0.attn.bias",
        "model.layers.0.self_attn.bias",
        "h.0.attn.masked_bias",
        "embeddings.position_ids",
        "rotary_emb.cos_cached",
        "model.rotary_emb.sin_cached",
    ] {
        write(&path, &[GOOD, &[(name, Dtype::F32, &[1])]].concat());
        assert!(load_from(&path).is_ok(), "{name} is a buffer");
    }
    write(&path, &[GOOD, &[("x", Dtype::I64, &[1])]].concat());
    refused(&path, &["model.safetensors", "tensor `x`", "type I64 is not supported", "F32, F16, BF16"]);
}

#[test]
fn broken_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    refused(&path, &["cannot open", "model.safetensors"]);
    refused(directory.path(), &["cannot open", "model.safetensors"]);
    write(&path, GOOD);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(load_from(&path).is_err(), "{length} of {} bytes were accepted", whole.len());
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    refused(&path, &["model.safetensors", "header", "fetch it again"]);
}

#[test]
fn shards() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    write(&file("a.safetensors"), &GOOD[..1]);
    write(&file("b.safetensors"), &GOOD[1..]);
    let index = |map: &str| fs::write(file("model.safetensors.index.json"), map).unwrap();
    let map = |first: &str| {
        format!(
            r#"{{"weight_map": {{"layers.0.weight": "{first}", "layers.0.bias": "b.safetensors",
            "layers.1.weight": "b.safetensors"}}}}"#
        )
    };
    index(&map("a.safetensors"));
    assert!(load_from(directory.path()).is_ok());
    write(&file("a.safetensors"), &[("layers.0.weight", Dtype::F32, &[1, 1])]);
    refused(directory.path(), &["index.json does not fit", "a.safetensors: tensor `layers.0.weight`"]);
    write(&file("a.safetensors"), &GOOD[..1]);
    index(&map("b.safetensors"));
    refused(directory.path(), &["index.json", "`layers.0.weight` is missing (expected shape [2, 3])"]);
    // The model may not need a tensor that is listed but missing.
    let listed = map("a.safetensors").replace("}}", r#", "other": "b.safetensors"}}"#);
    index(&listed);
    assert!(load_from(directory.path()).is_ok());
    index(&map("./a.safetensors"));
    assert!(load_from(directory.path()).is_ok());
    fs::create_dir(file("sub")).unwrap();
    fs::rename(file("a.safetensors"), file("sub/a.safetensors")).unwrap();
    index(&map("sub/a.safetensors"));
    assert!(load_from(directory.path()).is_ok());
    fs::rename(file("sub/a.safetensors"), file("a.safetensors")).unwrap();
    for outside in ["../a.safetensors", "sub/../a.safetensors", "/a.safetensors", "."] {
        index(&map(outside));
        refused(directory.path(), &[format!("shard `{outside}`").as_str(), "same directory"]);
    }
    index(&map("c.safetensors"));
    refused(directory.path(), &["cannot be opened", "c.safetensors"]);
    // As in transformers, every tensor of a shard counts, whether or not the index lists it, and whichever shard the
    // index names.
    index(r#"{"weight_map": {"layers.0.bias": "b.safetensors", "layers.0.weight": "a.safetensors"}}"#);
    assert!(load_from(directory.path()).is_ok());
    index(r#"{"weight_map": {"layers.0.bias": "a.safetensors", "layers.1.weight": "b.safetensors"}}"#);
    assert!(load_from(directory.path()).is_ok());
    index("{");
    refused(directory.path(), &["index.json", "EOF"]);
}

/// Without an index, a set of shards must be complete.
#[test]
fn shards_without_an_index() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    write(&file("model-00001-of-00002.safetensors"), &GOOD[..1]);
    refused(
        directory.path(),
        &["of 2 shards these are missing: model-00002-of-00002.safetensors; fetch them"],
    );
    write(&file("model-00002-of-00002.safetensors"), &GOOD[1..]);
    assert!(load_from(directory.path()).is_ok());
    write(&file("other-00001-of-00001.safetensors"), GOOD);
    assert!(load_from(directory.path()).is_ok(), "transformers' own names go first");
    fs::remove_file(file("model-00001-of-00002.safetensors")).unwrap();
    fs::remove_file(file("model-00002-of-00002.safetensors")).unwrap();
    assert!(load_from(directory.path()).is_ok(), "any name will do for a single set");
    write(&file("another-00001-of-00001.safetensors"), GOOD);
    refused(directory.path(), &["another-00001-of-00001.safetensors, other-00001-of-00001.safetensors"]);
}

/// If a tensor is in two shards, the later shard's counts, as in transformers; a note says so if the two differ.
#[test]
fn tensors_in_two_shards() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let map = r#"{"weight_map": {"layers.0.weight": "a.safetensors", "layers.0.bias": "b.safetensors",
        "layers.1.weight": "b.safetensors"}}"#;
    fs::write(file("model.safetensors.index.json"), map).unwrap();
    write(&file("a.safetensors"), GOOD);
    write(&file("b.safetensors"), GOOD);
    assert!(open_safetensors(directory.path()).unwrap().notes().is_empty());
    write(&file("b.safetensors"), &[GOOD, &[("ignored", Dtype::F32, &[1])]].concat()[1..]);
    assert!(load_from(directory.path()).is_ok());
    // The same values in another type have other bytes.
    let bias: &[(&str, Dtype, &[usize])] = &[("layers.0.bias", Dtype::F32, &[2])];
    write(&file("b.safetensors"), &[bias, &GOOD[2..]].concat());
    let opened = open_safetensors(directory.path()).unwrap();
    assert_eq!(opened.tensors()["layers.0.bias"].storage(), Storage::F32);
    let notes = opened.notes();
    assert!(
        notes.len() == 1 && notes[0].starts_with("tensor `layers.0.bias` stands in several"),
        "{notes:?}"
    );
}

#[test]
fn stacked_experts_are_taken_apart_and_absurd_ones_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    write(
        &path,
        &[
            ("mlp.experts.gate_up_proj", Dtype::F32, &[2, 4, 3]),
            ("mlp.experts.down_proj", Dtype::F32, &[2, 3, 2]),
        ],
    );
    let experts = open_safetensors(&path).unwrap().with_single_experts(ExpertStacks::ByOutput);
    let shapes: Vec<_> =
        experts.tensors().iter().map(|(name, tensor)| (name.as_str(), tensor.shape())).collect();
    assert_eq!(shapes.len(), 6);
    assert_eq!(shapes[0], ("mlp.experts.0.down_proj.weight", &[3, 2][..]));
    assert_eq!(shapes[4], ("mlp.experts.1.gate_proj.weight", &[2, 3][..]));
    assert_eq!(experts.tensors()["mlp.experts.1.up_proj.weight"].read(), [1.5; 6]);
    // A huge number of empty experts takes no bytes in the file.
    write(&path, &[("x.experts.down_proj", Dtype::F32, &[1 << 40, 0, 1])]);
    assert_eq!(
        open_safetensors(&path).unwrap().with_single_experts(ExpertStacks::ByOutput).tensors().len(),
        1
    );
}

#[derive(Module, Debug)]
struct Single<B: Backend> {
    weight: Param<Tensor<B, 2>>,
}

/// Half-precision values stay unchanged, others are rounded.
#[test]
fn values_take_the_type_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let shape = [9, 1 << 10];
    let count = shape[0] * shape[1];
    let value = |i: usize| ((i * 7 + i / 1000) % 509) as f32 / 64.0 - 3.0;
    for stored in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let bytes: Vec<u8> = match stored {
            Dtype::F16 => (0..count).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect(),
            Dtype::BF16 => (0..count).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
            _ => (0..count).flat_map(|i| value(i).to_le_bytes()).collect(),
        };
        let view = TensorView::new(stored, shape.to_vec(), &bytes).unwrap();
        fs::write(&path, safetensors::serialize([("weight", view)], None).unwrap()).unwrap();
        let checkpoint = open_safetensors(&path).unwrap();
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            let zeros = Tensor::<Flex, 2>::zeros([1, 1], &Default::default());
            let empty = Param::uninitialized(
                ParamId::new(),
                move |_, _| zeros.clone(),
                Default::default(),
                false,
                shape.into(),
            );
            let loaded =
                load(Single { weight: empty }, &checkpoint, |_| false, |_| dtype, Upload::InPieces, |_| {})
                    .unwrap();
            let weight = loaded.weight.val();
            assert_eq!(weight.dtype(), DType::from(dtype));
            let found = weight.into_data().convert::<f32>();
            let rounded = |i: usize, x: f32| match if i == 0 { stored_as(stored) } else { dtype } {
                FloatDType::F16 => half::f16::from_f32(x).to_f32(),
                FloatDType::BF16 => half::bf16::from_f32(x).to_f32(),
                _ => x,
            };
            let wrong = found.iter::<f32>().enumerate().find(|&(i, x)| x != rounded(1, rounded(0, value(i))));
            assert_eq!(wrong, None, "{stored:?} as {dtype:?}");
        }
    }
}

fn stored_as(dtype: Dtype) -> FloatDType {
    match dtype {
        Dtype::F16 => FloatDType::F16,
        Dtype::BF16 => FloatDType::BF16,
        _ => FloatDType::F32,
    }
}

#[test]
fn values_that_are_not_finite_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (broken, large) = (bytes(&[f32::NAN, 1.0, f32::NEG_INFINITY, 0.0, 0.0, f32::NAN]), bytes(&[1e6; 6]));
    let (bias, weight) = (bytes(&[0.0; 2]), [2, 3]);
    let view = |shape: &[usize], data| TensorView::new(Dtype::F32, shape.to_vec(), data).unwrap();
    let tensors = [
        ("layers.0.weight", view(&weight, &broken)),
        ("layers.0.bias", view(&[2], &bias)),
        ("layers.1.weight", view(&weight, &large)),
    ];
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let said = |dtype| {
        let mut said = Vec::new();
        let loaded = load(
            model(),
            &open_safetensors(&path).unwrap(),
            |_| false,
            |_| dtype,
            Upload::InPieces,
            |progress| {
                said.extend(progress.not_finite.map(ToString::to_string));
            },
        );
        let first =
            loaded.unwrap().layers[0].weight.val().into_data().convert::<f32>().to_vec::<f32>().unwrap();
        assert!(first[0].is_nan() && first[2] == f32::NEG_INFINITY, "they are loaded as they are");
        said
    };
    let expected =
        "model.safetensors: tensor `layers.0.weight` has 2 NaN and 1 infinite values; the file is broken";
    for dtype in [FloatDType::F32, FloatDType::BF16] {
        let said = said(dtype);
        assert!(said.len() == 1 && said[0].starts_with(expected), "{said:?}");
    }
    let said = said(FloatDType::F16);
    assert!(said.len() == 2 && said[0].starts_with(expected), "{said:?}");
    assert!(
        said[1].contains("`layers.1.weight` has 0 NaN and 6 infinite values as F16, which cannot hold"),
        "{said:?}"
    );
}

/// A repeated name is refused, because two readers of one file could see different weights.
#[test]
fn a_name_that_stands_twice_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let one = r#""layers.0.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
    let header = format!("{{{one}, {one}}}");
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
    fs::write(&path, bytes).unwrap();
    refused(&path, &["model.safetensors", "header", "`layers.0.bias` stands there twice"]);
    fs::write(
        directory.path().join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "b", "a": "c"}}"#,
    )
    .unwrap();
    fs::remove_file(&path).unwrap();
    refused(directory.path(), &["model.safetensors.index.json", "index", "`a` stands there twice"]);
}
