//! Configs: both spellings, transformers' defaults for absent fields, and refused options.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use moi_models::{
    Architecture, AttentionConfig, AttentionKind, DecoderConfig, ExpertGroups, FeedForwardKind, GroupScore,
    LayerConfig, NormKind, RopeScaling, RouterScore, supported_model_types,
};
use serde_json::{Value, json};

fn config(fields: Value) -> DecoderConfig {
    Architecture::from_config(&fields).unwrap().config
}

fn refusal(fields: Value) -> String {
    Architecture::from_config(&fields).unwrap_err().to_string()
}

fn heads(config: &DecoderConfig, layer: usize) -> &AttentionConfig {
    match &config.layers[layer].attention {
        Some(AttentionKind::Heads(attention)) => attention,
        other => panic!("layer {layer}: {other:?}"),
    }
}

/// The sizes and numbers of transformers 5.23.0's config classes, each from a config without any other fields.
#[test]
fn absent_fields_take_the_defaults_of_transformers() {
    // model_type, parameters, context, kv heads, head_dim, tied, theta of layer 0
    let expected: &[(&str, usize, usize, usize, usize, bool, f64)] = &[
        ("llama", 6_738_415_616, 2048, 32, 128, false, 1e4),
        ("mistral", 7_241_732_096, 131_072, 8, 128, false, 1e4),
        ("mixtral", 46_702_792_704, 131_072, 8, 128, false, 1e6),
        ("gemma", 8_537_680_896, 8192, 16, 256, true, 1e4),
        ("gemma2", 2_614_341_888, 8192, 4, 256, true, 1e4),
        ("gemma3_text", 2_628_658_432, 131_072, 4, 256, true, 1e4),
        ("phi3", 3_821_079_552, 4096, 32, 96, false, 1e4),
        ("smollm3", 3_075_098_624, 32_768, 4, 128, true, 2e6),
    ];
    for &(model_type, parameters, context, kv_heads, head_dim, tied, theta) in expected {
        let found = config(json!({ "model_type": model_type }));
        let attention = heads(&found, 0);
        assert_eq!(found.context_length, context, "{model_type}");
        assert_eq!((attention.num_kv_heads, attention.head_dim), (kv_heads, head_dim), "{model_type}");
        assert_eq!(found.tie_word_embeddings, tied, "{model_type}");
        assert_eq!(attention.rope.as_ref().unwrap().theta, theta, "{model_type}");
        assert_eq!(found.num_params(), parameters, "{model_type}");
    }
    let gpt2 = config(json!({ "model_type": "gpt2" }));
    assert_eq!(gpt2.num_params(), 124_439_808);
    assert_eq!(gpt2.norm.kind, NormKind::Layer);
}

#[test]
fn null_is_not_absent() {
    let window = |fields: Value| heads(&config(fields), 0).window;
    assert_eq!(window(json!({ "model_type": "mistral" })), Some(4096));
    assert_eq!(window(json!({ "model_type": "mistral", "sliding_window": null })), None);
    let cap = |fields: Value| config(fields).logit_softcap;
    assert_eq!(cap(json!({ "model_type": "gemma2" })), Some(30.0));
    assert_eq!(cap(json!({ "model_type": "gemma2", "final_logit_softcapping": null })), None);
    let qwen3 = |fields: Value| heads(&config(fields), 0).head_dim;
    assert_eq!(qwen3(json!({ "model_type": "qwen3" })), 128);
    assert_eq!(qwen3(json!({ "model_type": "qwen3_moe" })), 64);
}

