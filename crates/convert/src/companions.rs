//! Writes the files beside the weights: config, tokenizer, chat template, licence.

use std::{fs, path::Path};

use moi_checkpoint::{gguf::Gguf, shown};
use moi_models::{ExpertStacks, FeedForwardKind, LayerConfig};
use moi_pretrained::{is_quantisation_file, without_quantisation};
use serde_json::{Value, json};

use crate::{
    ConvertError, Options, Target,
    source::{Files, Source, is_weights},
    tokenizer,
};

/// Writes these files; returns notes on what could not be carried over.
pub(crate) fn write(source: &Source, to: &Path, options: &Options) -> Result<Vec<String>, ConvertError> {
    let mut notes = Vec::new();
    let from = match &source.files {
        Files::Directory(from) => from.clone(),
        Files::Gguf(_) => source.pretrained.path.parent().map(Path::to_owned).unwrap_or_default(),
    };
    // A GGUF file contains config and tokenizer itself, and of the files beside a GGUF file only the licence belongs
    // to it.
    let licences_only = options.to == Target::Gguf || matches!(source.files, Files::Gguf(_));
    notes.extend(copy(&from, to, |name| {
        match licences_only {
            true => is_licence(name),
            // The written weights are no longer quantised.
            false => !is_weights(name) && name != CONFIG && !is_quantisation_file(name),
        }
    })?);
    if options.to == Target::Gguf {
        return Ok(notes);
    }
    let mut config = without_quantisation(&source.config);
    if let Files::Gguf(file) = &source.files {
        complete(&mut config, file);
        notes.extend(tokenizer::from_gguf(source, file, to)?);
        if config.pointer("/rope_parameters/rope_type").and_then(Value::as_str) == Some("factors") {
            let note =
                "the file's rotary frequencies are no scaling that transformers has; moi alone reads them";
            notes.push(note.to_owned());
        }
    }
    let architecture = &source.pretrained.architecture;
    let is_beside =
        |layer: &LayerConfig| matches!(layer.feed_forward, Some(FeedForwardKind::MlpAndExperts(..)));
    let has_stacks = architecture.names.stacks != ExpertStacks::ByOutput
        || architecture.config.layers.iter().any(is_beside);
    if has_stacks && options.to == Target::Safetensors {
        let note = "the experts of a layer are written one by one, where transformers has them in one tensor for this model; \
                    moi alone reads them";
        notes.push(note.to_owned());
    }
    if let (Some(dtype), Some(fields)) = (options.dtype, config.as_object_mut()) {
        let name = match dtype {
            moi_formats::FloatType::F32 => "float32",
            moi_formats::FloatType::F16 => "float16",
            moi_formats::FloatType::BF16 => "bfloat16",
        };
        // Older readers only know the second name.
        fields.insert("dtype".into(), name.into());
        fields.insert("torch_dtype".into(), name.into());
    }
    write_json(&to.join(CONFIG), &config)?;
    Ok(notes)
}

const CONFIG: &str = "config.json";

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<(), ConvertError> {
    fs::write(path, format!("{value:#}\n")).map_err(|error| ConvertError::io(path, error))
}

fn is_licence(name: &str) -> bool {
    let upper = name.to_uppercase();
    ["LICEN", "NOTICE", "USE_POLICY", "COPYING"].iter().any(|start| upper.starts_with(start))
}

/// Copies the wanted files. Links that lead out of the directory are not followed but noted, because their targets
/// may not be meant for those who get the copy.
fn copy(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, ConvertError> {
    let from = if from.as_os_str().is_empty() { Path::new(".") } else { from };
    let io = |error| ConvertError::io(from, error);
    let mut notes = Vec::new();
    let home = fs::canonicalize(from).map_err(io)?;
    for entry in fs::read_dir(from).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !path.is_file() || name.starts_with('.') || !wanted(&name) {
            continue;
        }
        let failed = |error| ConvertError::io(&path, error);
        let real = fs::canonicalize(&path).map_err(failed)?;
        if real.starts_with(&home) || is_blob(&real) {
            fs::copy(&real, to.join(&name)).map_err(failed)?;
        } else {
            notes.push(format!("{} is a link to another place and was not copied", shown(&name)));
        }
    }
    Ok(notes)
}

/// Whether a path is a blob in the hub's cache. Links to blobs are followed, because cached snapshots consist of
/// them, and downloads into a local directory once did.
fn is_blob(path: &Path) -> bool {
    let mut up = path.ancestors().skip(1);
    up.next().is_some_and(|up| up.ends_with("blobs"))
        && up
            .next()
            .and_then(Path::file_name)
            .is_some_and(|name| name.to_string_lossy().starts_with("models--"))
}

/// Adds the config fields that transformers needs besides those that the model is built from.
fn complete(config: &mut Value, file: &Gguf) {
    let class = match config.get("model_type").and_then(Value::as_str) {
        Some("llama") => "LlamaForCausalLM",
        Some("mixtral") => "MixtralForCausalLM",
        Some("qwen2") => "Qwen2ForCausalLM",
        Some("qwen3") => "Qwen3ForCausalLM",
        Some("qwen3_moe") => "Qwen3MoeForCausalLM",
        Some("gemma") => "GemmaForCausalLM",
        Some("gemma2") => "Gemma2ForCausalLM",
        Some("gemma3_text") => "Gemma3ForCausalLM",
        Some("phi3") => "Phi3ForCausalLM",
        Some("olmo2") => "Olmo2ForCausalLM",
        Some("granite") => "GraniteForCausalLM",
        Some("gpt2") => "GPT2LMHeadModel",
        Some("gpt_neox") => "GPTNeoXForCausalLM",
        Some("nemotron-nas") => "DeciLMForCausalLM",
        _ => return,
    };
    config["architectures"] = json!([class]);
    for (field, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        match file.metadata.usize(&format!("tokenizer.ggml.{key}_token_id")) {
            Some(id) => config[field] = json!(id),
            // Some classes have a default id that is beyond a small vocabulary.
            None if key == "padding" => config[field] = json!(null),
            None => {}
        }
    }
}
