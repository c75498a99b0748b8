//! What an answer with calls follows: a grammar by which every call can be read, and has arguments by its function's schema,
//! in the schema's order.

use std::collections::BTreeMap;

use moi_engine::Grammar;
use serde_json::{Value, json};

use super::{
    ARGS, CallForm, Function, Tools,
    xml::{FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END, is_text},
};
use crate::{error::ApiError, wire::unions::ToolChoice};

/// The grammar of an answer: calls, or where they are not asked for a text, which follows `format` where there is one.
///
/// # Errors
/// If the format cannot stand beside calls.
pub(crate) fn grammar(tools: &Tools, format: Option<&Grammar>) -> Result<Grammar, ApiError> {
    let mut writer = Writer { tools, rules: String::new(), schemas: BTreeMap::new() };
    let calls = writer.calls();
    let start = match (&tools.choice, format) {
        (ToolChoice::Required | ToolChoice::Function(_), _) => format!("{} {calls}", writer.open()),
        (_, Some(Grammar::JsonSchema(schema))) => {
            writer.schemas.insert("answer".to_owned(), schema.clone());
            format!("answer | {} {calls}", writer.open())
        }
        (_, Some(_)) => {
            let message = "`tools` and what an answer follows go together only if that is a JSON schema";
            return Err(ApiError::value("tools", message));
        }
        (_, None) => writer.text_or(&calls),
    };
    let Writer { rules, schemas, .. } = writer;
    Ok(Grammar::LarkWithSchemas { lark: format!("start: {start}\n{rules}"), schemas })
}

struct Writer<'a> {
    tools: &'a Tools,
    rules: String,
    schemas: BTreeMap<String, Value>,
}

