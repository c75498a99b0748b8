//! Reads from configs how other programs have quantised the weights. Unsupported methods are refused by name, before
//! the tensors are opened.

use std::path::Path;

use moi_checkpoint::{CONFIG_BYTES, Quantisation, QuantisedFormat, is_there, parse_json, read_file, shown};
use serde_json::Value;

/// Config files that older quantisation programs write beside the weights, and the programs.
const FILES: &[(&str, &str)] =
    &[("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")];

/// Whether a file describes how the weights beside it are quantised.
///
/// # Examples
/// ```
/// use moi_pretrained::is_quantisation_file;
///
/// assert!(is_quantisation_file("quantize_config.json"));
/// assert!(!is_quantisation_file("config.json"));
/// ```
pub fn is_quantisation_file(name: &str) -> bool {
    FILES.iter().any(|(file, _)| *file == name)
}

const INSTEAD: &str =
    "which does not run here; use the model in float32, float16 or bfloat16, or a GGUF file of it";

/// The fields of a config that describe quantised weights.
const FIELDS: [&str; 2] = ["quantization_config", "quantization"];

/// The config without its description of quantised weights.
///
/// # Examples
/// ```
/// use moi_pretrained::without_quantisation;
/// use serde_json::json;
///
/// let config = json!({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}});
/// assert_eq!(without_quantisation(&config), json!({"model_type": "llama"}));
/// ```
pub fn without_quantisation(config: &Value) -> Value {
    let mut config = config.clone();
    for place in ["", "/text_config"] {
        if let Some(fields) = config.pointer_mut(place).and_then(Value::as_object_mut) {
            FIELDS.iter().for_each(|field| drop(fields.remove(*field)));
        }
    }
    config
}

/// How the weights of a `config.json` are quantised: `None` if they are not, an error if the method is not supported.
pub(crate) fn by_config(config: &Value) -> Result<Option<Quantisation>, String> {
    let given = |config: &Value, name: &str| config.get(name).filter(|value| !value.is_null()).cloned();
    let places = [Some(config), config.get("text_config")];
    let Some((place, _)) = places.into_iter().flatten().find_map(|place| {
        FIELDS.iter().find(|field| given(place, field).is_some()).map(|field| (place, field))
    }) else {
        return Ok(None);
    };
    let (method, field, found) = match (given(place, FIELDS[0]), given(place, FIELDS[1])) {
        // MLX writes the same description into both fields.
        (Some(quantised), mlx) => match text(&quantised, &["quant_method", "quant_algo"]) {
            Some(method) => (described(&method, &quantised), FIELDS[0], read(&method, &quantised)),
            None if mlx.is_some() => (described("MLX", &quantised), FIELDS[1], mlx_of(&quantised)),
            None => (described("an unnamed method", &quantised), FIELDS[0], None),
        },
        (None, Some(quantised)) if quantised.get("bits").is_some() => {
            (described("MLX", &quantised), FIELDS[1], mlx_of(&quantised))
        }
        _ => return Ok(None),
    };
    let refusal = || format!("its weights are quantised by {method} (`{field}`), {INSTEAD}");
    found.map(Some).ok_or_else(refusal)
}

/// How the weights are quantised, if a file beside them says so.
pub(crate) fn by_files(directory: &Path) -> Result<Option<Quantisation>, String> {
    let Some((file, method)) = FILES.iter().find(|(file, _)| is_there(&directory.join(file))) else {
        return Ok(None);
    };
    let refusal = || format!("its weights are quantised by {method} ({file}), {INSTEAD}");
    let fields =
        read_file(&directory.join(file), CONFIG_BYTES).ok().and_then(|bytes| parse_json(&bytes).ok());
    let fields: Value = fields.ok_or_else(refusal)?;
    let found = match *method {
        "ModelOpt" => fields.get("quantization").and_then(|fields| read("modelopt", fields)),
        "AWQ" => read("awq", &fields),
        _ => read("gptq", &fields),
    };
    found.map(Some).ok_or_else(refusal)
}

fn text(fields: &Value, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| fields.get(name)?.as_str()).map(shown)
}

