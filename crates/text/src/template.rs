//! Chat templates, rendered as transformers renders them.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value, context, escape_formatter,
    machinery::{self, CompiledTemplate, TemplateConfig},
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, ValueKind},
};
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;

use crate::{
    TextError, Tokenizer, bounds,
    weigh::{self, Weighed},
};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }
}

/// The control tokens a template may name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tokens: TemplateTokens,
    path: Option<PathBuf>,
    weighed: Weighed,
}

const NAME: &str = "chat_template";
/// What a template may spend before it counts as endless: a step costs one, 64 bytes of what it makes cost one too, so
/// this bounds its memory. Real ones take a few hundred steps per message.
const FUEL: u64 = 200_000;
/// What it may spend besides, for each message and each byte of one.
const FUEL_PER_MESSAGE: u64 = 5_000;
const FUEL_PER_BYTE: u64 = 2;

impl ChatTemplate {
    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The tokens that it may name.
    pub fn tokens(&self) -> &TemplateTokens {
        &self.tokens
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not valid Jinja.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(bounds::method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_filter("string", |value: &Value| bounds::text(value).map(Value::from));
        // As in Python, where the engine takes it for an empty list: templates ask it of `tools`.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain => {
                Ok(out.write_str(&bounds::text(value)?)?)
            }
            _ => escape_formatter(out, state, value),
        });
        // It would show values that hold themselves.
        environment.remove_global("debug");
        bounds::add_operators(&mut environment);
        weigh::add_operators(&mut environment);
        let source = adapted(source);
        let compiled = compile(&source)?;
        let mut weighed = Weighed::default();
        for instructions in compiled.blocks.values().chain([&compiled.instructions]) {
            for instruction in (0..).map_while(|at| instructions.get(at)) {
                weighed.add(&mut environment, instruction);
            }
        }
        drop(compiled);
        let template = Self { environment, source, tokens, path: None, weighed };
        template.compiled()?;
        Ok(template)
    }

    fn compiled(&self) -> Result<CompiledTemplate<'_>, TextError> {
        let mut compiled = compile(&self.source)?;
        bounds::bound(&mut compiled.instructions, &self.weighed)?;
        compiled.blocks.values_mut().try_for_each(|block| bounds::bound(block, &self.weighed))?;
        Ok(compiled)
    }

    /// Compiles a template that stands in a file; errors name it.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn in_file(path: &Path, source: &str, tokens: TemplateTokens) -> Result<Self, TextError> {
        let template = Self::new(source, tokens).map_err(|error| error.in_file(path))?;
        Ok(Self { path: Some(path.to_owned()), ..template })
    }

    /// The prompt's text, ready for the assistant to answer where `add_generation_prompt`. Control tokens
    /// are spelled out in it, so it must not be encoded as user text: see [`ChatTemplate::encode`].
    ///
    /// # Errors
    /// If the template refuses the conversation, or does not come to an end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        self.rendered(messages, add_generation_prompt).map_err(|error| match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    fn rendered(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let TemplateTokens { bos, eos, pad, unk } = &self.tokens;
        let token = |text: &Option<String>| text.clone().map_or(Value::UNDEFINED, Value::from);
        let bytes: usize = messages.iter().map(|message| message.content.len() + message.role.len()).sum();
        let mut environment = self.environment.clone();
        environment
            .set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + FUEL_PER_BYTE * bytes as u64));
        let CompiledTemplate { instructions, blocks, initial_auto_escape, .. } = self.compiled()?;
        let conversation = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            // transformers passes these as None where there are none, and leaves tokens out that are not set.
            tools => (),
            documents => (),
            bos_token => token(bos),
            eos_token => token(eos),
            pad_token => token(pad),
            unk_token => token(unk),
        };
        weigh::begin();
        let mut text = String::new();
        let mut out = machinery::make_string_output(&mut text);
        machinery::eval(&environment, &instructions, conversation, &blocks, &mut out, initial_auto_escape)?;
        drop(out);
        Ok(text)
    }

    /// The prompt's tokens, ready for the assistant to answer. Control tokens of the template become control
    /// tokens; what looks like one in a message stays text.
    ///
    /// # Errors
    /// If the template refuses the conversation or the tokenizer fails.
    pub fn encode(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<Vec<u32>, TextError> {
        let hidden = Hidden::new(messages, tokenizer)?;
        let rendered = self.render(&hidden.messages, true)?;
        let ids = tokenizer.encode_rendered(&rendered, true, |text| hidden.restore(text))?;
        match ids.is_empty() {
            false => Ok(ids),
            true => {
                let what = "it makes nothing of the messages".to_owned();
                Err(TextError::Template { path: self.path.clone(), what })
            }
        }
    }

    /// The tokens behind an answer: `messages[..asked]` is what was answered, `messages[asked]` the answer, and more
    /// follows. So a conversation can go on with the answer's own tokens. `None` where the template does not leave the
    /// earlier turns as they were: some drop thoughts, or trim what was said.
    ///
    /// # Errors
    /// If the template refuses the conversation or the tokenizer fails.
    pub fn encode_behind(
        &self,
        asked: usize,
        messages: &[Message],
        tokenizer: &Tokenizer,
    ) -> Result<Option<Vec<u32>>, TextError> {
        if messages.len() <= asked {
            return Ok(None);
        }
        let hidden = Hidden::new(messages, tokenizer)?;
        let before = self.render(&hidden.messages[..asked], true)? + &hidden.messages[asked].content;
        let whole = self.render(&hidden.messages, true)?;
        match whole.strip_prefix(&before) {
            Some(tail) => tokenizer.encode_rendered(tail, false, |text| hidden.restore(text)).map(Some),
            None => Ok(None),
        }
    }
}

