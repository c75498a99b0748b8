//! Checkpoints that name or stack the tensors of a model differently, as releases of transformers and the hub do:
//! each must give the golden logits. GGUF files whose metadata describe another computation than their architecture
//! must be refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{collections::BTreeMap, fs, path::Path};

use burn::tensor::{Int, Tensor, TensorData};
use burn_flex::Flex;
use moi_models::CausalLm;
use moi_pretrained::{Pretrained, WeightForm};
use moi_tests::{golden::Golden, golden_directory, relative_error, values};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

fn read(directory: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with("model") || !name.ends_with(".safetensors") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
            tensors.insert(name, Stored { dtype: view.dtype(), shape, bytes });
        }
    }
    tensors
}

/// Compares the logits of the golden tokens, with these tensors and a changed config.
fn check(name: &str, config: impl Fn(Value) -> Value, change: impl Fn(Tensors) -> Tensors) {
    let golden = Golden::read(name);
    let directory = tempfile::tempdir().unwrap();
    let fields = fs::read(golden.path.join("config.json")).unwrap();
    let fields = config(serde_json::from_slice(&fields).unwrap());
    fs::write(directory.path().join("config.json"), fields.to_string()).unwrap();
    let tensors = change(read(&golden.path));
    let views = tensors.iter().map(|(name, stored)| {
        (name, TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap())
    });
    let file = safetensors::serialize(views, None).unwrap();
    fs::write(directory.path().join("model.safetensors"), file).unwrap();

    let device = Default::default();
    let pretrained = Pretrained::open(directory.path()).unwrap();
    let decoder = pretrained.load::<Flex>(&device, WeightForm::F32, |_| {}).unwrap();
    let ids: Vec<i64> = golden.cases.tokens.iter().map(|&id| id.into()).collect();
    let ids = Tensor::<Flex, 1, Int>::from_data(TensorData::new(ids, [golden.cases.tokens.len()]), &device);
    let hidden = decoder.forward_whole(decoder.embed(ids)).unwrap();
    let error = relative_error(&values(decoder.logits(hidden)), &golden.logits);
    assert!(error < 5e-5, "{name}: {error:e}");
}

fn renamed(name: impl Fn(&str) -> String) -> impl Fn(Tensors) -> Tensors {
    move |tensors| tensors.into_iter().map(|(old, stored)| (name(&old), stored)).collect()
}

fn extra(dtype: Dtype, shape: &[usize]) -> Stored {
    let bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    Stored { dtype, shape: shape.to_vec(), bytes }
}

#[test]
fn multimodal_gemma_3() {
    let nested = |text: Value| {
        json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": text, "vision_config": { "hidden_size": 8 },
        })
    };
    let vision = |mut tensors: Tensors, name: &str| {
        tensors.insert(name.to_owned(), extra(Dtype::BF16, &[4, 4]));
        tensors
    };
    // The published names, and those of transformers 5.
    check("gemma3", nested, |tensors| {
        let tensors = renamed(|name| format!("language_model.{name}"))(tensors);
        vision(tensors, "vision_tower.vision_model.embeddings.patch_embedding.weight")
    });
    check("gemma3", nested, |tensors| {
        let newer = |name: &str| match name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => name.to_owned(),
        };
        vision(renamed(newer)(tensors), "model.multi_modal_projector.mm_input_projection_weight")
    });
}

#[test]
fn without_the_prefix_of_the_whole_model() {
    let bare =
        |prefix: &'static str| renamed(move |name| name.strip_prefix(prefix).unwrap_or(name).to_owned());
    check("qwen3", |config| config, bare("model."));
    check("phi3", |config| config, bare("model."));
    check("mixtral", |config| config, bare("model."));
    check("gpt-neox", |config| config, bare("gpt_neox."));
    // GPT-2 as published on the hub, with its attention masks.
    check(
        "gpt2",
        |config| config,
        |tensors| {
            let mut tensors = bare("transformer.")(tensors);
            tensors.remove("lm_head.weight");
            for layer in 0..3 {
                tensors.insert(format!("h.{layer}.attn.bias"), extra(Dtype::U8, &[1, 1, 8, 8]));
                tensors.insert(format!("h.{layer}.attn.masked_bias"), extra(Dtype::F32, &[1]));
            }
            tensors
        },
    );
}

