//! Functions that a model may call: the form in which it writes calls, and which calls a request asks for.

mod cursor;
mod gemma;
mod grammar;
mod parser;
mod xml;

use std::collections::HashSet;

use moi_text::Tokenizer;
use serde_json::{Map, Value, json};

pub(crate) use self::{
    grammar::grammar,
    parser::{CallDelta, Calls, Part},
};
use crate::{error::ApiError, wire::unions::ToolChoice};

/// The most functions of a request.
const MAX_TOOLS: usize = 512;
/// The most bytes of a function's name, as at Anthropic; OpenAI allows half as many.
const MAX_NAME: usize = 128;

/// The form in which a model writes calls. Each is what chat templates of its family write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallForm {
    /// `<tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>`: Hermes, Qwen 2.5 and 3, Granite 4, SmolLM3.
    Hermes,
    /// `<tool_call>\n<function=f>\n<parameter=p>\nvalue\n</parameter>\n</function>\n</tool_call>`: Qwen3-Coder, Qwen3.5.
    Xml,
    /// `{"name": "f", "parameters": {...}}`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {...}}]`: Mistral 7B v0.3 to Small 3.1.
    MistralList,
    /// `[TOOL_CALLS]f[ARGS]{...}`: Mistral from Small 3.2 on.
    MistralArgs,
    /// `<|tool_call>call:f{p:<|"|>text<|"|>}<tool_call|>`: Gemma 4.
    Gemma4,
    /// `<start_function_call>call:f{p:<escape>text<escape>}<end_function_call>`: FunctionGemma.
    FunctionGemma,
}

impl CallForm {
    /// The form of the calls that a chat template writes, if it is a known one.
    pub(crate) fn of(template: &str) -> Option<Self> {
        let has = |text: &str| template.contains(text);
        if has("<|tool_call>") {
            Some(Self::Gemma4)
        } else if has("<start_function_call>") {
            Some(Self::FunctionGemma)
        } else if has("[TOOL_CALLS]") {
            Some(if has("[ARGS]") { Self::MistralArgs } else { Self::MistralList })
        } else if has("<tool_call>") && has("<function=") && has("<parameter=") {
            Some(Self::Xml)
        } else if has("<tool_call>") && has("arguments") && !has("<arg_key>") {
            Some(Self::Hermes)
        } else if has("ipython") && has("\"parameters\": ") {
            Some(Self::Llama)
        } else {
            None
        }
    }

    /// The marker before a call, or before all calls; empty for Llama, which has none.
    fn open(self) -> &'static str {
        match self {
            Self::Hermes | Self::Xml => "<tool_call>",
            Self::Llama => "",
            Self::MistralList | Self::MistralArgs => "[TOOL_CALLS]",
            Self::Gemma4 => "<|tool_call>",
            Self::FunctionGemma => "<start_function_call>",
        }
    }

    /// The marker behind a call.
    fn close(self) -> &'static str {
        match self {
            Self::Hermes | Self::Xml => "</tool_call>",
            Self::Llama | Self::MistralArgs => "",
            Self::MistralList => "]",
            Self::Gemma4 => "<tool_call|>",
            Self::FunctionGemma => "<end_function_call>",
        }
    }

    /// The quote around a text, in arguments that are not JSON.
    fn quote(self) -> &'static str {
        if self == Self::Gemma4 { "<|\"|>" } else { "<escape>" }
    }

    /// Texts that may be control tokens.
    fn markers(self) -> Vec<&'static str> {
        let mut all = vec![self.open(), self.close()];
        match self {
            Self::MistralArgs => all.extend([ARGS, CALL_ID]),
            Self::Llama => all.push(PYTHON),
            Self::Gemma4 | Self::FunctionGemma => all.push(self.quote()),
            Self::Hermes | Self::Xml | Self::MistralList => {}
        }
        all.retain(|text| !text.is_empty());
        all
    }
}

const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
/// A marker that some Llama models write before a call.
const PYTHON: &str = "<|python_tag|>";

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// The JSON schema of its arguments.
    pub(crate) parameters: Value,
    /// Whether a schema that cannot be enforced completely is refused.
    pub(crate) is_strict: bool,
}

impl Function {
    /// The function in the form that templates read.
    pub(crate) fn json(&self) -> Value {
        let mut function = Map::from_iter([("name".to_owned(), json!(self.name))]);
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), json!(description));
        }
        function.insert("parameters".to_owned(), self.parameters.clone());
        json!({"type": "function", "function": function})
    }

    /// The schema of a parameter.
    fn parameter(&self, name: &str) -> Option<&Value> {
        self.parameters.get("properties")?.get(name)
    }
}

