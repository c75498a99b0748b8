//! Instruct models of the Hugging Face hub that run here, by family, as suggestions for users. A name of this table
//! can be passed to `moi` unchanged; the hub's current files of this name are downloaded.

use crate::Fetcher;

/// A model of the hub.
///
/// # Examples
/// ```
/// use moi_hub::HubModel;
///
/// let (repository, licence) = ("owner/name", Some("MIT"));
/// let model = HubModel { repository, parameters_millions: 350, active_millions: None, licence };
/// assert_eq!(model.num_bytes(), 700_000_000);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct HubModel {
    /// The repository, `owner/name`.
    pub repository: &'static str,
    /// The number of parameters of the text model, in millions; with all experts of a mixture.
    pub parameters_millions: u32,
    /// The number of parameters that compute one token, in millions, for a mixture of experts.
    pub active_millions: Option<u32>,
    /// The licence; `None` if only the model card states it.
    pub licence: Option<&'static str>,
}

const fn model(repository: &'static str, parameters_millions: u32, licence: &'static str) -> HubModel {
    HubModel { repository, parameters_millions, active_millions: None, licence: Some(licence) }
}

const fn of_card(repository: &'static str, parameters_millions: u32) -> HubModel {
    HubModel { repository, parameters_millions, active_millions: None, licence: None }
}

const fn experts(of: HubModel, active: u32) -> HubModel {
    HubModel { active_millions: Some(active), ..of }
}

/// Small models of each family, or the smallest model of a family without small ones.
///
/// # Examples
/// ```
/// use moi_hub::HUB_MODELS;
///
/// let small: Vec<&str> = HUB_MODELS
///     .iter()
///     .filter(|model| model.num_bytes() < 1_000_000_000)
///     .map(|model| model.repository)
///     .collect();
/// assert!(small.contains(&"LiquidAI/LFM2-350M"));
/// ```
pub const HUB_MODELS: &[HubModel] = &[
    model("Qwen/Qwen3.5-0.8B", 750, "Apache-2.0"),
    of_card("Qwen/Qwen3.5-2B", 1_880),
    of_card("Qwen/Qwen3.5-4B", 4_200),
    of_card("Qwen/Qwen3.5-9B", 8_950),
    experts(of_card("Qwen/Qwen3.6-35B-A3B", 34_660), 3_000),
    of_card("Qwen/Qwen3-VL-2B-Instruct", 1_720),
    of_card("Qwen/Qwen3-VL-4B-Instruct", 4_020),
    of_card("Qwen/Qwen3-VL-8B-Instruct", 8_190),
    of_card("Qwen/Qwen2.5-VL-3B-Instruct", 3_090),
    model("google/gemma-4-E2B-it", 4_650, "Apache-2.0"),
    model("google/gemma-4-E4B-it", 7_460, "Apache-2.0"),
    experts(of_card("google/gemma-4-26B-A4B-it", 25_230), 4_000),
    experts(of_card("openai/gpt-oss-20b", 20_910), 3_600),
    of_card("nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16", 3_970),
    experts(of_card("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31_580), 3_500),
    experts(model("zai-org/GLM-4.7-Flash", 29_940, "MIT"), 3_000),
    experts(of_card("deepseek-ai/DeepSeek-V2-Lite-Chat", 15_710), 2_700),
    experts(of_card("moonshotai/Moonlight-16B-A3B-Instruct", 15_960), 2_900),
    model("mistralai/Ministral-3-3B-Instruct-2512-BF16", 3_430, "Apache-2.0"),
    model("LiquidAI/LFM2-350M", 354, "LFM-1.0"),
    model("LiquidAI/LFM2.5-1.2B-Instruct", 1_170, "LFM-1.0"),
    of_card("LiquidAI/LFM2-2.6B", 2_570),
    experts(model("LiquidAI/LFM2.5-8B-A1B", 8_340, "LFM-1.0"), 1_500),
    of_card("LGAI-EXAONE/EXAONE-4.0-1.2B", 1_280),
    model("swiss-ai/Apertus-8B-Instruct-2509", 8_050, "Apache-2.0"),
    of_card("allenai/Olmo-3-7B-Instruct", 7_300),
    model("ibm-granite/granite-4.0-h-350m", 340, "Apache-2.0"),
    model("ibm-granite/granite-4.0-h-micro", 3_190, "Apache-2.0"),
    experts(of_card("ibm-granite/granite-4.0-h-tiny", 6_940), 1_000),
    experts(model("poolside/Laguna-XS.2", 33_000, "Apache-2.0"), 3_000),
    model("ByteDance-Seed/Seed-OSS-36B-Instruct", 36_150, "Apache-2.0"),
    of_card("baidu/ERNIE-4.5-0.3B-PT", 360),
    of_card("tencent/Hunyuan-0.5B-Instruct", 540),
    of_card("tencent/Hunyuan-1.8B-Instruct", 1_790),
];

impl HubModel {
    /// Bytes of the weights in bfloat16, in which most of these models are published.
    pub fn num_bytes(&self) -> u64 {
        u64::from(self.parameters_millions) * 2_000_000
    }
}

impl Fetcher {
    /// Whether files of a repository are in the hub's cache.
    pub fn has_repository(&self, repository: &str) -> bool {
        self.snapshots(repository).is_ok_and(|snapshots| snapshots.cached("main").is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_is_sound() {
        let names: HashSet<&str> = HUB_MODELS.iter().map(|model| model.repository).collect();
        assert_eq!(names.len(), HUB_MODELS.len());
        for model in HUB_MODELS {
            assert_eq!(model.repository.split('/').count(), 2, "{}", model.repository);
            let active = model.active_millions.unwrap_or(1);
            assert!(active > 0 && active <= model.parameters_millions, "{}", model.repository);
        }
    }
}
