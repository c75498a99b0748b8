//! Nemotron-H and Nemotron 3 Nano and Super: layers of a single block each, which is Mamba 2, attention without
//! positions, an MLP without a gate, or experts, which may work on a latent vector.

use std::borrow::Cow;

use crate::{
    Activation, Architecture, AttentionConfig, AttentionKind, DecoderConfig, ExpertGroups, ExpertsConfig,
    FeedForwardKind, GroupScore, LatentExperts, LayerConfig, Mamba2Config, MlpConfig, ModelError, NormConfig,
    NormKind, NormPlace, RouterConfig, SharedExpertConfig, TensorSource,
    architecture::{Names, ignored_by_llama, with_prefix},
    fields::Fields,
    names::renamed,
};

/// The default layers, for a config that does not list them.
const LAYERS: [Block; 4] = [Block::Mamba, Block::Experts, Block::Attention, Block::Mlp];

/// The block of a layer.
#[derive(Clone, Copy, Debug)]
enum Block {
    Mamba,
    Attention,
    Mlp,
    Experts,
}

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    fields.supports("attention_bias", &[false.into()], "false")?;
    fields.supports("mamba_hidden_act", &["silu".into()], "silu")?;
    fields.supports("sliding_window", &[], "null")?;
    let norm = NormConfig { kind: NormKind::Rms, eps: fields.or("layer_norm_epsilon", 1e-5)? };
    let blocks = blocks(fields)?;
    let layer = |block: &Block| layer(fields, *block, norm.eps);
    let layers = blocks.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
    let sizes = [
        fields.or("vocab_size", 131_072)?,
        fields.or("hidden_size", 4096)?,
        fields.or("max_position_embeddings", 4096)?,
    ];
    let decoder = DecoderConfig {
        tie_word_embeddings: fields.or("tie_word_embeddings", false)?,
        ..DecoderConfig::new(fields.model_type, sizes, norm, layers)
    };
    let ignored =
        |config: &DecoderConfig, name: &str| name.starts_with("mtp.") || ignored_by_llama(config, name);
    Architecture::new(decoder, Names { source, respelled, ignored, ..Names::LLAMA })
}

/// The blocks of all layers, from a list of names or a pattern of letters.
fn blocks(fields: &Fields<'_>) -> Result<Vec<Block>, ModelError> {
    const MAX_COUNT: usize = 1 << 12;
    let listed = match fields.get::<Vec<String>>("layers_block_type")? {
        Some(listed) => Some(listed),
        None => fields.get::<Vec<String>>("layer_types")?,
    };
    let named = |name: &str| match name {
        "mamba" | "linear_attention" | "M" => Ok(Block::Mamba),
        "attention" | "full_attention" | "*" => Ok(Block::Attention),
        "mlp" | "-" => Ok(Block::Mlp),
        "moe" | "E" => Ok(Block::Experts),
        other => {
            let expected = "mamba (M), attention (*), mlp (-) or moe (E)";
            Err(fields.wrong(format!("the list of layers has {other:?}, expected {expected}")))
        }
    };
    let blocks = match (listed, fields.get::<String>("hybrid_override_pattern")?) {
        (Some(listed), _) => listed.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?,
        (None, Some(pattern)) => {
            let letters = pattern.chars().map(|letter| named(letter.encode_utf8(&mut [0; 4])));
            letters.collect::<Result<Vec<_>, _>>()?
        }
        (None, None) => LAYERS.to_vec(),
    };
    match blocks.len() {
        1..=MAX_COUNT => Ok(blocks),
        other => Err(fields.wrong(format!("it has {other} layers, expected 1 to {MAX_COUNT}"))),
    }
}

fn layer(fields: &Fields<'_>, block: Block, eps: f64) -> Result<LayerConfig, ModelError> {
    let (attention, feed_forward) = match block {
        Block::Mamba => (Some(AttentionKind::Mamba2(mamba(fields, eps)?)), None),
        Block::Attention => (Some(AttentionKind::Heads(attention(fields)?)), None),
        Block::Mlp => {
            let width = fields.or("intermediate_size", 21_504)?;
            (None, Some(FeedForwardKind::Mlp(mlp(fields, width)?)))
        }
        Block::Experts => (None, Some(FeedForwardKind::Experts(experts(fields)?))),
    };
    let norms = NormPlace::Before;
    Ok(LayerConfig {
        attention,
        feed_forward,
        norms,
        parallel: false,
        residual_scale: 1.0,
        output_scale: false,
    })
}

