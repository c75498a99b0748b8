//! GPT-NeoX and Pythia: LayerNorm, biases, a rotary embedding of a part of each head, and an ungated feed-forward
//! block in parallel to attention. One linear layer has q, k and v, next to each other for each head.

use moi_formats::RowBlocks;

use crate::{
    Architecture, AttentionConfig, AttentionKind, DecoderConfig, FeedForwardKind, LayerConfig, MlpConfig,
    ModelError, NormConfig, NormKind, TensorSource,
    architecture::{Names, with_prefix},
    fields::Fields,
    names::of_layer,
    rope_fields::{RopeContext, context_length, rope_with},
};

/// Reads the config, with the defaults of transformers' `GPTNeoXConfig`.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let hidden_size: usize = fields.or("hidden_size", 6144)?;
    let num_heads: usize = fields.or("num_attention_heads", 64)?;
    if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
        let what = format!("num_attention_heads ({num_heads}) does not divide hidden_size ({hidden_size})");
        return Err(fields.wrong(what));
    }
    let head_dim = hidden_size / num_heads;
    let max_position_embeddings = fields.or("max_position_embeddings", 2048)?;
    let theta = match fields.get("rotary_emb_base")? {
        Some(theta) => theta,
        None => fields.or("rope_theta", 10_000.0)?,
    };
    let context = RopeContext {
        head_dim,
        max_position_embeddings,
        theta,
        partial: fields.or("rotary_pct", 0.25)?,
        partly: true,
        alpha: false,
        yarn_is_longrope: false,
        original: fields.get("original_max_position_embeddings")?,
    };
    let rope = rope_with(fields, context)?;
    let bias = fields.or("attention_bias", true)?;
    let context_length = context_length(max_position_embeddings, &rope);
    let attention = AttentionConfig {
        qkv_bias: bias,
        output_bias: bias,
        rope: Some(rope),
        ..AttentionConfig::new(num_heads, num_heads, head_dim)
    };
    let mlp = MlpConfig {
        intermediate_size: fields.or("intermediate_size", 24_576)?,
        gated: false,
        bias: true,
        activation: fields.activation("hidden_act", "gelu")?,
    };
    let layer = LayerConfig {
        parallel: fields.or("use_parallel_residual", true)?,
        ..LayerConfig::new(attention, FeedForwardKind::Mlp(mlp))
    };
    let norm = NormConfig { kind: NormKind::Layer, eps: fields.or("layer_norm_eps", 1e-5)? };
    let sizes = [fields.or("vocab_size", 50_432)?, hidden_size, context_length];
    let layers = vec![layer; fields.num_layers("num_hidden_layers", 44)?];
    let decoder = DecoderConfig {
        tie_word_embeddings: fields.or("tie_word_embeddings", false)?,
        ..DecoderConfig::new(fields.model_type, sizes, norm, layers)
    };
    let names = Names {
        source,
        respelled: |name| match name {
            "lm_head.weight" => HEAD.into(),
            _ => with_prefix("gpt_neox.", name),
        },
        ignored: |config, name| {
            // Old files store attention masks.
            name.ends_with(".attention.bias")
                || name.ends_with(".attention.masked_bias")
                || name.ends_with(".rotary_emb.inv_freq")
                || (config.tie_word_embeddings && name == HEAD)
        },
        ..Names::LLAMA
    };
    Architecture::new(decoder, names)
}

const HEAD: &str = "embed_out.weight";

fn source(config: &DecoderConfig, name: &str) -> TensorSource {
    let Some((index, module, kind)) = of_layer(name) else {
        return TensorSource::whole(match name {
            "lm_head.weight" => HEAD.to_owned(),
            _ => name
                .replace("model.embed_tokens", "gpt_neox.embed_in")
                .replace("model.norm", "gpt_neox.final_layer_norm"),
        });
    };
    let (own, part) = match module {
        "self_attn.q_proj" => ("attention.query_key_value", Some(0)),
        "self_attn.k_proj" => ("attention.query_key_value", Some(1)),
        "self_attn.v_proj" => ("attention.query_key_value", Some(2)),
        "self_attn.o_proj" => ("attention.dense", None),
        "mlp.up_proj" => ("mlp.dense_h_to_4h", None),
        "mlp.down_proj" => ("mlp.dense_4h_to_h", None),
        other => (other, None),
    };
    let heads = config.layers.get(index).and_then(|layer| match &layer.attention {
        Some(AttentionKind::Heads(attention)) => Some((attention.num_heads, attention.head_dim)),
        _ => None,
    });
    let rows = part.zip(heads).map(|(part, (blocks, head_dim)): (usize, _)| RowBlocks {
        blocks,
        block: 3 * head_dim,
        start: part * head_dim,
        len: head_dim,
    });
    TensorSource { rows, ..TensorSource::whole(format!("gpt_neox.layers.{index}.{own}.{kind}")) }
}
