//! DeepSeek V2, V3 and R1, and models that are built like them: Kimi K2, GLM-4.7-Flash, Mistral Small 4; and DeepSeek
//! V3.2 and GLM-5, up to the context length within which their indexer chooses all positions. They have attention
//! over latent vectors, and groups of experts after the first layers.

use serde_json::{Value, json};

use crate::{
    Architecture, AttentionKind, DecoderConfig, ExpertGroups, ExpertsConfig, GroupScore, LatentConfig,
    ModelError, Multimodal, PairedRows, RopeConfig, RouterConfig, RowBlocks, TensorSource,
    architecture::{Names, ignored_with_predictors},
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::{of_layer, renamed},
    pages::mistral3,
    rope_fields::{RopeContext, given, rope},
};

/// The defaults of transformers' config class of one of these models.
struct Class {
    common: Defaults,
    q_lora_rank: usize,
    kv_lora_rank: usize,
    nope_dim: usize,
    value_dim: usize,
    moe_width: usize,
    experts: usize,
    per_token: Option<usize>,
    shared: usize,
    dense: usize,
    groups: [usize; 2],
    factor: f64,
    /// Whether rotary parameters refer to the whole head, of which a part is rotated.
    rope_of_head: bool,
}

/// Defaults of transformers' `DeepseekV3Config`.
const V3: Class = Class {
    common: Defaults {
        vocab_size: 129_280,
        hidden_size: 7168,
        intermediate_size: 18_432,
        num_layers: 61,
        num_heads: 128,
        context_length: 4096,
        ..LLAMA
    },
    q_lora_rank: 1536,
    kv_lora_rank: 512,
    nope_dim: 128,
    value_dim: 128,
    moe_width: 2048,
    experts: 256,
    per_token: Some(8),
    shared: 1,
    dense: 3,
    groups: [8, 4],
    factor: 2.5,
    rope_of_head: false,
};

/// Defaults of transformers' `DeepseekV2Config`.
const V2: Class = Class {
    common: Defaults {
        vocab_size: 102_400,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_layers: 32,
        num_heads: 32,
        context_length: 2048,
        ..LLAMA
    },
    moe_width: 1407,
    experts: 64,
    per_token: None,
    shared: 2,
    dense: 0,
    factor: 1.0,
    ..V3
};

/// Defaults of transformers' `Glm4MoeLiteConfig`.
const GLM_LITE: Class = Class {
    common: Defaults {
        vocab_size: 154_880,
        hidden_size: 2048,
        intermediate_size: 10_240,
        num_layers: 47,
        num_heads: 20,
        context_length: 202_752,
        norm_eps: 1e-5,
        ..LLAMA
    },
    q_lora_rank: 768,
    nope_dim: 192,
    value_dim: 256,
    moe_width: 1536,
    experts: 64,
    per_token: Some(4),
    dense: 1,
    groups: [1, 1],
    factor: 1.8,
    ..V3
};

/// Defaults of transformers' `Mistral4Config`.
const MISTRAL4: Class = Class {
    common: Defaults {
        vocab_size: 131_072,
        hidden_size: 4096,
        intermediate_size: 12_288,
        num_layers: 36,
        num_heads: 32,
        context_length: 1_048_576,
        ..LLAMA
    },
    q_lora_rank: 1024,
    kv_lora_rank: 256,
    nope_dim: 64,
    moe_width: 2048,
    experts: 128,
    per_token: Some(4),
    dense: 0,
    groups: [1, 1],
    factor: 1.0,
    rope_of_head: true,
    ..V3
};

/// Defaults of transformers' `DeepseekV32Config`.
const V32: Class = Class { common: Defaults { context_length: 163_840, ..V3.common }, ..V3 };

/// Defaults of transformers' `GlmMoeDsaConfig`.
const GLM_DSA: Class = Class {
    common: Defaults {
        hidden_size: 6144,
        intermediate_size: 12_288,
        num_layers: 78,
        num_heads: 64,
        ..GLM_LITE.common
    },
    q_lora_rank: 2048,
    moe_width: 2048,
    experts: 256,
    per_token: Some(8),
    dense: 3,
    factor: 2.5,
    ..GLM_LITE
};

