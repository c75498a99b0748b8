//! Reads the rotary embedding from a `config.json`: from `rope_parameters`, for all layers or by kind of layer, or,
//! before transformers 5, from `rope_theta` and `rope_scaling`.

use serde::Deserialize;
use serde_json::Value;

use crate::{ModelError, RopeConfig, RopeScaling, fields::Fields};

/// What the rotary embedding is computed from, in addition to its own parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeContext {
    pub(crate) head_dim: usize,
    pub(crate) max_position_embeddings: usize,
    /// The base, if the rotary parameters have none.
    pub(crate) theta: f64,
    /// Fraction of a head that is rotated, if the rotary parameters have none.
    pub(crate) partial: f64,
    /// Whether the architecture can rotate a part of a head.
    pub(crate) partly: bool,
    /// Whether the scaling `dynamic` with `alpha` is a change of the base (Hunyuan).
    pub(crate) alpha: bool,
    /// Whether `yarn` in the config means LongRoPE.
    pub(crate) yarn_is_longrope: bool,
    /// The field `original_max_position_embeddings` beside the rotary parameters, which has precedence over theirs.
    pub(crate) original: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Parameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The name of `rope_type` in some older checkpoints, which may have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    alpha: Option<f64>,
    /// This is not a field of transformers: it has the divisors that a GGUF file stores as a tensor.
    factors: Option<Vec<f64>>,
}

/// The rotary embedding of all layers, for a model whose config may have `rope_theta` beside the rotary parameters.
pub(crate) fn rope(fields: &Fields<'_>, context: RopeContext) -> Result<RopeConfig, ModelError> {
    rope_with(fields, RopeContext { theta: fields.or("rope_theta", context.theta)?, ..context })
}

/// Like [`rope`], but with the context's base if the parameters have none.
pub(crate) fn rope_with(fields: &Fields<'_>, context: RopeContext) -> Result<RopeConfig, ModelError> {
    let given = given(fields);
    // This model has one rotary embedding for all layers, so parameters by kind of layer would not be found.
    if let Some(listed) = given
        .filter(|value| ["full_attention", "sliding_attention"].iter().any(|kind| value.get(kind).is_some()))
    {
        return Err(fields.unsupported("rope_parameters", listed, "those of all layers"));
    }
    build(fields, given, context)
}

/// The rotary embedding of one kind of layer, whose parameters the config lists by kind. `scaling`, of the older
/// spelling and meant for that kind, is added to them.
pub(crate) fn rope_of_kind(
    fields: &Fields<'_>,
    kind: &str,
    scaling: Option<&Value>,
    context: RopeContext,
) -> Result<RopeConfig, ModelError> {
    let listed = fields.value("rope_parameters");
    if listed.is_some_and(|value| value.get("rope_type").is_some() || value.get("rope_theta").is_some()) {
        let what = "`rope_parameters` must list full_attention and sliding_attention";
        return Err(fields.wrong(what.to_owned()));
    }
    let mut value = listed.and_then(|value| value.get(kind)).filter(|value| !value.is_null()).cloned();
    if let Some(Value::Object(scaling)) = scaling {
        let mut merged = match value {
            Some(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        merged.extend(scaling.clone());
        value = Some(Value::Object(merged));
    }
    build(fields, value.as_ref(), context)
}

/// The rotary parameters. The older field has precedence, as in transformers.
pub(crate) fn given<'a>(fields: &Fields<'a>) -> Option<&'a Value> {
    let there = |name| fields.value(name).filter(|value| value.as_object().is_none_or(|map| !map.is_empty()));
    there("rope_scaling").or_else(|| there("rope_parameters"))
}

/// The context length that the model supports: longer than `max_position_embeddings` if the scaling extends it.
pub(crate) fn context_length(max_position_embeddings: usize, rope: &RopeConfig) -> usize {
    let stretched = match rope.scaling {
        RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. }
        | RopeScaling::Dynamic { factor, original_max_position_embeddings: original } => factor * original,
        _ => 0.0,
    };
    // An invalid factor is refused later with its name; here it only must not overflow.
    max_position_embeddings.max(stretched.clamp(0.0, f64::from(1 << 28)) as usize)
}

