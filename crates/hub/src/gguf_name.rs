//! Parses the names of GGUF files: their quantisation, and which files are parts of one model.

use std::collections::{BTreeSet, HashMap, hash_map};

use moi_files::PartName;

/// A GGUF file, or the parts of a split model.
#[derive(Clone, Debug)]
pub(crate) struct GgufModel {
    /// The file to open, which is the first part of a split model.
    first: String,
    /// The path without its extension and part number, in capitals, in which a quantisation is searched. It is stored
    /// because a message about many models searches each of them several times.
    stem: String,
    split: Option<Split>,
}

/// The parts of a split model. Only parts that the repository lists are kept, because a single name can claim 99,999
/// others.
#[derive(Clone, Debug)]
struct Split {
    /// The name of one part, from which the names of the others follow.
    name: PartName,
    /// The numbers of the parts that the repository lists. A set, because it may list a file twice.
    listed: BTreeSet<usize>,
}

impl GgufModel {
    /// The model of a file, or the split model that the file is a part of; no part counts as listed yet.
    fn new(file: &str) -> Self {
        match PartName::in_text(file, "gguf") {
            Some(name) => {
                let (first, stem) = (name.part(1), name.prefix.to_ascii_uppercase());
                Self { first, stem, split: Some(Split { name, listed: BTreeSet::new() }) }
            }
            None => {
                let stem = file.strip_suffix(".gguf").unwrap_or(file).to_ascii_uppercase();
                Self { first: file.to_owned(), stem, split: None }
            }
        }
    }

    /// The file to open, which is the first part of a split model.
    pub(crate) fn first(&self) -> &str {
        &self.first
    }

    /// All files of the model.
    ///
    /// # Errors
    /// If the repository lacks parts, or there are too many.
    pub(crate) fn whole(&self) -> Result<Vec<String>, String> {
        let Some(Split { name, listed }) = &self.split else { return Ok(vec![self.first.clone()]) };
        let (first, count) = (&self.first, name.count);
        if count > PartName::MAX_COUNT {
            return Err(format!(
                "{first} is the first of {count} parts, expected {} at most",
                PartName::MAX_COUNT
            ));
        }
        match count - listed.len() {
            0 => Ok(name.parts().collect()),
            missing => {
                Err(format!("{first} is the first of {count} parts, {missing} of which are not there"))
            }
        }
    }

    /// Whether the name contains a quantisation as a separate part: `Q4_K` is not in `Q4_K_M`, nor `Q4_0` in `IQ4_0`.
    pub(crate) fn has_quant(&self, quant: &str) -> bool {
        // The search's preparation takes time in proportion to the searched text, which may be very long.
        if quant.len() > self.stem.len() {
            return false;
        }
        let (stem, quant) = (self.stem.as_str(), quant.to_ascii_uppercase());
        stem.match_indices(quant.as_str()).any(|(at, _)| {
            let before = stem[..at].chars().next_back();
            let after = stem[at + quant.len()..].chars().next();
            let goes_on = after.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !goes_on && !before.is_some_and(char::is_alphanumeric)
        })
    }

    /// The quantisation in the model's name, in capitals.
    pub(crate) fn quant(&self) -> Option<&str> {
        self.stem.rsplit(['-', '.', '/']).find(|part| is_quant(part))
    }
}

/// Whether a part of a name is llama.cpp's name of a quantisation or a floating-point type.
fn is_quant(part: &str) -> bool {
    let number = part.trim_start_matches(['I', 'T']).strip_prefix('Q');
    number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
        || ["F16", "FP16", "BF16", "F32", "FP32"].contains(&part)
        || part.starts_with("MXFP4")
}

/// The models among the files of a repository, in the order in which their files are first listed.
pub(crate) fn gguf_models(files: &[String]) -> Vec<GgufModel> {
    // The index of each model in `models`, by the file to open.
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut models: Vec<GgufModel> = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".gguf") && is_model(file)) {
        let model = GgufModel::new(file);
        let number: Option<usize> = model.split.as_ref().map(|split| split.name.number);
        let place: usize = match places.entry(model.first.clone()) {
            hash_map::Entry::Occupied(known) => *known.get(),
            hash_map::Entry::Vacant(free) => {
                models.push(model);
                *free.insert(models.len() - 1)
            }
        };
        if let (Some(number), Some(split)) = (number, &mut models[place].split) {
            split.listed.insert(number);
        }
    }
    models
}