#[test]
fn another_name_of_the_head() {
    let head = renamed(|name| name.replace("embed_out", "lm_head"));
    check("gpt-neox-sequential", |config| config, head);
}

/// The layout that transformers 5 uses in memory, and writes on request.
#[test]
fn experts_in_one_stack() {
    let stacked = |maps: [&'static str; 3], router: &'static str, experts: usize| {
        move |mut tensors: Tensors| {
            for layer in 0..3 {
                let prefix = format!("model.layers.{layer}");
                let [gate, up, down] = maps;
                let old = |expert: usize, map: &str| {
                    let block = router.trim_end_matches(".gate.weight");
                    format!("{prefix}.{block}.experts.{expert}.{map}.weight")
                };
                let mut stack = |names: Vec<String>, new: &str, rows_of: usize| {
                    let parts: Vec<Stored> = names.iter().map(|name| tensors.remove(name).unwrap()).collect();
                    let shape = vec![experts, parts[0].shape[0] * rows_of, parts[0].shape[1]];
                    let bytes = parts.iter().flat_map(|part| part.bytes.clone()).collect();
                    let dtype = parts[0].dtype;
                    tensors.insert(format!("{prefix}.mlp.experts.{new}"), Stored { dtype, shape, bytes });
                };
                let both = (0..experts).flat_map(|expert| [old(expert, gate), old(expert, up)]).collect();
                stack(both, "gate_up_proj", 2);
                stack((0..experts).map(|expert| old(expert, down)).collect(), "down_proj", 1);
                let gate = tensors.remove(&format!("{prefix}.{router}")).unwrap();
                tensors.insert(format!("{prefix}.mlp.gate.weight"), gate);
            }
            tensors
        }
    };
    check("mixtral", |config| config, stacked(["w1", "w3", "w2"], "block_sparse_moe.gate.weight", 4));
    let own = ["gate_proj", "up_proj", "down_proj"];
    check("qwen3-moe", |config| config, stacked(own, "mlp.gate.weight", 4));
}

/// A config with a tied head next to a separate head: the separate head counts.
#[test]
fn a_head_that_differs_from_the_table_counts() {
    let tied = |mut config: Value| {
        config["tie_word_embeddings"] = true.into();
        config
    };
    check("qwen2-yarn", tied, |tensors| tensors);
}

/// A golden GGUF file with a changed value of one key.
fn patched(name: &str, key: &str, change: impl FnOnce(&mut [u8], usize)) -> (tempfile::TempDir, String) {
    let mut bytes = fs::read(golden_directory().join(format!("gguf/{name}.gguf"))).unwrap();
    // The length and text of the key; the type of the value follows.
    let text = [&(key.len() as u64).to_le_bytes()[..], key.as_bytes()].concat();
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    change(&mut bytes, at + text.len() + 4);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn gguf_files_of_other_models_are_refused() {
    let number = |value: u32| {
        move |bytes: &mut [u8], at: usize| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    let refused = |file: (tempfile::TempDir, String), parts: &[&str]| {
        let found = Pretrained::open(Path::new(&file.1));
        let error = match found.and_then(|found| found.parameters()) {
            Ok(_) => panic!("{parts:?} is not refused"),
            Err(error) => error.to_string(),
        };
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    };
    // Softmax over the chosen experts; and softmax for an architecture whose scores are sigmoids.
    for (name, architecture, function) in
        [("deepseek-v2", "deepseek2", 3), ("laguna", "laguna", 1), ("glm4-moe", "glm4moe", 1)]
    {
        let key = format!("{architecture}.expert_gating_func");
        refused(patched(name, &key, number(function)), &[&key, "not supported"]);
    }
    // A layer that the metadata does not count.
    let layers = Pretrained::open(&golden_directory().join("gguf/seed-oss.gguf")).unwrap();
    let layers = layers.architecture.config.layers.len() as u32;
    let file = patched("seed-oss", "seed_oss.block_count", number(layers - 1));
    refused(file, &[&format!("blk.{}", layers - 1), &format!("there are {} layers", layers - 1)]);
}
