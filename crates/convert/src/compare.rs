//! Compares two configs: whether they make the same model, and if not, which option differs, in words.

use moi_models::{
    Activation, AttentionConfig, AttentionKind, DecoderConfig, ExpertsConfig, FeedForwardKind, LayerConfig,
    MlpConfig, NormConfig, NormKind, NormPlace, QkSpan, RopeConfig, RopeScaling, RouterConfig,
};

/// Options in order, each as a name in words and its value.
type OptionList = Vec<(String, String)>;

/// Compares whether two configs make the same model. Rotary positions are compared by their frequencies, because a
/// file can express them otherwise.
pub(crate) fn same_config(source: &DecoderConfig, made: &DecoderConfig) -> Result<(), String> {
    let (source_ropes, source) = without_ropes(source);
    let (made_ropes, mut made) = without_ropes(made);
    // GGUF has one name for some related model types.
    made.model_type = source.model_type;
    for (layer, (a, b)) in source_ropes.iter().zip(&made_ropes).enumerate() {
        if !same_rope(a.as_ref(), b.as_ref(), source.context_length) {
            let (a, mut b) = (rope(a.as_ref()), rope(b.as_ref()));
            if a == b {
                b = "others".to_owned();
            }
            return Err(format!(
                "the rotary positions of layer {layer} are {a} in the model, and would be {b} in the file"
            ));
        }
    }
    if source == made {
        return Ok(());
    }
    let (before, after) = (options(&source), options(&made));
    let differing = before.iter().zip(&after).find(|(a, b)| a != b);
    Err(match differing {
        Some(((name, a), (_, b))) => format!("{name} is {a} in the model, and would be {b} in the file"),
        None => "an option of the model would be another one in the file".to_owned(),
    })
}

fn without_ropes(config: &DecoderConfig) -> (Vec<Option<RopeConfig>>, DecoderConfig) {
    let mut config = config.clone();
    let ropes = config.layers.iter_mut().map(|layer| match &mut layer.attention {
        Some(AttentionKind::Heads(attention)) => {
            // Files store the scale as float32.
            attention.scale = f64::from(attention.scale as f32);
            attention.rope.take()
        }
        Some(AttentionKind::Latent(latent)) => {
            latent.scale = f64::from(latent.scale as f32);
            let none = RopeConfig { theta: 0.0, dims: 0, scaling: RopeScaling::Default };
            Some(std::mem::replace(&mut latent.rope, none))
        }
        _ => None,
    });
    (ropes.collect(), config)
}

fn same_rope(source: Option<&RopeConfig>, made: Option<&RopeConfig>, context_length: usize) -> bool {
    let close = |a: &f64, b: &f64| (a - b).abs() <= 1e-5 * a.abs();
    match (source, made) {
        (Some(a), Some(b)) => [1, context_length].into_iter().all(|len| {
            let (a_all, b_all) = (a.frequencies(len), b.frequencies(len));
            a_all.len() == b_all.len()
                && a_all.iter().zip(&b_all).all(|(a, b)| close(a, b))
                && close(&a.attention_factor(), &b.attention_factor())
        }),
        (None, None) => true,
        _ => false,
    }
}