fn number(fields: &Value, names: &[&str]) -> Option<usize> {
    names.iter().find_map(|name| fields.get(name)?.as_u64()).and_then(|number| usize::try_from(number).ok())
}

/// The description of a supported method with this name.
fn read(method: &str, fields: &Value) -> Option<Quantisation> {
    match method.to_lowercase().as_str() {
        "fp8" | "fbgemm_fp8" => Some(fp8(fields.get("weight_block_size"))),
        "mxfp4" => Some(Quantisation::new(QuantisedFormat::Mxfp4)),
        "modelopt" | "modelopt_fp4" | "nvfp4" => match text(fields, &["quant_algo"])?.to_uppercase().as_str()
        {
            "NVFP4" => Some(Quantisation::new(QuantisedFormat::Nvfp4)),
            "FP8" => Some(fp8(None)),
            _ => None,
        },
        "awq" => {
            let version = text(fields, &["version"]).unwrap_or_else(|| "gemm".to_owned());
            let is_read =
                version.eq_ignore_ascii_case("gemm") && number(fields, &["bits", "w_bit"]) == Some(4);
            is_read.then(|| Quantisation::new(QuantisedFormat::Awq))
        }
        "gptq" => {
            let bits = number(fields, &["bits"]).filter(|bits| [4, 8].contains(bits))?;
            let zero_plus = match text(fields, &["checkpoint_format"]).as_deref() {
                None | Some("gptq") => 1,
                Some("gptq_v2") => 0,
                Some(_) => return None,
            };
            Some(Quantisation { bits, zero_plus, ..Quantisation::new(QuantisedFormat::Gptq) })
        }
        "compressed-tensors" => compressed(fields),
        _ => None,
    }
}

fn fp8(block: Option<&Value>) -> Quantisation {
    let how = Quantisation::new(QuantisedFormat::Fp8);
    let sizes = block.and_then(Value::as_array).map(|sizes| sizes.iter().filter_map(Value::as_u64));
    match sizes.map(|sizes| sizes.map(|size| size as usize).collect::<Vec<_>>()).as_deref() {
        Some(&[height, width]) if height > 0 && width > 0 => Quantisation { block: [height, width], ..how },
        _ => how,
    }
}

/// The description for compressed-tensors. All groups of modules must be quantised in the same way, and weights must
/// not be transformed (rotated) before.
fn compressed(fields: &Value) -> Option<Quantisation> {
    let is_set =
        |value: &&Value| value.as_object().is_none_or(|fields| !fields.is_empty()) && !value.is_null();
    if fields.get("transform_config").filter(is_set).is_some() {
        return None;
    }
    let groups = fields.get("config_groups").and_then(Value::as_object);
    let of_groups: Vec<Option<&Value>> =
        groups.map(|groups| groups.values().map(|group| group.get("weights")).collect()).unwrap_or_default();
    let weights = of_groups.first().copied().flatten();
    let alike = |name: &str| {
        of_groups
            .iter()
            .all(|other| other.and_then(|other| other.get(name)) == weights.and_then(|own| own.get(name)))
    };
    if !["num_bits", "type", "group_size", "strategy"].into_iter().all(alike) {
        return None;
    }
    match text(fields, &["format"])?.as_str() {
        "pack-quantized" => {
            let bits = number(weights?, &["num_bits"]).filter(|bits| [4, 8].contains(bits))?;
            Some(Quantisation { bits, ..Quantisation::new(QuantisedFormat::Packed) })
        }
        "nvfp4-pack-quantized" => Some(Quantisation::new(QuantisedFormat::Nvfp4)),
        "float-quantized" | "naive-quantized" => {
            Some(fp8(weights.and_then(|weights| weights.get("block_structure"))))
        }
        "int-quantized" => Some(Quantisation::new(QuantisedFormat::Int8)),
        _ => None,
    }
}

