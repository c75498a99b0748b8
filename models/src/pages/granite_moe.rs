//! Granite's mixtures of experts, and Granite 4 H: Granite whose layers are mostly Mamba 2, each with an MLP, and
//! with experts in parallel to it if there are any.

use crate::{
    Architecture, AttentionKind, DecoderConfig, ExpertStacks, ExpertsConfig, FeedForwardKind, Mamba2Config,
    ModelError, RouterConfig, RowBlocks, SharedExpertConfig, TensorSource,
    architecture::Names,
    family::{self, LLAMA},
    fields::Fields,
    names::{of_layer, renamed},
    pages::granite,
};

const NAMES: Names = Names { source, stacks: ExpertStacks::InputLinear, ..Names::LLAMA };

/// Reads the config of a mixture of experts.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let mut decoder = family::decoder(fields, &LLAMA)?;
    granite::multiply(&mut decoder, fields)?;
    let experts = experts(fields, fields.or("num_local_experts", 8)?)?;
    decoder.give_experts(&experts, |_| true);
    Architecture::new(decoder, NAMES)
}

/// Reads the config of a hybrid of Mamba 2 and attention.
pub(crate) fn hybrid(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    fields.supports("position_embedding_type", &["rope".into(), "nope".into()], "rope, nope")?;
    let mut decoder = family::decoder(fields, &LLAMA)?;
    granite::multiply(&mut decoder, fields)?;
    if fields.get::<String>("position_embedding_type")?.as_deref() != Some("rope") {
        decoder.attentions_mut().for_each(|(_, attention)| attention.rope = None);
    }
    let mamba = mamba(fields, &decoder)?;
    let kinds = match fields.value("layer_types") {
        Some(_) => fields.layers_with_states(decoder.layers.len(), STATES, |_| true)?,
        None => {
            let named = fields.renamed(&[("layers_block_type", "layer_types")]);
            let named = Fields::new(&named, fields.model_type)?;
            named.layers_with_states(decoder.layers.len(), STATES, |_| true)?
        }
    };
    for (layer, _) in decoder.layers.iter_mut().zip(kinds).filter(|(_, has_state)| *has_state) {
        layer.attention = Some(AttentionKind::Mamba2(mamba.clone()));
    }
    let shared = family::gated_mlp(fields, &LLAMA, fields.or("shared_intermediate_size", 1024)?)?;
    let num_experts: usize = fields.or("num_local_experts", 8)?;
    for layer in &mut decoder.layers {
        layer.feed_forward = Some(match num_experts {
            0 => FeedForwardKind::Mlp(shared.clone()),
            _ => FeedForwardKind::Experts(ExpertsConfig {
                shared: Some(SharedExpertConfig { mlp: shared.clone(), gated: false }),
                ..experts(fields, num_experts)?
            }),
        });
    }
    Architecture::new(decoder, NAMES)
}

/// The names of layers with states.
const STATES: &[&str] = &["mamba", "linear_attention"];

fn experts(fields: &Fields<'_>, num_experts: usize) -> Result<ExpertsConfig, ModelError> {
    Ok(ExpertsConfig {
        num_experts,
        num_per_token: fields.or("num_experts_per_tok", 2)?,
        // The softmax over the picked experts is the softmax over all, divided by the sum of the picked ones.
        router: RouterConfig::softmax(true),
        expert: family::gated_mlp(fields, &LLAMA, fields.or("intermediate_size", LLAMA.intermediate_size)?)?,
        latent: None,
        shared: None,
    })
}

fn mamba(fields: &Fields<'_>, decoder: &DecoderConfig) -> Result<Mamba2Config, ModelError> {
    let num_heads: usize = fields.or("mamba_n_heads", 128)?;
    let expand: usize = fields.or("mamba_expand", 2)?;
    let own = fields.value("mamba_d_head").filter(|value| *value != "auto");
    let head_dim = match own {
        Some(_) => fields.or("mamba_d_head", 0)?,
        None => expand.saturating_mul(decoder.hidden_size) / num_heads.max(1),
    };
    Ok(Mamba2Config {
        num_heads,
        head_dim,
        num_groups: fields.or("mamba_n_groups", 1)?,
        state_size: fields.or("mamba_d_state", 256)?,
        conv_kernel: fields.or("mamba_d_conv", 4)?,
        bias: fields.or("mamba_proj_bias", false)?,
        conv_bias: fields.or("mamba_conv_bias", true)?,
        step_limits: fields.step_limits()?,
        norm_eps: decoder.norm.eps,
    })
}

/// The tensor of a parameter. Gate and up projections of the MLP are halves of one tensor.
fn source(config: &DecoderConfig, name: &str) -> TensorSource {
    const MAMBA: &[(&str, &str)] = &[
        ("self_attn.conv.", "mamba.conv1d."),
        ("self_attn.a_log", "mamba.A_log"),
        ("self_attn.dt_bias", "mamba.dt_bias"),
        // This comes after the other name with this prefix.
        ("self_attn.d", "mamba.D"),
        ("self_attn.", "mamba."),
    ];
    const EXPERTS: &[(&str, &str)] = &[
        ("mlp.gate.", "block_sparse_moe.router.layer."),
        ("mlp.experts.", "block_sparse_moe.experts."),
        ("mlp.", "shared_mlp."),
    ];
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let layer = layer.and_then(|(index, _)| config.layers.get(index.parse::<usize>().ok()?));
    let Some(layer) = layer else { return TensorSource::whole(name) };
    let is_mamba = matches!(layer.attention, Some(AttentionKind::Mamba2(_)));
    if is_mamba && name.contains(".self_attn.") {
        return TensorSource::whole(renamed(name, MAMBA));
    }
    let shared = match &layer.feed_forward {
        Some(FeedForwardKind::Mlp(mlp)) => Some(mlp),
        Some(FeedForwardKind::Experts(experts)) => experts.shared.as_ref().map(|shared| &shared.mlp),
        _ => None,
    };
    let part = of_layer(name).and_then(|(index, module, kind)| {
        let part = module.strip_prefix("mlp.shared_expert.").or(module.strip_prefix("mlp."))?;
        Some((index, part, kind, shared?.intermediate_size))
    });
    match part {
        Some((index, "down_proj", kind, _)) => {
            TensorSource::whole(format!("model.layers.{index}.shared_mlp.output_linear.{kind}"))
        }
        Some((index, part @ ("gate_proj" | "up_proj"), kind, width)) => {
            let start = if part == "gate_proj" { 0 } else { width };
            TensorSource {
                rows: Some(RowBlocks::range(start, width, 2 * width)),
                ..TensorSource::whole(format!("model.layers.{index}.shared_mlp.input_linear.{kind}"))
            }
        }
        _ => TensorSource::whole(renamed(name, EXPERTS)),
    }
}