/// The rotary positions in words.
fn rope(rope: Option<&RopeConfig>) -> String {
    let Some(RopeConfig { theta, dims, scaling }) = rope else { return "none".to_owned() };
    let scaling = match scaling {
        RopeScaling::Default => "without scaling".to_owned(),
        RopeScaling::Linear { factor } => format!("with linear scaling by {factor}"),
        RopeScaling::Dynamic { factor, .. } => format!("with dynamic scaling by {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!("with llama3 scaling by {factor}"),
        RopeScaling::Yarn { factor, attention_factor, .. } => {
            format!("with yarn scaling by {factor} and attention factor {attention_factor}")
        }
        RopeScaling::LongRope { attention_factor, .. } => {
            format!("with longrope scaling and attention factor {attention_factor}")
        }
        RopeScaling::Proportional { pairs, factor } => {
            format!("of which {pairs} pairs turn, divided by {factor}")
        }
        RopeScaling::Factors(_) => "with a divisor for each frequency".to_owned(),
    };
    format!("those of {dims} values of a head with base {theta}, {scaling}")
}

fn options(config: &DecoderConfig) -> OptionList {
    // Every field is named, so that the compiler reports a new field that is missing here.
    let DecoderConfig {
        model_type: _,
        vocab_size,
        hidden_size,
        context_length,
        context_note: _,
        norm,
        post_norm,
        final_norm,
        embedding_scale,
        embedding_norm,
        learned_positions,
        per_layer_inputs,
        query_scale,
        tie_word_embeddings,
        head_bias,
        logit_scale,
        logit_softcap,
        recompute_beyond,
        layers,
    } = config;
    let mut all: OptionList = vec![
        named("the vocabulary's size", vocab_size),
        named("the hidden size", hidden_size),
        named("the context length", context_length),
        named("the kind of norm", &kind(norm)),
        named("the norms' epsilon", &norm.eps),
        named("the kind of norm behind the blocks", &kind(post_norm)),
        named("the epsilon of norms behind the blocks", &post_norm.eps),
        named("the kind of the last norm", &kind(final_norm)),
        named("the last norm's epsilon", &final_norm.eps),
        named("the factor on embeddings", embedding_scale),
        named("the norm of embeddings", &or_none(embedding_norm.as_ref())),
        named("the first row of the table of learned positions", &or_none(learned_positions.as_ref())),
        named(
            "the width of each layer's own inputs",
            &or_none(per_layer_inputs.map(|own| format!("{own:?}")).as_ref()),
        ),
        named(
            "the growth of queries with their position",
            &or_none(query_scale.map(|scale| format!("{scale:?}")).as_ref()),
        ),
        named("the bias of the head", &yes(*head_bias)),
        named("the tie of head and embedding", &yes(*tie_word_embeddings)),
        named("the factor on logits", logit_scale),
        named("the softcap of logits", &or_none(logit_softcap.as_ref())),
        named("the context up to which a cache serves", &or_none(recompute_beyond.as_ref())),
        named("the number of layers", &layers.len()),
    ];
    for (index, layer) in layers.iter().enumerate() {
        let of_layer = of_layer(layer).into_iter();
        all.extend(of_layer.map(|(name, value)| (format!("{name} of layer {index}"), value)));
    }
    all
}

fn of_layer(layer: &LayerConfig) -> OptionList {
    let LayerConfig { attention, feed_forward, norms, parallel, residual_scale, output_scale } = layer;
    let mut all: OptionList = Vec::new();
    match attention {
        Some(AttentionKind::Heads(attention)) => {
            all.push(named("the attention", &"one with heads"));
            all.extend(of_attention(attention));
        }
        Some(AttentionKind::DeltaNet(net)) => {
            all.push(named("the attention", &"a delta net"));
            all.push(named("the delta net", &format!("{net:?}")));
        }
        Some(AttentionKind::ShortConv(conv)) => {
            all.push(named("the attention", &"a short convolution"));
            all.push(named("the short convolution", &format!("{conv:?}")));
        }
        Some(AttentionKind::Mamba2(mamba)) => {
            all.push(named("the attention", &"Mamba 2"));
            all.push(named("the Mamba layer", &format!("{mamba:?}")));
        }
        Some(AttentionKind::Latent(latent)) => {
            all.push(named("the attention", &"one over latents"));
            all.push(named("the attention over latents", &format!("{latent:?}")));
        }
        Some(AttentionKind::Linear) => all.push(named("the attention", &"a linear map")),
        None => all.push(named("the attention", &"none")),
    }
    match feed_forward {
        Some(FeedForwardKind::Mlp(mlp)) => {
            all.push(named("the feed-forward block", &"one for all positions"));
            all.extend(of_mlp(mlp));
        }
        Some(FeedForwardKind::Experts(experts)) => {
            all.push(named("the feed-forward block", &"a mixture of experts"));
            all.extend(of_experts(experts));
        }
        Some(FeedForwardKind::MlpAndExperts(mlp, experts)) => {
            all.push(named("the feed-forward block", &"one for all positions and a mixture of experts"));
            all.extend(of_mlp(mlp));
            all.extend(of_experts(experts));
        }
        Some(FeedForwardKind::Linear) => all.push(named("the feed-forward block", &"a linear map")),
        None => all.push(named("the feed-forward block", &"none")),
    }
    let place = match norms {
        NormPlace::Before => "before the blocks",
        NormPlace::Shared => "one before both blocks",
        NormPlace::After => "behind the blocks",
        NormPlace::Around => "on both sides of the blocks",
    };
    all.push(named("the place of the norms", &place));
    all.push(named("the parallel computation of both blocks", &yes(*parallel)));
    all.push(named("the factor on residuals", residual_scale));
    all.push(named("the factor of the layer's own", &yes(*output_scale)));
    all
}

fn kind(norm: &NormConfig) -> &'static str {
    match norm.kind {
        NormKind::Rms => "RMS",
        NormKind::RmsPlusOne => "RMS with 1 + weight",
        NormKind::RmsAlone => "RMS without a weight",
        NormKind::Layer => "LayerNorm",
    }
}

