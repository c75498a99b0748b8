//! The golden decodes of a real model.

use std::{fs, path::PathBuf};

use moi_engine::{InputRule, Support};
use moi_hub::{Cache, Fetcher};
use serde::Deserialize;

use crate::golden::GoldenStep;

/// The contents of `golden/real/NAME.json`.
#[derive(Debug, Deserialize)]
pub struct RealGolden {
    /// Texts and their ids, without special tokens.
    pub tokenizer: Vec<TokenizerCase>,
    /// Greedy decodes.
    #[serde(default)]
    pub runs: Vec<RealRun>,
}

/// A text and its token ids.
#[derive(Debug, Deserialize)]
pub struct TokenizerCase {
    /// The text.
    pub text: String,
    /// The ids without special tokens.
    pub ids: Vec<u32>,
}

/// A greedy decode.
#[derive(Debug, Deserialize)]
pub struct RealRun {
    /// `chat` or `plain`.
    pub kind: String,
    /// The text of the prompt.
    pub prompt: String,
    /// The ids of the prompt, with the chat template if `kind` is `chat`.
    pub prompt_ids: Vec<u32>,
    /// The five largest logits after the prompt.
    pub prefill_top5_logits: Vec<(u32, f32)>,
    method: String,
    beta: Option<f64>,
    /// The generated ids.
    pub ids: Vec<u32>,
    /// The generated text, if it was recorded.
    pub text: Option<String>,
    #[serde(rename = "H")]
    entropy: Vec<f64>,
    margin: Vec<f64>,
    /// The largest weights of each next input.
    pub top5_w: Vec<Vec<(u32, f32)>>,
}

impl RealGolden {
    /// Reads the file.
    pub fn read(name: &str) -> Self {
        let path = crate::golden_directory().join("real").join(format!("{name}.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }
}

impl RealRun {
    /// The rule as an `InputRule`.
    pub fn rule(&self) -> InputRule {
        match self.method.as_str() {
            "standard" => InputRule::TOKEN,
            "moi" => InputRule::moi(self.beta.unwrap(), Support::Full).unwrap(),
            "direct" => InputRule::direct(Support::Full).unwrap(),
            other => panic!("golden method {other}"),
        }
    }

    /// Converts the run into the format of the tiny checkpoints.
    pub fn steps(&self) -> Vec<GoldenStep> {
        let gate = |entropy: f64| match self.method.as_str() {
            "standard" => 0.0,
            "direct" => 1.0,
            _ => entropy / (self.beta.unwrap() + 1.0),
        };
        (0..self.ids.len())
            .map(|i| GoldenStep {
                token: self.ids[i],
                entropy: self.entropy[i],
                gate: gate(self.entropy[i]),
                margin: self.margin[i],
            })
            .collect()
    }
}

/// The file of a catalogue model, downloaded if it is missing, because tests need it.
pub fn model_file(name: &str) -> PathBuf {
    let entry = moi_hub::find(name).unwrap();
    let fetched = Fetcher::new(Cache::from_env().unwrap()).quiet().fetch(entry, |line| eprintln!("{line}"));
    fetched.unwrap_or_else(|error| panic!("these tests need {name} (cargo xtask fetch {name}): {error}"))
}
