//! Selects the files of a repository that make a model: a directory of safetensors, one GGUF file, or all parts of a
//! split one.

use std::collections::{BTreeMap, BTreeSet};

use moi_files::PartName;

use crate::{
    ModelReference,
    gguf_name::{GgufModel, gguf_models, named_part},
    refusal,
};

pub(crate) const CONFIG: &str = "config.json";
/// Small files beside config and weights, as far as the repository has them.
const SMALL_FILES: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// Files from which a tokenizer is made, or that identify it, if there is no `tokenizer.json`.
const TOKENIZER_FILES: &[&str] = &[
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tekken.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
];
const TIKTOKEN: &str = ".tiktoken";
/// The beginnings of the names of licence files.
const LICENCES: &[&str] = &["LICEN", "NOTICE", "USE_POLICY", "COPYING"];
/// Weight files, in the order in which they are searched.
const WEIGHTS: &[&str] = &["model.safetensors", "model.safetensors.index.json"];
/// PyTorch's weight files, which must be converted before they run.
const PYTORCH_WEIGHTS: &[&str] = &["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The files to download, with the model's own file or its config first; safetensors take precedence over GGUF.
///
/// # Errors
/// If there is no model, or more than one; the text says what there is and what to do.
pub(crate) fn choose(
    files: &[String],
    reference: &ModelReference,
    for_conversion: bool,
) -> Result<Vec<String>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if let Some(file) = &reference.file {
        return choose_file(files, file, reference);
    }
    let models = gguf_models(files);
    if let Some(quant) = &reference.quant {
        return choose_quant(&models, quant, reference);
    }
    let found = |names: &[&'static str]| -> Option<&'static str> {
        names.iter().copied().find(|name: &&'static str| has(name))
    };
    let weights: Vec<String> = match (found(WEIGHTS), shards_without_index(files)) {
        (Some(weights), _) => vec![weights.to_owned()],
        (None, Some(shards)) => shards,
        // GGUF takes precedence over PyTorch's weights, because it runs without conversion.
        (None, None) if models.is_empty() => found(PYTORCH_WEIGHTS).map(str::to_owned).into_iter().collect(),
        (None, None) => Vec::new(),
    };
    if let (true, Some(first)) = (has(CONFIG), weights.first()) {
        if PYTORCH_WEIGHTS.contains(&first.as_str()) && !for_conversion {
            return Err(refusal::only_pytorch(&reference.repository));
        }
        let is_licence = |file: &&String| {
            let name = file.to_uppercase();
            !file.contains('/') && LICENCES.iter().any(|start| name.starts_with(start))
        };
        let small = SMALL_FILES.iter().copied().filter(|name| has(name)).map(str::to_owned);
        // This is looked up once, because a listing may be long.
        let has_tokenizer = has("tokenizer.json");
        let is_of_tokenizer = |file: &&String| {
            let is_tiktoken = !file.contains('/') && file.ends_with(TIKTOKEN);
            !has_tokenizer && (TOKENIZER_FILES.contains(&file.as_str()) || is_tiktoken)
        };
        let of_tokenizer = files.iter().filter(is_of_tokenizer).cloned();
        let licences = files.iter().filter(is_licence).cloned();
        let chosen = [CONFIG.to_owned()].into_iter().chain(small).chain(of_tokenizer).chain(licences);
        return Ok(chosen.chain(weights).collect());
    }
    if models.is_empty() {
        return Err(refusal::no_model(files));
    }
    let all: Vec<&GgufModel> = models.iter().collect();
    single(&all, &models, reference, "it has several .gguf files")
}

/// The shards of the only complete model without an index; if there are several models, the one with transformers'
/// usual file name counts. The same rule applies when a directory is opened.
fn shards_without_index(files: &[String]) -> Option<Vec<String>> {
    // The shards of each model, by name prefix and number of shards.
    let mut models: BTreeMap<(String, usize), BTreeSet<&String>> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.contains('/')) {
        if let Some(part) = PartName::in_text(file, "safetensors") {
            models.entry((part.prefix, part.count)).or_default().insert(file);
        }
    }
    if models.len() > 1 {
        models.retain(|(prefix, _), _| prefix == "model");
    }
    let ((_, count), shards) = models.pop_first()?;
    (models.is_empty() && shards.len() == count).then(|| shards.into_iter().cloned().collect())
}

/// The files for a requested file: the file itself, all parts if it is a part of a split model, or the model in a
/// folder.
fn choose_file(files: &[String], file: &str, reference: &ModelReference) -> Result<Vec<String>, String> {
    let is_there = files.iter().any(|known| known == file);
    if let (true, Some(model)) = (is_there, named_part(files, file)) {
        return model.whole();
    }
    if is_there {
        return Ok(vec![file.to_owned()]);
    }
    let models = gguf_models(files);
    let folder = format!("{file}/");
    let inside: Vec<&GgufModel> = models.iter().filter(|model| model.first().starts_with(&folder)).collect();
    match inside.is_empty() {
        false => single(&inside, &models, reference, &format!("{folder} has several .gguf files")),
        true => {
            let all: Vec<&GgufModel> = models.iter().collect();
            Err(format!("it has no file {file}{}", instead(&all, &models, reference)))
        }
    }
}

/// The files of the model whose name contains a quantisation.
fn choose_quant(
    models: &[GgufModel],
    quant: &str,
    reference: &ModelReference,
) -> Result<Vec<String>, String> {
    if models.is_empty() {
        let repository = &reference.repository;
        return Err(format!("it has no .gguf file, so no `{quant}`; write {repository} alone"));
    }
    let fitting: Vec<&GgufModel> = models.iter().filter(|model| model.has_quant(quant)).collect();
    if fitting.is_empty() {
        let all: Vec<&GgufModel> = models.iter().collect();
        return Err(format!("no .gguf file fits `{quant}`{}", instead(&all, models, reference)));
    }
    single(&fitting, models, reference, &format!("several .gguf files fit `{quant}`"))
}

/// The files of the only model among the candidates.
fn single(
    candidates: &[&GgufModel],
    all: &[GgufModel],
    reference: &ModelReference,
    several: &str,
) -> Result<Vec<String>, String> {
    match candidates {
        [model] => model.whole(),
        _ => Err(format!("{several}{}", instead(candidates, all, reference))),
    }
}

/// The message that lists what to write for each candidate: its quantisation if no other model has it, else its file.
fn instead(candidates: &[&GgufModel], all: &[GgufModel], reference: &ModelReference) -> String {
    if candidates.is_empty() {
        return String::new();
    }
    let is_unique = |quant: &&str| all.iter().filter(|model| model.has_quant(quant)).take(2).count() == 1;
    let written = |model: &&GgufModel| match model.quant().filter(is_unique) {
        Some(quant) => reference.with_quant(quant),
        None => reference.with_file(model.first()),
    };
    // Only the names that are shown are computed, because each of them is searched in all models.
    format!("; write one of: {}", refusal::first_names(candidates.iter().map(written)))
}
