//! The architectures: each page reads a `config.json`, and defines the names of the parameters in checkpoints.

mod apertus;
mod deepseek;
mod ernie;
mod exaone;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4_moe;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granite_moe;
mod hunyuan;
mod laguna;
mod lfm2;
mod llama;
mod minimax_m2;
mod mistral;
mod mistral3;
mod mixtral;
mod muse_glimmer;
mod nemotron_h;
mod nemotron_nas;
mod olmo2;
mod olmo3;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen_vl;
mod seed_oss;
mod smollm3;

use crate::{Architecture, ModelError, fields::Fields};

/// A page: a function that reads a config's fields.
pub(crate) type Page = fn(&Fields<'_>) -> Result<Architecture, ModelError>;

/// All pages, by `model_type`. A new architecture is added here.
pub(crate) const PAGES: &[(&str, Page)] = &[
    ("llama", llama::architecture),
    ("qwen2", qwen2::architecture),
    ("nemotron-nas", nemotron_nas::architecture),
    ("gemma3_text", gemma3::architecture),
    ("gemma3", gemma3::multimodal),
    ("mistral", mistral::architecture),
    ("qwen3", qwen3::architecture),
    ("qwen3_moe", qwen3_moe::architecture),
    ("mixtral", mixtral::architecture),
    ("gemma", gemma::architecture),
    ("gemma2", gemma2::architecture),
    ("phi3", phi3::architecture),
    ("olmo2", olmo2::architecture),
    ("smollm3", smollm3::architecture),
    ("granite", granite::architecture),
    ("gpt2", gpt2::architecture),
    ("gpt_neox", gpt_neox::architecture),
    ("qwen3_5", qwen3_5::dense),
    ("qwen3_5_text", qwen3_5::dense_text),
    ("qwen3_5_moe", qwen3_5::experts),
    ("qwen3_5_moe_text", qwen3_5::experts_text),
    ("qwen3_next", qwen3_5::next),
    ("nemotron_h", nemotron_h::architecture),
    ("granitemoe", granite_moe::architecture),
    ("granitemoehybrid", granite_moe::hybrid),
    ("deepseek_v2", deepseek::v2),
    ("deepseek_v3", deepseek::v3),
    ("kimi_k2", deepseek::v3),
    ("kimi_k25", deepseek::kimi_k25),
    ("glm4_moe_lite", deepseek::glm4_moe_lite),
    ("mistral4", deepseek::mistral4),
    ("deepseek_v32", deepseek::v32),
    ("glm_moe_dsa", deepseek::glm_moe_dsa),
    ("lfm2", lfm2::dense),
    ("lfm2_moe", lfm2::experts),
    ("gemma4", gemma4::multimodal),
    ("gemma4_text", gemma4::text),
    ("gemma4_unified", gemma4::unified),
    ("gemma4_unified_text", gemma4::unified_text),
    ("qwen3_vl", qwen_vl::qwen3),
    ("qwen3_vl_text", qwen_vl::qwen3_text),
    ("qwen3_vl_moe", qwen_vl::qwen3_moe),
    ("qwen3_vl_moe_text", qwen_vl::qwen3_moe_text),
    ("qwen2_5_vl", qwen_vl::qwen2),
    ("qwen2_5_vl_text", qwen_vl::qwen2_text),
    ("qwen2_vl", qwen_vl::qwen2),
    ("qwen2_vl_text", qwen_vl::qwen2_text),
    ("gpt_oss", gpt_oss::architecture),
    ("opt", opt::architecture),
    ("minimax_m2", minimax_m2::architecture),
    ("mistral3", mistral3::multimodal),
    ("ministral3", mistral3::ministral3),
    ("exaone", exaone::architecture),
    ("exaone4", exaone4::architecture),
    ("apertus", apertus::architecture),
    ("laguna", laguna::architecture),
    ("olmo3", olmo3::architecture),
    ("glm4_moe", glm4_moe::architecture),
    ("phi", phi::architecture),
    ("muse_glimmer", muse_glimmer::multimodal),
    ("muse_glimmer_text", muse_glimmer::text),
    ("seed_oss", seed_oss::architecture),
    ("ernie4_5", ernie::dense),
    ("ernie4_5_moe", ernie::experts),
    ("hunyuan_v1_dense", hunyuan::architecture),
];