impl Writer<'_> {
    fn rule(&mut self, name: &str, body: &str) {
        self.rules += &format!("{name}: {body}\n");
    }

    /// The control token of a text, if it is one.
    fn token(&self, text: &str) -> Option<u32> {
        self.tools.tokens.iter().find(|(known, _)| *known == text).map(|(_, token)| *token)
    }

    /// A text: its control token where it is one.
    fn marker(&self, text: &str) -> String {
        match self.token(text) {
            Some(token) => format!("<[{token}]>"),
            None if text.is_empty() => String::new(),
            None => literal(text),
        }
    }

    fn open(&self) -> String {
        self.marker(self.tools.form.open())
    }

    /// All calls, but for what opens the first.
    fn calls(&mut self) -> String {
        let functions: Vec<Function> = self.tools.callable().cloned().collect();
        let bodies: Vec<String> =
            functions.iter().enumerate().map(|(at, function)| self.body(at, function)).collect();
        self.rule("call", &bodies.join(" | "));
        let (open, close) = (self.open(), self.marker(self.tools.form.close()));
        // One that is named is called once.
        let is_several = self.tools.is_parallel && !matches!(self.tools.choice, ToolChoice::Function(_));
        let (first, more) = match self.tools.form {
            CallForm::Hermes | CallForm::Xml => {
                (format!("call {close}"), format!("(\"\\n\" {open} call {close})*"))
            }
            CallForm::Gemma4 | CallForm::FunctionGemma => {
                (format!("call {close}"), format!("({open} call {close})*"))
            }
            CallForm::Llama => ("call".to_owned(), "(\"; \" call)*".to_owned()),
            CallForm::MistralArgs => ("call".to_owned(), format!("({open} call)*")),
            CallForm::MistralList => {
                let more = if is_several { " (\", \" call)*" } else { "" };
                return format!("\"[\" call{more} {close}");
            }
        };
        if is_several { format!("{first} {more}") } else { first }
    }

    /// A text without calls, or one, which may be empty, and calls.
    fn text_or(&mut self, calls: &str) -> String {
        let open = self.tools.form.open();
        if self.tools.form == CallForm::Llama {
            // What begins like a call is one.
            self.rule("TEXT", r#"/[\s\S]*/ & ~/(<\|python_tag\|>)?\s*\{\s*"(name|type|function)"[\s\S]*/"#);
            return format!("TEXT | {calls}");
        }
        match self.token(open) {
            // No text is a control token.
            Some(token) => {
                self.rule("TEXT", r"/[\s\S]+/");
                format!("TEXT? | TEXT? <[{token}]> {calls}")
            }
            None => {
                let open = pattern(open);
                self.rule("TEXT", &format!(r"/[\s\S]*/ & ~/[\s\S]*{open}[\s\S]*/"));
                self.rule("lead[lazy]", &format!(r"/[\s\S]*{open}/"));
                format!("TEXT | lead {calls}")
            }
        }
    }

    /// The rule of a function's arguments, which are JSON.
    fn arguments(&mut self, at: usize, function: &Function) -> String {
        let name = format!("arguments_{at}");
        self.schemas.insert(name.clone(), schema_of_all(function));
        name
    }

    /// A call of a function, without the form's markers.
    fn body(&mut self, at: usize, function: &Function) -> String {
        let name = &function.name;
        match self.tools.form {
            CallForm::Hermes => {
                let head = literal(&format!("\n{{\"name\": \"{name}\", \"arguments\": "));
                format!("{head} {} \"}}\\n\"", self.arguments(at, function))
            }
            CallForm::Llama => {
                let head = literal(&format!("{{\"name\": \"{name}\", \"parameters\": "));
                format!("{head} {} \"}}\"", self.arguments(at, function))
            }
            CallForm::MistralList => {
                let head = literal(&format!("{{\"name\": \"{name}\", \"arguments\": "));
                format!("{head} {} \"}}\"", self.arguments(at, function))
            }
            CallForm::MistralArgs => {
                let head = format!("{} {}", literal(name), self.marker(ARGS));
                format!("{head} {}", self.arguments(at, function))
            }
            CallForm::Xml => self.xml(at, function),
            CallForm::Gemma4 | CallForm::FunctionGemma => self.gemma(at, function),
        }
    }

    fn xml(&mut self, at: usize, function: &Function) -> String {
        let end = format!("\n{PARAMETER_END}\n");
        let mut parameters = Vec::new();
        for (number, (name, schema)) in properties(function).into_iter().enumerate() {
            let head = literal(&format!("{PARAMETER}{name}>\n"));
            let texts: Option<Vec<&str>> = schema
                .get("enum")
                .and_then(Value::as_array)
                .and_then(|all| all.iter().map(Value::as_str).collect());
            let value = match texts {
                Some(texts) if !texts.is_empty() => {
                    let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
                    format!("({}) {}", texts.join(" | "), literal(&end))
                }
                _ if is_text(Some(&schema)) => {
                    if !self.rules.contains("value_text[lazy]") {
                        self.rule("value_text[lazy]", &format!(r"/[\s\S]*{}/", pattern(&end)));
                    }
                    "value_text".to_owned()
                }
                _ => {
                    let rule = format!("value_{at}_{number}");
                    let schema =
                        self::schema(&schema_of_part(&schema, &function.parameters), function.is_strict);
                    self.schemas.insert(rule.clone(), schema);
                    format!("{rule} {}", literal(&end))
                }
            };
            let mark = if is_required(function, &name) { "" } else { "?" };
            parameters.push(format!("({head} {value}){mark}"));
        }
        let parameters = parameters.join(" ");
        let head = literal(&format!("\n{FUNCTION}{}>\n", function.name));
        format!("{head} {parameters} {}", literal(&format!("{FUNCTION_END}\n")))
    }

    fn gemma(&mut self, at: usize, function: &Function) -> String {
        self.gemma_values();
        let head = literal(&format!("call:{}{{", function.name));
        let all = properties(function);
        for (number, (name, schema)) in all.iter().enumerate() {
            let pair = format!("{} {}", literal(&format!("{name}:")), self.gemma_value(schema));
            let is_last = number + 1 == all.len();
            let next = |what: &str| match is_last {
                true => String::new(),
                false => format!("{what}_{at}_{}", number + 1),
            };
            // The first pair has no comma before it, whichever it is.
            let (first, more) = match is_required(function, name) {
                true => (format!("{pair} {}", next("more")), format!("\",\" {pair} {}", next("more"))),
                false if is_last => (format!("({pair})?"), format!("(\",\" {pair})?")),
                false => (
                    format!("{pair} {} | {}", next("more"), next("first")),
                    format!("(\",\" {pair})? {}", next("more")),
                ),
            };
            self.rule(&format!("first_{at}_{number}"), &first);
            if number > 0 {
                self.rule(&format!("more_{at}_{number}"), &more);
            }
        }
        match all.is_empty() {
            true => format!("{head} \"}}\""),
            false => format!("{head} first_{at}_0 \"}}\""),
        }
    }

    /// A value by a schema, as far as Gemma's form of values tells kinds apart.
    fn gemma_value(&self, schema: &Value) -> String {
        match schema.get("type").and_then(Value::as_str) {
            Some("integer") => "INTEGER".to_owned(),
            Some("number") => "NUMBER".to_owned(),
            Some("boolean") => "(\"true\" | \"false\")".to_owned(),
            Some("array") => "g_array".to_owned(),
            Some("object") => "g_object".to_owned(),
            kind => match schema.get("enum").and_then(Value::as_array) {
                Some(texts) if !texts.is_empty() && texts.iter().all(Value::is_string) => {
                    let quote = self.marker(self.tools.form.quote());
                    let texts: Vec<String> = texts.iter().filter_map(Value::as_str).map(literal).collect();
                    format!("{quote} ({}) {quote}", texts.join(" | "))
                }
                _ if kind == Some("string") => "g_string".to_owned(),
                _ => "g_value".to_owned(),
            },
        }
    }

    /// Values of any kind, as Gemma writes them.
    fn gemma_values(&mut self) {
        if self.rules.contains("g_value:") {
            return;
        }
        let quote = self.tools.form.quote();
        match self.token(quote) {
            Some(token) => {
                self.rule("G_TEXT", r"/[\s\S]+/");
                self.rule("g_string", &format!("<[{token}]> G_TEXT? <[{token}]>"));
            }
            None => {
                self.rule("g_rest[lazy]", &format!(r"/[\s\S]*{}/", pattern(quote)));
                self.rule("g_string", &format!("{} g_rest", literal(quote)));
            }
        }
        self.rule("INTEGER", r"/-?(0|[1-9][0-9]{0,18})/");
        self.rule("NUMBER", r"/-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?/");
        self.rule("KEY", r"/[A-Za-z_][A-Za-z0-9_.-]*/");
        self.rule("g_pair", "(KEY | g_string) \":\" g_value");
        self.rule("g_object", "\"{\" (g_pair (\",\" g_pair)*)? \"}\"");
        self.rule("g_array", "\"[\" (g_value (\",\" g_value)*)? \"]\"");
        self.rule("g_value", "g_string | NUMBER | \"true\" | \"false\" | \"null\" | g_object | g_array");
    }
}

