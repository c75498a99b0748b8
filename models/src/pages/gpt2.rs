//! GPT-2: learned positions, LayerNorm, biases everywhere, and an ungated feed-forward block. Its weights are stored
//! as `[in, out]` ("Conv1D"), those of q, k and v in one tensor.

use moi_formats::RowBlocks;

use crate::{
    Architecture, AttentionConfig, DecoderConfig, FeedForwardKind, LayerConfig, MlpConfig, ModelError,
    NormConfig, NormKind, TensorSource,
    architecture::{Names, with_prefix},
    fields::Fields,
    names::of_layer,
};

/// Reads the config, with the defaults of transformers' `GPT2Config`.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    // transformers reads these under two names, of which the common one has precedence.
    let either = |common: &str, own: &str, default: usize| fields.either(common, own, default);
    let hidden_size = either("hidden_size", "n_embd", 768)?;
    let num_heads = either("num_attention_heads", "n_head", 12)?;
    let num_layers = match fields.value("num_hidden_layers") {
        Some(_) => fields.num_layers("num_hidden_layers", 12)?,
        None => fields.num_layers("n_layer", 12)?,
    };
    if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
        return Err(fields.wrong(format!("n_head ({num_heads}) does not divide n_embd ({hidden_size})")));
    }
    let head_dim = hidden_size / num_heads;
    let scale = if fields.or("scale_attn_weights", true)? { (head_dim as f64).powf(-0.5) } else { 1.0 };
    let by_layer = fields.or("scale_attn_by_inverse_layer_idx", false)?;
    let mlp = MlpConfig {
        intermediate_size: fields.or("n_inner", 4 * hidden_size)?,
        gated: false,
        bias: true,
        activation: fields.activation("activation_function", "gelu_new")?,
    };
    let layer = |index: usize| {
        let attention = AttentionConfig {
            qkv_bias: true,
            output_bias: true,
            scale: if by_layer { scale / (index + 1) as f64 } else { scale },
            ..AttentionConfig::new(num_heads, num_heads, head_dim)
        };
        LayerConfig::new(attention, FeedForwardKind::Mlp(mlp.clone()))
    };
    let context_length = either("max_position_embeddings", "n_positions", 1024)?;
    let norm = NormConfig { kind: NormKind::Layer, eps: fields.or("layer_norm_epsilon", 1e-5)? };
    let sizes = [fields.or("vocab_size", 50_257)?, hidden_size, context_length];
    let layers = (0..num_layers).map(layer).collect();
    let decoder = DecoderConfig {
        learned_positions: Some(0),
        tie_word_embeddings: fields.or("tie_word_embeddings", true)?,
        ..DecoderConfig::new(fields.model_type, sizes, norm, layers)
    };
    let names = Names {
        source,
        respelled: |name| with_prefix("transformer.", name),
        ignored: |config, name| {
            // Old files store attention masks.
            name.ends_with(".attn.bias")
                || name.ends_with(".attn.masked_bias")
                || (config.tie_word_embeddings && name == "lm_head.weight")
        },
        ..Names::LLAMA
    };
    Architecture::new(decoder, names)
}

fn source(config: &DecoderConfig, name: &str) -> TensorSource {
    let Some((index, module, kind)) = of_layer(name) else {
        return TensorSource::whole(
            name.replace("model.embed_tokens", "transformer.wte")
                .replace("model.embed_positions", "transformer.wpe")
                .replace("model.norm", "transformer.ln_f"),
        );
    };
    let d = config.hidden_size;
    let (own, part, linear) = match module {
        "self_attn.q_proj" => ("attn.c_attn", Some(0), true),
        "self_attn.k_proj" => ("attn.c_attn", Some(1), true),
        "self_attn.v_proj" => ("attn.c_attn", Some(2), true),
        "self_attn.o_proj" => ("attn.c_proj", None, true),
        "mlp.up_proj" => ("mlp.c_fc", None, true),
        "mlp.down_proj" => ("mlp.c_proj", None, true),
        "input_layernorm" => ("ln_1", None, false),
        "post_attention_layernorm" => ("ln_2", None, false),
        other => (other, None, false),
    };
    TensorSource {
        rows: part.map(|part| RowBlocks::range(part * d, d, 3 * d)),
        transposed: linear && kind == "weight",
        ..TensorSource::whole(format!("transformer.h.{index}.{own}.{kind}"))
    }
}
