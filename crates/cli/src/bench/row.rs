//! A row of results, as written to JSON and CSV.

use serde::{Deserialize, Serialize};

#[cfg(feature = "plots")]
use super::plan::lengths;
use super::{accuracy::Accuracy, machine::Machine};

/// The subject of a measurement, the machine, and the results. docs/bench-rows.schema.json describes every field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct BenchRow {
    /// The name as given on the command line.
    pub(super) model: String,
    /// Whether its weights are random.
    pub(super) random_weights: bool,
    pub(super) parameters: usize,
    /// Bytes of all weights in memory.
    pub(super) weight_bytes: usize,
    /// Bytes of weights that a step reads, whatever the batch.
    pub(super) bytes_per_token: usize,
    pub(super) device: String,
    pub(super) device_description: Option<String>,
    pub(super) driver: Option<String>,
    /// The name that burn gives the backend.
    pub(super) backend: String,
    pub(super) dtype: String,
    pub(super) quantize: Option<String>,
    pub(super) activations: Option<String>,
    /// CPU threads; `None` on a GPU.
    pub(super) threads: Option<usize>,
    /// The instruction set of the CPU kernels, if they are used.
    pub(super) instruction_set: Option<String>,

    /// The input rule, or `-` for a prompt alone.
    pub(super) rule: String,
    /// What drafted tokens of a generation, and how they were verified if not by `match`; `None` if nothing did.
    pub(super) speculate: Option<String>,
    pub(super) prompt: usize,
    #[serde(rename = "gen")]
    pub(super) decode: usize,
    pub(super) depth: usize,
    pub(super) batch: usize,
    /// Prompt, generation, depth and batch as one name, such as `tg128 @ d512 b8`.
    pub(super) test: String,
    pub(super) repetitions: usize,

    /// The mean over the repetitions.
    pub(super) tokens_per_second: f64,
    /// The standard deviation over the repetitions.
    pub(super) deviation: f64,
    pub(super) best_tokens_per_second: f64,
    /// 10^9 bytes of weights read per second in the best repetition, for a generation.
    pub(super) read_gb_per_second: Option<f64>,
    /// 10^9 bytes that a memory copy reads and writes per second.
    pub(super) copy_gb_per_second: Option<f64>,
    /// `read_gb_per_second` divided by `copy_gb_per_second`.
    pub(super) share_of_copy: Option<f64>,
    /// GPU kernel launches per step, if they were counted.
    pub(super) launches_per_step: Option<f64>,
    /// The share of this row's step time that the rule adds to a step of `token`, by the best repetitions.
    pub(super) rule_share: Option<f64>,
    /// Tokens that a pass gave on average, where tokens were drafted.
    pub(super) tokens_per_pass: Option<f64>,
    /// The share of drafts that were accepted, by depth, separated by spaces.
    pub(super) accepted_by_depth: Option<String>,
    /// What share the best possible verifier would have accepted, by depth; `-` where that was not computed.
    pub(super) optimal_by_depth: Option<String>,
    /// Seconds from the start of the process until the model is ready.
    pub(super) load_seconds: f64,
    /// Seconds from the start of the process until the first token of a short prompt.
    pub(super) first_token_cold_seconds: f64,
    /// Seconds until the first token of a short prompt when everything is loaded and compiled.
    pub(super) first_token_warm_seconds: f64,
    /// The peak memory of the process, including loading.
    pub(super) peak_memory_bytes: Option<u64>,
    /// The cost of a pass over 2, 4 and 8 positions of one sequence, as a multiple of that over 1: what decides whether
    /// drafts pay.
    pub(super) pass_cost_2: Option<f64>,
    pub(super) pass_cost_4: Option<f64>,
    pub(super) pass_cost_8: Option<f64>,
    /// Joules of the device per token, if the platform counts energy.
    pub(super) energy_j_per_token: Option<f64>,
    /// `rapl` or `nvml`.
    pub(super) energy_source: Option<String>,
    /// The accuracy compared with float32 on the CPU, if devices are compared.
    pub(super) accuracy: Option<Accuracy>,

    pub(super) processor: Option<String>,
    pub(super) cores: usize,
    pub(super) memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub(super) system: String,
    /// The version of this program.
    pub(super) version: String,
    /// The time of the measurement, in seconds since 1970.
    pub(super) unix_time: u64,
    pub(super) machine: Option<Machine>,

    /// The mean of the same row in an earlier run, if that run has the row.
    pub(super) earlier_tokens_per_second: Option<f64>,
    /// The mean divided by the earlier mean.
    pub(super) ratio: Option<f64>,
}

impl BenchRow {
    /// The form of weights and activations: `f32`, `q8_0`, `q8_0 mixed`.
    pub(super) fn weights(&self) -> String {
        let weights = self.quantize.as_ref().unwrap_or(&self.dtype);
        match &self.activations {
            Some(activations) => format!("{weights} {activations}"),
            None => weights.clone(),
        }
    }

    /// A short description of the machine.
    pub(super) fn machine_name(&self) -> String {
        let processor = self.processor.as_deref().unwrap_or("a processor without a name");
        let gpus = self.machine.iter().flat_map(|machine| &machine.gpus).map(|gpu| format!(", {gpu}"));
        format!("{processor}, cores: {}{}", self.cores, gpus.collect::<String>())
    }

    /// Identifies the same row in different runs.
    pub(super) fn key(&self) -> String {
        let Self { model, device, rule, test, dtype, .. } = self;
        let weights = self.weights();
        let threads = self.threads.map(|threads| format!(", threads {threads}")).unwrap_or_default();
        // Quantised weights do not determine the number type of the computation, so the key names it.
        let dtype = self.quantize.as_ref().map(|_| format!(" in {dtype}")).unwrap_or_default();
        let drafts = self.speculate.iter().map(|drafts| format!(", drafts by {drafts}")).collect::<String>();
        format!("{model}, {device}, {weights}{dtype}{threads}, {rule}{drafts}, {test}")
    }

    /// The lengths as `pp512`, `tg128` or both.
    #[cfg(feature = "plots")]
    pub(super) fn lengths(&self) -> String {
        lengths(self.prompt, self.decode)
    }
}