/// The parameters of a function.
fn properties(function: &Function) -> Vec<(String, Value)> {
    let all = function.parameters.get("properties").and_then(Value::as_object);
    all.into_iter().flatten().map(|(name, schema)| (name.clone(), schema.clone())).collect()
}

fn is_required(function: &Function, name: &str) -> bool {
    let required = function.parameters.get("required").and_then(Value::as_array);
    required.is_some_and(|required| required.iter().any(|required| required == name))
}

/// The schema of a parameter, with the definitions that it may refer to.
fn schema_of_part(part: &Value, whole: &Value) -> Value {
    let mut part = part.clone();
    for key in ["$defs", "definitions"] {
        if let (Some(object), Some(definitions)) = (part.as_object_mut(), whole.get(key)) {
            object.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    part
}

/// The schema of all arguments of a function, which has no others than those that it tells of unless it says so.
fn schema_of_all(function: &Function) -> Value {
    let mut schema = schema(&function.parameters, function.is_strict);
    if let Some(object) = schema.as_object_mut() {
        object.entry("type").or_insert_with(|| json!("object"));
        if object.contains_key("properties") {
            object.entry("additionalProperties").or_insert(json!(false));
        }
    }
    schema
}

/// A schema as it is enforced. What of one cannot be enforced is left out, unless it is to be strict: others' servers leave all
/// of it out.
fn schema(schema: &Value, is_strict: bool) -> Value {
    let mut schema = schema.clone();
    if let (Some(object), false) = (schema.as_object_mut(), is_strict) {
        object.insert("x-guidance".to_owned(), json!({"lenient": true}));
    }
    schema
}

/// A text as a grammar has it.
fn literal(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

/// A text as a regular expression of a grammar has it.
fn pattern(text: &str) -> String {
    regex_syntax::escape(text).replace('/', "\\/").replace('\n', "\\n")
}