/// Gemma 3's config as published, and as transformers 5 writes it.
#[test]
fn both_spellings_of_gemma_3() {
    let old = config(json!({
        "model_type": "gemma3_text", "num_hidden_layers": 8, "rope_theta": 5e5, "rope_local_base_freq": 2e4,
        "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window_pattern": 4,
        "sliding_window": 512,
    }));
    let kinds: Vec<&str> =
        (1..=8).map(|i| if i % 4 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    let new = config(json!({
        "model_type": "gemma3_text", "num_hidden_layers": 8, "layer_types": kinds, "sliding_window": 512,
        "rope_parameters": {
            "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 5e5 },
            "sliding_attention": { "rope_type": "default", "rope_theta": 2e4 },
        },
    }));
    assert_eq!(old, new);
    let (local, full) = (heads(&old, 2), heads(&old, 3));
    assert_eq!((local.window, full.window), (Some(512), None));
    assert_eq!(local.rope.as_ref().unwrap().scaling, RopeScaling::Default);
    assert_eq!(full.rope.as_ref().unwrap().scaling, RopeScaling::Linear { factor: 8.0 });
}

/// Gemma 4's config as published, and as transformers 5.2x writes what differs by layer.
#[test]
fn both_spellings_of_gemma_4() {
    let published = json!({
        "model_type": "gemma4_text", "num_hidden_layers": 6, "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": true, "global_head_dim": 384, "num_global_key_value_heads": 2,
    });
    let mut by_layer = published.clone();
    let fields = by_layer.as_object_mut().unwrap();
    fields.remove("global_head_dim");
    fields.remove("num_global_key_value_heads");
    fields.insert("per_layer_config".into(), json!({ "5": { "head_dim": 384, "num_key_value_heads": 2 } }));
    let found = config(published.clone());
    assert_eq!(found, config(by_layer));
    let (local, full) = (heads(&found, 0), heads(&found, 5));
    assert_eq!((local.head_dim, local.num_kv_heads, local.keys_are_values), (256, 4, false));
    assert_eq!((full.head_dim, full.num_kv_heads, full.keys_are_values), (384, 2, true));
    // A quarter of the pairs of a full layer's head are rotated.
    let rope = full.rope.clone().unwrap();
    assert_eq!((rope.dims, &rope.scaling), (384, &RopeScaling::Proportional { pairs: 48, factor: 1.0 }));
    assert!(rope.frequencies(1)[47] > 0.0 && rope.frequencies(1)[48] == 0.0);
    // Without keys as values, the number of full layers' heads is ignored; a text config nested in another one gives
    // the same.
    let mut other = published;
    other["attention_k_eq_v"] = json!(false);
    assert_eq!(heads(&config(other.clone()), 5).num_kv_heads, 4);
    let nested = config(json!({ "model_type": "gemma4", "text_config": other.clone() }));
    assert_eq!(nested.layers, config(other).layers);
}

/// The last layers use the keys and values of the last earlier layer of their kind.
#[test]
fn gemma_4_shares_caches() {
    let found = config(json!({
        "model_type": "gemma4_text", "num_hidden_layers": 12, "num_kv_shared_layers": 5, "use_double_wide_mlp": true,
    }));
    let sources: Vec<Option<usize>> = (0..12).map(|layer| heads(&found, layer).shared_cache).collect();
    assert_eq!(sources[6..], [None, Some(6), Some(6), Some(6), Some(6), Some(5)]);
    let widths: Vec<usize> = [6, 7]
        .map(|layer| match &found.layers[layer].feed_forward {
            Some(FeedForwardKind::Mlp(mlp)) => mlp.intermediate_size,
            other => panic!("{other:?}"),
        })
        .into();
    assert_eq!(widths, [9216, 18_432]);
    let without = json!({ "model_type": "gemma4_text", "num_hidden_layers": 12, "num_kv_shared_layers": 12 });
    assert!(refusal(without).contains("num_kv_shared_layers"));
}

/// OLMo 3's config as published, and as transformers 5 writes it; other models refuse a list by kind of layer.
#[test]
fn both_spellings_of_olmo_3() {
    let yarn = json!({ "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192 });
    let old = config(json!({ "model_type": "olmo3", "rope_theta": 5e5, "rope_scaling": yarn }));
    let mut full = yarn.clone();
    full["rope_theta"] = json!(5e5);
    let by_kind = json!({
        "full_attention": full, "sliding_attention": { "rope_type": "default", "rope_theta": 5e5 },
    });
    let new = config(json!({ "model_type": "olmo3", "rope_parameters": by_kind }));
    assert_eq!(old, new);
    assert_eq!(
        (old.context_length, heads(&old, 0).window, heads(&old, 3).window),
        (65_536, Some(4096), None)
    );
    let rope = |layer| &heads(&old, layer).rope.as_ref().unwrap().scaling;
    assert!(*rope(0) == RopeScaling::Default && matches!(rope(3), RopeScaling::Yarn { .. }));
    assert!(
        refusal(json!({ "model_type": "qwen3", "rope_parameters": by_kind })).contains("rope_parameters")
    );
}

/// The text model of a multimodal checkpoint is found under all prefixes that files have; tensors of encoders keep
/// their names and are ignored.
#[test]
fn text_is_found_under_every_prefix() {
    for (model_type, own) in [
        ("qwen2_5_vl", "model."),
        ("qwen3_5_text", "model."),
        ("qwen3_vl", "model.language_model."),
        ("mistral3", "language_model.model."),
        ("gemma3", "language_model.model."),
    ] {
        let found = Architecture::from_config(&json!({ "model_type": model_type })).unwrap();
        let expected = format!("{own}layers.3.input_layernorm.weight");
        assert_eq!(found.source("model.layers.3.input_layernorm.weight").name, expected, "{model_type}");
        for prefix in ["model.language_model.", "language_model.model.", own] {
            let name = format!("{prefix}layers.3.input_layernorm.weight");
            assert_eq!(found.respelled(&name), expected, "{model_type}: {name}");
            assert_eq!(found.plain(&name), "model.layers.3.input_layernorm.weight");
            assert!(!found.ignores(&name));
        }
    }
    let qwen = Architecture::from_config(&json!({ "model_type": "qwen2_5_vl" })).unwrap();
    for tower in ["visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"] {
        assert!(qwen.ignores(tower) && qwen.respelled(tower) == tower);
    }
}

/// Routers, as the fields of each family describe them.
#[test]
fn routers_are_described_by_their_families() {
    let experts = |fields: Value| {
        let found = config(fields);
        let of_layer = |layer: &LayerConfig| match &layer.feed_forward {
            Some(FeedForwardKind::Experts(experts)) => Some(experts.clone()),
            _ => None,
        };
        found.layers.iter().map(of_layer).collect::<Vec<_>>()
    };
    let glm = experts(json!({
        "model_type": "glm4_moe", "head_dim": 128, "num_hidden_layers": 3, "n_group": 4, "topk_group": 2, "n_shared_experts": 2,
        "routed_scaling_factor": 2.5, "first_k_dense_replace": 2,
    }));
    assert!(glm[0].is_none() && glm[1].is_none());
    let glm = glm[2].as_ref().unwrap();
    assert_eq!((glm.num_experts, glm.num_per_token), (128, 8));
    let groups = ExpertGroups { count: 4, kept: 2, score: GroupScore::BestTwo };
    assert_eq!(glm.router.groups, Some(groups));
    assert_eq!((glm.router.score, glm.router.factor), (RouterScore::Sigmoid, 2.5));
    assert_eq!(glm.shared.as_ref().unwrap().mlp.intermediate_size, 2 * 1408);
    let ernie =
        experts(json!({ "model_type": "ernie4_5_moe", "num_hidden_layers": 3, "moe_layer_interval": 2 }));
    assert_eq!(ernie.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
    let laguna = experts(json!({
        "model_type": "laguna", "num_hidden_layers": 2, "mlp_layer_types": ["sparse", "dense"],
        "moe_router_logit_softcapping": 30.0,
    }));
    assert_eq!(laguna[0].as_ref().unwrap().router.softcap, Some(30.0));
    assert!(laguna[1].is_none());
    for (fields, part) in [
        (json!({ "model_type": "glm4_moe", "head_dim": 128, "n_group": 3 }), "n_group is 3"),
        (
            json!({ "model_type": "glm4_moe", "head_dim": 128, "n_group": 4, "topk_group": 5 }),
            "topk_group is 5",
        ),
        (
            json!({ "model_type": "glm4_moe", "head_dim": 128, "n_group": 64, "topk_group": 1 }),
            "have 2 experts",
        ),
        (json!({ "model_type": "laguna", "mlp_layer_types": ["dense"] }), "lists 1 layers"),
        (json!({ "model_type": "gemma4_text", "enable_moe_block": true }), "`num_experts` is missing"),
    ] {
        let found = refusal(fields);
        assert!(found.contains(part), "{part}: {found}");
    }
}

#[test]
fn both_spellings_of_rotary_parameters() {
    let scaling = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768 });
    let old = config(json!({ "model_type": "qwen2", "rope_theta": 1e6, "rope_scaling": scaling }));
    let new = config(json!({ "model_type": "qwen2", "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6,
    }}));
    assert_eq!(old, new);
    // The context length is that to which the scaling extends it.
    assert_eq!(old.context_length, 131_072);
    let rope = heads(&old, 0).rope.clone().unwrap();
    assert!((rope.attention_factor() - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    let neox = |fields: Value| heads(&config(fields), 0).rope.clone().unwrap();
    let pythia = neox(json!({ "model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 500 }));
    assert_eq!((pythia.dims, pythia.theta), (48, 500.0));
    let theirs = neox(json!({ "model_type": "gpt_neox", "rope_theta": 7, "rotary_emb_base": 500 }));
    assert_eq!(theirs.theta, 500.0);
    let factors = vec![1.5; 48];
    let phi = |kind: &str| {
        let scaling = json!({ "type": kind, "short_factor": factors, "long_factor": factors });
        heads(&config(json!({ "model_type": "phi3", "rope_scaling": scaling })), 0).rope.clone().unwrap()
    };
    assert_eq!(phi("yarn"), phi("longrope"));
    assert_eq!(phi("su"), phi("longrope"));
}

/// Options of layers by a rule, or by a list.
#[test]
fn layers_differ_where_the_config_says_so() {
    let qwen = config(json!({
        "model_type": "qwen2", "num_hidden_layers": 4, "use_sliding_window": true, "sliding_window": 64,
        "max_window_layers": 3,
    }));
    let windows: Vec<_> = (0..4).map(|layer| heads(&qwen, layer).window).collect();
    assert_eq!(windows, [None, None, None, Some(64)]);
    let smollm = config(json!({ "model_type": "smollm3", "num_hidden_layers": 4 }));
    let turned: Vec<_> = (0..4).map(|layer| heads(&smollm, layer).rope.is_some()).collect();
    assert_eq!(turned, [true, true, true, false]);
    let moe = config(json!({ "model_type": "qwen3_moe", "num_hidden_layers": 4, "mlp_only_layers": [1] }));
    let experts = moe.layers.iter().map(|l| matches!(l.feed_forward, Some(FeedForwardKind::Experts(_))));
    assert_eq!(experts.collect::<Vec<_>>(), [true, false, true, true]);
    // 8 of 128 experts are read for a token.
    assert!(moe.weights_per_token() * 4 < moe.num_params());
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    for (fields, name) in [
        (
            json!({ "model_type": "llama", "quantization_config": { "quant_method": "awq" } }),
            "quantization_config",
        ),
        (
            json!({ "model_type": "gemma3_text", "use_bidirectional_attention": true }),
            "use_bidirectional_attention",
        ),
        (json!({ "model_type": "gpt2", "add_cross_attention": true }), "add_cross_attention"),
        (json!({ "model_type": "olmo2", "clip_qkv": 8.0 }), "clip_qkv"),
        (json!({ "model_type": "llama", "is_causal": false }), "is_causal"),
        (json!({ "model_type": "llama", "per_layer_config": { "0": {} } }), "per_layer_config"),
        (
            json!({ "model_type": "phi3", "rope_scaling": { "rope_type": "linear", "factor": 2.0 } }),
            "rope_type",
        ),
        (
            json!({ "model_type": "qwen3", "rope_parameters": { "partial_rotary_factor": 0.5 } }),
            "partial_rotary_factor",
        ),
        (json!({ "model_type": "llama", "hidden_act": "laplace" }), "hidden_act"),
        (json!({ "model_type": "opt", "do_layer_norm_before": false }), "do_layer_norm_before"),
        (json!({ "model_type": "qwen3_5_text", "attention_bias": true }), "attention_bias"),
        (json!({ "model_type": "qwen3_5_text", "output_gate_type": "tanh" }), "output_gate_type"),
        (json!({ "model_type": "opt", "word_embed_proj_dim": 512 }), "word_embed_proj_dim"),
        (json!({ "model_type": "nemotron_h", "mamba_hidden_act": "gelu" }), "mamba_hidden_act"),
        (json!({ "model_type": "nemotron_h", "sliding_window": 64 }), "sliding_window"),
        (
            json!({ "model_type": "granitemoehybrid", "position_embedding_type": "alibi" }),
            "position_embedding_type",
        ),
        (
            json!({ "model_type": "deepseek_v2", "topk_method": "noaux_tc", "num_experts_per_tok": 2 }),
            "topk_method",
        ),
        (json!({ "model_type": "deepseek_v3", "scoring_func": "softmax" }), "scoring_func"),
        (json!({ "model_type": "deepseek_v3", "moe_layer_freq": 2 }), "moe_layer_freq"),
        (json!({ "model_type": "gpt_oss", "swiglu_alpha": 1.5 }), "swiglu_alpha"),
        (
            json!({ "model_type": "laguna", "moe_apply_router_weight_on_input": true }),
            "moe_apply_router_weight_on_input",
        ),
        (json!({ "model_type": "minimax_m2", "scoring_func": "softmax" }), "scoring_func"),
        (json!({ "model_type": "exaone4", "sliding_window_pattern": "LXG" }), "sliding_window_pattern"),
        (
            json!({ "model_type": "gemma4_text", "use_bidirectional_attention": "all" }),
            "use_bidirectional_attention",
        ),
        (
            json!({ "model_type": "mistral3", "text_config": { "model_type": "qwen2" } }),
            "text_config.model_type",
        ),
        (json!({ "model_type": "qwen3", "rope_scaling": { "rope_type": "mrope" } }), "rope_type"),
        (
            json!({ "model_type": "gemma2", "num_hidden_layers": 1, "layer_types": ["linear_attention"] }),
            "layer_types",
        ),
        (
            json!({ "model_type": "gemma3", "text_config": { "final_logit_softcapping": 30.0 } }),
            "final_logit_softcapping",
        ),
        (
            json!({ "model_type": "nemotron-nas", "num_hidden_layers": 1, "block_configs": [{
            "attention": { "n_heads_in_group": 8, "window_length": 512 }, "ffn": { "ffn_mult": 1.0 } }] }),
            "window_length",
        ),
    ] {
        let found = refusal(fields);
        assert!(found.contains(name) && found.contains("not supported"), "{name}: {found}");
    }
    for (fields, parts) in [
        (json!({ "model_type": "mamba" }), ["mamba", "nemotron-nas"]),
        (json!({}), ["model_type", "gpt_neox"]),
        (json!({ "model_type": "nemotron-nas" }), ["block_configs", "missing"]),
        (json!({ "model_type": "gemma2", "layer_types": ["full_attention"] }), ["lists 1 layers", "26"]),
        (
            json!({ "model_type": "phi3", "rope_scaling": { "type": "su", "short_factor": [1.0], "long_factor": [1.0] } }),
            ["short_factor", "expected 48"],
        ),
        (json!({ "model_type": "llama", "hidden_size": "x" }), ["hidden_size", "invalid type"]),
        (
            json!({ "model_type": "llama", "hidden_size": 1 << 28, "head_dim": 64, "intermediate_size": 1 << 28, "num_hidden_layers": 4096 }),
            ["values", "inconsistent"],
        ),
        (json!({ "model_type": "mixtral", "num_experts_per_tok": 9 }), ["num_experts_per_tok", "1 to 8"]),
        (json!({ "model_type": "deepseek_v2" }), ["num_experts_per_tok", "missing"]),
        (json!({ "model_type": "nemotron_h", "hybrid_override_pattern": "M*X" }), ["\"X\"", "mamba (M)"]),
        (
            json!({ "model_type": "nemotron_h", "time_step_limit": [1.0, 0.5] }),
            ["time_step_limit", "1 to 0.5"],
        ),
        (json!({ "model_type": "nemotron_h", "n_groups": 7 }), ["groups (7)", "heads (128)"]),
        (json!({ "model_type": "glm4_moe_lite", "kv_lora_rank": 0 }), ["kv_lora_rank is 0", "1 to"]),
    ] {
        let found = refusal(fields);
        assert!(parts.iter().all(|part| found.contains(part)), "{parts:?}: {found}");
    }
    assert_eq!(supported_model_types().count(), 65);
}

/// Both spellings of Nemotron-H's layers, infinity in JSON and in Python's notation, and a config without any fields.
#[test]
fn layers_of_one_block() {
    let read = |fields: serde_json::Value| Architecture::from_config(&fields).unwrap().config;
    let listed =
        read(json!({ "model_type": "nemotron_h", "layers_block_type": ["mamba", "moe", "attention", "mlp"],
        "time_step_limit": [0.0, { "__float__": "Infinity" }] }));
    let pattern = read(json!({ "model_type": "nemotron_h", "hybrid_override_pattern": "ME*-",
        "time_step_limit": [0.0, "Infinity"] }));
    assert_eq!(listed, pattern);
    assert_eq!(listed, read(json!({ "model_type": "nemotron_h" })));
    assert_eq!(listed.layers.iter().filter(|layer| layer.attention.is_some()).count(), 2);
}

/// The context ends where an indexer would choose among positions, and a note gives the reason.
#[test]
fn what_an_indexer_would_choose_from_is_not_seen() {
    let read = |fields: serde_json::Value| Architecture::from_config(&fields).unwrap().config;
    for model_type in ["deepseek_v32", "glm_moe_dsa"] {
        let config = read(json!({ "model_type": model_type }));
        assert_eq!(config.context_length, 2048, "{model_type}");
        assert!(config.context_note.is_some_and(|note| note.contains("index_topk")), "{model_type}");
        let short = read(json!({ "model_type": model_type, "max_position_embeddings": 1024 }));
        assert_eq!((short.context_length, short.context_note), (1024, None), "{model_type}");
    }
}
