//! The grammar of an answer with calls. Every call that it allows can be parsed, and has arguments that match its
//! function's schema, in the order of the schema.

use std::collections::BTreeMap;

use moi_engine::Grammar;
use serde_json::{Value, json};

use super::{
    ARGS, CallForm, Function, Tools, is_plain,
    xml::{FUNCTION, FUNCTION_END, PARAMETER, PARAMETER_END, is_text},
};
use crate::{error::ApiError, wire::unions::ToolChoice};

/// The grammar of an answer: calls or, unless calls are required, a text, which must match `format` if there is one.
///
/// # Errors
/// If the format cannot be combined with calls.
pub(crate) fn grammar(tools: &Tools, format: Option<&Grammar>) -> Result<Grammar, ApiError> {
    let mut writer = Writer { tools, rules: String::new(), schemas: BTreeMap::new(), objects: 0 };
    let calls = writer.calls();
    let start = match (&tools.choice, format) {
        (ToolChoice::Required | ToolChoice::Function(_), _) => format!("{} {calls}", writer.open()),
        (_, Some(Grammar::JsonSchema(schema))) => {
            writer.schemas.insert("answer".to_owned(), schema.clone());
            format!("answer | {} {calls}", writer.open())
        }
        (_, Some(_)) => {
            let message = "`tools` can be combined only with a JSON schema as response format; remove the regex, grammar or choice";
            return Err(ApiError::value("tools", message));
        }
        (_, None) => writer.text_or(&calls),
    };
    let Writer { rules, schemas, .. } = writer;
    let bytes = rules.len() + schemas.values().map(|schema| schema.to_string().len()).sum::<usize>();
    if bytes > MAX_BYTES {
        let message = format!("the schemas of `tools` become a grammar of more than {MAX_BYTES} bytes");
        return Err(ApiError::invalid("invalid_schema", message).of("tools"));
    }
    Ok(Grammar::LarkWithSchemas { lark: format!("start: {start}\n{rules}"), schemas })
}

/// The most bytes of a grammar with its schemas, which is also the engine's limit.
const MAX_BYTES: usize = 1 << 20;

struct Writer<'a> {
    tools: &'a Tools,
    rules: String,
    schemas: BTreeMap<String, Value>,
    /// Number of objects that have rules.
    objects: usize,
}

