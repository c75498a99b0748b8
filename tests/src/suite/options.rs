//! Lists the decoder options that a model uses.

use std::collections::BTreeSet;

use moi_models::{
    Activation, AttentionConfig, AttentionKind, DecoderConfig, ExpertsConfig, FeedForwardKind, MlpConfig,
    NormKind,
};

/// The options that lead to different computations on a device, by name.
pub fn options(config: &DecoderConfig) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut say = |name: &str, is: bool| {
        if is {
            used.insert(name.to_owned());
        }
    };
    say(&format!("{:?} norm", config.norm.kind), true);
    say("other norms behind blocks", config.post_norm != config.norm);
    say("another last norm", config.final_norm != config.norm);
    say("scaled embedding", config.embedding_scale != 1.0);
    say("normed embedding", config.embedding_norm.is_some());
    say("learned positions", config.learned_positions.is_some());
    say("inputs of each layer", config.per_layer_inputs.is_some());
    say("queries that grow", config.query_scale.is_some());
    say("tied head", config.tie_word_embeddings);
    say("own head", !config.tie_word_embeddings);
    say("bias of the head", config.head_bias);
    say("logit scale", config.logit_scale != 1.0);
    say("logit cap", config.logit_softcap.is_some());
    for layer in &config.layers {
        say(&format!("norms {:?}", layer.norms), true);
        say("parallel", layer.parallel);
        say("residual scale", layer.residual_scale != 1.0);
        say("output scale", layer.output_scale);
        match &layer.attention {
            None => say("no attention", true),
            Some(AttentionKind::Linear) => say("linear map for attention", true),
            Some(AttentionKind::DeltaNet(_)) => say("delta net", true),
            Some(AttentionKind::ShortConv(conv)) => {
                say("short convolution", true);
                say("bias of the convolution", conv.bias);
            }
            Some(AttentionKind::Mamba2(mamba)) => {
                say("Mamba 2", true);
                say("groups of Mamba heads", mamba.num_groups > 1);
                say("bias of a Mamba convolution", mamba.conv_bias);
            }
            Some(AttentionKind::Latent(latent)) => {
                say("attention over latents", true);
                say("queries with a latent", latent.query_rank.is_some());
                say("queries without a latent", latent.query_rank.is_none());
            }
            Some(AttentionKind::Heads(heads)) => of_attention(heads, &mut say),
        }
        match &layer.feed_forward {
            None => say("no feed-forward", true),
            Some(FeedForwardKind::Linear) => say("linear map for feed-forward", true),
            Some(FeedForwardKind::Mlp(config)) => of_mlp(config, &mut say),
            Some(FeedForwardKind::Experts(experts)) => of_experts(experts, &mut say),
            Some(FeedForwardKind::MlpAndExperts(mlp, experts)) => {
                say("an MLP beside experts", true);
                of_mlp(mlp, &mut say);
                of_experts(experts, &mut say);
            }
        }
    }
    used
}

fn of_attention(heads: &AttentionConfig, say: &mut impl FnMut(&str, bool)) {
    say("grouped heads", heads.num_kv_heads < heads.num_heads);
    say("bias of qkv", heads.qkv_bias);
    say("bias of o", heads.output_bias);
    let qk_norm = heads.qk_norm.map(|norm| {
        let has_weight = norm.norm.kind != NormKind::RmsAlone;
        (norm.span, has_weight, norm.behind_rope)
    });
    say(&format!("qk norm {qk_norm:?}"), true);
    say("value norm", heads.value_norm.is_some());
    say("keys as values", heads.keys_are_values);
    say("another layer's keys", heads.shared_cache.is_some());
    say(&format!("gate {:?}", heads.gate), heads.gate.is_some());
    say("no rope", heads.rope.is_none());
    say("partial rope", heads.rope.as_ref().is_some_and(|rope| rope.dims < heads.head_dim));
    say("window", heads.window.is_some());
    say("score cap", heads.softcap.is_some());
    say("sinks", heads.sinks);
}

fn of_mlp(mlp: &MlpConfig, say: &mut impl FnMut(&str, bool)) {
    let MlpConfig { activation, gated, bias, .. } = *mlp;
    let name = match activation {
        Activation::ClampedSwiGlu { .. } => "ClampedSwiGlu".to_owned(),
        other => format!("{other:?}"),
    };
    say(&name, true);
    say(if gated { "gated" } else { "not gated" }, true);
    say("bias of mlp", bias);
}

/// The options of experts, without the way in which they are chosen: the host computes that, whatever the device.
fn of_experts(experts: &ExpertsConfig, say: &mut impl FnMut(&str, bool)) {
    of_mlp(&experts.expert, say);
    say("experts", true);
    say("bias of the router", experts.router.bias);
    say("norm of the router's input", experts.router.input_norm.is_some());
    say("shared expert", experts.shared.is_some());
    say("gate of the shared expert", experts.shared.as_ref().is_some_and(|shared| shared.gated));
}
