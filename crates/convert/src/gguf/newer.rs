//! The metadata of newer architectures, with the keys of llama.cpp's converter.

use moi_checkpoint::gguf::{MUSE_FACTOR, Value};
use moi_models::{
    AttentionConfig, AttentionKind, DecoderConfig, DeltaNetConfig, ExpertsConfig, FeedForwardKind,
    LatentConfig, LayerConfig, Mamba2Config, MlpConfig, NormKind, RopeConfig, RopeScaling, RouterScore,
    ShortConvConfig,
};

use super::{Metadata, rope_metadata};

/// The metadata of one architecture while it is written.
struct Keys<'a> {
    architecture: &'a str,
    config: &'a DecoderConfig,
    all: Metadata,
}

/// The metadata of the model. If the metadata cannot express the model, the check at the end fails, which compares
/// the config of the written file with the source's.
pub(super) fn metadata(config: &DecoderConfig, architecture: &str) -> Metadata {
    let all = vec![("general.architecture".into(), Value::String(architecture.into()))];
    let mut keys = Keys { architecture, config, all };
    keys.sizes();
    keys.heads();
    keys.feed_forward();
    keys.states();
    keys.own();
    keys.rope();
    keys.all
}

fn list(numbers: impl Iterator<Item = usize>) -> Value {
    Value::Array(numbers.map(|number| Value::Signed(number as i64)).collect())
}