impl Writer<'_> {
    fn rule(&mut self, name: &str, body: &str) {
        self.rules += &format!("{name}: {body}\n");
    }

    /// The control token of a text, if it is one.
    fn token(&self, text: &str) -> Option<u32> {
        self.tools.tokens.iter().find(|(known, _)| *known == text).map(|(_, token)| *token)
    }

    /// The grammar of a text, which is its control token if there is one.
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

    /// All calls, without the marker that opens the first.
    fn calls(&mut self) -> String {
        let functions: Vec<Function> = self.tools.callable().cloned().collect();
        let bodies: Vec<String> =
            functions.iter().enumerate().map(|(at, function)| self.body(at, function)).collect();
        self.rule("call", &bodies.join(" | "));
        let (open, close) = (self.open(), self.marker(self.tools.form.close()));
        // A function that the request names is called once.
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

    /// A text without calls, or calls behind a text that may be empty.
    fn text_or(&mut self, calls: &str) -> String {
        let open = self.tools.form.open();
        if self.tools.form == CallForm::Llama {
            // A text that begins like a call must be a call.
            self.rule("TEXT", r#"/[\s\S]*/ & ~/(<\|python_tag\|>)?\s*\{\s*"(name|type|function)"[\s\S]*/"#);
            return format!("TEXT | {calls}");
        }
        match self.token(open) {
            // A text contains no control token.
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

    /// The rule of a function's arguments as JSON.
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
            CallForm::Gemma4 | CallForm::FunctionGemma => self.gemma(function),
        }
    }

    fn xml(&mut self, at: usize, function: &Function) -> String {
        let end = format!("\n{PARAMETER_END}\n");
        let mut parameters = Vec::new();
        for (number, (name, schema)) in properties(&function.parameters).into_iter().enumerate() {
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
                        self.rule("value_text[lazy]", &format!(r"/([\s\S]*\n)?{}/", pattern(&end[1..])));
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
            let mark = if is_required(&function.parameters, &name) { "" } else { "?" };
            parameters.push(format!("({head} {value}){mark}"));
        }
        let parameters = parameters.join(" ");
        let head = literal(&format!("\n{FUNCTION}{}>\n", function.name));
        format!("{head} {parameters} {}", literal(&format!("{FUNCTION_END}\n")))
    }

    fn gemma(&mut self, function: &Function) -> String {
        self.gemma_values();
        let head = literal(&format!("call:{}", function.name));
        // A function without described parameters takes none.
        let arguments = self.gemma_object(&function.parameters, &function.parameters, 0);
        format!("{head} {}", arguments.unwrap_or_else(|| "\"{\" \"}\"".to_owned()))
    }

    /// An object with the properties of a schema, in their order; `None` if it has none, or if their names need
    /// quotes.
    fn gemma_object(&mut self, schema: &Value, root: &Value, depth: usize) -> Option<String> {
        let all = properties(schema);
        // Keys have no quotes, so an object with keys that need them is allowed as any object.
        if all.is_empty() || all.iter().any(|(name, _)| !is_plain(name)) {
            return None;
        }
        self.objects += 1;
        let object = self.objects;
        for (number, (name, part)) in all.iter().enumerate() {
            let pair =
                format!("{} ({})", literal(&format!("{name}:")), self.gemma_value(part, root, depth + 1));
            let is_last = number + 1 == all.len();
            let next = |what: &str| match is_last {
                true => String::new(),
                false => format!("{what}_{object}_{}", number + 1),
            };
            // The first pair that is written has no comma before it, whichever pair it is.
            let (first, more) = match is_required(schema, name) {
                true => (format!("{pair} {}", next("more")), format!("\",\" {pair} {}", next("more"))),
                false if is_last => (format!("({pair})?"), format!("(\",\" {pair})?")),
                false => (
                    format!("{pair} {} | {}", next("more"), next("first")),
                    format!("(\",\" {pair})? {}", next("more")),
                ),
            };
            self.rule(&format!("first_{object}_{number}"), &first);
            if number > 0 {
                self.rule(&format!("more_{object}_{number}"), &more);
            }
        }
        Some(format!("\"{{\" first_{object}_0 \"}}\""))
    }

    /// A value by a schema. Ranges and lengths are not enforced.
    fn gemma_value(&mut self, schema: &Value, root: &Value, depth: usize) -> String {
        /// The deepest nesting of schemas, with references followed.
        const MAX_DEPTH: usize = 12;
        if depth > MAX_DEPTH {
            return "g_value".to_owned();
        }
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let found = target.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
            return found
                .map_or_else(|| "g_value".to_owned(), |part| self.gemma_value(part, root, depth + 1));
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            let quote = self.marker(self.tools.form.quote());
            let value = |value: &Value| match value {
                Value::String(text) => format!("{quote} {} {quote}", literal(text)),
                value => literal(&value.to_string()),
            };
            return match values.is_empty() || values.iter().any(|value| value.is_array() || value.is_object())
            {
                true => "g_value".to_owned(),
                false => values.iter().map(value).collect::<Vec<_>>().join(" | "),
            };
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(options) = schema.get(key).and_then(Value::as_array) {
                let options: Vec<String> =
                    options.iter().map(|option| self.gemma_value(option, root, depth + 1)).collect();
                return options.join(" | ");
            }
        }
        let kinds: Vec<&str> = match schema.get("type") {
            Some(Value::String(kind)) => vec![kind],
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let all: Vec<String> = kinds.iter().map(|kind| self.gemma_kind(kind, schema, root, depth)).collect();
        if all.is_empty() { "g_value".to_owned() } else { all.join(" | ") }
    }

    fn gemma_kind(&mut self, kind: &str, schema: &Value, root: &Value, depth: usize) -> String {
        match kind {
            "string" => "g_string".to_owned(),
            "integer" => "INTEGER".to_owned(),
            "number" => "NUMBER".to_owned(),
            "boolean" => "\"true\" | \"false\"".to_owned(),
            "null" => "\"null\"".to_owned(),
            "array" => match schema.get("items") {
                Some(items) => {
                    let item = self.gemma_value(items, root, depth + 1);
                    format!("\"[\" (({item}) (\",\" ({item}))*)? \"]\"")
                }
                None => "g_array".to_owned(),
            },
            "object" => self.gemma_object(schema, root, depth).unwrap_or_else(|| "g_object".to_owned()),
            _ => "g_value".to_owned(),
        }
    }

    /// Rules for values of any kind, as Gemma writes them.
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
        self.rule("INTEGER", r"/-?(0|[1-9][0-9]{0,17})/");
        self.rule("NUMBER", r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?/");
        self.rule("KEY", r"/[A-Za-z_][A-Za-z0-9_.-]*/");
        self.rule("g_pair", "(KEY | g_string) \":\" g_value");
        self.rule("g_object", "\"{\" (g_pair (\",\" g_pair)*)? \"}\"");
        self.rule("g_array", "\"[\" (g_value (\",\" g_value)*)? \"]\"");
        self.rule("g_value", "g_string | NUMBER | \"true\" | \"false\" | \"null\" | g_object | g_array");
    }
}

/// The properties of an object.
fn properties(schema: &Value) -> Vec<(String, Value)> {
    let all = schema.get("properties").and_then(Value::as_object);
    all.into_iter().flatten().map(|(name, schema)| (name.clone(), schema.clone())).collect()
}

fn is_required(schema: &Value, name: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|required| required.iter().any(|required| required == name))
}