fn attention(fields: &Fields<'_>) -> Result<AttentionConfig, ModelError> {
    let heads = fields.or("num_attention_heads", 32)?;
    let kv_heads = fields.nullable("num_key_value_heads", Some(8))?.unwrap_or(heads);
    Ok(AttentionConfig::new(heads, kv_heads, fields.either("head_dim", "attention_head_dim", 128)?))
}

fn mamba(fields: &Fields<'_>, norm_eps: f64) -> Result<Mamba2Config, ModelError> {
    Ok(Mamba2Config {
        num_heads: fields.or("mamba_num_heads", 128)?,
        head_dim: fields.or("mamba_head_dim", 64)?,
        num_groups: fields.either("mamba_n_groups", "n_groups", 8)?,
        state_size: fields.or("ssm_state_size", 128)?,
        conv_kernel: fields.either("mamba_d_conv", "conv_kernel", 4)?,
        bias: fields.or("use_bias", false)?,
        conv_bias: fields.either("mamba_conv_bias", "use_conv_bias", true)?,
        step_limits: fields.step_limits()?,
        norm_eps,
    })
}

fn mlp(fields: &Fields<'_>, intermediate_size: usize) -> Result<MlpConfig, ModelError> {
    let activation = fields.activation("mlp_hidden_act", "relu2")?;
    let bias = fields.or("mlp_bias", false)?;
    match activation {
        Activation::Xielu => Err(fields.unsupported("mlp_hidden_act", &"xielu".into(), "relu2, silu, gelu")),
        _ => Ok(MlpConfig { intermediate_size, gated: false, bias, activation }),
    }
}

fn experts(fields: &Fields<'_>) -> Result<ExpertsConfig, ModelError> {
    let (groups, kept): (usize, usize) = (fields.or("n_group", 1)?, fields.or("topk_group", 1)?);
    let shared: usize = fields.or("moe_shared_expert_intermediate_size", 7688)?;
    let expert = MlpConfig { bias: false, ..mlp(fields, fields.or("moe_intermediate_size", 7688)?)? };
    let bias = fields.or("mlp_bias", false)?;
    Ok(ExpertsConfig {
        num_experts: fields.either("num_local_experts", "n_routed_experts", 8)?,
        num_per_token: fields.or("num_experts_per_tok", 2)?,
        router: RouterConfig {
            // A single group is no restriction.
            groups: (groups != 1).then_some(ExpertGroups { count: groups, kept, score: GroupScore::BestTwo }),
            sum_plus: 1e-20,
            factor: fields.or("routed_scaling_factor", 1.0)?,
            ..RouterConfig::corrected_sigmoid(fields.or("norm_topk_prob", true)?)
        },
        latent: fields.get("moe_latent_size")?.map(|width| LatentExperts { width, bias }),
        shared: Some(SharedExpertConfig { mlp: mlp(fields, shared)?, gated: false }),
        expert,
    })
}

fn respelled(name: &str) -> Cow<'_, str> {
    with_prefix("backbone.", name)
}

fn source(_: &DecoderConfig, name: &str) -> TensorSource {
    const OWN: &[(&str, &str)] = &[
        ("self_attn.conv.", "mixer.conv1d."),
        ("self_attn.a_log", "mixer.A_log"),
        ("self_attn.dt_bias", "mixer.dt_bias"),
        // This comes after the other name with this prefix.
        ("self_attn.d", "mixer.D"),
        ("self_attn.", "mixer."),
        ("mlp.correction", "mixer.gate.e_score_correction_bias"),
        ("mlp.shared_expert.", "mixer.shared_experts."),
        ("mlp.latent_in.", "mixer.fc1_latent_proj."),
        ("mlp.latent_out.", "mixer.fc2_latent_proj."),
        ("mlp.", "mixer."),
        ("input_layernorm.", "norm."),
        ("post_attention_layernorm.", "norm."),
        ("model.embed_tokens.", "backbone.embeddings."),
        ("model.norm.", "backbone.norm_f."),
    ];
    let name = renamed(name, OWN);
    TensorSource::whole(match name.strip_prefix("model.layers.") {
        Some(rest) => format!("backbone.layers.{rest}"),
        None => name,
    })
}