impl Keys<'_> {
    fn set(&mut self, key: &str, value: Value) {
        self.all.push((format!("{}.{key}", self.architecture), value));
    }

    fn number(&mut self, key: &str, number: usize) {
        self.set(key, Value::Unsigned(number as u64));
    }

    fn float(&mut self, key: &str, number: f64) {
        self.set(key, Value::Float(number));
    }

    fn flag(&mut self, key: &str, flag: bool) {
        self.set(key, Value::Bool(flag));
    }

    fn is(&self, architectures: &[&str]) -> bool {
        architectures.contains(&self.architecture)
    }

    fn attentions(&self) -> impl Iterator<Item = &AttentionConfig> {
        self.config.layers.iter().filter_map(heads_of)
    }

    fn latent(&self) -> Option<&LatentConfig> {
        self.config.layers.iter().find_map(|layer| match &layer.attention {
            Some(AttentionKind::Latent(latent)) => Some(latent),
            _ => None,
        })
    }

    fn experts(&self) -> Option<&ExpertsConfig> {
        self.config.layers.iter().find_map(experts_of)
    }

    fn sizes(&mut self) {
        let config = self.config;
        self.number("context_length", config.context_length);
        self.number("embedding_length", config.hidden_size);
        self.number("block_count", config.layers.len());
        self.number("vocab_size", config.vocab_size);
        let eps = match config.norm.kind {
            NormKind::Layer => "attention.layer_norm_epsilon",
            NormKind::Rms | NormKind::RmsPlusOne | NormKind::RmsAlone => "attention.layer_norm_rms_epsilon",
        };
        self.float(eps, config.norm.eps);
        if self.is(&["nemotron_h", "nemotron_h_moe"]) {
            self.float("attention.layer_norm_epsilon", config.norm.eps);
        }
    }

    fn heads(&mut self) {
        if let Some(latent) = self.latent().cloned() {
            return self.latent_heads(&latent);
        }
        let layers = &self.config.layers;
        let Some(first) = self.attentions().next().cloned() else { return };
        let of_layer = |layer: &LayerConfig| heads_of(layer).map_or(first.num_heads, |own| own.num_heads);
        match self.is(&["laguna"]) {
            true => self.set("attention.head_count", list(layers.iter().map(of_layer))),
            false => self.number("attention.head_count", first.num_heads),
        }
        // In these architectures, layers with a recurrent state are marked by having no key heads.
        let kv_heads = |layer: &LayerConfig| heads_of(layer).map_or(0, |own| own.num_kv_heads);
        match self.is(&["lfm2", "lfm2moe", "granitehybrid", "nemotron_h", "nemotron_h_moe", "gemma4"]) {
            true => self.set("attention.head_count_kv", list(layers.iter().map(kv_heads))),
            false => self.number("attention.head_count_kv", first.num_kv_heads),
        }
        let full = self.attentions().find(|own| own.window.is_none()).unwrap_or(&first).clone();
        self.number("attention.key_length", full.head_dim);
        self.number("attention.value_length", full.head_dim);
        let sliding = self.attentions().find(|own| own.window.is_some()).cloned();
        if let Some(sliding) = &sliding {
            self.number("attention.sliding_window", sliding.window.unwrap_or(0));
            // llama.cpp's runtime has a fixed pattern for gpt-oss.
            let has_window = |layer: &LayerConfig| heads_of(layer).is_some_and(|own| own.window.is_some());
            let pattern = layers.iter().map(|layer| Value::Bool(has_window(layer)));
            let pattern = Value::Array(pattern.collect());
            if !self.is(&["gpt-oss"]) {
                self.set("attention.sliding_window_pattern", pattern);
            }
        }
        if self.is(&["gemma4"]) {
            let own = sliding.as_ref().unwrap_or(&full);
            self.number("attention.key_length_swa", own.head_dim);
            self.number("attention.value_length_swa", own.head_dim);
        }
    }

    fn latent_heads(&mut self, latent: &LatentConfig) {
        self.number("attention.head_count", latent.num_heads);
        self.number("attention.head_count_kv", 1);
        if let Some(rank) = latent.query_rank {
            self.number("attention.q_lora_rank", rank);
        }
        self.number("attention.kv_lora_rank", latent.kv_rank);
        self.number("attention.key_length", latent.kv_rank + latent.rope_dim);
        self.number("attention.value_length", latent.kv_rank);
        self.number("attention.key_length_mla", latent.nope_dim + latent.rope_dim);
        self.number("attention.value_length_mla", latent.value_dim);
        if let Some(scale) = self.config.query_scale {
            self.float("attention.temperature_scale", scale.beta);
        }
    }

    fn feed_forward(&mut self) {
        let layers = &self.config.layers;
        let widths: Vec<usize> = layers.iter().map(|layer| width(layer, self.architecture)).collect();
        let is_uneven = widths.iter().any(|own| *own != widths[0]);
        let by_layer = self.is(&["nemotron_h", "nemotron_h_moe"]) || (is_uneven && self.is(&["gemma4"]));
        let dense = layers.iter().find_map(mlp_of).map(|mlp| mlp.intermediate_size);
        let experts = self.experts().cloned();
        match by_layer {
            true => self.set("feed_forward_length", list(widths.into_iter())),
            false => {
                let of_experts = experts.as_ref().map(|experts| experts.expert.intermediate_size);
                self.number("feed_forward_length", dense.or(of_experts).unwrap_or(0));
            }
        }
        if let Some(experts) = &experts {
            self.routed(experts);
        }
    }

    fn routed(&mut self, experts: &ExpertsConfig) {
        let width = experts.expert.intermediate_size;
        self.number("expert_count", experts.num_experts);
        self.number("expert_used_count", experts.num_per_token);
        self.number("expert_feed_forward_length", width);
        if let Some(latent) = experts.latent {
            self.number("moe_latent_size", latent.width);
        }
        let shared = experts.shared.as_ref().map(|shared| shared.mlp.intermediate_size);
        if let Some(shared) = shared {
            self.number("expert_shared_feed_forward_length", shared);
        }
        // The number of experts whose widths add up to that of the shared expert.
        let is_counted =
            self.is(&["deepseek2", "mistral4", "glm4moe", "ernie4_5-moe", "nemotron_h", "nemotron_h_moe"]);
        if is_counted {
            let count = match self.is(&["nemotron_h", "nemotron_h_moe"]) {
                true => usize::from(shared.is_some()),
                false => shared.unwrap_or(0) / width.max(1),
            };
            self.number("expert_shared_count", count);
        }
        let router = &experts.router;
        if self.is(&[
            "deepseek2",
            "mistral4",
            "glm4moe",
            "laguna",
            "minimax-m2",
            "lfm2moe",
            "nemotron_h",
            "nemotron_h_moe",
        ]) {
            let function = match router.score {
                RouterScore::Softmax => 1,
                RouterScore::Sigmoid => 2,
            };
            self.number("expert_gating_func", function);
            // For these architectures, llama.cpp's runtime always normalises, without reading these keys, and has no
            // factor.
            if !self.is(&["minimax-m2", "lfm2moe"]) {
                self.flag("expert_weights_norm", router.normalized);
                self.float("expert_weights_scale", router.factor);
            }
        }
        if let Some(groups) = router.groups {
            self.number("expert_group_count", groups.count);
            self.number("expert_group_used_count", groups.kept);
        }
        let layers = &self.config.layers;
        let dense = layers.iter().take_while(|layer| experts_of(layer).is_none()).count();
        if self.is(&["deepseek2", "mistral4", "glm4moe", "laguna", "lfm2moe", "ernie4_5-moe"]) {
            self.number("leading_dense_block_count", dense);
        }
        if self.is(&["ernie4_5-moe"]) {
            // The interval between layers with experts follows from the first two of them.
            let with_experts: Vec<usize> =
                (0..layers.len()).filter(|&layer| experts_of(&layers[layer]).is_some()).take(2).collect();
            let step = match with_experts[..] {
                [first, second] => second - first,
                _ => 1,
            };
            self.number("interleave_moe_layer_step", step);
        }
    }

    fn states(&mut self) {
        let layers = &self.config.layers;
        let mut nets = layers.iter().filter_map(|layer| match &layer.attention {
            Some(AttentionKind::DeltaNet(net)) => Some(net.clone()),
            _ => None,
        });
        if let Some(net) = nets.next() {
            self.net(&net);
        }
        for layer in layers {
            match &layer.attention {
                Some(AttentionKind::Mamba2(mamba)) => return self.mamba(mamba),
                Some(AttentionKind::ShortConv(ShortConvConfig { kernel, .. })) => {
                    return self.number("shortconv.l_cache", *kernel);
                }
                _ => {}
            }
        }
    }

    fn net(&mut self, net: &DeltaNetConfig) {
        self.number("ssm.conv_kernel", net.conv_kernel);
        self.number("ssm.state_size", net.key_head_dim);
        self.number("ssm.group_count", net.num_key_heads);
        self.number("ssm.time_step_rank", net.num_value_heads);
        self.number("ssm.inner_size", net.num_value_heads * net.value_head_dim);
        let is_state = |layer: &LayerConfig| matches!(layer.attention, Some(AttentionKind::DeltaNet(_)));
        let listed = self.config.layers.iter().map(|layer| Value::Bool(is_state(layer)));
        let listed = Value::Array(listed.collect());
        self.set("attention.recurrent_layers", listed);
        let full = self.config.layers.iter().take_while(|layer| is_state(layer)).count() + 1;
        self.number("full_attention_interval", full);
        if self.architecture != "qwen3next" {
            // The sections are for positions of images and time, in pairs; for text alone they make no difference.
            let dims = self.attentions().find_map(|own| own.rope.as_ref()).map_or(0, |rope| rope.dims / 2);
            let height = dims / 3;
            self.set("rope.dimension_sections", list([dims - 2 * height, height, height, 0].into_iter()));
        }
    }

    fn mamba(&mut self, mamba: &Mamba2Config) {
        self.number("ssm.conv_kernel", mamba.conv_kernel);
        self.number("ssm.state_size", mamba.state_size);
        self.number("ssm.group_count", mamba.num_groups);
        self.number("ssm.time_step_rank", mamba.num_heads);
        self.number("ssm.inner_size", mamba.num_heads * mamba.head_dim);
        let is_rotated = self.attentions().any(|own| own.rope.is_some());
        self.flag("rope.scaling.finetuned", is_rotated);
        if !is_rotated {
            let dims = self.attentions().next().map_or(0, |own| own.head_dim);
            self.number("rope.dimension_count", dims);
        }
    }

    /// Sets the keys that only this architecture has.
    fn own(&mut self) {
        let config = self.config;
        let first = self.attentions().next().cloned();
        match self.architecture {
            "qwen3vl" | "qwen3vlmoe" | "qwen2vl" => {
                let dims = first.and_then(|own| own.rope).map_or(0, |rope| rope.dims / 2);
                let height = dims / 3;
                self.set("rope.dimension_sections", list([dims - 2 * height, height, height, 0].into_iter()));
            }
            "mistral3" => {
                if let Some(scale) = config.query_scale {
                    self.float("attention.temperature_scale", scale.beta);
                }
            }
            "granitemoe" | "granitehybrid" => {
                self.float("attention.scale", first.map_or(1.0, |own| own.scale));
                self.float("embedding_scale", config.embedding_scale);
                self.float("residual_scale", config.layers.first().map_or(1.0, |own| own.residual_scale));
                self.float("logit_scale", config.logit_scale.recip());
            }
            "muse-glimmer" => {
                self.float("logit_scale", config.logit_scale);
                let factor = first.map_or(1.0, |own| own.scale * (own.head_dim as f64).sqrt());
                // The product above has rounding errors in its last digits.
                let factor = (factor * 1e12).round() / 1e12;
                self.all.push((MUSE_FACTOR.to_owned(), Value::Float(factor)));
            }
            "gemma4" => {
                let shared = self.attentions().filter(|own| own.shared_cache.is_some()).count();
                self.number("attention.shared_kv_layers", shared);
                let width = config.per_layer_inputs.map_or(0, |own| own.width);
                self.number("embedding_length_per_layer_input", width);
            }
            _ => {}
        }
        if let Some(cap) = config.logit_softcap {
            self.float("final_logit_softcapping", cap);
        }
    }

    fn rope(&mut self) {
        let full = self.attentions().find(|own| own.window.is_none() && own.rope.is_some());
        let sliding = self.attentions().find(|own| own.window.is_some());
        let of_sliding = sliding.and_then(|own| own.rope.clone());
        let full = full.or(sliding).and_then(|own| own.rope.clone());
        let Some(rope) = self.latent().map(|latent| latent.rope.clone()).or(full) else { return };
        let weight = self.stretch_weight(&rope);
        // If the key of a weight states how cosines and scores are scaled, no separate factor is written.
        let plain = match (&rope.scaling, weight) {
            (&RopeScaling::Yarn { factor, .. }, Some(_)) => without_factor(&rope, factor),
            _ => rope.clone(),
        };
        self.all.extend(rope_metadata(&plain, self.architecture));
        if let Some(weight) = weight {
            self.float("rope.scaling.yarn_log_multiplier", weight);
        }
        if let Some(own) = of_sliding.filter(|own| *own != rope && self.is(&["gemma4", "laguna"])) {
            self.float("rope.freq_base_swa", own.theta);
            self.number("rope.dimension_count_swa", own.dims);
        }
    }

    /// The value of `yarn_log_multiplier`, if the architecture has this key: the weight of the logarithm of YaRN's
    /// factor in the scale of cosines or of attention scores. For attention over latent vectors, the key holds a
    /// tenth of the weight.
    fn stretch_weight(&self, rope: &RopeConfig) -> Option<f64> {
        let RopeScaling::Yarn { factor, attention_factor, .. } = rope.scaling else { return None };
        if factor <= 1.0 {
            return None;
        }
        let rounded = |weight: f64| (weight * 1e9).round() / 1e9;
        let log = 0.1 * factor.ln();
        match (self.latent(), self.architecture) {
            (Some(latent), _) => {
                let plain = ((latent.nope_dim + latent.rope_dim) as f64).powf(-0.5);
                Some(rounded(((latent.scale / plain).sqrt() - 1.0) / log) * 0.1)
            }
            (None, "mistral3") => Some(rounded(((log + 1.0) / attention_factor - 1.0) / log)),
            _ => None,
        }
    }
}

