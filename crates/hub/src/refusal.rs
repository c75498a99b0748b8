//! Explains why a repository has no model that runs, before its weights are downloaded: what it has, and what the
//! user can do.

use moi_files::PartName;
use serde_json::Value;

use crate::select::CONFIG;

/// The config file of a LoRA adapter.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Most file names that a message lists.
const NAMED: usize = 3;
/// Most names that a message offers as choices, or files to download.
const MAX_NAMES: usize = 20;
/// Endings of other programs' weights, and the programs.
const OTHER_WEIGHTS: &[(&str, &str)] = &[
    (".onnx", "ONNX"),
    (".mlmodel", "Core ML"),
    (".mlpackage", "Core ML"),
    (".tflite", "TensorFlow Lite"),
    (".litertlm", "LiteRT"),
    (".task", "MediaPipe"),
    (".h5", "TensorFlow"),
    (".msgpack", "Flax"),
    (".ot", "rust-bert"),
    (".llamafile", "llamafile"),
    (".engine", "TensorRT"),
    (".nemo", "NeMo"),
    (".bin", "PyTorch or GGML"),
    (".pth", "PyTorch"),
    (".pt", "PyTorch"),
    (".ckpt", "PyTorch"),
];

/// The message that the files make no model.
pub(crate) fn no_model(files: &[String]) -> String {
    let has = |name: &str| files.iter().any(|file| file == name);
    if has("model_index.json") {
        return "it is a diffusion pipeline (model_index.json), no language model".to_owned();
    }
    let safetensors = with_ending(files, ".safetensors");
    let is_shard = |file: &&String| PartName::in_text(file, "safetensors").is_some();
    let shards: Vec<&String> = safetensors.iter().copied().filter(is_shard).collect();
    if !shards.is_empty() {
        let lacking = match has(CONFIG) {
            true => "neither model.safetensors.index.json nor all shards of one model",
            false => "no config.json beside them",
        };
        return format!("it has the shards {}, but {lacking}; use a whole copy of the model", list(&shards));
    }
    if !safetensors.is_empty() {
        let (found, expected) = match has(CONFIG) {
            true => (list(&safetensors), "model.safetensors or model.safetensors.index.json"),
            false => (list(&safetensors), "config.json beside model.safetensors"),
        };
        return format!(
            "it has {found}, but not {expected}; look for a copy in the layout of transformers, or a .gguf file"
        );
    }
    for (ending, format) in OTHER_WEIGHTS {
        let others = with_ending(files, ending);
        if !others.is_empty() {
            return format!(
                "it has weights for {format} alone ({}), which do not run here; look for a copy with model.safetensors or \
                 a .gguf file",
                list(&others)
            );
        }
    }
    "neither config.json with model.safetensors nor a .gguf file".to_owned()
}

fn with_ending<'a>(files: &'a [String], ending: &str) -> Vec<&'a String> {
    files.iter().filter(|file| file.ends_with(ending)).collect()
}

fn list(files: &[&String]) -> String {
    let names: Vec<&str> = files.iter().take(NAMED).map(|file| file.as_str()).collect();
    let more = if files.len() > NAMED { ", ..." } else { "" };
    format!("{}{more}", names.join(", "))
}

/// The first names, and the number of the others, because a repository may list any number. Names that are not shown
/// are not computed.
pub(crate) fn first_names(mut names: impl ExactSizeIterator<Item = String>) -> String {
    let first: Vec<String> = names.by_ref().take(MAX_NAMES).collect();
    let first = first.join(", ");
    match names.len() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// The message about a repository that only has PyTorch's weights.
pub(crate) fn only_pytorch(repository: &str) -> String {
    format!(
        "it has PyTorch's weights alone, which have to be converted before they run: `moi convert {repository} --output \
         DIR`, then --model DIR"
    )
}

/// Whether the files are an adapter without its base model.
pub(crate) fn is_adapter(files: &[String]) -> bool {
    let has = |name: &str| files.iter().any(|file| file == name);
    let weights = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
    let has_gguf = files.iter().any(|file| file.ends_with(".gguf"));
    has(ADAPTER_CONFIG) && !has_gguf && !(has(CONFIG) && weights.iter().any(|name| has(name)))
}

/// The message about an adapter with this config.
pub(crate) fn adapter(repository: &str, config: &[u8]) -> String {
    let config: Option<Value> = moi_files::json(config).ok();
    let field = |name: &str| config.as_ref().and_then(|config| config.get(name)).and_then(Value::as_str);
    let base = field("base_model_name_or_path").filter(|base| !base.is_empty());
    let of = base.map(|base| format!(" of {base}")).unwrap_or_default();
    let kind = match field("peft_type") {
        Some(kind) if !kind.eq_ignore_ascii_case("lora") => format!("an adapter ({kind})"),
        _ => "a LoRA adapter".to_owned(),
    };
    let base = base.unwrap_or("BASE");
    format!(
        "it is {kind}{of}, no whole model; merge it into its base model first, in Python: \
         PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"{base}\"), \
         \"{repository}\").merge_and_unload().save_pretrained(\"DIR\"), save the base's tokenizer there too, then --model DIR"
    )
}

/// The message that the weights of this config.json cannot run because of their quantisation; `None` if they are not
/// quantised.
pub(crate) fn quantised(config: &[u8]) -> Option<String> {
    let config: Value = moi_files::json(config).ok()?;
    let given = |name: &str| config.get(name).filter(|value| !value.is_null());
    let method = match (given("quantization_config"), given("quantization")) {
        (Some(quantised), _) => match quantised.get("quant_method").and_then(Value::as_str) {
            Some(method) => method.to_owned(),
            // MLX writes the same description into both fields.
            None if given("quantization").is_some() => "MLX".to_owned(),
            None => "an unnamed method".to_owned(),
        },
        (None, Some(quantised)) if quantised.get("bits").is_some() => "MLX".to_owned(),
        _ => return None,
    };
    Some(format!(
        "its weights are quantised by {method} (quantization_config of config.json), which does not run here; look for a \
         copy in bfloat16, or a .gguf file"
    ))
}