fn of_experts(experts: &ExpertsConfig) -> OptionList {
    let ExpertsConfig { num_experts, num_per_token, router, expert, latent, shared } = experts;
    let RouterConfig {
        score,
        softcap,
        bias,
        correction,
        groups,
        normalized,
        sum_plus,
        sum_at_least,
        factor,
        expert_scales,
        input_norm,
    } = router;
    let mut all = vec![
        named("the number of experts", num_experts),
        named("the number of experts for a position", num_per_token),
        named("the experts' score", &format!("{score:?}").to_lowercase()),
        named("the softcap of the router", &or_none(softcap.as_ref())),
        named("the bias of the router", &yes(*bias)),
        named("the correction of the experts' scores", &yes(*correction)),
        named("the number of groups of experts", &or_none(groups.map(|groups| groups.count).as_ref())),
        named("the groups that are kept", &or_none(groups.map(|groups| format!("{groups:?}")).as_ref())),
        named("the normalisation of the experts' weights", &yes(*normalized)),
        named("what is added to the sum of the experts' weights", sum_plus),
        named("the least sum of the experts' weights", sum_at_least),
        named("the factor on the experts' weights", factor),
        named("the factors of each expert", &yes(*expert_scales)),
        named("the norm of the router's input", &or_none(input_norm.as_ref())),
        named("the experts' latent", &or_none(latent.map(|latent| format!("{latent:?}")).as_ref())),
        named("the shared expert", &or_none(shared.as_ref().map(|one| format!("{one:?}")).as_ref())),
        named("the gate of the shared expert", &yes(shared.as_ref().is_some_and(|shared| shared.gated))),
    ];
    all.extend(of_mlp(expert));
    all
}

