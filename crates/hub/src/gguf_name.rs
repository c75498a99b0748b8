//! What the names of GGUF files say: their quantisation, and which ones are parts of one model.

use std::collections::HashSet;

/// A GGUF file, or the parts of a split one in their order.
#[derive(Clone, Debug)]
pub(crate) struct GgufModel {
    files: Vec<String>,
    /// How many of them the repository lacks.
    missing: usize,
}

impl GgufModel {
    fn new(files: Vec<String>, known: &HashSet<&str>) -> Self {
        let missing = files.iter().filter(|file| !known.contains(file.as_str())).count();
        Self { files, missing }
    }

    /// The file by which the model is opened.
    pub(crate) fn first(&self) -> &str {
        &self.files[0]
    }

    /// Its files.
    ///
    /// # Errors
    /// If the repository lacks some.
    pub(crate) fn whole(&self) -> Result<Vec<String>, String> {
        match self.missing {
            0 => Ok(self.files.clone()),
            missing => Err(format!(
                "{} is the first of {} parts, {missing} of which are not there",
                self.first(),
                self.files.len()
            )),
        }
    }

    /// The path without its ending and the number of its part, in capitals: in it a quantisation is looked for.
    fn stem(&self) -> String {
        let first = self.first();
        let stem = match split_of(first) {
            Some(split) => split.prefix,
            None => first.strip_suffix(".gguf").unwrap_or(first),
        };
        stem.to_ascii_uppercase()
    }

    /// Whether a quantisation stands in the name as a part of its own: `Q4_K` is not in `Q4_K_M`, nor `Q4_0` in `IQ4_0`.
    pub(crate) fn has_quant(&self, quant: &str) -> bool {
        let (stem, quant) = (self.stem(), quant.to_ascii_uppercase());
        stem.match_indices(quant.as_str()).any(|(at, _)| {
            let before = stem[..at].chars().next_back();
            let after = stem[at + quant.len()..].chars().next();
            let goes_on = after.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !goes_on && !before.is_some_and(char::is_alphanumeric)
        })
    }

    /// The quantisation that its name tells.
    pub(crate) fn quant(&self) -> Option<String> {
        let stem = self.stem();
        stem.rsplit(['-', '.', '/']).find(|part| is_quant(part)).map(str::to_owned)
    }
}

/// Whether a part of a name is what llama.cpp calls a quantisation, or a type of floats.
fn is_quant(part: &str) -> bool {
    let number = part.trim_start_matches(['I', 'T']).strip_prefix('Q');
    number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
        || ["F16", "FP16", "BF16", "F32", "FP32"].contains(&part)
        || part.starts_with("MXFP4")
}

/// The models among the files of a repository.
pub(crate) fn gguf_models(files: &[String]) -> Vec<GgufModel> {
    let known: HashSet<&str> = files.iter().map(String::as_str).collect();
    let mut firsts: HashSet<String> = HashSet::new();
    let mut models: Vec<GgufModel> = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".gguf") && is_model(file)) {
        let split = split_of(file);
        let first = split.as_ref().map_or_else(|| file.clone(), |split| split.part(1));
        if firsts.insert(first.clone()) {
            let parts = split.map_or_else(|| vec![first], |split| split.parts());
            models.push(GgufModel::new(parts, &known));
        }
    }
    models
}

/// Projectors of images and importance matrices are in GGUF files, too.
fn is_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file).to_ascii_lowercase();
    !name.contains("mmproj") && !name.contains("imatrix")
}

/// The split model that a file is a part of.
pub(crate) fn named_part(files: &[String], file: &str) -> Option<GgufModel> {
    let known: HashSet<&str> = files.iter().map(String::as_str).collect();
    split_of(file).map(|split| GgufModel::new(split.parts(), &known))
}

/// The name of a part of a split model, `PREFIX-00001-of-00003.gguf`.
struct Split<'a> {
    prefix: &'a str,
    count: u32,
}

impl Split<'_> {
    fn part(&self, part: u32) -> String {
        format!("{}-{part:05}-of-{:05}.gguf", self.prefix, self.count)
    }

    fn parts(&self) -> Vec<String> {
        (1..=self.count).map(|part| self.part(part)).collect()
    }
}

/// What llama.cpp's names of parts say.
fn split_of(file: &str) -> Option<Split<'_>> {
    let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, part) = rest.rsplit_once('-')?;
    let (part, count) = (number(part)?, number(count)?);
    (1..=count).contains(&part).then_some(Split { prefix, count })
}

/// A number of five digits.
fn number(digits: &str) -> Option<u32> {
    let is_number = digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
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
        let told = |file: &str| models(&[file])[0].quant();
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
        for name in
            ["a-1-of-2.gguf", "a-00003-of-00002.gguf", "a-00000-of-00002.gguf", "a-00001-of-00002.bin"]
        {
            assert!(split_of(name).is_none(), "{name}");
        }
    }
}
