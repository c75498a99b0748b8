//! Tokens of texts and texts of tokens: `POST /tokenize`, `POST /detokenize`, `GET /tokenizer_info`.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    conversation,
    error::ApiError,
    json::{self, Ignored},
    model::Loaded,
    tokens::TokenNames,
    tools::Function,
    wire::{
        chat::Chat,
        completions::{Detokenize, Tokenize},
        generation::Generation,
    },
};

/// Tokenizes a text. `special` adds what the model expects around a prompt, and `parse` reads control tokens that are
/// written in the text.
///
/// # Errors
/// If the text is too long, or the tokenizer cannot encode it.
pub(crate) fn encode(text: &str, special: bool, parse: bool, loaded: &Loaded) -> Result<Vec<u32>, ApiError> {
    let tokenizer = &loaded.model.tokenizer;
    loaded.check_bytes(text.len(), "prompt")?;
    let ids = match (special, parse) {
        (true, true) => tokenizer.encode_prompt(text)?,
        (true, false) => tokenizer.encode(text, true)?,
        (false, false) => tokenizer.encode(text, false)?,
        (false, true) => {
            let whole = tokenizer.encode_prompt(text)?;
            let around = tokenizer.encode("", true)?;
            // The tokens that are put around an empty text are also put around this one, so they are cut off.
            match around.split_first() {
                Some((first, rest)) if whole.first() == Some(first) && whole.len() > rest.len() => {
                    let end = if whole.ends_with(rest) { whole.len() - rest.len() } else { whole.len() };
                    whole[1..end].to_vec()
                }
                _ => whole,
            }
        }
    };
    Ok(ids)
}

/// Answers `POST /tokenize` in vLLM's format, which lm-evaluation-harness reads.
pub(crate) fn tokenize(body: &Bytes, loaded: &Loaded) -> Result<Value, ApiError> {
    let asked: Tokenize = json::parse(body, &mut Ignored::default())?;
    loaded.named(asked.model.as_deref())?;
    let tokens = match (asked.prompt.as_ref().or(asked.content.as_ref()), &asked.messages) {
        (Some(text), None) => {
            let (special, parse) =
                (asked.add_special_tokens.unwrap_or(true), asked.parse_special.unwrap_or(true));
            encode(text, special, parse, loaded)?
        }
        (None, Some(messages)) => {
            let tools = conversation::functions(asked.tools.as_deref().unwrap_or_default())?;
            let tools = tools.iter().map(Function::json).collect();
            let variables = asked.chat_template_kwargs.clone().unwrap_or_default();
            let prompts = asked.add_generation_prompt.unwrap_or(true);
            conversation::encode(
                conversation::template(loaded)?,
                messages,
                tools,
                variables,
                prompts,
                loaded,
            )?
        }
        _ => return Err(ApiError::value("prompt", "give `prompt` or `messages`, one of them")),
    };
    let names = TokenNames { tokenizer: &loaded.model.tokenizer, as_ids: false };
    let strings = asked.return_token_strs.unwrap_or(false);
    let strings = strings.then(|| tokens.iter().map(|&token| names.name(token)).collect::<Vec<_>>());
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": loaded.model.context_length,
        "tokens": tokens,
        "token_strs": strings,
    }))
}

/// Answers `POST /detokenize` with the text of tokens, including control tokens.
pub(crate) fn detokenize(body: &Bytes, loaded: &Loaded) -> Result<Value, ApiError> {
    let asked: Detokenize = json::parse(body, &mut Ignored::default())?;
    loaded.named(asked.model.as_deref())?;
    let vocabulary = loaded.model.embedding[0];
    let tokens = asked.tokens.unwrap_or_default();
    if let Some(at) = tokens.iter().position(|&token| token as usize >= vocabulary) {
        let param = format!("tokens[{at}]");
        let message = format!("{param} is {}, and the vocabulary has {vocabulary} tokens", tokens[at]);
        return Err(ApiError::value(param, message));
    }
    Ok(json!({"prompt": text_of(&tokens, loaded)?}))
}

/// The text of tokens, including the texts of control tokens.
fn text_of(tokens: &[u32], loaded: &Loaded) -> Result<String, ApiError> {
    let tokenizer = &loaded.model.tokenizer;
    let mut text = String::new();
    let mut plain: Vec<u32> = Vec::new();
    for &token in tokens {
        match tokenizer.special_text(token) {
            Some(control) => {
                text += &tokenizer.decode(&std::mem::take(&mut plain))?;
                text += control;
            }
            None => plain.push(token),
        }
    }
    text += &tokenizer.decode(&plain)?;
    Ok(text)
}

/// The prompt that a conversation becomes, as the model reads it.
pub(crate) fn render(body: &Bytes, loaded: &Loaded, trusts_templates: bool) -> Result<Value, ApiError> {
    let mut ignored = Ignored::default();
    let generation: Generation = json::parse(body, &mut ignored)?;
    let chat: Chat = json::parse(body, &mut ignored)?;
    loaded.named(generation.model.as_deref())?;
    let (tokens, _) = conversation::prompt(&chat, loaded, trusts_templates)?;
    Ok(json!({"prompt": text_of(&tokens, loaded)?, "tokens": tokens, "count": tokens.len()}))
}

/// Answers `GET /tokenizer_info` with what lm-evaluation-harness needs.
pub(crate) fn info(loaded: &Loaded) -> Value {
    let model = &loaded.model;
    let (tokenizer, template) = (&model.tokenizer, model.template.as_ref().ok());
    let tokens = template.map(|template| template.tokens().clone()).unwrap_or_default();
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    json!({
        "tokenizer_class": tokenizer.kind(),
        "bos_token": tokens.bos.or_else(|| text(tokenizer.bos())),
        "eos_token": tokens.eos.or_else(|| text(model.eos.first().copied())),
        "pad_token": tokens.pad,
        "unk_token": tokens.unk,
        "vocab_size": tokenizer.vocab_size(),
        "model_max_length": model.context_length,
        "chat_template": template.map(|template| template.source()),
    })
}
