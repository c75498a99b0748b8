//! Constraints on answers, in the fields of OpenAI, vLLM and llama-server.

use moi_engine::Grammar;
use serde_json::{Value, json};

use crate::{
    error::ApiError,
    wire::generation::{Generation, ResponseFormat, StructuredOutputs},
};

/// The grammar that the answer must match, and the field that asks for it. It is an error if several fields ask for
/// one.
pub(crate) fn grammar(generation: &Generation) -> Result<Option<(&'static str, Grammar)>, ApiError> {
    let object = || Grammar::JsonSchema(json!({"type": "object"}));
    let choice = |texts: &Vec<String>| {
        let texts: Vec<String> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
        Grammar::Regex(texts.join("|"))
    };
    // A schema may also be given as a text.
    let schema = |value: &Value, param: &str| match value.as_str() {
        Some(text) => serde_json::from_str(text).map(Grammar::JsonSchema).map_err(|error| {
            ApiError::invalid("invalid_schema", format!("{param}: the schema is no JSON: {error}")).of(param)
        }),
        None => Ok(Grammar::JsonSchema(value.clone())),
    };
    let mut found: Vec<(&'static str, Grammar)> = Vec::new();
    if let Some(ResponseFormat { kind, json_schema }) = &generation.response_format {
        match kind.as_str() {
            "text" => {}
            "json_object" => found.push(("response_format", object())),
            "json_schema" => {
                let given = json_schema.as_ref().and_then(|format| format.schema.as_ref());
                let Some(given) = given else {
                    let param = "response_format.json_schema.schema";
                    return Err(
                        ApiError::invalid("invalid_schema", format!("`{param}` is missing")).of(param)
                    );
                };
                found.push(("response_format", schema(given, "response_format.json_schema.schema")?));
            }
            _ => {
                let message = format!(
                    "`response_format.type` is `{kind}`, and must be text, json_object or json_schema"
                );
                return Err(ApiError::value("response_format.type", message));
            }
        }
    }
    if let Some(outputs) = &generation.structured_outputs {
        let StructuredOutputs { json, json_object, regex, choice: texts, grammar } = outputs;
        let name = "structured_outputs";
        if let Some(json) = json {
            found.push((name, schema(json, name)?));
        }
        found.extend(json_object.unwrap_or(false).then(|| (name, object())));
        found.extend(regex.clone().map(|regex| (name, Grammar::Regex(regex))));
        found.extend(texts.as_ref().map(|texts| (name, choice(texts))));
        found.extend(grammar.clone().map(|grammar| (name, Grammar::Lark(grammar))));
    }
    for (name, value) in [("json_schema", &generation.json_schema), ("guided_json", &generation.guided_json)]
    {
        if let Some(value) = value {
            found.push((name, schema(value, name)?));
        }
    }
    found.extend(generation.guided_regex.clone().map(|regex| ("guided_regex", Grammar::Regex(regex))));
    found.extend(generation.guided_choice.as_ref().map(|texts| ("guided_choice", choice(texts))));
    found.extend(generation.guided_grammar.clone().map(|text| ("guided_grammar", Grammar::Lark(text))));
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
            let message =
                format!("an answer follows one constraint, and there are several: {}", names.join(", "));
            Err(ApiError::value(names[1], message))
        }
    }
}
