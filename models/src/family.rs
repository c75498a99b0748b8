//! Llama and its many relatives: their common fields, and a decoder of equal layers.

use crate::{
    AttentionConfig, AttentionKind, DecoderConfig, ExpertsConfig, FeedForwardKind, LayerConfig, MlpConfig,
    ModelError, NormConfig, NormKind, QkNorm, QkSpan, RopeConfig, SharedExpertConfig,
    fields::Fields,
    rope_fields::{RopeContext, context_length, rope},
};

/// The defaults of transformers' config class, for fields that a `config.json` lacks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_heads: usize,
    /// `None` means as many as there are heads.
    pub(crate) num_kv_heads: Option<usize>,
    /// `None` means d / heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) context_length: usize,
    pub(crate) norm_eps: f64,
    pub(crate) tied: bool,
    pub(crate) theta: f64,
    /// The name of the field for the activation function, and its default.
    pub(crate) activation: (&'static str, &'static str),
}

/// Llama's defaults.
pub(crate) const LLAMA: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: None,
    head_dim: None,
    context_length: 2048,
    norm_eps: 1e-6,
    tied: false,
    theta: 10_000.0,
    activation: ("hidden_act", "silu"),
};

/// Sizes of the heads, on which the rotary embedding depends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Reads the sizes of the heads.
pub(crate) fn heads(fields: &Fields<'_>, defaults: &Defaults) -> Result<Heads, ModelError> {
    let num_heads = fields.or("num_attention_heads", defaults.num_heads)?;
    let num_kv_heads = fields.nullable("num_key_value_heads", defaults.num_kv_heads)?.unwrap_or(num_heads);
    let hidden_size = fields.or("hidden_size", defaults.hidden_size)?;
    let own = fields.nullable("head_dim", defaults.head_dim)?;
    Ok(Heads { num_heads, num_kv_heads, head_dim: own.unwrap_or(hidden_size / num_heads.max(1)) })
}

/// What the rotary embedding is computed from, for a model that rotates whole heads.
pub(crate) fn rope_context(
    fields: &Fields<'_>,
    defaults: &Defaults,
    heads: Heads,
) -> Result<RopeContext, ModelError> {
    Ok(RopeContext {
        head_dim: heads.head_dim,
        max_position_embeddings: fields.or("max_position_embeddings", defaults.context_length)?,
        theta: defaults.theta,
        partial: 1.0,
        partly: false,
        alpha: false,
        yarn_is_longrope: false,
        original: fields.get("original_max_position_embeddings")?,
    })
}