const PAIRED: Names = Names { source: paired, ignored: ignored_with_predictors, ..Names::LLAMA };
const HALVES: Names = Names { source, ..PAIRED };

/// Reads the config of DeepSeek V2.
pub(crate) fn v2(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    fields.supports("scoring_func", &["softmax".into()], "softmax")?;
    let mut decoder = decoder(fields, &V2)?;
    let method: String = fields.or("topk_method", "greedy".to_owned())?;
    let groups = match method.as_str() {
        "greedy" => None,
        "group_limited_greedy" => groups(fields, [1, 1], GroupScore::Best)?,
        other => {
            return Err(fields.unsupported("topk_method", &other.into(), "greedy, group_limited_greedy"));
        }
    };
    // The class ignores `norm_topk_prob`.
    give_experts(&mut decoder, fields, &V2, RouterConfig { groups, ..RouterConfig::softmax(false) })?;
    let bias = fields.or("mlp_bias", false)?;
    decoder.mlps_mut().for_each(|mlp| mlp.bias = bias);
    Architecture::new(decoder, PAIRED)
}

/// Reads the config of DeepSeek V3, or of Kimi K2.
pub(crate) fn v3(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let decoder = corrected(fields, &V3)?;
    Architecture::new(decoder, if fields.or("rope_interleave", true)? { PAIRED } else { HALVES })
}

/// Reads the text part of the config of Kimi K2.5.
pub(crate) fn kimi_k25(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let fields = outer.nested("text_config")?;
    let mut decoder = corrected(&fields, &V3)?;
    let inner = decoder.tie_word_embeddings;
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", inner)?;
    const NESTED: Multimodal = Multimodal {
        ignored: &["vision_tower.", "mm_projector.", "model.vision_tower.", "model.mm_projector."],
        ..Multimodal::UNDER_LANGUAGE_MODEL
    };
    let names = if fields.or("rope_interleave", true)? { PAIRED } else { HALVES };
    Architecture::new(decoder, Names { multimodal: Some(NESTED), ..names })
}

/// Reads the config of GLM-4.7-Flash.
pub(crate) fn glm4_moe_lite(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let decoder = corrected(fields, &GLM_LITE)?;
    Architecture::new(decoder, if fields.or("rope_interleave", true)? { PAIRED } else { HALVES })
}

/// Reads the config of Mistral Small 4.
pub(crate) fn mistral4(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let decoder = mistral4_decoder(fields)?;
    Architecture::new(decoder, if fields.or("rope_interleave", true)? { PAIRED } else { HALVES })
}

/// Reads the text part of the config of a multimodal one.
pub(super) fn mistral4_nested(outer: &Fields<'_>, fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = mistral4_decoder(fields)?;
    let inner = fields.get("tie_word_embeddings")?.unwrap_or(true);
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", inner)?;
    let names = if fields.or("rope_interleave", true)? { PAIRED } else { HALVES };
    Architecture::new(decoder, Names { multimodal: Some(Multimodal::UNDER_LANGUAGE_MODEL), ..names })
}

fn mistral4_decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let with_rope = fields.with_rope(json!({
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 128.0, "original_max_position_embeddings": 8192,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    }));
    let fields = &Fields::new(&with_rope, fields.model_type)?;
    let mut decoder = decoder(fields, &MISTRAL4)?;
    let router = RouterConfig {
        groups: groups(fields, MISTRAL4.groups, GroupScore::BestTwo)?,
        sum_plus: 1e-20,
        ..RouterConfig::softmax(fields.or("norm_topk_prob", true)?)
    };
    give_experts(&mut decoder, fields, &MISTRAL4, router)?;
    decoder.query_scale = mistral3::query_scale(fields)?;
    Ok(decoder)
}

/// Reads the config of DeepSeek V3.2.
pub(crate) fn v32(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    indexed(fields, &V32)
}

/// Reads the config of GLM-5.
pub(crate) fn glm_moe_dsa(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    indexed(fields, &GLM_DSA)
}

