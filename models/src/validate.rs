//! Checks that a config describes a possible model.

use crate::{
    Activation, AttentionConfig, AttentionKind, DecoderConfig, DeltaNetConfig, ExpertGroups, ExpertsConfig,
    FeedForwardKind, LatentConfig, LayerConfig, Mamba2Config, MlpConfig, ModelError, NormConfig, QueryScale,
};

impl DecoderConfig {
    /// Returns the config, if its numbers fit together.
    ///
    /// # Errors
    /// If a size is 0 or too large, the heads do not divide as attention requires, or a factor is not a valid number.
    pub fn validated(self) -> Result<Self, ModelError> {
        self.problem().map_or(Ok(()), |what| Err(self.inconsistent(what)))?;
        Ok(self)
    }

    fn inconsistent(&self, what: String) -> ModelError {
        ModelError::Inconsistent { model_type: self.model_type, what }
    }

    fn problem(&self) -> Option<String> {
        let factors = [
            ("embedding multiplier", self.embedding_scale),
            ("logits scaling", self.logit_scale),
            ("final_logit_softcapping", self.logit_softcap.unwrap_or(1.0)),
        ];
        let norms = [self.norm, self.post_norm, self.final_norm];
        let eps = |norm: &NormConfig| from_zero("rms_norm_eps", norm.eps);
        size("vocab_size", self.vocab_size)
            .or_else(|| size("hidden_size", self.hidden_size))
            .or_else(|| size("max_position_embeddings", self.context_length))
            .or_else(|| size("num_hidden_layers", self.layers.len()))
            .or_else(|| {
                size("hidden_size_per_layer_input", self.per_layer_inputs.map_or(1, |inputs| inputs.width))
            })
            .or_else(|| norms.iter().find_map(eps))
            .or_else(|| from_zero("rms_norm_eps", self.embedding_norm.unwrap_or(0.0)))
            .or_else(|| self.query_scale.and_then(|scale| scale.problem()))
            .or_else(|| factors.iter().find_map(|&(name, factor)| positive(name, factor)))
            .or_else(|| self.layers.iter().find_map(LayerConfig::problem))
            .or_else(|| self.shared_cache_problem())
            .or_else(|| {
                (self.head_bias && self.tie_word_embeddings).then(|| {
                    "a head that is the embedding table (tie_word_embeddings) has no bias here".to_owned()
                })
            })
            .or_else(|| self.too_large())
    }

    /// Checks that a layer that uses another layer's cache finds it there, in the same shape that its own would have.
    fn shared_cache_problem(&self) -> Option<String> {
        let of_layer = |index: usize| match &self.layers.get(index)?.attention {
            Some(AttentionKind::Heads(attention)) => Some(attention),
            _ => None,
        };
        (0..self.layers.len()).find_map(|index| {
            let own = of_layer(index)?;
            let source = own.shared_cache?;
            let fits = |other: &AttentionConfig| {
                let shape = |a: &AttentionConfig| (a.num_kv_heads, a.head_dim, a.window, a.shared_cache);
                shape(other) == (own.num_kv_heads, own.head_dim, own.window, None)
            };
            (source >= index || !of_layer(source).is_some_and(fits))
                .then(|| format!("layer {index} cannot use the keys and values of layer {source}"))
        })
    }

    /// Checks sizes that are possible each but not together: they would overflow, or their names would fill the
    /// memory.
    fn too_large(&self) -> Option<String> {
        const MAX_VALUES: f64 = (1u64 << 50) as f64;
        const MAX_EXPERTS: usize = 1 << 17;
        let experts = |layer: &LayerConfig| match &layer.feed_forward {
            Some(FeedForwardKind::Experts(experts) | FeedForwardKind::MlpAndExperts(_, experts)) => {
                experts.num_experts
            }
            _ => 1,
        };
        let width = |layer: &LayerConfig| {
            let of_experts = |experts: &ExpertsConfig| {
                let shared = experts.shared.as_ref().map_or(0, |shared| shared.mlp.intermediate_size);
                experts.num_experts as f64 * experts.expert.intermediate_size as f64 + shared as f64
            };
            let inner = match &layer.feed_forward {
                Some(FeedForwardKind::Mlp(mlp)) => mlp.intermediate_size as f64,
                Some(FeedForwardKind::Experts(experts)) => of_experts(experts),
                Some(FeedForwardKind::MlpAndExperts(mlp, experts)) => {
                    mlp.intermediate_size as f64 + of_experts(experts)
                }
                Some(FeedForwardKind::Linear) | None => self.hidden_size as f64,
            };
            let heads = match &layer.attention {
                Some(AttentionKind::Heads(a)) => a.num_heads as f64 * a.head_dim as f64,
                Some(AttentionKind::DeltaNet(net)) => {
                    let heads = net.num_value_heads as f64 * net.value_head_dim as f64;
                    heads * (1.0 + net.key_head_dim as f64)
                        + net.num_key_heads as f64 * net.key_head_dim as f64
                }
                Some(AttentionKind::ShortConv(_)) => self.hidden_size as f64,
                Some(AttentionKind::Mamba2(mamba)) => {
                    let values = mamba.num_heads as f64 * mamba.head_dim as f64;
                    values * (1.0 + mamba.state_size as f64)
                        + mamba.num_groups as f64 * mamba.state_size as f64
                }
                Some(AttentionKind::Latent(latent)) => {
                    let of_head = latent.nope_dim as f64 + latent.rope_dim as f64 + latent.value_dim as f64;
                    let ranks = latent.kv_rank as f64 + latent.query_rank.unwrap_or(0) as f64;
                    latent.num_heads as f64 * of_head + ranks
                }
                Some(AttentionKind::Linear) | None => 0.0,
            };
            (heads * 4.0 + inner * 3.0) * (self.hidden_size as f64 + self.context_length as f64)
        };
        let values = self.vocab_size as f64 * (3.0 * self.hidden_size as f64 + self.per_layer_width() as f64)
            + self.layers.iter().map(width).sum::<f64>();
        let count: usize = self.layers.iter().map(experts).sum();
        (values > MAX_VALUES || count > MAX_EXPERTS)
            .then(|| format!("its sizes make a model of about {values:.0e} values and {count} blocks"))
    }
}