fn compile(source: &str) -> Result<CompiledTemplate<'_>, TextError> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    weigh::check_chains(source, &syntax)?;
    let config =
        TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    Ok(CompiledTemplate::new(NAME, source, &config)?)
}

/// Messages in which a control token's text is one private character: it is put back after the rendered prompt has been
/// cut at its real control tokens.
struct Hidden<'a> {
    messages: Vec<Message>,
    /// Control tokens' texts that are in the messages, and what stands in for them.
    pairs: Vec<(&'a str, String)>,
}

impl<'a> Hidden<'a> {
    fn new(messages: &[Message], tokenizer: &'a Tokenizer) -> Result<Self, TextError> {
        // Nearly always there is none: a vocabulary's thousands are then looked for once, not per piece.
        let written = |text: &&str| messages.iter().any(|m| m.content.contains(text));
        let special: Vec<&str> = tokenizer.special_texts().filter(written).collect();
        let stand_ins = stand_ins(messages, special.len());
        if stand_ins.len() < special.len() {
            let what =
                "the messages have control tokens in them, and nearly every private character".to_owned();
            return Err(TextError::Template { path: None, what });
        }
        let pairs: Vec<(&str, String)> = special.into_iter().zip(stand_ins).collect();
        let hide = |text: &str| {
            pairs.iter().fold(text.to_owned(), |text, (special, stand_in)| text.replace(special, stand_in))
        };
        let messages = messages.iter().map(|m| Message::new(&m.role, &hide(&m.content))).collect();
        Ok(Self { messages, pairs })
    }

    fn restore(&self, text: &str) -> String {
        self.pairs.iter().fold(text.to_owned(), |text, (special, stand_in)| text.replace(stand_in, special))
    }
}

/// Characters of a private plane that no message uses, one per control token.
fn stand_ins(messages: &[Message], count: usize) -> Vec<String> {
    let used: HashSet<char> =
        messages.iter().flat_map(|m| m.content.chars()).filter(|&c| c >= '\u{F0000}').collect();
    let private = ('\u{F0000}'..='\u{FFFFD}').chain('\u{100000}'..='\u{10FFFD}');
    private.filter(|c| !used.contains(c)).take(count).map(String::from).collect()
}

/// Tags that the engine does not have, or has otherwise than Jinja. `{% generation %}` marks what a trainer learns from: it
/// renders to its content, so it becomes an `if`. The line end behind `{% raw %}` stays in Jinja, so there are two of
/// them, of which the engine takes one away.
fn adapted(source: &str) -> String {
    let name =
        |tag: &str| tag[2..].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+').to_owned();
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut is_raw = false;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start + 2..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start..start + 2 + len]);
        out += before;
        rest = &rest[start + tag.len()..];
        match name(tag).as_str() {
            "endraw" => {
                is_raw = false;
                out += tag;
            }
            // It is text, and what seems to end it may not.
            _ if is_raw => {
                out += "{%";
                rest = &source[source.len() - rest.len() - tag.len() + 2..];
            }
            "raw" => {
                is_raw = true;
                let behind = &rest[2..];
                let lines = ["\n", "\r\n"].into_iter().find(|line| behind.starts_with(line));
                out += tag;
                if let Some(line) = lines.filter(|_| !tag.ends_with('-')) {
                    out += "%}";
                    out += line;
                    rest = behind;
                }
            }
            "generation" => out += &tag.replacen("generation", "if true", 1),
            "endgeneration" => out += &tag.replacen("endgeneration", "endif", 1),
            _ => out += tag,
        }
    }
    out + rest
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, bounds::text(message)?))
}

