//! Chat templates, rendered as transformers renders them, and bounded in what they may compute.

mod adapt;
mod args;
mod chains;
mod constants;
mod conversation;
mod filters;
mod functions;
mod hidden;
mod json;
mod layout;
mod lists;
mod methods;
mod numbers;
mod objects;
mod operators;
mod printf;
mod python;
mod rewrite;
mod tags;
#[cfg(test)]
mod tests;
mod tests_of_jinja;
mod text_methods;
mod texts;
mod weigh;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use minijinja::{
    AutoEscape, Environment, Value, context, escape_formatter,
    machinery::{self, CompiledTemplate, TemplateConfig},
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde::{Deserialize, Serialize};

pub use self::conversation::Conversation;
use self::{
    hidden::Hidden,
    rewrite::{Weighed, rewrite},
};
use crate::{TextError, Tokenizer};

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
    /// Others, and what they are called: `sep_token`, `image_token`.
    pub others: Vec<(String, String)>,
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    /// As the engine reads it.
    adapted: String,
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
        environment.set_unknown_method_callback(methods::method);
        functions::add(&mut environment);
        environment.add_filter("string", |value: &Value| texts::text(value).map(Value::from));
        filters::add(&mut environment);
        lists::add(&mut environment);
        numbers::add(&mut environment);
        tests_of_jinja::add(&mut environment);
        environment.set_formatter(|out, state, value| match value.kind() {
            ValueKind::Undefined | ValueKind::String => escape_formatter(out, state, value),
            _ => Ok(out.write_str(&texts::text(value)?)?),
        });
        // It would show values that hold themselves.
        environment.remove_global("debug");
        operators::add(&mut environment);
        let adapted = adapt::adapted(source)?;
        let compiled = compile(&adapted)?;
        let mut weighed = Weighed::default();
        for instructions in compiled.blocks.values().chain([&compiled.instructions]) {
            for instruction in (0..).map_while(|at| instructions.get(at)) {
                weighed.add(&mut environment, instruction);
            }
        }
        drop(compiled);
        let template = Self { environment, source: source.to_owned(), adapted, tokens, path: None, weighed };
        template.compiled()?;
        Ok(template)
    }

    fn compiled(&self) -> Result<CompiledTemplate<'_>, TextError> {
        let mut compiled = compile(&self.adapted)?;
        rewrite(&mut compiled.instructions, &self.weighed)?;
        compiled.blocks.values_mut().try_for_each(|block| rewrite(block, &self.weighed))?;
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
        self.render_conversation(&Conversation { add_generation_prompt, ..Conversation::new(messages) })
    }

    /// The prompt's text of a conversation with tools and other variables of the template.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_conversation(&self, conversation: &Conversation) -> Result<String, TextError> {
        self.rendered(conversation).map_err(|error| match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    fn rendered(&self, conversation: &Conversation) -> Result<String, TextError> {
        let TemplateTokens { bos, eos, pad, unk, others } = &self.tokens;
        let Conversation { messages, tools, add_generation_prompt, variables } = conversation;
        let token = |text: &Option<String>| text.clone().map_or(Value::UNDEFINED, Value::from);
        let others = others.iter().map(|(name, text)| (name.clone(), Value::from(text.clone())));
        let variables = variables.iter().filter(|(name, _)| !Conversation::RESERVED.contains(&name.as_str()));
        let variables = variables.map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        let others: BTreeMap<String, Value> = variables.chain(others).collect();
        let others = Value::from(others);
        let per_message = FUEL_PER_MESSAGE * (messages.len() + tools.len()) as u64;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + per_message + FUEL_PER_BYTE * conversation.bytes() as u64));
        let CompiledTemplate { instructions, blocks, initial_auto_escape, .. } = self.compiled()?;
        let conversation = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => *add_generation_prompt,
            // transformers passes these as None where there are none, and leaves tokens out that are not set.
            tools => if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) },
            documents => (),
            bos_token => token(bos),
            eos_token => token(eos),
            pad_token => token(pad),
            unk_token => token(unk),
            ..others
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
        self.encode_conversation(&Conversation::new(messages), tokenizer)
    }

    /// The tokens of a conversation with tools and other variables of the template. What looks like a control token in any
    /// text of it stays text.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode`].
    pub fn encode_conversation(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, TextError> {
        let hidden = Hidden::new(conversation, tokenizer)?;
        let rendered = self.render_conversation(&hidden.conversation)?;
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
        let conversation = Conversation::new(messages);
        let hidden = Hidden::new(&conversation, tokenizer)?;
        let answered = Conversation {
            messages: hidden.conversation.messages[..asked].to_vec(),
            ..Conversation::new(&[])
        };
        let answer = hidden.conversation.messages[asked]["content"].as_str().unwrap_or_default();
        let before = self.render_conversation(&answered)? + answer;
        let whole = self.render_conversation(&hidden.conversation)?;
        match whole.strip_prefix(&before) {
            Some(tail) => tokenizer.encode_rendered(tail, false, |text| hidden.restore(text)).map(Some),
            None => Ok(None),
        }
    }
}

fn compile(source: &str) -> Result<CompiledTemplate<'_>, TextError> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    chains::check(source, &syntax)?;
    let config =
        TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) };
    Ok(CompiledTemplate::new(NAME, source, &config)?)
}
