//! A row of results, as JSON and CSV have it.

use serde::{Deserialize, Serialize};

use super::plan::lengths;

/// What was measured, on what, and what came of it. Flat, so that a table of it needs no explanation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Row {
    /// As it was asked for.
    pub(super) model: String,
    /// Whether its weights are random.
    pub(super) random_weights: bool,
    pub(super) parameters: usize,
    /// All weights in memory.
    pub(super) weight_bytes: usize,
    /// Weights that a step reads, whatever the batch.
    pub(super) bytes_per_token: usize,
    pub(super) device: String,
    pub(super) device_description: Option<String>,
    pub(super) driver: Option<String>,
    /// As burn calls it.
    pub(super) backend: String,
    pub(super) dtype: String,
    pub(super) quantize: Option<String>,
    pub(super) activations: Option<String>,
    /// Of the processor; a GPU's do not count.
    pub(super) threads: Option<usize>,
    /// That kernels use, where they are those for the CPU.
    pub(super) instruction_set: Option<String>,

    /// `-` where none has a part in it.
    pub(super) rule: String,
    pub(super) prompt: usize,
    #[serde(rename = "gen")]
    pub(super) decode: usize,
    pub(super) depth: usize,
    pub(super) batch: usize,
    /// The last four as one name, such as `tg128 @ d512 b8`.
    pub(super) test: String,
    pub(super) repetitions: usize,

    /// The mean of the repetitions.
    pub(super) tokens_per_second: f64,
    /// Their standard deviation.
    pub(super) deviation: f64,
    pub(super) best_tokens_per_second: f64,
    /// 10^9 bytes of weights read per second, by the best repetition; of generation alone.
    pub(super) read_gb_per_second: Option<f64>,
    /// 10^9 bytes that a memory copy reads and writes per second.
    pub(super) copy_gb_per_second: Option<f64>,
    /// The first in shares of the second.
    pub(super) share_of_copy: Option<f64>,
    /// Kernels that a GPU is given for a step, where they were counted.
    pub(super) launches_per_step: Option<f64>,
    /// What the rule adds to the step of `token`, in shares of its own step, by the best repetitions.
    pub(super) rule_share: Option<f64>,
    /// Until the model could be used, from the start of the process.
    pub(super) load_seconds: f64,
    /// Until the first token of a short prompt, from the start of the process.
    pub(super) first_token_cold_seconds: f64,
    /// The same again, loaded and compiled.
    pub(super) first_token_warm_seconds: f64,
    /// The most memory that the process had, loading included.
    pub(super) peak_memory_bytes: Option<u64>,

    pub(super) processor: Option<String>,
    pub(super) cores: usize,
    pub(super) memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub(super) system: String,
    /// Of this program.
    pub(super) version: String,
    /// When it was measured, in seconds since 1970.
    pub(super) unix_time: u64,

    /// The mean of an earlier run, where that has the row.
    pub(super) earlier_tokens_per_second: Option<f64>,
    /// The mean in shares of the earlier one.
    pub(super) ratio: Option<f64>,
}

impl Row {
    /// How weights and activations are held: `f32`, `q8_0`, `q8_0 mixed`.
    pub(super) fn weights(&self) -> String {
        let weights = self.quantize.as_ref().unwrap_or(&self.dtype);
        match &self.activations {
            Some(activations) => format!("{weights} {activations}"),
            None => weights.clone(),
        }
    }

    /// What the row is of, the same for every run of it.
    pub(super) fn key(&self) -> String {
        let Self { model, device, rule, test, dtype, .. } = self;
        let weights = self.weights();
        let threads = self.threads.map(|threads| format!(", threads {threads}")).unwrap_or_default();
        // Quantised weights leave open what is computed in.
        let dtype = self.quantize.as_ref().map(|_| format!(" in {dtype}")).unwrap_or_default();
        format!("{model}, {device}, {weights}{dtype}{threads}, {rule}, {test}")
    }

    /// `pp512`, `tg128` or both.
    pub(super) fn lengths(&self) -> String {
        lengths(self.prompt, self.decode)
    }
}