fn strftime_now(format: &Value) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    match write!(text, "{}", chrono::Local::now().format(&bounds::text(format)?)) {
        Ok(()) => Ok(text),
        Err(_) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("time format {format:?} is not valid")))
        }
    }
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it, as transformers has the
/// filter; minijinja's own escapes for HTML. The other options of `json.dumps` are refused where they would
/// change the text.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    for option in ["ensure_ascii", "sort_keys"] {
        if options.get::<Option<bool>>(option)? == Some(true) {
            let what = format!("tojson with {option} is not supported");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
    }
    options.assert_all_used()?;
    weigh::weigh(value)?;
    let mut out = bounds::Bytes::default();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(64));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, OneLine)),
    };
    let text = written.ok().and_then(|()| String::from_utf8(out.0).ok());
    let text = text.ok_or_else(|| {
        Error::new(ErrorKind::BadSerialization, "a value has no JSON form, or one of many megabytes")
    })?;
    Ok(Value::from_safe_string(text))
}

/// Python's `", "` and `": "`.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, content: &str) -> Result<String, TextError> {
        let tokens = TemplateTokens { bos: Some("<s>".into()), ..TemplateTokens::default() };
        ChatTemplate::new(source, tokens)?.render(&[Message::new("user", content)], true)
    }

    #[test]
    fn renders_as_transformers_does() {
        let loops = "{{ bos_token }}{% for m in messages %}\n  {% if loop.index0 > 3 %}{% break %}{% endif %}\n\
                     [{{ m['role'] }}] {{ m.content.strip().split('a')[0] | trim }}\n{% endfor %}\n";
        assert_eq!(render(loops, " bca ").unwrap(), "<s>[user] bc\n");
        assert_eq!(
            render("{{ messages | tojson }}", "<b> \"ü\"").unwrap(),
            r#"[{"role": "user", "content": "<b> \"ü\""}]"#
        );
        let absent = "{{ tools is none }} {{ documents is none }} {{ eos_token is defined }} {{ bos_token is defined }}";
        assert_eq!(render(absent, "").unwrap(), "True True False True");
        let indented = render("{{ messages[0] | tojson(indent=2) }}", "x").unwrap();
        assert_eq!(indented, "{\n  \"role\": \"user\",\n  \"content\": \"x\"\n}");
        assert_eq!(
            render("{%- generation -%} {{ messages[0].content }} {%- endgeneration %}", "y").unwrap(),
            "y"
        );
        assert_eq!(render("{{ strftime_now('%Y') | length }}", "").unwrap(), "4");
        let iterable =
            "{{ tools is iterable }} {{ messages is iterable }} {{ 'a' is iterable }} {{ 1 is iterable }}";
        assert_eq!(render(iterable, "").unwrap(), "False True True False");
        let raw = "a{% raw %}\n{% generation %} {%{% endraw %}\nb{%- raw -%}\n c {% endraw -%} \n{% raw %} d{% endraw %}";
        assert_eq!(render(raw, "").unwrap(), "a\n{% generation %} {%bc  d");
    }

    #[test]
    fn refusals_are_errors() {
        let refused = render("{{ raise_exception('only one system message') }}", "").unwrap_err().to_string();
        assert!(refused.contains("only one system message"), "{refused}");
        assert!(render("{{ strftime_now('%!') }}", "").is_err());
        for broken in ["{% for %}", "{%}", "{%", "{%generation", "{{ x"] {
            assert!(render(broken, "").is_err(), "{broken}");
        }
        assert!(render("{{ messages | tojson(sort_keys=true) }}", "").is_err());
        let endless = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}";
        assert!(render(endless, "").is_err());
    }
}
