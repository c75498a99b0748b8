//! The contents of a directory: its GGUF models, or why it holds no model that runs and what the user can do about
//! it.

use std::path::Path;

use moi_checkpoint::{BURNPACK_FILE, INDEX_FILE, PartName, SINGLE_FILE, shown};
use serde_json::Value;

use crate::{PretrainedError, directory};

/// The config file of an adapter.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Most file names that a message lists.
const NAMED: usize = 8;
/// The beginnings and endings of file names of unsupported weights, and the programs that these are for. The first
/// match counts.
const OTHER_WEIGHTS: &[(&str, &str, &str)] = &[
    ("", ".onnx", "ONNX"),
    ("", ".mlpackage", "Core ML"),
    ("", ".mlmodel", "Core ML"),
    ("", ".tflite", "TensorFlow Lite"),
    ("", ".litertlm", "LiteRT"),
    ("", ".task", "MediaPipe"),
    ("", ".h5", "TensorFlow"),
    ("", ".msgpack", "Flax"),
    ("", ".llamafile", "llamafile"),
    ("", ".engine", "TensorRT"),
    ("", ".nemo", "NeMo"),
    ("openvino_", ".bin", "OpenVINO"),
    ("params_shard_", ".bin", "MLC"),
    ("model.bin", ".bin", "CTranslate2"),
    ("", ".npz", "NumPy or MLX"),
    ("", ".bin", "PyTorch or GGML"),
    ("", ".pth", "PyTorch"),
    ("", ".pt", "PyTorch"),
    ("", ".ckpt", "PyTorch"),
];

/// Endings of the names of unfinished downloads.
const UNFINISHED: &[&str] = &[".part", ".partial", ".crdownload", ".incomplete", ".download", ".aria2"];

/// Files that training leaves beside the weights.
const TRAINING: &[&str] =
    &["training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"];

/// The names of a directory's entries, in order.
pub(crate) struct Contents<'a> {
    directory: &'a Path,
    names: Vec<String>,
}