/// A model whose indexer chooses the positions that a query sees. Up to `index_topk` positions, it chooses all.
fn indexed(fields: &Fields<'_>, class: &Class) -> Result<Architecture, ModelError> {
    let mut decoder = corrected(fields, class)?;
    let chosen: usize = fields.or("index_topk", 2048)?;
    if chosen < decoder.context_length {
        decoder.context_length = chosen;
        decoder.context_note = Some(
            "beyond that its indexer chooses which positions are seen (`index_topk`), which is not implemented",
        );
    }
    let ignored = |config: &DecoderConfig, name: &str| {
        name.contains(".self_attn.indexer.") || ignored_with_predictors(config, name)
    };
    let names = if fields.or("rope_interleave", true)? { PAIRED } else { HALVES };
    Architecture::new(decoder, Names { ignored, ..names })
}

/// A decoder whose router picks experts by sigmoid scores with corrections.
fn corrected(fields: &Fields<'_>, class: &Class) -> Result<DecoderConfig, ModelError> {
    fields.supports("scoring_func", &["sigmoid".into()], "sigmoid")?;
    let mut decoder = decoder(fields, class)?;
    let router = RouterConfig {
        groups: groups(fields, class.groups, GroupScore::BestTwo)?,
        sum_plus: 1e-20,
        ..RouterConfig::corrected_sigmoid(fields.or("norm_topk_prob", true)?)
    };
    give_experts(&mut decoder, fields, class, router)?;
    Ok(decoder)
}

/// Groups of experts; `None` if there is only one, because that is no restriction.
fn groups(
    fields: &Fields<'_>,
    default: [usize; 2],
    score: GroupScore,
) -> Result<Option<ExpertGroups>, ModelError> {
    let count = fields.nullable("n_group", Some(default[0]))?.unwrap_or(1);
    let kept = fields.nullable("topk_group", Some(default[1]))?.unwrap_or(1);
    Ok((count != 1).then_some(ExpertGroups { count, kept, score }))
}

/// Gives experts to the layers after the first ones.
fn give_experts(
    decoder: &mut DecoderConfig,
    fields: &Fields<'_>,
    class: &Class,
    router: RouterConfig,
) -> Result<(), ModelError> {
    fields.supports("moe_layer_freq", &[1.into()], "1")?;
    let width = fields.or("moe_intermediate_size", class.moe_width)?;
    let expert = family::gated_mlp(fields, &class.common, width)?;
    let per_token = fields.get("num_experts_per_tok")?.or(class.per_token);
    let lacks = || fields.wrong("field `num_experts_per_tok` is missing".to_owned());
    let experts = ExpertsConfig {
        num_experts: fields.either("num_local_experts", "n_routed_experts", class.experts)?,
        num_per_token: per_token.ok_or_else(lacks)?,
        router: RouterConfig { factor: fields.or("routed_scaling_factor", class.factor)?, ..router },
        latent: None,
        shared: family::shared_experts(
            fields.nullable("n_shared_experts", Some(class.shared))?.unwrap_or(0),
            &expert,
        ),
        expert,
    };
    let dense: usize = fields.or("first_k_dense_replace", class.dense)?;
    let sparse = fields.sparse_layers(decoder.layers.len(), |i| i >= dense)?;
    decoder.give_experts(&experts, |i| sparse[i]);
    Ok(())
}

/// A decoder of dense layers with attention over latent vectors.
fn decoder(fields: &Fields<'_>, class: &Class) -> Result<DecoderConfig, ModelError> {
    let rope_dim = fields.or("qk_rope_head_dim", 64)?;
    let nope_dim = fields.or("qk_nope_head_dim", class.nope_dim)?;
    let rope = rotary(fields, class, [nope_dim, rope_dim])?;
    let mut decoder = family::decoder_with_rope(fields, &class.common, rope.clone())?;
    let latent = LatentConfig {
        num_heads: fields.or("num_attention_heads", class.common.num_heads)?,
        query_rank: fields.nullable("q_lora_rank", Some(class.q_lora_rank))?,
        kv_rank: fields.or("kv_lora_rank", class.kv_lora_rank)?,
        nope_dim,
        rope_dim,
        value_dim: fields.or("v_head_dim", class.value_dim)?,
        bias: fields.or("attention_bias", false)?,
        // The latent norms have this epsilon whatever `rms_norm_eps` is.
        norm_eps: 1e-6,
        scale: ((nope_dim + rope_dim) as f64).powf(-0.5) * sharpened(fields, &rope)?,
        rope,
    };
    for layer in &mut decoder.layers {
        layer.attention = Some(AttentionKind::Latent(latent.clone()));
    }
    Ok(decoder)
}