fn of_attention(attention: &AttentionConfig) -> OptionList {
    let AttentionConfig {
        num_heads,
        num_kv_heads,
        head_dim,
        qkv_bias,
        output_bias,
        qk_norm,
        value_norm,
        keys_are_values,
        shared_cache,
        gate,
        rope: _,
        window,
        scale,
        softcap,
        sinks,
    } = attention;
    let span = match qk_norm.map(|norm| norm.span) {
        Some(QkSpan::Head) => "one of each head",
        Some(QkSpan::Projection) => "one of the whole projection",
        None => "none",
    };
    let norm = qk_norm.map_or("none", |norm| kind(&norm.norm));
    let eps = qk_norm.map(|norm| norm.norm.eps);
    let gate = gate.map(|gate| format!("{:?} of each {:?}", gate.kind, gate.span).to_lowercase());
    vec![
        named("the number of attention heads", num_heads),
        named("the number of key and value heads", num_kv_heads),
        named("the size of a head", head_dim),
        named("the bias of queries, keys and values", &yes(*qkv_bias)),
        named("the bias of the attention's output", &yes(*output_bias)),
        named("the norm of queries and keys", &span),
        named("the kind of norm of queries and keys", &norm),
        named("the epsilon of the norm of queries and keys", &or_none(eps.as_ref())),
        named(
            "the norm of queries and keys behind their rotation",
            &yes(qk_norm.is_some_and(|norm| norm.behind_rope)),
        ),
        named("the norm of values", &or_none(value_norm.as_ref())),
        named("the use of keys as values", &yes(*keys_are_values)),
        named("the layer whose keys and values are seen", &or_none(shared_cache.as_ref())),
        named("the gate of attention", &or_none(gate.as_ref())),
        named("the attention window", &or_none(window.as_ref())),
        named("the attention scale", &(*scale as f32)),
        named("the softcap of attention", &or_none(softcap.as_ref())),
        named("the sinks of attention", &yes(*sinks)),
    ]
}

fn of_mlp(mlp: &MlpConfig) -> OptionList {
    let MlpConfig { intermediate_size, gated, bias, activation } = mlp;
    let limit = match activation {
        Activation::ClampedSwiGlu { limit } => Some(limit),
        _ => None,
    };
    let activation = match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
        Activation::ReluSquared => "relu2",
        Activation::ClampedSwiGlu { .. } => "clamped SwiGLU",
        Activation::Xielu => "xIELU",
    };
    vec![
        named("the feed-forward size", intermediate_size),
        named("the feed-forward gate", &yes(*gated)),
        named("the feed-forward bias", &yes(*bias)),
        named("the activation", &activation),
        named("the limit of the activation", &or_none(limit)),
    ]
}

fn named(name: &str, value: &impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

fn yes(is_there: bool) -> &'static str {
    if is_there { "there" } else { "not there" }
}

fn or_none(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use moi_models::Architecture;
    use serde_json::{Value, json};

    use super::*;

    fn config(change: Value) -> DecoderConfig {
        let mut fields = json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        });
        for (name, value) in change.as_object().unwrap() {
            fields[name] = value.clone();
        }
        Architecture::from_config(&fields).unwrap().config
    }

    #[test]
    fn options_that_differ_are_named() {
        let source = config(json!({}));
        assert_eq!(same_config(&source, &source.clone()), Ok(()));
        for (change, said) in [
            (
                json!({ "vocab_size": 65 }),
                "the vocabulary's size is 64 in the model, and would be 65 in the file",
            ),
            (
                json!({ "rms_norm_eps": 1e-6 }),
                "the norms' epsilon is 0.00001 in the model, and would be 0.000001",
            ),
            (json!({ "num_hidden_layers": 3 }), "the number of layers is 2 in the model, and would be 3"),
            (
                json!({ "num_key_value_heads": 1 }),
                "the number of key and value heads of layer 0 is 2 in the model, and would be 1",
            ),
            (
                json!({ "hidden_act": "gelu" }),
                "the activation of layer 0 is silu in the model, and would be gelu",
            ),
            (
                json!({ "rope_theta": 20000.0 }),
                "the rotary positions of layer 0 are those of 8 values of a head with base 10000, without scaling",
            ),
        ] {
            let found = same_config(&source, &config(change)).unwrap_err();
            assert!(found.starts_with(said), "{found:?} does not say {said:?}");
        }
        let mut made = source.clone();
        let Some(AttentionKind::Heads(attention)) = &mut made.layers[1].attention else { unreachable!() };
        attention.window = Some(8);
        assert_eq!(
            same_config(&source, &made).unwrap_err(),
            "the attention window of layer 1 is none in the model, and would be 8 in the file"
        );
    }
}