impl<'a> Contents<'a> {
    /// Lists a directory.
    pub(crate) fn of(directory: &'a Path) -> Result<Self, PretrainedError> {
        let wrong = |error: std::io::Error| PretrainedError::File {
            path: directory.to_owned(),
            what: error.to_string(),
        };
        let mut names: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(wrong)? {
            names.push(entry.map_err(wrong)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(Self { directory, names })
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn ending(&self, ending: &str) -> Vec<&str> {
        self.names.iter().map(String::as_str).filter(|name| name.ends_with(ending)).collect()
    }

    /// Whether the directory has weights that run together with a `config.json`.
    pub(crate) fn has_weights(&self) -> bool {
        let known = [SINGLE_FILE, INDEX_FILE, BURNPACK_FILE];
        known.iter().any(|name| self.has(name)) || !self.shards().is_empty()
    }

    fn shards(&self) -> Vec<&str> {
        let is_shard = |name: &&str| PartName::of(Path::new(name), "safetensors").is_some();
        self.ending(".safetensors").into_iter().filter(is_shard).collect()
    }

    /// The GGUF models, each by the name of its file or of one of its parts. Image projectors and importance matrices
    /// are also GGUF files, and left out.
    pub(crate) fn gguf_models(&self) -> Vec<&str> {
        let mut parts: Vec<PartName> = Vec::new();
        let mut models: Vec<&str> = Vec::new();
        for name in self.names.iter().map(String::as_str) {
            let lower = name.to_lowercase();
            if !lower.ends_with(".gguf") {
                continue;
            }
            if lower.contains("mmproj") || lower.contains("imatrix") {
                continue;
            }
            if let Some(part) = PartName::of(Path::new(name), "gguf") {
                if parts.iter().any(|known| known.is_beside(&part)) {
                    continue;
                }
                parts.push(part);
            }
            models.push(name);
        }
        models
    }

    /// The message why the directory holds no model that runs.
    pub(crate) fn refusal(&self) -> String {
        if self.has(ADAPTER_CONFIG) {
            return self.adapter();
        }
        if self.has("model_index.json") {
            return "it is a diffusion pipeline (model_index.json), no language model".to_owned();
        }
        if self.has_weights() {
            let weights: Vec<&str> =
                self.names.iter().map(String::as_str).filter(|name| is_weights(name)).collect();
            return format!(
                "it holds {}, but no config.json, which says what model they are of; fetch that file too",
                list(&weights)
            );
        }
        let found = self.snapshot().or_else(|| self.unfinished()).or_else(|| self.other_weights());
        found.unwrap_or_else(|| self.no_weights())
    }

    /// The message that names the path to use instead of a repository's directory in the hub's cache.
    fn snapshot(&self) -> Option<String> {
        if !self.has("snapshots") || !(self.has("blobs") || self.has("refs")) {
            return None;
        }
        let snapshots = self.directory.join("snapshots");
        let listed: Vec<String> = Contents::of(&snapshots).ok()?.names;
        let main = std::fs::read_to_string(self.directory.join("refs").join("main")).unwrap_or_default();
        let commit = listed.iter().find(|commit| commit.as_str() == main.trim()).or(listed.first())?;
        let path = snapshots.join(commit).display().to_string();
        Some(format!(
            "it is a repository in the hub's cache; give the files of a commit in it: {}",
            shown(&path)
        ))
    }

    /// The message about an unfinished download of weights.
    fn unfinished(&self) -> Option<String> {
        let is_unfinished = |name: &&str| UNFINISHED.iter().any(|ending| name.ends_with(ending));
        let names: Vec<&str> = self.names.iter().map(String::as_str).filter(is_unfinished).collect();
        (!names.is_empty()).then(|| {
            format!(
                "it holds {}, which a download that has not ended leaves; fetch the model again",
                list(&names)
            )
        })
    }

    /// The message about weights with other names, or for other programs.
    fn other_weights(&self) -> Option<String> {
        const LOOK: &str = "look for a copy with config.json and model.safetensors, or a .gguf file";
        let pytorch: Vec<&str> =
            self.ending(".bin").into_iter().filter(|name| name.starts_with("pytorch_model")).collect();
        if !pytorch.is_empty() {
            let whole = self.has("pytorch_model.bin") || self.has("pytorch_model.bin.index.json");
            return Some(match (self.has(directory::CONFIG), whole) {
                (true, true) => "its weights are PyTorch files; convert them first (moi convert)".to_owned(),
                (true, false) => format!(
                    "it holds {}, but no pytorch_model.bin.index.json, which says what is in each; fetch that file too, \
                     then convert them (moi convert)",
                    list(&pytorch)
                ),
                (false, _) => {
                    format!(
                        "it holds {}, but no config.json, which says what model they are of",
                        list(&pytorch)
                    )
                }
            });
        }
        let consolidated: Vec<&str> =
            self.names.iter().map(String::as_str).filter(|name| name.starts_with("consolidated")).collect();
        if !consolidated.is_empty() {
            return Some(format!(
                "it holds {} in the layout of the model's makers; {LOOK}",
                list(&consolidated)
            ));
        }
        let safetensors = self.ending(".safetensors");
        if !safetensors.is_empty() {
            let config = if self.has(directory::CONFIG) { "" } else { " and no config.json" };
            return Some(format!(
                "it holds {}, but no {SINGLE_FILE}{config}; give the file that name if its tensors are named as in \
                 transformers, or {LOOK}",
                list(&safetensors)
            ));
        }
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let nested: Vec<String> = self.nested_names();
        let nested: Vec<&str> = nested.iter().map(String::as_str).collect();
        let (program, others) = of_other_program(&names).or_else(|| of_other_program(&nested))?;
        Some(format!("it holds weights for {program} ({}), which do not run here; {LOOK}", list(&others)))
    }

    /// The files in the immediate subdirectories, with their paths relative to this directory; empty if one of the
    /// subdirectories holds a model.
    fn nested_names(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for name in &self.names {
            let inside = self.directory.join(name);
            if inside.is_dir()
                && let Ok(inside) = Contents::of(&inside)
            {
                if inside.is_model() {
                    return Vec::new();
                }
                found.extend(inside.names.iter().map(|file| format!("{name}/{file}")));
            }
        }
        found
    }

    /// Whether the directory looks like a model, judged by file names only.
    fn is_model(&self) -> bool {
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        // PyTorch's weights count because they can be converted.
        let can_run = self.has_weights() || names.iter().any(|name| name.starts_with("pytorch_model"));
        let is_of_other_program = || !can_run && of_other_program(&names).is_some();
        !self.gguf_models().is_empty() || (self.has(directory::CONFIG) && !is_of_other_program())
    }

    /// The message about a directory without weights.
    fn no_weights(&self) -> String {
        let nested = self.names.iter().find(|name| {
            let inside = self.directory.join(name);
            inside.is_dir() && Contents::of(&inside).is_ok_and(|inside| inside.is_model())
        });
        let nested = match nested {
            Some(name) => format!("; {} in it holds a model", shown(name)),
            None => String::new(),
        };
        if self.has(directory::CONFIG) {
            return format!(
                "it holds config.json, but no weights ({SINGLE_FILE}, or its shards with {INDEX_FILE}); fetch them \
                 too{nested}"
            );
        }
        let tokenizers: Vec<&str> =
            self.names.iter().map(String::as_str).filter(|name| is_text_file(name)).collect();
        let only = match tokenizers.is_empty() {
            true => String::new(),
            false => {
                format!(", but files of a tokenizer ({}); fetch the rest of the model too", list(&tokenizers))
            }
        };
        format!("the directory holds neither config.json nor a .gguf file{only}{nested}")
    }

    /// The message about an adapter.
    fn adapter(&self) -> String {
        let config: Value = directory::read(&self.directory.join(ADAPTER_CONFIG)).unwrap_or_default();
        let field = |name: &str| config.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let base = field("base_model_name_or_path").or_else(|| field("model")).map(shown);
        let of = base.as_ref().map(|base| format!(" of {base}")).unwrap_or_default();
        let base = base.unwrap_or_else(|| "BASE".to_owned());
        // Forward slashes are used because Python reads a backslash as an escape.
        let path = self.directory.display().to_string().replace('\\', "/");
        if self.has("adapters.safetensors") {
            return format!(
                "it holds a LoRA adapter{of}, made by MLX, and no whole model; merge it into its base model first: \
                 mlx_lm.fuse --model {base} --adapter-path {path} --save-path DIR, then --model DIR"
            );
        }
        let kind = match field("peft_type") {
            Some(kind) if !kind.eq_ignore_ascii_case("lora") => format!("an adapter ({})", shown(kind)),
            _ => "a LoRA adapter".to_owned(),
        };
        format!(
            "it holds {kind}{of}, no whole model; merge it into its base model first, in Python: \
             PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"{base}\"), \
             \"{path}\").merge_and_unload().save_pretrained(\"DIR\"), save the base's tokenizer there too, then --model DIR"
        )
    }
}

/// The program for which some of these files are weights, and those files.
fn of_other_program<'a>(names: &[&'a str]) -> Option<(&'static str, Vec<&'a str>)> {
    OTHER_WEIGHTS.iter().find_map(|&(start, ending, program)| {
        let fits = |path: &&str| {
            let name: &str = path.rsplit('/').next().unwrap_or(path);
            name.starts_with(start) && name.ends_with(ending) && !TRAINING.contains(&name)
        };
        let others: Vec<&'a str> = names.iter().copied().filter(fits).collect();
        (!others.is_empty()).then_some((program, others))
    })
}

fn is_weights(name: &str) -> bool {
    [INDEX_FILE, BURNPACK_FILE].contains(&name) || name.ends_with(".safetensors")
}

/// Whether a file belongs to a tokenizer or chat template and holds no weights.
fn is_text_file(name: &str) -> bool {
    let kinds = ["tokenizer", "vocab", "merges.txt", "special_tokens_map.json", "chat_template", "tekken"];
    kinds.iter().any(|kind| name.starts_with(kind))
}

/// Formats names as a list in a message.
pub(crate) fn list(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| shown(name)).collect();
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
