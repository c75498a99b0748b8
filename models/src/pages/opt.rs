//! OPT: learned positions that begin at the third row of their table, LayerNorm, biases everywhere, and an ungated
//! feed-forward block.

use std::borrow::Cow;

use crate::{
    Architecture, AttentionConfig, DecoderConfig, FeedForwardKind, LayerConfig, MlpConfig, ModelError,
    NormConfig, NormKind, TensorSource, architecture::Names, fields::Fields, names::renamed,
};

/// Number of rows in the table of positions before that of the first position.
const FIRST_POSITION: usize = 2;

/// Reads the config, with the defaults of transformers' `OPTConfig`.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    // These are options of OPT-350M, which has its norms after the blocks and an embedding of another width.
    fields.supports("do_layer_norm_before", &[true.into()], "true")?;
    fields.supports("_remove_final_layer_norm", &[false.into()], "false")?;
    fields.supports("layer_norm_elementwise_affine", &[true.into()], "true")?;
    let hidden_size: usize = fields.or("hidden_size", 768)?;
    fields.supports("word_embed_proj_dim", &[hidden_size.into()], "the value of hidden_size")?;
    let num_heads: usize = fields.or("num_attention_heads", 12)?;
    if num_heads == 0 || !hidden_size.is_multiple_of(num_heads) {
        let what = format!("num_attention_heads ({num_heads}) does not divide hidden_size ({hidden_size})");
        return Err(fields.wrong(what));
    }
    let bias = fields.or("enable_bias", true)?;
    let attention = AttentionConfig {
        qkv_bias: bias,
        output_bias: bias,
        ..AttentionConfig::new(num_heads, num_heads, hidden_size / num_heads)
    };
    let mlp = MlpConfig {
        intermediate_size: fields.or("ffn_dim", 3072)?,
        gated: false,
        bias,
        activation: fields.activation("activation_function", "relu")?,
    };
    let layer = LayerConfig::new(attention, FeedForwardKind::Mlp(mlp));
    let norm = NormConfig { kind: NormKind::Layer, eps: 1e-5 };
    let sizes = [fields.or("vocab_size", 50_272)?, hidden_size, fields.or("max_position_embeddings", 2048)?];
    let layers = vec![layer; fields.num_layers("num_hidden_layers", 12)?];
    let decoder = DecoderConfig {
        learned_positions: Some(FIRST_POSITION),
        tie_word_embeddings: fields.or("tie_word_embeddings", true)?,
        ..DecoderConfig::new(fields.model_type, sizes, norm, layers)
    };
    let names = Names { source: |_, name| TensorSource::whole(own_name(name)), respelled, ..Names::LLAMA };
    Architecture::new(decoder, names)
}

fn own_name(name: &str) -> String {
    const OWN: &[(&str, &str)] = &[
        ("self_attn.o_proj.", "self_attn.out_proj."),
        ("mlp.up_proj.", "fc1."),
        ("mlp.down_proj.", "fc2."),
        ("input_layernorm.", "self_attn_layer_norm."),
        ("post_attention_layernorm.", "final_layer_norm."),
        ("model.embed_tokens.", "model.decoder.embed_tokens."),
        ("model.embed_positions.", "model.decoder.embed_positions."),
        ("model.norm.", "model.decoder.final_layer_norm."),
    ];
    renamed(name, OWN).replacen("model.layers.", "model.decoder.layers.", 1)
}

/// Adds the `model.` that files of the first release lack.
fn respelled(name: &str) -> Cow<'_, str> {
    match name.starts_with("decoder.") {
        true => format!("model.{name}").into(),
        false => name.into(),
    }
}