/// The schema of a parameter, with the definitions that it may refer to.
fn schema_of_part(part: &Value, whole: &Value) -> Value {
    let mut part = part.clone();
    if !part.to_string().contains("\"$ref\"") {
        return part;
    }
    for key in ["$defs", "definitions"] {
        if let (Some(object), Some(definitions)) = (part.as_object_mut(), whole.get(key)) {
            object.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    part
}

/// The schema of all arguments of a function. Arguments that it does not describe are forbidden, unless it says
/// otherwise.
fn schema_of_all(function: &Function) -> Value {
    let mut schema = schema(&function.parameters, function.is_strict);
    if let Some(object) = schema.as_object_mut() {
        object.insert("type".to_owned(), json!("object"));
        let composes = ["$ref", "allOf", "anyOf", "oneOf"].iter().any(|key| object.contains_key(*key));
        let named = |name: &Value| {
            let name = name.as_str().unwrap_or_default();
            object.get("properties").is_some_and(|properties| properties.get(name).is_some())
        };
        let required = object.get("required").and_then(Value::as_array);
        let all_named = required.is_none_or(|required| required.iter().all(named));
        if object.contains_key("properties") && !composes && all_named {
            object.entry("additionalProperties").or_insert(json!(false));
        }
    }
    schema
}

/// A schema as it is enforced. Parts that cannot be enforced are left out, unless the schema is strict. Other servers
/// leave all of it out.
fn schema(schema: &Value, is_strict: bool) -> Value {
    let mut schema = schema.clone();
    if let (Some(object), false) = (schema.as_object_mut(), is_strict) {
        object.insert("x-guidance".to_owned(), json!({"lenient": true}));
    }
    schema
}

/// A text as a string of a grammar.
fn literal(text: &str) -> String {
    // Strings of the grammar contain no raw control characters, but JSON allows this one.
    Value::String(text.to_owned()).to_string().replace('\u{7f}', "\\u007f")
}

/// A text as a regular expression of a grammar.
fn pattern(text: &str) -> String {
    regex_syntax::escape(text).replace('/', "\\/").replace('\n', "\\n")
}