/// Whether a GGUF file is a model; image projectors and importance matrices are GGUF files, too.
fn is_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    !name.contains("mmproj") && !name.contains("imatrix")
}

/// The split model that a file is a part of; `None` if the file is no part.
pub(crate) fn named_part(files: &[String], file: &str) -> Option<GgufModel> {
    let mut model = GgufModel::new(file);
    let split: &mut Split = model.split.as_mut()?;
    for other in files.iter().filter_map(|other| PartName::in_text(other, "gguf")) {
        if other.is_beside(&split.name) {
            split.listed.insert(other.number);
        }
    }
    Some(model)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    fn models(files: &[&str]) -> Vec<GgufModel> {
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        gguf_models(&files)
    }

    #[test]
    fn quantisations_in_names() {
        for (file, quant, other) in [
            ("Model-7B.Q4_K_M.gguf", "q4_k_m", "Q4_K"),
            ("model-7b-IQ4_XS.gguf", "IQ4_XS", "Q4_XS"),
            ("model-BF16.gguf", "bf16", "F16"),
            ("model_q8_0.gguf", "Q8_0", "8_0x"),
            ("Q4_K_M/model-00001-of-00001.gguf", "Q4_K_M", "00001"),
            ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL", "K_X"),
            ("model-Q4_0_4_4.gguf", "Q4_0_4_4", "Q4_0"),
            ("model-MXFP4_MOE.gguf", "mxfp4_moe", "MXFP4"),
            ("model-TQ1_0.gguf", "TQ1_0", "Q1_0"),
        ] {
            let found = models(&[file]);
            let [model] = &found[..] else { unreachable!("{file} is one model") };
            assert!(model.has_quant(quant), "{file} {quant}");
            assert!(!model.has_quant(other), "{file} {other}");
        }
        let told = |file: &str| models(&[file])[0].quant().map(str::to_owned);
        assert_eq!(told("Model-7B.Q4_K_M.gguf").as_deref(), Some("Q4_K_M"));
        assert_eq!(told("qwen2-0_5b-instruct-fp16.gguf").as_deref(), Some("FP16"));
        assert_eq!(told("BF16/qwen-00001-of-00001.gguf").as_deref(), Some("BF16"));
        assert_eq!(told("Qwen2-model.gguf"), None);
    }

    #[test]
    fn parts_are_one_model() {
        let found = models(&["b-00002-of-00002.gguf", "mmproj-F16.gguf", "b-00001-of-00002.gguf", "a.gguf"]);
        let firsts: Vec<&str> = found.iter().map(GgufModel::first).collect();
        assert_eq!(firsts, ["b-00001-of-00002.gguf", "a.gguf"]);
        assert_eq!(found[0].whole().unwrap(), ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]);
        let lacking = models(&["b-00002-of-00003.gguf"])[0].whole().unwrap_err();
        assert!(lacking.contains("first of 3 parts, 2 of which are not there"), "{lacking}");
    }

    /// A name may claim any number of parts, and a listing may have many such names.
    #[test]
    fn parts_that_are_not_listed_take_no_memory() {
        let files: Vec<String> = (0..20_000).map(|i| format!("{i}-00001-of-99999.gguf")).collect();
        let found = gguf_models(&files);
        assert_eq!(found.len(), files.len());
        let too_many = found[7].whole().unwrap_err();
        assert_eq!(too_many, "7-00001-of-99999.gguf is the first of 99999 parts, expected 1000 at most");
        assert_eq!(named_part(&files, &files[7]).unwrap().whole().unwrap_err(), too_many);
        // A file that is listed twice counts as one part.
        let twice = models(&["a-00001-of-00002.gguf", "a-00001-of-00002.gguf"]);
        assert_eq!(twice.len(), 1);
        assert!(twice[0].whole().unwrap_err().contains("1 of which are not there"));
        // Files in different folders belong to different models.
        let folders = models(&["x/a-00001-of-00002.gguf", "y/a-00002-of-00002.gguf"]);
        let firsts: Vec<&str> = folders.iter().map(GgufModel::first).collect();
        assert_eq!(firsts, ["x/a-00001-of-00002.gguf", "y/a-00001-of-00002.gguf"]);
    }
}
