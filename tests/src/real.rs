//! The golden decodes of a real model.

use std::{fs, path::PathBuf};

use moi_engine::{InputRule, Support};
use moi_hub::{Cache, Fetcher};
use serde::Deserialize;

use crate::golden::GoldenStep;

/// `golden/real/NAME.json`
#[derive(Debug, Deserialize)]
pub struct RealGolden {
    /// Text to ids, without special tokens.
    pub tokenizer: Vec<TokenizerCase>,
    /// Greedy decodes.
    #[serde(default)]
    pub runs: Vec<RealRun>,
}

/// A text and its ids.
#[derive(Debug, Deserialize)]
pub struct TokenizerCase {
    /// The text.
    pub text: String,
    /// Without special tokens.
    pub ids: Vec<u32>,
}

/// A greedy decode.
#[derive(Debug, Deserialize)]
pub struct RealRun {
    /// `chat` or `plain`.
    pub kind: String,
    /// The text.
    pub prompt: String,
    /// With the chat template where `kind` is `chat`.
    pub prompt_ids: Vec<u32>,
    /// The five largest logits after the prompt.
    pub prefill_top5_logits: Vec<(u32, f32)>,
    method: String,
    beta: Option<f64>,
    /// What came.
    pub ids: Vec<u32>,
    /// Their text; not recorded for every run.
    pub text: Option<String>,
    #[serde(rename = "H")]
    entropy: Vec<f64>,
    margin: Vec<f64>,
    /// The largest weights of each next input.
    pub top5_w: Vec<Vec<(u32, f32)>>,
}

impl RealGolden {
    /// Reads it.
    pub fn read(name: &str) -> Self {
        let path = crate::golden_directory().join("real").join(format!("{name}.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }
}

impl RealRun {
    /// The rule as this project spells it.
    pub fn rule(&self) -> InputRule {
        match self.method.as_str() {
            "standard" => InputRule::TOKEN,
            "moi" => InputRule::moi(self.beta.unwrap(), Support::Full).unwrap(),
            "direct" => InputRule::direct(Support::Full).unwrap(),
            other => panic!("golden method {other}"),
        }
    }

    /// In the form of the tiny ones.
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

/// The file of a catalogue model, fetched if it is not there: tests need it.
pub fn model_file(name: &str) -> PathBuf {
    let entry = moi_hub::find(name).unwrap();
    let fetched = Fetcher::new(Cache::from_env().unwrap()).quiet().fetch(entry, |line| eprintln!("{line}"));
    fetched.unwrap_or_else(|error| panic!("these tests need {name} (cargo xtask fetch {name}): {error}"))
}