fn build(fields: &Fields<'_>, value: Option<&Value>, context: RopeContext) -> Result<RopeConfig, ModelError> {
    let parameters = match value {
        None => Parameters::default(),
        Some(value) => serde_path_to_error::deserialize(value)
            .map_err(|error| fields.wrong(format!("rotary parameters: {error}")))?,
    };
    let partial = parameters.partial_rotary_factor.unwrap_or(context.partial);
    let kind = parameters.rope_type.as_deref().or(parameters.old_type.as_deref());
    let is_proportional = kind == Some("proportional");
    if !context.partly && !is_proportional && partial != 1.0 {
        return Err(fields.unsupported("partial_rotary_factor", &partial.into(), "1"));
    }
    if !(partial.is_finite() && (0.0..=1.0).contains(&partial)) {
        return Err(fields.wrong(format!("partial_rotary_factor is {partial}, expected 0 to 1")));
    }
    let theta = parameters.rope_theta.unwrap_or(context.theta);
    let dims = context.head_dim as f64 * partial;
    if is_proportional {
        let (pairs, factor) = (dims as usize / 2, parameters.factor.unwrap_or(1.0));
        return Ok(RopeConfig {
            theta,
            dims: context.head_dim,
            scaling: RopeScaling::Proportional { pairs, factor },
        });
    }
    if let Some(alpha) = parameters.alpha.filter(|&alpha| context.alpha && alpha != 0.0)
        && kind == Some("dynamic")
    {
        let theta = theta * alpha.powf(dims / (dims - 2.0));
        return Ok(RopeConfig { theta, dims: dims as usize, scaling: RopeScaling::Default });
    }
    Ok(RopeConfig { theta, dims: dims as usize, scaling: scaling(fields, parameters, context)? })
}

fn scaling(
    fields: &Fields<'_>,
    parameters: Parameters,
    context: RopeContext,
) -> Result<RopeScaling, ModelError> {
    let kind = parameters.rope_type.clone().or(parameters.old_type.clone());
    let kind = match kind.as_deref().unwrap_or("default") {
        "yarn" if context.yarn_is_longrope => "longrope",
        kind => kind,
    };
    let lacks = |field: &str| ModelError::Inconsistent {
        model_type: fields.model_type,
        what: format!("`{field}` is missing from the rotary parameters of type {kind:?}"),
    };
    let need = |field: &str, value: Option<f64>| value.ok_or_else(|| lacks(field));
    let max = context.max_position_embeddings as f64;
    let original = context.original.or(parameters.original_max_position_embeddings).unwrap_or(max);
    Ok(match kind {
        "default" => RopeScaling::Default,
        // Positions have several dimensions, which are equal for text.
        "mrope" if fields.model_type.contains("_vl") || fields.model_type.starts_with("qwen3_5") => {
            RopeScaling::Default
        }
        "linear" => RopeScaling::Linear { factor: need("factor", parameters.factor)? },
        "dynamic" => RopeScaling::Dynamic {
            factor: need("factor", parameters.factor)?,
            original_max_position_embeddings: max,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: need("factor", parameters.factor)?,
            low_freq_factor: need("low_freq_factor", parameters.low_freq_factor)?,
            high_freq_factor: need("high_freq_factor", parameters.high_freq_factor)?,
            original_max_position_embeddings: original,
        },
        "yarn" => {
            let factor = parameters.factor.unwrap_or(max / original);
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: parameters.beta_fast.filter(|&beta| beta != 0.0).unwrap_or(32.0),
                beta_slow: parameters.beta_slow.filter(|&beta| beta != 0.0).unwrap_or(1.0),
                truncate: parameters.truncate.unwrap_or(true),
                attention_factor: yarn_attention_factor(&parameters, factor),
            }
        }
        // Phi-3's first checkpoints use an older name.
        "longrope" | "su" => {
            let factor = parameters.factor.unwrap_or(max / original);
            let stretched = || (1.0 + factor.ln() / original.ln()).sqrt();
            let attention_factor = if factor <= 1.0 { 1.0 } else { stretched() };
            RopeScaling::LongRope {
                short_factor: parameters.short_factor.ok_or_else(|| lacks("short_factor"))?,
                long_factor: parameters.long_factor.ok_or_else(|| lacks("long_factor"))?,
                original_max_position_embeddings: original,
                attention_factor: parameters.attention_factor.unwrap_or(attention_factor),
            }
        }
        "factors" => RopeScaling::Factors(parameters.factors.unwrap_or_default()),
        other => {
            let supported = "default, linear, dynamic, llama3, yarn, longrope";
            return Err(fields.unsupported("rope_type", &other.into(), supported));
        }
    })
}

/// `0.1 ln(factor) + 1`, or the ratio of two such terms if the config has weights for them (YaRN, equation 22).
fn yarn_attention_factor(parameters: &Parameters, factor: f64) -> f64 {
    let term = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
    let weights = parameters.mscale.zip(parameters.mscale_all_dim).filter(|&(a, b)| a != 0.0 && b != 0.0);
    parameters.attention_factor.unwrap_or_else(|| match weights {
        Some((above, below)) => term(above) / term(below),
        None => term(1.0),
    })
}
