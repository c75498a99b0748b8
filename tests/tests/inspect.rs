//! Tests of `moi inspect`, from a config alone or from a model's files.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{fs, path::PathBuf};

use moi_models::Architecture;
use moi_pretrained::{Inspection, without_quantisation};
use moi_tests::process::{json, refused, run, tiny};

fn config(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    path.to_str().unwrap().to_owned()
}

/// The four models of the paper and some popular ones, from their published configs: the exact number of parameters,
/// and of tensors in their checkpoints. Nothing is allocated: the largest would need 200 GB.
#[test]
fn published_models() {
    for (name, model_type, parameters, tensors) in [
        ("qwq-32b.json", "qwen2", 32_763_876_352u64, 64 * 12 + 3),
        ("dapo-qwen-32b.json", "qwen2", 32_763_876_352, 64 * 12 + 3),
        ("nemotron-super-49b.json", "nemotron-nas", 49_867_145_216, 80 * 4 + 49 * 5 + 3),
        ("gemma-3-27b.json", "gemma3", 27_009_346_304, 62 * 13 + 2),
        // Of each four layers, three have a delta net of 9 tensors, two norms and an MLP; the fourth has attention of
        // 6 tensors.
        ("qwen3.5-9b.json", "qwen3_5", 8_953_803_264, 24 * (9 + 5) + 8 * (6 + 5) + 3),
        ("qwen3.8-27b.json", "qwen3_5", 26_895_998_464, 48 * (9 + 5) + 16 * (6 + 5) + 3),
        (
            "qwen3.6-35b-a3b.json",
            "qwen3_5_moe",
            34_660_610_688,
            30 * 9 + 10 * 6 + 40 * (2 + 1 + 3 * 256 + 4) + 3,
        ),
        ("qwen3-vl-8b.json", "qwen3_vl", 8_190_735_360, 36 * 11 + 3),
        // Full-attention layers have no v; every layer has a scalar.
        ("gemma-4-31b.json", "gemma4", 30_697_345_340, 60 * 14 - 10 + 2),
        // In addition: a router with scale and factors, three norms, and 128 experts.
        ("gemma-4-26b-a4b.json", "gemma4", 25_233_141_790, 30 * (14 + 6 + 3 * 128) - 5 + 2),
        // In addition: a gate, a linear map and a norm for each layer's own input, and three shared tensors. 18
        // layers lack k, v and the norm of k.
        ("gemma-4-e4b.json", "gemma4", 7_463_013_418, 42 * (14 + 3) - 18 * 3 + 3 + 2),
        // Four linear maps with biases, sinks, two norms, a router, and 32 experts with biases.
        ("gpt-oss-20b.json", "gpt_oss", 20_914_757_184, 24 * (8 + 1 + 2 + 2 + 32 * 6) + 3),
        // Each layer is one block with its norm: 21 of Mamba, 4 of attention, and 17 MLPs without a gate.
        ("nemotron-3-nano-4b.json", "nemotron_h", 3_973_556_832, 21 * 9 + 4 * 5 + 17 * 3 + 3),
        // As above, and 128 experts with a router, its correction and a shared expert.
        (
            "nemotron-3-nano-30b-a3b.json",
            "nemotron_h",
            31_577_940_288,
            23 * 9 + 6 * 5 + 23 * (1 + 2 + 2 * 128 + 2) + 3,
        ),
        // Seven tensors of latent attention and two norms; an MLP in the first layer, and experts in all others.
        ("glm-4.7-flash.json", "glm4_moe_lite", 29_943_393_920, 47 * 9 + 3 + 46 * (2 + 3 * 64 + 3) + 3),
    ] {
        let found = json(&["inspect", &config(name)]);
        assert_eq!(found["model_type"], model_type, "{name}");
        assert_eq!(found["parameters"], parameters, "{name}");
        let listed = found["tensors"].as_object().unwrap();
        let values = |tensor: &serde_json::Value| -> u64 {
            tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product()
        };
        assert_eq!(listed.values().map(values).sum::<u64>(), parameters, "{name}");
        assert_eq!(listed.len(), tensors, "{name}");
    }
}

#[test]
fn tensors_are_named_as_the_checkpoints_name_them() {
    let shape = |name: &str, tensor: &str| {
        let found = json(&["inspect", &config(name)]);
        found["tensors"].get(tensor).map(|tensor| tensor["shape"].to_string())
    };
    for (name, tensor, expected) in [
        ("qwq-32b.json", "model.layers.63.self_attn.k_proj.bias", "[1024]"),
        ("qwq-32b.json", "model.layers.0.mlp.down_proj.weight", "[5120,27648]"),
        ("gemma-3-27b.json", "language_model.model.embed_tokens.weight", "[262208,5376]"),
        ("gemma-3-27b.json", "language_model.model.layers.61.self_attn.q_norm.weight", "[128]"),
        ("gemma-3-27b.json", "language_model.model.layers.0.self_attn.o_proj.weight", "[5376,4096]"),
        ("nemotron-super-49b.json", "model.layers.0.mlp.up_proj.weight", "[14336,8192]"),
        ("nemotron-super-49b.json", "model.layers.1.mlp.up_proj.weight", "[28672,8192]"),
        ("nemotron-super-49b.json", "model.layers.6.post_attention_layernorm.weight", "[8192]"),
    ] {
        assert_eq!(shape(name, tensor).as_deref(), Some(expected), "{name}: {tensor}");
    }
    // Layer 6 has neither attention nor the norm before it.
    assert_eq!(shape("nemotron-super-49b.json", "model.layers.6.input_layernorm.weight"), None);
    assert_eq!(shape("nemotron-super-49b.json", "model.layers.6.self_attn.q_proj.weight"), None);
}

/// For every architecture, the tensors that are listed from a config must be those of its checkpoint.
#[test]
fn a_config_lists_what_its_checkpoint_holds() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/tiny");
    // A checkpoint may store a number without an axis, and a vector as a row.
    let axes = |shape: &[usize]| shape.iter().copied().filter(|&len| len != 1).collect::<Vec<usize>>();
    for directory in fs::read_dir(golden).unwrap() {
        let path = directory.unwrap().path();
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
        let architecture = Architecture::from_config(&without_quantisation(&config)).unwrap();
        let alone = Inspection::of(&path.join("config.json")).unwrap();
        let files = Inspection::of(&path).unwrap();
        assert_eq!((alone.parameters, alone.layers.count), (files.parameters, files.layers.count));
        for (name, tensor) in &alone.tensors {
            let found = &files.tensors[name].shape;
            assert_eq!(axes(found), axes(&tensor.shape), "{}: {name}", path.display());
        }
        // The checkpoint may only have further tensors that the architecture names: a tied head, vision and audio
        // towers, layers that predict several tokens.
        for name in files.tensors.keys().filter(|&name| !alone.tensors.contains_key(name)) {
            assert!(architecture.ignores(name), "{}: {name}", path.display());
        }
    }
}

#[test]
fn a_table_of_a_model() {
    let (_, path) = tiny("gemma3-linear");
    let out = run(&["inspect", &path, "--tensors"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success());
    for part in [
        "architecture   gemma3_text",
        "4, 2 with a sliding window; 4 heads of 16, 2 for keys and values",
        "BF16 ",
        "tokenizer      none",
        "with 512 positions",
        "model.layers.3.mlp.up_proj.weight [128, 64] BF16",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    refused(&["inspect", "no-such-thing"], &["no-such-thing"]);
    refused(&["inspect", &format!("{path}/golden.json")], &["golden.json", "model_type"]);
}