impl LayerConfig {
    fn problem(&self) -> Option<String> {
        let attention = match &self.attention {
            Some(AttentionKind::Heads(attention)) => attention.problem(),
            Some(AttentionKind::DeltaNet(net)) => net.problem(),
            Some(AttentionKind::ShortConv(conv)) => kernel("conv_L_cache", conv.kernel),
            Some(AttentionKind::Mamba2(mamba)) => mamba.problem(),
            Some(AttentionKind::Latent(latent)) => latent.problem(),
            Some(AttentionKind::Linear) | None => None,
        };
        let feed_forward = || match &self.feed_forward {
            Some(FeedForwardKind::Mlp(mlp)) => mlp.problem(),
            Some(FeedForwardKind::Experts(experts)) => experts.problem(),
            Some(FeedForwardKind::MlpAndExperts(mlp, experts)) => mlp.problem().or_else(|| experts.problem()),
            Some(FeedForwardKind::Linear) | None => None,
        };
        attention.or_else(feed_forward).or_else(|| positive("residual multiplier", self.residual_scale))
    }
}

impl AttentionConfig {
    fn problem(&self) -> Option<String> {
        let sizes = [
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("sliding_window", self.window.unwrap_or(1)),
        ];
        if let Some(what) = sizes.iter().find_map(|&(name, value)| size(name, value)) {
            return Some(what);
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Some(format!(
                "num_key_value_heads ({}) does not divide num_attention_heads ({})",
                self.num_kv_heads, self.num_heads
            ));
        }
        // A negative factor is senseless but harmless; infinite ones are not.
        if !self.scale.is_finite() {
            return Some(format!("the factor on the attention scores is {}", self.scale));
        }
        let eps = [self.qk_norm.map(|norm| norm.norm.eps), self.value_norm];
        if let Some(what) = eps.into_iter().flatten().find_map(|eps| from_zero("rms_norm_eps", eps)) {
            return Some(what);
        }
        positive("attn_logit_softcapping", self.softcap.unwrap_or(1.0))
            .or_else(|| self.rope.as_ref().and_then(|rope| rope.problem(self.head_dim)))
    }
}

impl DeltaNetConfig {
    fn problem(&self) -> Option<String> {
        let heads = [
            ("linear_num_key_heads", self.num_key_heads),
            ("linear_num_value_heads", self.num_value_heads),
            ("linear_key_head_dim", self.key_head_dim),
            ("linear_value_head_dim", self.value_head_dim),
        ];
        let divides = || {
            (!self.num_value_heads.is_multiple_of(self.num_key_heads)).then(|| {
                format!(
                    "linear_num_key_heads ({}) does not divide linear_num_value_heads ({})",
                    self.num_key_heads, self.num_value_heads
                )
            })
        };
        heads
            .iter()
            .find_map(beyond)
            .or_else(divides)
            .or_else(|| kernel("linear_conv_kernel_dim", self.conv_kernel))
            .or_else(|| from_zero("rms_norm_eps", self.norm_eps))
    }
}

impl Mamba2Config {
    fn problem(&self) -> Option<String> {
        let sizes = [
            ("the number of Mamba heads", self.num_heads),
            ("the width of a Mamba head", self.head_dim),
            ("the number of Mamba groups", self.num_groups),
            ("the size of a Mamba state", self.state_size),
        ];
        let divides = || {
            (!self.num_heads.is_multiple_of(self.num_groups)).then(|| {
                format!(
                    "the number of Mamba groups ({}) does not divide that of heads ({})",
                    self.num_groups, self.num_heads
                )
            })
        };
        let [least, most_step] = self.step_limits;
        let limits = || {
            (!(least >= 0.0 && least < most_step))
                .then(|| format!("time_step_limit is {least} to {most_step}, expected a range from 0 on"))
        };
        sizes
            .iter()
            .find_map(beyond)
            .or_else(divides)
            .or_else(limits)
            .or_else(|| kernel("the kernel of a Mamba convolution", self.conv_kernel))
            .or_else(|| from_zero("rms_norm_eps", self.norm_eps))
    }
}

