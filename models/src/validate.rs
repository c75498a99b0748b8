//! What a config must hold to make a model.

use crate::{
    AttentionConfig, AttentionKind, DecoderConfig, FeedForwardKind, LayerConfig, MlpConfig, ModelError,
};

impl DecoderConfig {
    /// The config itself, if its numbers fit together.
    ///
    /// # Errors
    /// If a size is 0 or absurd, the heads do not divide as attention needs it, or a factor is no number.
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
        let eps = self.norm.eps;
        size("vocab_size", self.vocab_size)
            .or_else(|| size("hidden_size", self.hidden_size))
            .or_else(|| size("max_position_embeddings", self.context_length))
            .or_else(|| size("num_hidden_layers", self.layers.len()))
            .or_else(|| (!(eps.is_finite() && eps >= 0.0)).then(|| format!("rms_norm_eps is {eps}")))
            .or_else(|| factors.iter().find_map(|&(name, factor)| positive(name, factor)))
            .or_else(|| self.layers.iter().find_map(LayerConfig::problem))
            .or_else(|| self.too_large())
    }

    /// Sizes that are each possible and together are not: they would overflow, or their names fill the memory.
    fn too_large(&self) -> Option<String> {
        const MOST_VALUES: f64 = (1u64 << 50) as f64;
        const MOST_EXPERTS: usize = 1 << 17;
        let experts = |layer: &LayerConfig| match &layer.feed_forward {
            Some(FeedForwardKind::Experts(experts)) => experts.num_experts,
            _ => 1,
        };
        let width = |layer: &LayerConfig| {
            let inner = match &layer.feed_forward {
                Some(FeedForwardKind::Mlp(mlp)) => mlp.intermediate_size as f64,
                Some(FeedForwardKind::Experts(experts)) => {
                    experts.num_experts as f64 * experts.expert.intermediate_size as f64
                }
                Some(FeedForwardKind::Linear) | None => self.hidden_size as f64,
            };
            let heads = match &layer.attention {
                Some(AttentionKind::Heads(a)) => a.num_heads as f64 * a.head_dim as f64,
                Some(AttentionKind::Linear) | None => 0.0,
            };
            (heads * 4.0 + inner * 3.0) * (self.hidden_size as f64 + self.context_length as f64)
        };
        let values = 3.0 * self.vocab_size as f64 * self.hidden_size as f64
            + self.layers.iter().map(width).sum::<f64>();
        let count: usize = self.layers.iter().map(experts).sum();
        (values > MOST_VALUES || count > MOST_EXPERTS)
            .then(|| format!("its sizes make a model of about {values:.0e} values and {count} blocks"))
    }
}

impl LayerConfig {
    fn problem(&self) -> Option<String> {
        let attention = match &self.attention {
            Some(AttentionKind::Heads(attention)) => attention.problem(),
            Some(AttentionKind::Linear) | None => None,
        };
        let feed_forward = || match &self.feed_forward {
            Some(FeedForwardKind::Mlp(mlp)) => mlp.problem(),
            Some(FeedForwardKind::Experts(experts)) => size("number of experts", experts.num_experts)
                .or_else(|| {
                    let (picked, all) = (experts.num_per_token, experts.num_experts);
                    (!(1..=all).contains(&picked))
                        .then(|| format!("num_experts_per_tok is {picked}, expected 1 to {all}"))
                })
                .or_else(|| experts.expert.problem()),
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
        positive("attn_logit_softcapping", self.softcap.unwrap_or(1.0))
            .or_else(|| self.rope.as_ref().and_then(|rope| rope.problem(self.head_dim)))
    }
}

impl MlpConfig {
    fn problem(&self) -> Option<String> {
        size("intermediate_size", self.intermediate_size)
    }
}

/// No real model comes near these limits; beyond them a broken config would fill the memory before its
/// tensors are looked at, or sizes would overflow when multiplied.
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