/// What a request says about calls.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tools {
    pub(crate) form: CallForm,
    pub(crate) functions: Vec<Function>,
    pub(crate) choice: ToolChoice,
    /// Whether there may be several calls.
    pub(crate) is_parallel: bool,
    /// Texts of the form that are control tokens, and that must be visible in the generated text.
    pub(crate) tokens: Vec<(&'static str, u32)>,
}

impl Tools {
    /// The tools of a request; `None` if it has none, or if they are switched off.
    ///
    /// # Errors
    /// If a function is invalid, or if calls cannot be found in what this model writes.
    pub(crate) fn new(
        functions: Vec<Function>,
        choice: Option<ToolChoice>,
        is_parallel: bool,
        template: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, ApiError> {
        let needs_some = matches!(choice, Some(ToolChoice::Required | ToolChoice::Function(_)));
        if functions.is_empty() && needs_some {
            return Err(ApiError::value(
                "tool_choice",
                "`tool_choice` asks for a call, and there are no `tools`",
            ));
        }
        if functions.is_empty() || choice == Some(ToolChoice::None) {
            return Ok(None);
        }
        if functions.len() > MAX_TOOLS {
            let message = format!("`tools` has {} functions, and at most {MAX_TOOLS}", functions.len());
            return Err(ApiError::value("tools", message));
        }
        let mut names = HashSet::new();
        for (at, function) in functions.iter().enumerate() {
            let param = format!("tools[{at}].function.name");
            check_name(&function.name, &param)?;
            if !names.insert(function.name.as_str()) {
                return Err(ApiError::value(
                    &param,
                    format!("{param}: there are two of `{}`", function.name),
                ));
            }
        }
        if let Some(ToolChoice::Function(name)) = &choice
            && !names.contains(name.as_str())
        {
            let message = format!("`tool_choice` is the function `{name}`, which is none of `tools`");
            return Err(ApiError::value("tool_choice", message));
        }
        let Some(form) = CallForm::of(template) else {
            let message = "`tools` are not supported for this model: its chat template writes no calls in a form that \
                           is read here, which are those of Hermes, Qwen, Llama 3, Mistral and Gemma 4";
            return Err(ApiError::unsupported("tools", message));
        };
        if matches!(form, CallForm::Xml | CallForm::Gemma4 | CallForm::FunctionGemma) {
            functions.iter().enumerate().try_for_each(|(at, function)| check_parameters(function, at))?;
        }
        let token = |text: &'static str| Some((text, tokenizer.control_token(text)?));
        let tokens = form.markers().into_iter().filter_map(token).collect();
        let choice = choice.unwrap_or(ToolChoice::Auto);
        Ok(Some(Self { form, functions, choice, is_parallel, tokens }))
    }

    /// The functions that may be called.
    fn callable(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|function| match &self.choice {
            ToolChoice::Function(name) => *name == function.name,
            _ => true,
        })
    }

    /// An id that no other call has. Mistral's templates require ids of nine letters and digits.
    fn new_id(&self) -> String {
        match self.form {
            CallForm::MistralList | CallForm::MistralArgs => crate::routes::new_id("")[..9].to_owned(),
            _ => crate::routes::new_id("call_"),
        }
    }
}

/// Whether a name can be written without quotes, for the forms that have no quotes for names.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|char| char.is_alphanumeric() || "_-.$@/".contains(char))
}

/// Refuses parameter names that these forms cannot separate from the surrounding text.
fn check_parameters(function: &Function, at: usize) -> Result<(), ApiError> {
    let properties = function.parameters.get("properties").and_then(Value::as_object);
    match properties.into_iter().flat_map(Map::keys).find(|name| !is_plain(name)) {
        None => Ok(()),
        Some(name) => {
            let param = format!("tools[{at}].function.parameters.properties");
            let message = format!("{param}: this model's calls cannot have a parameter {name:?}");
            Err(ApiError::value(&param, message))
        }
    }
}

/// Refuses function names that no form can express.
fn check_name(name: &str, param: &str) -> Result<(), ApiError> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    match !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_allowed) {
        true => Ok(()),
        false => {
            let message = format!(
                "{param} must be of 1 to {MAX_NAME} letters, digits, `_`, `-` and `.`, and is {name:?}"
            );
            Err(ApiError::value(param, message))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests;
