//! Chat templates: turn conversations into tokens. The crate moi-jinja renders them.

mod conversation;
mod hidden;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use moi_jinja::{Serde, Template, Value, context};
use serde::{Deserialize, Serialize};

pub use self::conversation::Conversation;
use self::hidden::Hidden;
use crate::{TextError, Tokenizer};

/// One message of a conversation.
///
/// # Examples
/// ```
/// use moi_text::Message;
///
/// let message = Message::new("user", "Hello");
/// let json = serde_json::json!({"role": "user", "content": "Hello"});
/// assert_eq!(serde_json::from_value::<Message>(json)?, message);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

impl Message {
    /// Makes a message.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.to_owned(), content: content.to_owned() }
    }
}

/// The control tokens that a template may name.
///
/// # Examples
/// ```
/// use moi_text::{ChatTemplate, Message, TemplateTokens};
///
/// let others = vec![("image_token".to_owned(), "<im>".to_owned())];
/// let tokens = TemplateTokens { bos: Some("<s>".to_owned()), others, ..TemplateTokens::default() };
/// let template = ChatTemplate::new("{{ bos_token }}{{ image_token }}{{ messages[0].content }}", tokens)?;
/// assert_eq!(template.render(&[Message::new("user", "Hello")], true)?, "<s><im>Hello");
/// # Ok::<(), moi_text::TextError>(())
/// ```
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
    /// Other tokens, each with its name and text, such as `sep_token` or `image_token`.
    pub others: Vec<(String, String)>,
}

/// A model's chat template.
///
/// # Examples
/// ```
/// use moi_text::{ChatTemplate, Message, TemplateTokens};
///
/// let source = "{% for message in messages %}\
///               <|{{ message.role }}|>{{ message.content }}{{ eos_token }}\
///               {% endfor %}\
///               {% if add_generation_prompt %}<|assistant|>{% endif %}";
/// let tokens = TemplateTokens { eos: Some("<end>".to_owned()), ..TemplateTokens::default() };
/// let template = ChatTemplate::new(source, tokens)?;
/// let prompt = template.render(&[Message::new("user", "Hello")], true)?;
/// assert_eq!(prompt, "<|user|>Hello<end><|assistant|>");
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Debug)]
pub struct ChatTemplate {
    template: Template,
    tokens: TemplateTokens,
    path: Option<PathBuf>,
}

/// The steps that a template may take before it counts as endless. Each step costs one, and every 64 bytes that it
/// makes cost one more, so this also bounds memory. Real templates take a few hundred steps per message.
const FUEL: u64 = 200_000;
/// Additional steps that a template may take for each message and for each byte of a message.
const FUEL_PER_MESSAGE: u64 = 5_000;
const FUEL_PER_BYTE: u64 = 2;

impl ChatTemplate {
    /// The template's source text.
    pub fn source(&self) -> &str {
        self.template.source()
    }

    /// The control tokens that the template may name.
    pub fn tokens(&self) -> &TemplateTokens {
        &self.tokens
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// If it is not valid Jinja.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TextError> {
        Ok(Self { template: Template::new(source)?, tokens, path: None })
    }

    /// Compiles a template from a file; errors name the file.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn in_file(path: &Path, source: &str, tokens: TemplateTokens) -> Result<Self, TextError> {
        let template = Self::new(source, tokens).map_err(|error| error.in_file(path))?;
        Ok(Self { path: Some(path.to_owned()), ..template })
    }

    /// Renders the prompt's text; with `add_generation_prompt` it ends where the assistant's answer begins. Control
    /// tokens are spelled out in it, so it must not be encoded as user text: see [`ChatTemplate::encode`].
    ///
    /// # Errors
    /// If the template refuses the conversation, or does not end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        self.render_conversation(&Conversation { add_generation_prompt, ..Conversation::new(messages) })
    }

    /// Renders the prompt's text of a conversation with tools and other variables of the template.
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
        let fuel = FUEL + per_message + FUEL_PER_BYTE * conversation.bytes() as u64;
        let conversation = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => *add_generation_prompt,
            // transformers passes None for tools and documents if there are none, and leaves out tokens that are not
            // set.
            tools => if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) },
            documents => (),
            bos_token => token(bos),
            eos_token => token(eos),
            pad_token => token(pad),
            unk_token => token(unk),
            ..others
        };
        Ok(self.template.render(conversation, fuel)?)
    }

    /// Encodes the prompt's tokens, up to where the assistant's answer begins. Control tokens of the template become
    /// control tokens; text in a message that looks like a control token stays text.
    ///
    /// # Errors
    /// If the template refuses the conversation or the tokenizer fails.
    pub fn encode(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<Vec<u32>, TextError> {
        self.encode_conversation(&Conversation::new(messages), tokenizer)
    }

    /// Encodes the tokens of a conversation with tools and other variables of the template. Text in the conversation
    /// that looks like a control token stays text.
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

    /// Encodes the tokens that follow an answer, so that a conversation can go on with the answer's own tokens:
    /// `messages[..asked]` is what was answered, `messages[asked]` is the answer, and the other messages follow.
    /// Returns `None` if the template does not render the earlier messages unchanged: some templates drop thoughts,
    /// or trim text.
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