/// The same rotary positions with YaRN's default factor on cosines.
fn without_factor(rope: &RopeConfig, factor: f64) -> RopeConfig {
    let mut plain = rope.clone();
    if let RopeScaling::Yarn { attention_factor, .. } = &mut plain.scaling {
        *attention_factor = 0.1 * factor.ln() + 1.0;
    }
    plain
}

fn heads_of(layer: &LayerConfig) -> Option<&AttentionConfig> {
    match &layer.attention {
        Some(AttentionKind::Heads(attention)) => Some(attention),
        _ => None,
    }
}

fn mlp_of(layer: &LayerConfig) -> Option<&MlpConfig> {
    match &layer.feed_forward {
        Some(FeedForwardKind::Mlp(mlp) | FeedForwardKind::MlpAndExperts(mlp, _)) => Some(mlp),
        _ => None,
    }
}

fn experts_of(layer: &LayerConfig) -> Option<&ExpertsConfig> {
    match &layer.feed_forward {
        Some(FeedForwardKind::Experts(experts) | FeedForwardKind::MlpAndExperts(_, experts)) => Some(experts),
        _ => None,
    }
}

/// The width of a layer's feed-forward block; 0 if it has none.
fn width(layer: &LayerConfig, architecture: &str) -> usize {
    match (mlp_of(layer), experts_of(layer)) {
        (Some(mlp), _) => mlp.intermediate_size,
        (None, Some(experts)) if architecture.starts_with("nemotron") => experts.expert.intermediate_size,
        _ => 0,
    }
}
