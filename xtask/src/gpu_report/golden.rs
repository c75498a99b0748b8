//! The golden decodes of real models.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

/// With a margin below this between the two largest logits, float32 may give either token.
const MARGIN: f64 = 1e-3;

#[derive(Debug, Deserialize)]
struct File {
    runs: Vec<Run>,
}

/// A decode by transformers.
#[derive(Debug, Deserialize)]
pub(crate) struct Run {
    pub(crate) prompt_ids: Vec<u32>,
    method: String,
    beta: Option<f64>,
    pub(crate) ids: Vec<u32>,
    margin: Vec<f64>,
}

/// How far a decode agrees with that of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Number of tokens before the first that differs.
    pub(crate) same: usize,
    /// Number of all tokens.
    pub(crate) all: usize,
    /// Whether the tokens differ although the margin is large enough for float32.
    pub(crate) wrong: bool,
}

impl Run {
    /// Reads the golden runs of a model.
    pub(crate) fn read(golden: &Path, model: &str) -> Result<Vec<Self>> {
        let path = golden.join("real").join(format!("{model}.json"));
        let bytes = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(serde_json::from_slice::<File>(&bytes)?.runs)
    }

    /// The command-line flags of the run's rule.
    pub(crate) fn rule(&self) -> Vec<String> {
        let rule = if self.method == "standard" { "token" } else { &self.method };
        let beta = self.beta.filter(|_| rule == "moi").map(|beta| format!("--beta={beta}"));
        [format!("--rule={rule}")].into_iter().chain(beta).collect()
    }

    pub(crate) fn compare(&self, found: &[u32]) -> Agreement {
        let same = found.iter().zip(&self.ids).take_while(|(f, e)| f == e).count();
        let wrong = same < self.ids.len() && self.margin.get(same).is_none_or(|&margin| margin >= MARGIN);
        Agreement { same, all: self.ids.len(), wrong }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_differ_where_the_margin_is_small() {
        let run = Run {
            prompt_ids: vec![1],
            method: "moi".into(),
            beta: Some(0.5),
            ids: vec![3, 4, 5],
            margin: vec![1.0, 1e-5, 1.0],
        };
        assert_eq!(run.rule(), ["--rule=moi", "--beta=0.5"]);
        assert_eq!(run.compare(&[3, 4, 5]), Agreement { same: 3, all: 3, wrong: false });
        assert_eq!(run.compare(&[3, 9, 5]), Agreement { same: 1, all: 3, wrong: false });
        assert_eq!(run.compare(&[9, 4, 5]), Agreement { same: 0, all: 3, wrong: true });
        assert_eq!(run.compare(&[3, 4]), Agreement { same: 2, all: 3, wrong: true });
    }
}