/// The rotary embedding of the rotated part of a head.
fn rotary(
    fields: &Fields<'_>,
    class: &Class,
    [nope_dim, rope_dim]: [usize; 2],
) -> Result<RopeConfig, ModelError> {
    let all = nope_dim.saturating_add(rope_dim);
    let context = RopeContext {
        head_dim: if class.rope_of_head { all } else { rope_dim },
        max_position_embeddings: fields.or("max_position_embeddings", class.common.context_length)?,
        theta: class.common.theta,
        partial: if class.rope_of_head { rope_dim as f64 / all.max(1) as f64 } else { 1.0 },
        partly: class.rope_of_head,
        alpha: false,
        yarn_is_longrope: false,
        original: None,
    };
    let rope = rope(fields, context)?;
    // The product of a fraction and a width may be slightly less than a whole number.
    Ok(RopeConfig { dims: rope_dim, ..rope })
}

/// The factor on scores for an extended context: `(0.1 mscale_all_dim ln(factor) + 1)^2`.
fn sharpened(fields: &Fields<'_>, rope: &RopeConfig) -> Result<f64, ModelError> {
    if rope.scaling == crate::RopeScaling::Default {
        return Ok(1.0);
    }
    let parameters = given(fields);
    let number = |name: &str| match parameters.and_then(|parameters| parameters.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| {
            fields.wrong(format!("field `{name}` of the rotary parameters is {value}, expected a number"))
        }),
    };
    match (number("mscale_all_dim")?, number("factor")?) {
        (Some(weight), Some(factor)) if weight != 0.0 && factor > 1.0 => {
            Ok((0.1 * weight * factor.ln() + 1.0).powi(2))
        }
        _ => Ok(1.0),
    }
}

/// The tensor of a parameter in a checkpoint that stores rotated parts as halves.
fn source(config: &DecoderConfig, name: &str) -> TensorSource {
    const OWN: &[(&str, &str)] = &[
        ("self_attn.q_a_norm.", "self_attn.q_a_layernorm."),
        ("self_attn.kv_a_norm.", "self_attn.kv_a_layernorm."),
        ("self_attn.kv_a_proj.", "self_attn.kv_a_proj_with_mqa."),
        ("mlp.correction", "mlp.gate.e_score_correction_bias"),
        ("mlp.shared_expert.", "mlp.shared_experts."),
    ];
    let Some((index, latent, part)) = latent_of(config, name) else {
        return TensorSource::whole(renamed(name, OWN));
    };
    let block = latent.nope_dim + latent.value_dim;
    let (start, len) = match part {
        "k_b" => (0, latent.nope_dim),
        "v_b" => (latent.nope_dim, latent.value_dim),
        _ => return TensorSource::whole(renamed(name, OWN)),
    };
    TensorSource {
        rows: Some(RowBlocks { blocks: latent.num_heads, block, start, len }),
        ..TensorSource::whole(format!("model.layers.{index}.self_attn.kv_b_proj.weight"))
    }
}

/// The tensor of a parameter in a checkpoint that stores rotated parts as interleaved pairs.
fn paired(config: &DecoderConfig, name: &str) -> TensorSource {
    let whole = source(config, name);
    let Some((_, latent, _)) = latent_of(config, name) else { return whole };
    let pairs = match of_layer(name) {
        Some((_, "self_attn.q_proj" | "self_attn.q_b_proj", _)) => {
            Some(PairedRows { head: latent.query_dim(), kept: latent.nope_dim })
        }
        Some((_, "self_attn.kv_a_proj", _)) => {
            Some(PairedRows { head: latent.cached_dim(), kept: latent.kv_rank })
        }
        _ => None,
    };
    TensorSource { pairs, ..whole }
}

/// The layer of a parameter, its attention, and the parameter's name in that.
fn latent_of<'a, 'b>(config: &'a DecoderConfig, name: &'b str) -> Option<(usize, &'a LatentConfig, &'b str)> {
    let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let index: usize = index.parse().ok()?;
    match &config.layers.get(index)?.attention {
        Some(AttentionKind::Latent(latent)) => Some((index, latent, rest.strip_prefix("self_attn.")?)),
        _ => None,
    }
}