/// Llama's decoder with these defaults: RMS norms before each block, grouped-query attention with a rotary embedding
/// of whole heads, a gated feed-forward block, and no biases but those of `attention_bias`.
pub(crate) fn decoder(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderConfig, ModelError> {
    let heads = heads(fields, defaults)?;
    let rope = rope(fields, rope_context(fields, defaults, heads)?)?;
    decoder_with_rope(fields, defaults, rope)
}

/// Llama's feed-forward block of a width: gated, without biases, with the config's activation function.
pub(crate) fn gated_mlp(
    fields: &Fields<'_>,
    defaults: &Defaults,
    intermediate_size: usize,
) -> Result<MlpConfig, ModelError> {
    let (field, default) = defaults.activation;
    let activation = fields.activation(field, default)?;
    Ok(MlpConfig { intermediate_size, gated: true, bias: false, activation })
}

/// A shared expert as wide as `count` experts together; `None` for 0.
pub(crate) fn shared_experts(count: usize, expert: &MlpConfig) -> Option<SharedExpertConfig> {
    let intermediate_size = expert.intermediate_size.saturating_mul(count);
    let mlp = MlpConfig { intermediate_size, ..expert.clone() };
    (count > 0).then_some(SharedExpertConfig { mlp, gated: false })
}

/// Like [`decoder`], with a rotary embedding of a part of each head.
pub(crate) fn decoder_partly(
    fields: &Fields<'_>,
    defaults: &Defaults,
    partial: f64,
) -> Result<DecoderConfig, ModelError> {
    let partial = fields.or("partial_rotary_factor", partial)?;
    let context = rope_context(fields, defaults, heads(fields, defaults)?)?;
    let rope = rope(fields, RopeContext { partial, partly: true, ..context })?;
    decoder_with_rope(fields, defaults, rope)
}

/// Like [`decoder`], with this rotary embedding.
pub(crate) fn decoder_with_rope(
    fields: &Fields<'_>,
    defaults: &Defaults,
    rope: RopeConfig,
) -> Result<DecoderConfig, ModelError> {
    let heads = heads(fields, defaults)?;
    let max_position_embeddings = fields.or("max_position_embeddings", defaults.context_length)?;
    let bias = fields.or("attention_bias", false)?;
    let context_length = context_length(max_position_embeddings, &rope);
    let attention = AttentionConfig {
        qkv_bias: bias,
        output_bias: bias,
        rope: Some(rope),
        ..AttentionConfig::new(heads.num_heads, heads.num_kv_heads, heads.head_dim)
    };
    let width = fields.or("intermediate_size", defaults.intermediate_size)?;
    let mlp = gated_mlp(fields, defaults, width)?;
    let layer = LayerConfig::new(attention, FeedForwardKind::Mlp(mlp));
    let layers = vec![layer; fields.num_layers("num_hidden_layers", defaults.num_layers)?];
    let norm = NormConfig { kind: NormKind::Rms, eps: fields.or("rms_norm_eps", defaults.norm_eps)? };
    let sizes = [
        fields.or("vocab_size", defaults.vocab_size)?,
        fields.or("hidden_size", defaults.hidden_size)?,
        context_length,
    ];
    Ok(DecoderConfig {
        tie_word_embeddings: fields.or("tie_word_embeddings", defaults.tied)?,
        ..DecoderConfig::new(fields.model_type, sizes, norm, layers)
    })
}

impl DecoderConfig {
    /// The attention of every layer that has one, with the index of the layer.
    pub(crate) fn attentions_mut(&mut self) -> impl Iterator<Item = (usize, &mut AttentionConfig)> {
        self.layers.iter_mut().enumerate().filter_map(|(index, layer)| match &mut layer.attention {
            Some(AttentionKind::Heads(attention)) => Some((index, attention)),
            _ => None,
        })
    }

    /// The feed-forward block of every layer whose block is a plain one.
    pub(crate) fn mlps_mut(&mut self) -> impl Iterator<Item = &mut MlpConfig> {
        self.layers.iter_mut().filter_map(|layer| match &mut layer.feed_forward {
            Some(FeedForwardKind::Mlp(mlp)) => Some(mlp),
            _ => None,
        })
    }

    /// Adds norms of queries and keys before the rotary embedding, of the same kind as the layers' norms.
    pub(crate) fn norm_queries_and_keys(&mut self, span: QkSpan) {
        let norm = QkNorm::new(span, self.norm);
        self.attentions_mut().for_each(|(_, attention)| attention.qk_norm = Some(norm));
    }

    /// Replaces the feed-forward block by experts in the layers for whose index `is_sparse` returns true.
    pub(crate) fn give_experts(&mut self, experts: &ExpertsConfig, is_sparse: impl Fn(usize) -> bool) {
        for (_, layer) in self.layers.iter_mut().enumerate().filter(|(index, _)| is_sparse(*index)) {
            layer.feed_forward = Some(FeedForwardKind::Experts(experts.clone()));
        }
    }

    /// Gives the marked layers a sliding window.
    pub(crate) fn slide(
        &mut self,
        fields: &Fields<'_>,
        sliding: &[bool],
        window: Option<usize>,
    ) -> Result<(), ModelError> {
        if window.is_none() && sliding.contains(&true) {
            let what = "`layer_types` has sliding_attention, but there is no `sliding_window`";
            return Err(fields.wrong(what.to_owned()));
        }
        for (index, attention) in self.attentions_mut() {
            attention.window = window.filter(|_| sliding.get(index) == Some(&true));
        }
        Ok(())
    }
}
