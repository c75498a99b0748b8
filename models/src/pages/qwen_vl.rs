//! The text models of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: Qwen2, Qwen3 or Qwen3 with experts. Their rotary positions
//! have three dimensions, which are equal for text.

use crate::{
    Architecture, DecoderConfig, ExpertStacks, ExpertsConfig, ModelError, Multimodal, QkSpan, RouterConfig,
    architecture::Names,
    family::{self, Defaults},
    fields::Fields,
    pages::qwen2,
};

/// Defaults of transformers' `Qwen3VLTextConfig`.
const QWEN3: Defaults =
    Defaults { head_dim: Some(128), context_length: 128_000, theta: 5e5, ..qwen2::DEFAULTS };

/// Defaults of transformers' `Qwen3VLMoeTextConfig`.
const QWEN3_MOE: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 5632,
    num_layers: 24,
    num_heads: 16,
    num_kv_heads: Some(16),
    head_dim: None,
    ..QWEN3
};

/// Defaults of transformers' `Qwen2VLTextConfig` and `Qwen2_5_VLTextConfig`.
const QWEN2: Defaults = Defaults {
    vocab_size: 152_064,
    hidden_size: 8192,
    intermediate_size: 29_568,
    num_layers: 80,
    num_heads: 64,
    num_kv_heads: Some(8),
    norm_eps: 1e-5,
    theta: 1e6,
    ..qwen2::DEFAULTS
};

const IGNORED: &[&str] = &["model.visual.", "visual.", "mtp."];
/// The prefixes in published files of Qwen3-VL.
const NESTED: Multimodal = Multimodal { body: "model.language_model.", head: "lm_head.", ignored: IGNORED };
/// The prefixes in published files of Qwen2-VL, and in files of text alone.
const FLAT: Multimodal = Multimodal { body: "model.", head: "lm_head.", ignored: IGNORED };

/// Reads the text part of the config of Qwen3-VL.
pub(crate) fn qwen3(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = qwen3_decoder(&outer.nested("text_config")?)?;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", false)?;
    Architecture::new(decoder, Names { multimodal: Some(NESTED), ..Names::LLAMA })
}

/// Reads the config of that text model alone.
pub(crate) fn qwen3_text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(qwen3_decoder(fields)?, Names { multimodal: Some(FLAT), ..Names::LLAMA })
}

fn qwen3_decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut decoder = family::decoder(fields, &QWEN3)?;
    decoder.norm_queries_and_keys(QkSpan::Head);
    Ok(decoder)
}

/// Reads the text part of the config of Qwen3-VL with experts.
pub(crate) fn qwen3_moe(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = qwen3_moe_decoder(&outer.nested("text_config")?)?;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", false)?;
    let names = Names { multimodal: Some(NESTED), stacks: ExpertStacks::ByInput, ..Names::LLAMA };
    Architecture::new(decoder, names)
}

/// Reads the config of that text model alone.
pub(crate) fn qwen3_moe_text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let names = Names { multimodal: Some(FLAT), stacks: ExpertStacks::ByInput, ..Names::LLAMA };
    Architecture::new(qwen3_moe_decoder(fields)?, names)
}

fn qwen3_moe_decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut decoder = family::decoder(fields, &Defaults { tied: true, ..QWEN3_MOE })?;
    decoder.norm_queries_and_keys(QkSpan::Head);
    let num_experts = fields.either("num_local_experts", "num_experts", 60usize)?;
    let experts = ExpertsConfig {
        num_experts,
        num_per_token: fields.or("num_experts_per_tok", 4)?,
        // `norm_topk_prob` is ignored, because the class has no such field.
        router: RouterConfig::softmax(true),
        expert: family::gated_mlp(fields, &QWEN3_MOE, fields.or("moe_intermediate_size", 1408)?)?,
        latent: None,
        shared: None,
    };
    let dense: Vec<usize> = fields.or("mlp_only_layers", Vec::new())?;
    let step: usize = fields.or("decoder_sparse_step", 1)?;
    let is_sparse = |i: usize| num_experts > 0 && (i + 1).is_multiple_of(step) && !dense.contains(&i);
    decoder.give_experts(&experts, is_sparse);
    Ok(decoder)
}

/// Reads the config of Qwen2-VL and Qwen2.5-VL. The text model's fields are at the top level of published files, and
/// in a nested config in newer ones.
pub(crate) fn qwen2(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let inner = outer.nested("text_config")?;
    let fields = if outer.value("text_config").is_some() { &inner } else { outer };
    let mut decoder = qwen2_decoder(fields)?;
    decoder.tie_word_embeddings =
        outer.or("tie_word_embeddings", false)? || fields.or("tie_word_embeddings", false)?;
    Architecture::new(decoder, Names { multimodal: Some(FLAT), ..Names::LLAMA })
}

/// Reads the config of that text model alone.
pub(crate) fn qwen2_text(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(qwen2_decoder(fields)?, Names { multimodal: Some(FLAT), ..Names::LLAMA })
}

fn qwen2_decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut decoder = family::decoder(fields, &QWEN2)?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (true, false);
    }
    qwen2::slide(&mut decoder, fields, 80)?;
    Ok(decoder)
}