/// The description for MLX, which lists modules with another group size beside the common settings.
fn mlx_of(fields: &Value) -> Option<Quantisation> {
    let is_affine = fields.get("mode").and_then(Value::as_str).is_none_or(|mode| mode == "affine");
    let size = |fields: &Value| number(fields, &["group_size"]).filter(|size| (1..=1 << 16).contains(size));
    let group_size = size(fields)?;
    let own = |(module, fields): (&String, &Value)| Some((module.clone(), size(fields)?));
    let group_sizes = fields.as_object()?.iter().filter_map(own).collect();
    is_affine.then(|| Quantisation { group_size, group_sizes, ..Quantisation::new(QuantisedFormat::Mlx) })
}

/// The name of a method, with its number of bits if it is given.
fn described(method: &str, fields: &Value) -> String {
    let number = ["bits", "w_bit"].iter().find_map(|name| fields.get(name)?.as_u64());
    let loaded = || {
        let is_set = |name: &str| fields.get(name).and_then(Value::as_bool) == Some(true);
        [("load_in_4bit", 4), ("load_in_8bit", 8)]
            .iter()
            .find(|(name, _)| is_set(name))
            .map(|(_, bits)| *bits)
    };
    match number.or_else(loaded) {
        Some(bits) => format!("{method} to {bits} bits"),
        None => method.to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_read_is_named() {
        for (config, method) in [
            (json!({ "quantization_config": { "quant_method": "gptq", "bits": 3 } }), "gptq to 3 bits"),
            (
                json!({ "quantization_config": { "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" } }),
                "gptq to 4 bits",
            ),
            (
                json!({ "quantization_config": { "quant_method": "awq", "bits": 4, "version": "gemv" } }),
                "awq to 4 bits",
            ),
            (
                json!({ "quantization_config": { "quant_method": "modelopt", "quant_algo": "W4A8_AWQ" } }),
                "modelopt (`quantization_config`)",
            ),
            (
                json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_4bit": true } }),
                "bitsandbytes to 4 bits",
            ),
            (json!({ "quantization_config": {} }), "an unnamed method"),
            (
                json!({ "quantization": { "group_size": 32, "bits": 4, "mode": "mxfp4" } }),
                "MLX to 4 bits (`quantization`)",
            ),
            (
                json!({ "text_config": { "quantization_config": { "quant_method": "hqq" } } }),
                "hqq (`quantization_config`)",
            ),
        ] {
            let said = by_config(&config).unwrap_err();
            assert!(said.contains(method) && said.contains("does not run here"), "{said:?}: {method:?}");
        }
        for config in [json!({}), json!({ "quantization_config": null }), json!({ "quantization": null })] {
            assert_eq!(by_config(&config), Ok(None));
        }
    }

    #[test]
    fn what_is_read_is_known_with_its_sizes() {
        let of = |config: Value| by_config(&config).unwrap().unwrap();
        let method = |fields: Value| of(json!({ "quantization_config": fields }));
        let fp8 = method(json!({ "quant_method": "fp8", "weight_block_size": [64, 32] }));
        assert_eq!((fp8.format, fp8.block), (QuantisedFormat::Fp8, [64, 32]));
        let gptq =
            |format: &str| method(json!({ "quant_method": "gptq", "bits": 8, "checkpoint_format": format }));
        assert_eq!([gptq("gptq").zero_plus, gptq("gptq_v2").zero_plus, gptq("gptq").bits as i32], [1, 0, 8]);
        let groups = json!({ "group_0": { "weights": { "num_bits": 4 } } });
        let packed = json!({ "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups });
        assert_eq!(method(packed).format, QuantisedFormat::Packed);
        let mlx = of(json!({ "quantization": {
            "group_size": 64, "bits": 4, "model.layers.0.mlp.down_proj": { "group_size": 32, "bits": 8 },
            "lm_head": false,
        } }));
        assert_eq!((mlx.format, mlx.group_size), (QuantisedFormat::Mlx, 64));
        assert_eq!(mlx.group_sizes["model.layers.0.mlp.down_proj"], 32);
        let config = json!({ "quantization": {}, "text_config": { "quantization_config": {}, "a": 1 } });
        assert_eq!(without_quantisation(&config), json!({ "text_config": { "a": 1 } }));
    }
}
