//! Newer families in which every layer has attention over keys and values.

use serde_json::{Value, json};

use super::{Fields, Meta, object, set};
use crate::CheckpointError;

impl Meta<'_> {
    pub(super) fn qwen_vl_moe(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("qwen3_vl_moe_text")?;
        set(
            &mut fields,
            json!({
                "num_experts": self.need("expert_count")?,
                "num_experts_per_tok": self.need("expert_used_count")?,
                "moe_intermediate_size": self.need("expert_feed_forward_length")?,
            }),
        );
        Ok(fields)
    }

    pub(super) fn gpt_oss(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("gpt_oss")?;
        let mut rope = self.rope()?;
        if rope.get("rope_type") == Some(&json!("yarn")) {
            // No file states this field.
            rope.insert("truncate".into(), json!(false));
        }
        set(
            &mut fields,
            json!({
                "attention_bias": self.has("blk.0.attn_output.bias"),
                "intermediate_size": self.need("expert_feed_forward_length")?,
                "num_experts": self.need("expert_count")?,
                "num_experts_per_tok": self.need("expert_used_count")?,
                "sliding_window": self.need("attention.sliding_window")?,
                "layer_types": self.layer_types(),
                "rope_parameters": rope,
            }),
        );
        Ok(fields)
    }

    pub(super) fn mistral3(&self) -> Result<Fields, CheckpointError> {
        let beta = self.f64("attention.temperature_scale");
        // Files of Mistral Small 3.1 have this architecture, too, but the model is a Llama.
        let mut fields = self.base(if beta.is_some() { "ministral3" } else { "llama" })?;
        let mut rope = match fields.remove("rope_parameters") {
            Some(Value::Object(rope)) => rope,
            _ => self.rope()?,
        };
        self.check_temperature_length()?;
        let weight = self.f64("rope.scaling.yarn_log_multiplier");
        if beta.is_some() || weight.is_some() {
            set(&mut rope, json!({ "mscale": 1.0, "mscale_all_dim": weight.unwrap_or(0.0) }));
        }
        set(&mut rope, json!({ "llama_4_scaling_beta": beta }));
        set(&mut fields, json!({ "rope_parameters": rope }));
        Ok(fields)
    }

    pub(super) fn exaone4(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("exaone4")?;
        match self.usize("attention.sliding_window").filter(|&window| window > 0) {
            Some(window) => {
                set(&mut fields, json!({ "sliding_window": window, "layer_types": self.layer_types() }));
            }
            // An absent field would mean the default window.
            None => drop(fields.insert("sliding_window".into(), Value::Null)),
        }
        Ok(fields)
    }

    /// The fields of Olmo 2's architecture with a sliding window.
    pub(super) fn olmo3(&self, window: usize) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("olmo3")?;
        let theta = self.f64("rope.freq_base").unwrap_or(10_000.0);
        set(
            &mut fields,
            json!({
                "sliding_window": window,
                "layer_types": self.layer_types(),
                "rope_parameters": {
                    "full_attention": self.rope()?,
                    "sliding_attention": { "rope_type": "default", "rope_theta": theta },
                },
            }),
        );
        Ok(fields)
    }

    pub(super) fn seed_oss(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("seed_oss")?;
        set(
            &mut fields,
            json!({
                "attention_bias": self.has("blk.0.attn_q.bias"),
                "attention_out_bias": self.has("blk.0.attn_output.bias"),
                "mlp_bias": self.has("blk.0.ffn_up.bias"),
            }),
        );
        Ok(fields)
    }

    pub(super) fn phi2(&self) -> Result<Fields, CheckpointError> {
        let (d, heads) = (self.need("embedding_length")?, self.need("attention.head_count")?);
        let head_dim = d / heads.max(1);
        let turned = self.usize("rope.dimension_count").unwrap_or(head_dim);
        let inner = self.file.tensor("blk.0.ffn_up.weight")?.shape().first().copied();
        Ok(object(json!({
            "model_type": "phi",
            "vocab_size": self.vocab_size()?,
            "hidden_size": d,
            "intermediate_size": inner,
            "num_hidden_layers": self.layers(),
            "num_attention_heads": heads,
            "max_position_embeddings": self.need("context_length")?,
            "layer_norm_eps": self.need_f64("attention.layer_norm_epsilon")?,
            "tie_word_embeddings": !self.has("output.weight"),
            "partial_rotary_factor": turned as f64 / head_dim.max(1) as f64,
            "qk_layernorm": self.has("blk.0.attn_q_norm.weight"),
            "rope_parameters": self.rope()?,
        })))
    }

    pub(super) fn muse_glimmer(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("muse_glimmer_text")?;
        let layers = self.layers();
        let factor = self.query_factor()?;
        let usual = |layer: usize| !(layers - 1 - layer).is_multiple_of(4);
        let sliding: Vec<bool> = (0..layers)
            .map(|layer| self.layout().is_sliding(layer).unwrap_or_else(|| usual(layer)))
            .collect();
        let theta = self.f64("rope.freq_base").unwrap_or(10_000.0);
        set(
            &mut fields,
            json!({
                "sliding_window": self.need("attention.sliding_window")?,
                "layer_types": kinds(&sliding),
                "layer_rope_theta":
                    sliding.iter().map(|&sliding| if sliding { theta } else { 0.0 }).collect::<Vec<_>>(),
                "output_multiplier": self.need_f64("logit_scale")?,
                "qk_scale_factor": factor.map(super::super::metadata::shortest),
            }),
        );
        // An absent field would mean the default cap.
        let cap = self.f64("final_logit_softcapping").filter(|&cap| cap > 0.0);
        fields.insert("final_logit_softcapping".into(), json!(cap));
        Ok(fields)
    }

    /// The factor on queries, which files store as the weight of the queries' norm in each layer; the weight of the
    /// keys' norm must be 1.
    fn query_factor(&self) -> Result<Option<f32>, CheckpointError> {
        let mut factor = None;
        for layer in 0..self.layers() {
            for part in ["attn_q_norm", "attn_k_norm"] {
                let name = format!("blk.{layer}.{part}.weight");
                if !self.has(&name) {
                    continue;
                }
                let tensor = self.file.tensor(&name)?;
                let wrong = |what: &str| self.file.wrong_tensor(&name, what.to_owned());
                if tensor.shape() != [self.layout().head_dim(layer)] {
                    return Err(wrong("its length is not that of a head"));
                }
                let values = tensor.read();
                let expected = match part {
                    "attn_q_norm" => *factor.get_or_insert(values[0]),
                    _ => 1.0,
                };
                if values.iter().any(|&value| value != expected) {
                    return Err(wrong("weights of this norm that differ are not supported"));
                }
            }
        }
        Ok(factor)
    }

    pub(super) fn laguna(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("laguna")?;
        let layers = self.layers();
        let head_dim = self.layout().head_dim(0);
        let window = self.usize("attention.sliding_window").filter(|&window| window > 0);
        // The pattern that llama.cpp's runtime uses if the file does not state one.
        let usual = |layer: usize| window.is_some() && !layer.is_multiple_of(4);
        let sliding: Vec<bool> = (0..layers)
            .map(|layer| self.layout().is_sliding(layer).unwrap_or_else(|| usual(layer)))
            .collect();
        let heads = self.per_layer("attention.head_count", layers)?;
        let dense = self.usize("leading_dense_block_count").unwrap_or(0);
        let mut full = self.rope()?;
        let turned = self.usize("rope.dimension_count").unwrap_or(head_dim);
        full.insert("partial_rotary_factor".into(), json!(turned as f64 / head_dim.max(1) as f64));
        let turned = self.usize("rope.dimension_count_swa").unwrap_or(head_dim);
        let gate = self.file.tensor("blk.0.attn_gate.weight")?.shape().first().copied();
        set(
            &mut fields,
            json!({
                "num_attention_heads_per_layer": heads,
                "attention_bias": self.has("blk.0.attn_q.bias"),
                "gating": if gate == heads.first().copied() { "per-head" } else { "per-channel" },
                "sliding_window": window,
                "layer_types": kinds(&sliding),
                "mlp_layer_types":
                    (0..layers).map(|layer| if layer < dense { "dense" } else { "sparse" }).collect::<Vec<_>>(),
                "num_experts": self.need("expert_count")?,
                "num_experts_per_tok": self.need("expert_used_count")?,
                "moe_intermediate_size": self.need("expert_feed_forward_length")?,
                "shared_expert_intermediate_size": self.need("expert_shared_feed_forward_length")?,
                "moe_routed_scaling_factor": self.f64("expert_weights_scale").unwrap_or(1.0),
                "rope_parameters": {
                    "full_attention": full,
                    "sliding_attention": {
                        "rope_type": "default",
                        "rope_theta": self.f64("rope.freq_base_swa").unwrap_or(10_000.0),
                        "partial_rotary_factor": turned as f64 / head_dim.max(1) as f64,
                    },
                },
            }),
        );
        Ok(fields)
    }

    pub(super) fn glm4_moe(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("glm4_moe")?;
        set(
            &mut fields,
            json!({
                "attention_bias": self.has("blk.0.attn_q.bias"),
                "use_qk_norm": self.has("blk.0.attn_q_norm.weight"),
            }),
        );
        self.routed(&mut fields)?;
        Ok(fields)
    }

    pub(super) fn minimax_m2(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("minimax_m2")?;
        // MiniMax states the rotary part of a head as a number of values (`rotary_dim`) instead of a share.
        set(&mut fields, json!({ "rope_parameters": self.rope()? }));
        set(
            &mut fields,
            json!({
                "rotary_dim": self.usize("rope.dimension_count"),
                "intermediate_size": self.need("expert_feed_forward_length")?,
                "num_local_experts": self.need("expert_count")?,
                "num_experts_per_tok": self.need("expert_used_count")?,
            }),
        );
        Ok(fields)
    }

    pub(super) fn ernie(&self, model_type: &str) -> Result<Fields, CheckpointError> {
        let mut fields = self.base(model_type)?;
        set(&mut fields, json!({ "use_bias": self.has("blk.0.attn_output.bias") }));
        if model_type == "ernie4_5_moe" {
            set(
                &mut fields,
                json!({
                    "moe_num_experts": self.need("expert_count")?,
                    "moe_k": self.need("expert_used_count")?,
                    "moe_intermediate_size": self.need("expert_feed_forward_length")?,
                    "moe_num_shared_experts": self.usize("expert_shared_count").unwrap_or(0),
                    "moe_layer_start_index": self.usize("leading_dense_block_count").unwrap_or(0),
                    "moe_layer_interval": self.usize("interleave_moe_layer_step").unwrap_or(1),
                }),
            );
        }
        Ok(fields)
    }

    pub(super) fn gemma4(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("gemma4_text")?;
        let (layers, layout) = (self.layers(), self.layout());
        let sliding: Vec<bool> = (0..layers).map(|layer| layout.is_sliding(layer).unwrap_or(false)).collect();
        let of_kind = |kind: bool| sliding.iter().position(|&sliding| sliding == kind);
        let kv_heads = |layer: Option<usize>| layer.map(|layer| layout.kv_heads(layer));
        let shared = self.usize("attention.shared_kv_layers").unwrap_or(0);
        let full = of_kind(false);
        let keys_are_values = full.is_some_and(|layer| !self.has(&format!("blk.{layer}.attn_v.weight")));
        let widths = self.per_layer("feed_forward_length", layers)?;
        let width = widths.first().copied().unwrap_or(0);
        let is_double = widths.last().is_some_and(|&last| last == 2 * width);
        let (head_dim, wide) = (self.need("attention.key_length_swa")?, self.head_dim()?);
        let theta = self.f64("rope.freq_base").unwrap_or(1e6);
        let experts = self.usize("expert_count").filter(|&experts| experts > 0);
        let own_inputs = self.usize("embedding_length_per_layer_input").unwrap_or(0);
        set(
            &mut fields,
            json!({
                "intermediate_size": width,
                "use_double_wide_mlp": is_double,
                "num_key_value_heads": kv_heads(of_kind(true)).or(kv_heads(full)),
                "num_global_key_value_heads": kv_heads(full),
                "attention_k_eq_v": keys_are_values,
                "head_dim": head_dim,
                "global_head_dim": wide,
                "sliding_window": self.need("attention.sliding_window")?,
                "layer_types": kinds(&sliding),
                "num_kv_shared_layers": shared,
                "hidden_size_per_layer_input": own_inputs,
                "vocab_size_per_layer_input": self.vocab_size()?,
                "final_logit_softcapping": self.f64("final_logit_softcapping").filter(|&cap| cap > 0.0),
                "enable_moe_block": experts.is_some(),
                "num_experts": experts,
                "top_k_experts": self.usize("expert_used_count"),
                "moe_intermediate_size": self.usize("expert_feed_forward_length"),
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "proportional",
                        "rope_theta": theta,
                        "partial_rotary_factor": self.turned_share()?,
                    },
                    "sliding_attention": {
                        "rope_type": "default",
                        "rope_theta": self.f64("rope.freq_base_swa").unwrap_or(10_000.0),
                    },
                },
            }),
        );
        Ok(fields)
    }

    /// The share of a head's pairs that is rotated; the frequencies of the other pairs have huge divisors.
    fn turned_share(&self) -> Result<f64, CheckpointError> {
        const HUGE: f32 = 1e20;
        let name = super::super::ROPE_FACTORS;
        let tensor = self.file.tensor(name)?;
        let wrong = |what: &str| self.file.wrong_tensor(name, what.to_owned());
        if tensor.shape().iter().product::<usize>() > 1 << 16 {
            return Err(wrong("there are more divisors than a head has pairs"));
        }
        let divisors = tensor.read();
        let turned = divisors.iter().take_while(|&&divisor| divisor == 1.0).count();
        if divisors[turned..].iter().any(|&divisor| divisor < HUGE || divisor.is_nan()) {
            return Err(wrong(
                "divisors other than 1 before those of pairs that do not turn are not supported",
            ));
        }
        Ok(turned as f64 / divisors.len().max(1) as f64)
    }
}

/// Layer types, by whether the layer has a sliding window.
pub(super) fn kinds(sliding: &[bool]) -> Vec<&'static str> {
    let kind = |&sliding: &bool| if sliding { "sliding_attention" } else { "full_attention" };
    sliding.iter().map(kind).collect()
}
