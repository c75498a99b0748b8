//! Weights that other programs have quantised: refused with the method's name, before their tensors are looked at.

use std::path::Path;

use moi_checkpoint::{is_there, shown};
use serde_json::Value;

/// What older programs write beside the weights, and what wrote it.
const FILES: &[(&str, &str)] =
    &[("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("hf_quant_config.json", "ModelOpt")];

const INSTEAD: &str =
    "which does not run here; use the model in float32, float16 or bfloat16, or a GGUF file of it";

/// Why the weights that a `config.json` is for do not run, if it says that they are quantised.
pub(crate) fn by_config(config: &Value) -> Option<String> {
    let given = |name: &str| config.get(name).filter(|value| !value.is_null());
    let (method, field) = match (given("quantization_config"), given("quantization")) {
        // MLX writes the same under two names.
        (Some(quantised), mlx) => match text(quantised, &["quant_method", "quant_algo"]) {
            Some(method) => (described(&method, quantised), "quantization_config"),
            None if mlx.is_some() => (described("MLX", quantised), "quantization"),
            None => (described("an unnamed method", quantised), "quantization_config"),
        },
        (None, Some(quantised)) if quantised.get("bits").is_some() => {
            (described("MLX", quantised), "quantization")
        }
        _ => return None,
    };
    Some(format!("its weights are quantised by {method} (`{field}`), {INSTEAD}"))
}

/// The same where a file beside the weights says it.
pub(crate) fn by_files(directory: &Path) -> Option<String> {
    let (file, method) = FILES.iter().find(|(file, _)| is_there(&directory.join(file)))?;
    Some(format!("its weights are quantised by {method} ({file}), {INSTEAD}"))
}

fn text(fields: &Value, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| fields.get(name)?.as_str()).map(shown)
}

/// A method with its bits, where they are given.
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
    fn methods_are_named() {
        for (config, method) in [
            (json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } }), "gptq to 4 bits"),
            (json!({ "quantization_config": { "quant_method": "awq", "w_bit": 4 } }), "awq to 4 bits"),
            (json!({ "quantization_config": { "quant_method": "fp8" } }), "fp8 (`quantization_config`)"),
            (
                json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_4bit": true } }),
                "bitsandbytes to 4 bits",
            ),
            (json!({ "quantization_config": {} }), "an unnamed method"),
            (json!({ "quantization": { "group_size": 64, "bits": 4 } }), "MLX to 4 bits (`quantization`)"),
            (
                json!({ "quantization": { "bits": 8 }, "quantization_config": { "bits": 8 } }),
                "MLX to 8 bits (`quantization`)",
            ),
        ] {
            let said = by_config(&config).unwrap();
            assert!(said.contains(method), "{said:?} does not say {method:?}");
        }
        for config in [json!({}), json!({ "quantization_config": null }), json!({ "quantization": null })] {
            assert_eq!(by_config(&config), None);
        }
    }
}
