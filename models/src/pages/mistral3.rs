//! Mistral Small 3 and Ministral 3: Mistral, or Mistral with YaRN and a factor on queries that grows with their
//! positions, under the prefix of a multimodal checkpoint.

use serde_json::{Value, json};

use crate::{
    Architecture, DecoderConfig, ModelError, Multimodal, QueryScale,
    architecture::Names,
    family::{self, Defaults},
    fields::Fields,
    pages::{deepseek, mistral},
    rope_fields::given,
};

/// Defaults of transformers' `Ministral3Config`.
const DEFAULTS: Defaults = Defaults {
    vocab_size: 131_072,
    num_layers: 34,
    head_dim: Some(128),
    context_length: 262_144,
    norm_eps: 1e-5,
    theta: 1e6,
    ..mistral::DEFAULTS
};

/// Reads the text part of a multimodal model's config.
pub(crate) fn multimodal(outer: &Fields<'_>) -> Result<Architecture, ModelError> {
    let fields = outer.nested("text_config")?;
    let mut decoder = match fields.get::<String>("model_type")?.as_deref() {
        Some("ministral3") => ministral3_decoder(&fields)?,
        Some("mistral") | None => mistral::decoder(&fields)?,
        Some("mistral4") => return deepseek::mistral4_nested(outer, &fields),
        Some(other) => {
            return Err(fields.unsupported(
                "text_config.model_type",
                &other.into(),
                "mistral, ministral3, mistral4",
            ));
        }
    };
    // The outer class has this field too; that of the text part is used if the outer one is absent.
    let inner = fields.get("tie_word_embeddings")?.unwrap_or(true);
    decoder.tie_word_embeddings = outer.or("tie_word_embeddings", inner)?;
    Architecture::new(decoder, Names { multimodal: Some(Multimodal::UNDER_LANGUAGE_MODEL), ..Names::LLAMA })
}

/// Reads the config of a Ministral 3 without images.
pub(crate) fn ministral3(fields: &Fields<'_>) -> Result<Architecture, ModelError> {
    Architecture::new(ministral3_decoder(fields)?, Names::LLAMA)
}

fn ministral3_decoder(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let with_rope = fields.with_rope(json!({
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    }));
    let fields = &Fields::new(&with_rope, fields.model_type)?;
    let mut decoder = family::decoder(fields, &DEFAULTS)?;
    let window = fields.get("sliding_window")?;
    for (_, attention) in decoder.attentions_mut() {
        (attention.qkv_bias, attention.output_bias) = (false, false);
        attention.window = window;
    }
    decoder.query_scale = query_scale(fields)?;
    Ok(decoder)
}

/// The factor on queries, from the rotary parameters.
pub(super) fn query_scale(fields: &Fields<'_>) -> Result<Option<QueryScale>, ModelError> {
    let parameters = given(fields);
    let number = |name: &str| match parameters.and_then(|parameters| parameters.get(name)) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(fields
                .wrong(format!("field `{name}` of the rotary parameters is {value}, expected a number"))),
        },
    };
    let (beta, original) = (number("llama_4_scaling_beta")?, number("original_max_position_embeddings")?);
    match (beta, original) {
        (None, _) => Ok(None),
        (Some(beta), Some(original)) => {
            Ok(Some(QueryScale { beta, original_max_position_embeddings: original }))
        }
        (Some(_), None) => {
            let what = "`original_max_position_embeddings` is missing from the rotary parameters, which have `llama_4_scaling_beta`";
            Err(fields.wrong(what.to_owned()))
        }
    }
}
