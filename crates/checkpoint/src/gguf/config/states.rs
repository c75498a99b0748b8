//! Families with recurrent states, or with latent vectors for keys and values.

use serde_json::json;

use super::{super::layout::Mixer, Fields, Meta, set};
use crate::CheckpointError;

impl Meta<'_> {
    /// The fields of Qwen3.5 and Qwen3-Next.
    pub(super) fn qwen3_next(&self, model_type: &str) -> Result<Fields, CheckpointError> {
        let mut fields = self.base(model_type)?;
        let net = self.layout().net().ok_or_else(|| self.file.lacks(&self.key("ssm.group_count")))?;
        set(
            &mut fields,
            json!({
                "layer_types": self.layers_with_states("linear_attention"),
                "linear_num_key_heads": net.key_heads,
                "linear_num_value_heads": net.value_heads,
                "linear_key_head_dim": net.key_dim,
                "linear_value_head_dim": net.value_dim,
                "linear_conv_kernel_dim": self.need("ssm.conv_kernel")?,
            }),
        );
        if model_type != "qwen3_5_text" {
            set(
                &mut fields,
                json!({
                    "num_experts": self.need("expert_count")?,
                    "num_experts_per_tok": self.need("expert_used_count")?,
                    "moe_intermediate_size": self.need("expert_feed_forward_length")?,
                    "shared_expert_intermediate_size": self.need("expert_shared_feed_forward_length")?,
                }),
            );
        }
        Ok(fields)
    }

    pub(super) fn lfm2(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("lfm2")?;
        self.short_conv(&mut fields)?;
        // The file's width is already the adjusted one, so it must not be adjusted again.
        set(&mut fields, json!({ "block_auto_adjust_ff_dim": false }));
        Ok(fields)
    }

    pub(super) fn lfm2_moe(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.base("lfm2_moe")?;
        self.short_conv(&mut fields)?;
        let dense = self.usize("leading_dense_block_count").unwrap_or(0);
        set(
            &mut fields,
            json!({
                "num_experts": self.need("expert_count")?,
                "num_experts_per_tok": self.need("expert_used_count")?,
                "moe_intermediate_size": self.need("expert_feed_forward_length")?,
                "num_dense_layers": dense,
                "use_expert_bias": self.has(&format!("blk.{dense}.exp_probs_b.bias")),
                "norm_topk_prob": true,
            }),
        );
        Ok(fields)
    }

    fn short_conv(&self, fields: &mut Fields) -> Result<(), CheckpointError> {
        set(
            fields,
            json!({
                "layer_types": self.layers_with_states("conv"),
                "conv_L_cache": self.need("shortconv.l_cache")?,
                "conv_bias": self.in_some_layer("shortconv.conv.bias"),
            }),
        );
        Ok(())
    }

    pub(super) fn nemotron_h(&self) -> Result<Fields, CheckpointError> {
        let (layers, layout) = (self.layers(), self.layout());
        let kind = |layer: usize| match layout.mixer(layer) {
            Mixer::State => "mamba",
            Mixer::Attention => "attention",
            Mixer::None if self.has(&format!("blk.{layer}.ffn_gate_inp.weight")) => "moe",
            Mixer::None => "mlp",
        };
        let listed: Vec<&str> = (0..layers).map(kind).collect();
        let width = |kind: &str| {
            let layer = listed.iter().position(|own| *own == kind)?;
            layout.of_layer("feed_forward_length", layer)
        };
        let heads = self.need("ssm.time_step_rank")?;
        let mut fields = self.base("nemotron_h")?;
        let eps = self.f64("attention.layer_norm_epsilon").or(self.f64("attention.layer_norm_rms_epsilon"));
        let kv_heads = (0..layers).map(|layer| layout.kv_heads(layer)).max();
        set(
            &mut fields,
            json!({
                "layers_block_type": listed,
                "num_key_value_heads": kv_heads,
                "intermediate_size": width("mlp").or(self.usize("expert_feed_forward_length")),
                "layer_norm_epsilon": eps,
                "ssm_state_size": self.need("ssm.state_size")?,
                "mamba_num_heads": heads,
                "mamba_head_dim": self.need("ssm.inner_size")? / heads.max(1),
                "n_groups": self.need("ssm.group_count")?,
                "conv_kernel": self.need("ssm.conv_kernel")?,
                "use_bias": self.in_some_layer("ssm_in.bias"),
                "use_conv_bias": self.in_some_layer("ssm_conv1d.bias"),
                "mlp_bias": self.in_some_layer("ffn_up.bias"),
            }),
        );
        fields.remove("attention_bias");
        if listed.contains(&"moe") {
            self.routed(&mut fields)?;
            set(
                &mut fields,
                json!({
                    "moe_shared_expert_intermediate_size": self.need("expert_shared_feed_forward_length")?,
                    "moe_latent_size": self.usize("moe_latent_size"),
                }),
            );
        }
        Ok(fields)
    }

    pub(super) fn granite_moe(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.granite_factors("granitemoe")?;
        set(
            &mut fields,
            json!({
                "num_local_experts": self.need("expert_count")?,
                "num_experts_per_tok": self.need("expert_used_count")?,
            }),
        );
        Ok(fields)
    }

    pub(super) fn granite_hybrid(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.granite_factors("granitemoehybrid")?;
        let heads = self.need("ssm.time_step_rank")?;
        let experts = self.usize("expert_count").unwrap_or(0);
        let inner = self.need("ssm.inner_size")?;
        let width = match experts {
            0 => self.need("feed_forward_length")?,
            _ => self.need("expert_shared_feed_forward_length")?,
        };
        let is_rotated = self.file.metadata.bool(&self.key("rope.scaling.finetuned")).unwrap_or(true);
        let kv_heads = (0..self.layers()).map(|layer| self.layout().kv_heads(layer)).max();
        set(
            &mut fields,
            json!({
                "layer_types": self.layers_with_states("mamba"),
                "num_key_value_heads": kv_heads,
                "position_embedding_type": if is_rotated { "rope" } else { "nope" },
                "num_local_experts": experts,
                "num_experts_per_tok": self.usize("expert_used_count"),
                "shared_intermediate_size": width,
                "mamba_n_heads": heads,
                "mamba_d_head": inner / heads.max(1),
                "mamba_n_groups": self.need("ssm.group_count")?,
                "mamba_d_state": self.need("ssm.state_size")?,
                "mamba_d_conv": self.need("ssm.conv_kernel")?,
                "mamba_proj_bias": self.in_some_layer("ssm_in.bias"),
                "mamba_conv_bias": self.in_some_layer("ssm_conv1d.bias"),
            }),
        );
        Ok(fields)
    }

    fn granite_factors(&self, model_type: &str) -> Result<Fields, CheckpointError> {
        let mut fields = self.base(model_type)?;
        set(
            &mut fields,
            json!({
                "attention_bias": self.in_some_layer("attn_q.bias"),
                "attention_multiplier": self.need_f64("attention.scale")?,
                "embedding_multiplier": self.f64("embedding_scale").unwrap_or(1.0),
                "residual_multiplier": self.f64("residual_scale").unwrap_or(1.0),
                "logits_scaling": self.f64("logit_scale").unwrap_or(1.0),
            }),
        );
        Ok(fields)
    }

    /// DeepSeek V2 and V3, and architectures that are built like them.
    pub(super) fn latent(&self) -> Result<Fields, CheckpointError> {
        let model_type = match self.prefix {
            "mistral4" => "mistral4",
            "deepseek32" => "deepseek_v32",
            "glm-dsa" => "glm_moe_dsa",
            _ if self.is_sigmoid() => "deepseek_v3",
            _ => "deepseek_v2",
        };
        let mut fields = self.base(model_type)?;
        let layout = self.layout();
        let lacks = |key: &str| self.file.lacks(&self.key(key));
        let turned = self.need("rope.dimension_count")?;
        let query = layout.latent_query_dim().ok_or_else(|| lacks("attention.key_length"))?;
        let mut rope = self.rope()?;
        if let Some(weight) = self.f64("rope.scaling.yarn_log_multiplier") {
            let weight = weight / 0.1;
            let other = if self.prefix == "deepseek2" { weight } else { 1.0 };
            set(&mut rope, json!({ "mscale": other, "mscale_all_dim": weight }));
        }
        let beta = self.f64("attention.temperature_scale").filter(|&beta| beta != 0.0);
        if beta.is_some() && model_type != "mistral4" {
            return Err(self.unsupported("attention.temperature_scale"));
        }
        self.check_temperature_length()?;
        if model_type == "deepseek_v2"
            && self.file.metadata.bool(&self.key("expert_weights_norm")) == Some(true)
        {
            return Err(self.unsupported("expert_weights_norm"));
        }
        set(&mut rope, json!({ "llama_4_scaling_beta": beta }));
        fields.remove("head_dim");
        set(
            &mut fields,
            json!({
                "rope_parameters": rope,
                "num_key_value_heads": self.need("attention.head_count")?,
                "kv_lora_rank": self.need("attention.kv_lora_rank")?,
                "qk_rope_head_dim": turned,
                "qk_nope_head_dim": query.saturating_sub(turned),
                "v_head_dim": layout.latent_value_dim().ok_or_else(|| lacks("attention.value_length"))?,
                "index_topk": self.usize("attention.indexer.top_k"),
            }),
        );
        // An absent field would mean the default rank.
        fields.insert("q_lora_rank".into(), json!(self.usize("attention.q_lora_rank")));
        self.routed(&mut fields)?;
        if model_type == "deepseek_v2" && self.usize("expert_group_count").is_some_and(|groups| groups > 1) {
            set(&mut fields, json!({ "topk_method": "group_limited_greedy" }));
        }
        Ok(fields)
    }

    /// Refuses a temperature length other than the original context: queries are scaled in steps of the context
    /// length that the model was trained with, and other step lengths are not supported.
    pub(super) fn check_temperature_length(&self) -> Result<(), CheckpointError> {
        const KEY: &str = "attention.temperature_length";
        let original = self.usize("rope.scaling.original_context_length");
        match self.usize(KEY).filter(|&length| length != 0 && Some(length) != original) {
            Some(_) => Err(self.unsupported(KEY)),
            None => Ok(()),
        }
    }

    /// Refuses a gating function that the architecture does not have. All architectures except `deepseek2` have one
    /// fixed function, so a file that states another one holds another model.
    pub(super) fn check_gating(&self) -> Result<(), CheckpointError> {
        const SOFTMAX: usize = 1;
        const SIGMOID: usize = 2;
        const OF_CHOSEN: usize = 3;
        let Some(function) = self.usize("expert_gating_func").filter(|&function| function != 0) else {
            return Ok(());
        };
        let known: &[usize] = match self.prefix {
            "deepseek2" => &[SOFTMAX, SIGMOID],
            "gpt-oss" => &[OF_CHOSEN],
            "glm4moe" | "minimax-m2" | "lfm2moe" | "laguna" | "deepseek32" | "glm-dsa" | "nemotron_h"
            | "nemotron_h_moe" => &[SIGMOID],
            _ => &[SOFTMAX],
        };
        if known.contains(&function) { Ok(()) } else { Err(self.unsupported("expert_gating_func")) }
    }

    /// The error for a key whose value would change what the model computes.
    fn unsupported(&self, key: &str) -> CheckpointError {
        let what = format!("the value of `{}` is not supported for this architecture", self.key(key));
        self.file.wrong("metadata".into(), what)
    }

    /// Whether experts' scores are sigmoids. If a file does not say, llama.cpp's runtime recognises GLM-4.7-Flash by
    /// its sizes.
    fn is_sigmoid(&self) -> bool {
        match self.usize("expert_gating_func") {
            Some(function) if function != 0 => function == 2,
            _ => {
                let rows = self.vocab_size().unwrap_or(0);
                [47, 48].contains(&self.layers()) && rows == 154_880 || self.in_some_layer("exp_probs_b.bias")
            }
        }
    }

    /// Sets the fields of DeepSeek V3's routed experts.
    pub(super) fn routed(&self, fields: &mut Fields) -> Result<(), CheckpointError> {
        set(
            fields,
            json!({
                "n_routed_experts": self.need("expert_count")?,
                "num_experts_per_tok": self.need("expert_used_count")?,
                "moe_intermediate_size": self.need("expert_feed_forward_length")?,
                "n_shared_experts": self.usize("expert_shared_count"),
                "first_k_dense_replace": self.usize("leading_dense_block_count").unwrap_or(0),
                "routed_scaling_factor": self.f64("expert_weights_scale").filter(|&f| f != 0.0).unwrap_or(1.0),
                "norm_topk_prob": self.file.metadata.bool(&self.key("expert_weights_norm")).unwrap_or(false),
                "n_group": self.usize("expert_group_count").unwrap_or(1).max(1),
                "topk_group": self.usize("expert_group_used_count").unwrap_or(1).max(1),
            }),
        );
        Ok(())
    }

    /// Layer types: `kind` for layers with a recurrent state, full attention for the others.
    fn layers_with_states(&self, kind: &'static str) -> Vec<&'static str> {
        let layout = self.layout();
        let named = |layer| match layout.mixer(layer) {
            Mixer::State => kind,
            Mixer::Attention | Mixer::None => "full_attention",
        };
        (0..self.layers()).map(named).collect()
    }

    fn in_some_layer(&self, part: &str) -> bool {
        (0..self.layers()).any(|layer| self.has(&format!("blk.{layer}.{part}")))
    }
}
