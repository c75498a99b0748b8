//! EXAONE 3 and 3.5: Llama with GPT-2's names.

use crate::{
    Architecture, ModelError, TensorSource,
    architecture::{Names, with_prefix},
    family::{self, Defaults, LLAMA},
    fields::Fields,
    names::renamed,
};

/// Defaults of LG's `ExaoneConfig`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 102_400,
    hidden_size: 2048,
    norm_eps: 1e-5,
    tied: true,
    activation: ("activation_function", "silu"),
    ..LLAMA
};

/// Reads the config.
pub(crate) fn architecture(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    let renamed =
        fields.renamed(&[("num_layers", "num_hidden_layers"), ("layer_norm_epsilon", "rms_norm_eps")]);
    let fields = &Fields::new(&renamed, fields.model_type)?;
    let hidden_size = fields.or("hidden_size", DEFAULTS.hidden_size)?;
    let defaults = Defaults { intermediate_size: hidden_size.saturating_mul(4), ..DEFAULTS };
    let mut decoder = family::decoder(fields, &defaults)?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
    }
    let names = Names {
        source: |_, name| TensorSource::whole(own_name(name)),
        respelled: |name| with_prefix("transformer.", name),
        ..Names::LLAMA
    };
    Architecture::new(decoder, names)
}

fn own_name(name: &str) -> String {
    const IN_LAYERS: &[(&str, &str)] = &[
        ("self_attn.o_proj.", "attn.attention.out_proj."),
        ("self_attn.", "attn.attention."),
        ("mlp.gate_proj.", "mlp.c_fc_0."),
        ("mlp.up_proj.", "mlp.c_fc_1."),
        ("mlp.down_proj.", "mlp.c_proj."),
        ("input_layernorm.", "ln_1."),
        ("post_attention_layernorm.", "ln_2."),
        ("model.embed_tokens.", "transformer.wte."),
        ("model.norm.", "transformer.ln_f."),
    ];
    renamed(name, IN_LAYERS).replacen("model.layers.", "transformer.h.", 1)
}
