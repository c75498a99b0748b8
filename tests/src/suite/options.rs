//! Which of the decoder's options a model uses.

use std::collections::BTreeSet;

use moi_models::{AttentionKind, DecoderConfig, FeedForwardKind, MlpConfig};

/// The options that lead to other computations on a device, by name.
pub fn options(config: &DecoderConfig) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut say = |name: &str, is: bool| {
        if is {
            used.insert(name.to_owned());
        }
    };
    say(&format!("{:?} norm", config.norm.kind), true);
    say("scaled embedding", config.embedding_scale != 1.0);
    say("learned positions", config.learned_positions);
    say("tied head", config.tie_word_embeddings);
    say("own head", !config.tie_word_embeddings);
    say("logit scale", config.logit_scale != 1.0);
    say("logit cap", config.logit_softcap.is_some());
    for layer in &config.layers {
        say(&format!("norms {:?}", layer.norms), true);
        say("parallel", layer.parallel);
        say("residual scale", layer.residual_scale != 1.0);
        match &layer.attention {
            None => say("no attention", true),
            Some(AttentionKind::Linear) => say("linear map for attention", true),
            Some(AttentionKind::Heads(heads)) => {
                say("grouped heads", heads.num_kv_heads < heads.num_heads);
                say("bias of qkv", heads.qkv_bias);
                say("bias of o", heads.output_bias);
                say(&format!("qk norm {:?}", heads.qk_norm), true);
                say("no rope", heads.rope.is_none());
                say("partial rope", heads.rope.as_ref().is_some_and(|rope| rope.dims < heads.head_dim));
                say("window", heads.window.is_some());
                say("score cap", heads.softcap.is_some());
            }
        }
        let mut mlp = |mlp: &MlpConfig| {
            let MlpConfig { activation, gated, bias, .. } = *mlp;
            say(&format!("{activation:?}"), true);
            say(if gated { "gated" } else { "not gated" }, true);
            say("bias of mlp", bias);
        };
        match &layer.feed_forward {
            None => say("no feed-forward", true),
            Some(FeedForwardKind::Linear) => say("linear map for feed-forward", true),
            Some(FeedForwardKind::Mlp(config)) => mlp(config),
            Some(FeedForwardKind::Experts(experts)) => {
                mlp(&experts.expert);
                say("experts", true);
                say("experts' shares as they are", !experts.normalized);
            }
        }
    }
    used
}