impl LatentConfig {
    fn problem(&self) -> Option<String> {
        let sizes = [
            ("num_attention_heads", self.num_heads),
            ("q_lora_rank", self.query_rank.unwrap_or(1)),
            ("kv_lora_rank", self.kv_rank),
            ("qk_nope_head_dim", self.nope_dim),
            ("qk_rope_head_dim", self.rope_dim),
            ("v_head_dim", self.value_dim),
        ];
        let scale = || {
            (!self.scale.is_finite()).then(|| format!("the factor on the attention scores is {}", self.scale))
        };
        sizes
            .iter()
            .find_map(beyond)
            .or_else(scale)
            .or_else(|| from_zero("the latents' norm", self.norm_eps))
            .or_else(|| self.rope.problem(self.rope_dim))
    }
}

/// A convolution needs a kernel of at least 2: with 1 it would only see its own input, and keep none.
fn kernel(name: &str, kernel: usize) -> Option<String> {
    (!(2..=64).contains(&kernel)).then(|| format!("{name} is {kernel}, expected 2 to 64"))
}

impl MlpConfig {
    fn problem(&self) -> Option<String> {
        let limit = match self.activation {
            Activation::ClampedSwiGlu { limit } => limit,
            _ => 1.0,
        };
        size("intermediate_size", self.intermediate_size).or_else(|| positive("swiglu_limit", limit))
    }
}

impl ExpertsConfig {
    fn problem(&self) -> Option<String> {
        let (picked, all) = (self.num_per_token, self.num_experts);
        let factors = [
            ("routed_scaling_factor", self.router.factor),
            ("the cap of the router's values", self.router.softcap.unwrap_or(1.0)),
        ];
        let least = [self.router.sum_plus, self.router.sum_at_least, self.router.input_norm.unwrap_or(0.0)];
        let latent = self.latent.map_or(1, |latent| latent.width);
        size("number of experts", all)
            .or_else(|| size("moe_latent_size", latent))
            .or_else(|| {
                (!(1..=all).contains(&picked))
                    .then(|| format!("num_experts_per_tok is {picked}, expected 1 to {all}"))
            })
            .or_else(|| self.router.groups.and_then(|groups| groups.problem(all, picked)))
            .or_else(|| factors.into_iter().find_map(|(name, factor)| positive(name, factor)))
            .or_else(|| {
                least.into_iter().find_map(|least| from_zero("a number in the experts' router", least))
            })
            .or_else(|| self.expert.problem())
            .or_else(|| self.shared.as_ref().and_then(|shared| shared.mlp.problem()))
    }
}

impl ExpertGroups {
    fn problem(&self, experts: usize, picked: usize) -> Option<String> {
        let Self { count, kept, .. } = *self;
        if count == 0 || !experts.is_multiple_of(count) {
            return Some(format!("n_group is {count}, which does not divide {experts} experts"));
        }
        if !(1..=count).contains(&kept) {
            return Some(format!("topk_group is {kept}, expected 1 to {count}"));
        }
        let left = kept * (experts / count);
        (picked > left).then(|| {
            format!("num_experts_per_tok is {picked}, and the {kept} groups that topk_group keeps have {left} experts")
        })
    }
}

impl QueryScale {
    fn problem(&self) -> Option<String> {
        let Self { beta, original_max_position_embeddings: original } = *self;
        from_zero("llama_4_scaling_beta", beta)
            .or_else(|| positive("original_max_position_embeddings", original))
    }
}

fn from_zero(name: &str, value: f64) -> Option<String> {
    (!(value.is_finite() && value >= 0.0)).then(|| format!("{name} is {value}, expected a number from 0 on"))
}

/// Checks the limits of a size. No real model comes near them; beyond them, a broken config would fill the memory
/// before its tensors are looked at, or sizes would overflow when they are multiplied.
fn size(name: &str, size: usize) -> Option<String> {
    let largest = match name {
        "num_hidden_layers" | "num_attention_heads" | "num_key_value_heads" | "number of experts" => 1 << 12,
        "head_dim" => 1 << 16,
        "sliding_window" => usize::MAX,
        _ => 1 << 28,
    };
    match (1..=largest).contains(&size) {
        true => None,
        false if largest == usize::MAX => Some(format!("{name} is {size}, expected at least 1")),
        false => Some(format!("{name} is {size}, expected 1 to {largest}")),
    }
}

fn positive(name: &str, value: f64) -> Option<String> {
    match value.is_finite() && value > 0.0 {
        true => None,
        false => Some(format!("{name} is {value}, expected a number above 0")),
    }
}

/// Describes what is wrong with a size of a layer, if it is 0 or larger than any model's.
fn beyond(&(name, count): &(&str, usize)) -> Option<String> {
    const MAX_SIZE: usize = 1 << 16;
    (!(1..=MAX_SIZE).contains(&count)).then(|| format!("{name} is {count}, expected 1 to {MAX_SIZE}"))
}
