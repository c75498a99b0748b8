//! Turns the arguments and stdin into the tokens of a prompt.

use std::{io::IsTerminal, sync::Once};

use anyhow::{Context, Result, bail};
use moi_checkpoint::shown;
use moi_pretrained::Pretrained;
use moi_text::{Message, TextError, Tokenizer};

use crate::{args::PromptArgs, file, ui};

/// The tokens of the prompt, for the model of this name.
pub(crate) fn ids(args: &PromptArgs, model: &str, pretrained: &Pretrained) -> Result<Vec<u32>> {
    ids_of(args, args.text()?.as_deref(), model, pretrained)
}

/// The tokens of a prompt whose text has already been read.
pub(crate) fn ids_of(
    args: &PromptArgs,
    text: Option<&str>,
    model: &str,
    pretrained: &Pretrained,
) -> Result<Vec<u32>> {
    let text = match (&args.tokens, text) {
        (Some(tokens), _) => return Ok(tokens.clone()),
        (None, text) => text.unwrap_or_default(),
    };
    if text.is_empty() {
        // A chat template would turn an empty prompt into a conversation.
        bail!("the prompt is empty; a model needs at least one token to continue from");
    }
    let Some(tokenizer) = usable(&pretrained.tokenizer)? else {
        bail!("the model `{model}` has no tokenizer; give the prompt as ids: --tokens 1,2,3");
    };
    check_length(text, tokenizer, pretrained.architecture.config.context_length)?;
    let ids = encoded(args, text, model, pretrained, tokenizer)?;
    let rows = pretrained.architecture.config.vocab_size;
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= rows) {
        bail!(
            "{}: the prompt has the token {id} (`{}`), and the model's embedding only {rows} rows",
            pretrained.path.display(),
            shown(&tokenizer.token(id).unwrap_or_default())
        );
    }
    Ok(ids)
}

/// Tokenizes a text in the form that the model expects of a prompt.
fn encoded(
    args: &PromptArgs,
    text: &str,
    model: &str,
    pretrained: &Pretrained,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let plain = || {
        let ids = tokenizer.encode_prompt(text)?;
        if let [first, second, ..] = ids[..]
            && first == second
            && tokenizer.bos() == Some(first)
        {
            ui::note(
                "the prompt begins with the begin token twice: the model's own, and the one that is written in it",
            );
        }
        Ok(ids)
    };
    if args.raw {
        return plain();
    }
    match usable(&pretrained.chat_template)? {
        Some(template) => {
            let system = args.system.as_deref().map(|system| Message::new("system", system));
            let messages: Vec<Message> = system.into_iter().chain([Message::new("user", text)]).collect();
            Ok(template.encode(&messages, tokenizer)?)
        }
        None if args.system.is_some() => {
            bail!("the model `{model}` has no chat template, so --system has no place")
        }
        None => {
            // Print the note only once, however many prompts there are.
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                ui::note(&format!(
                    "`{model}` has no chat template: it continues the prompt as text, and does not answer it (--raw says \
                     that this is meant)"
                ));
            });
            plain()
        }
    }
}

/// Refuses a text that is too long for the context, however it is tokenized. Tokenizing takes a hundred times the
/// memory of the text, so this is checked first.
///
/// # Errors
/// If the text is too long.
pub(crate) fn check_length(text: &str, tokenizer: &Tokenizer, context: usize) -> Result<()> {
    if text.len() < 1 << 20 {
        return Ok(());
    }
    let tokens = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.token(id));
    let longest = tokens.map(|token| token.len()).max().unwrap_or(0);
    if text.len() / longest.max(1) > context {
        bail!(
            "the prompt has {} bytes, more than the model's context of {context} tokens holds; shorten it",
            text.len()
        );
    }
    Ok(())
}

/// A part of the model that this command needs. An error in a part only matters if the part is needed.
pub(crate) fn usable<T>(part: &Result<Option<T>, TextError>) -> Result<Option<&T>> {
    match part {
        Ok(part) => Ok(part.as_ref()),
        Err(error) => bail!("{error}"),
    }
}

impl PromptArgs {
    /// The text of the prompt; `None` if token ids were given.
    ///
    /// # Errors
    /// If there is neither text nor ids, or stdin cannot be read.
    pub(crate) fn text(&self) -> Result<Option<String>> {
        match self.prompt.as_deref() {
            _ if self.tokens.is_some() => Ok(None),
            Some(text) if text != "-" => Ok(Some(text.to_owned())),
            None if std::io::stdin().is_terminal() => {
                bail!("no prompt was given: moi generate \"PROMPT\", or pipe one in")
            }
            _ => {
                let text = file::stdin_text().context("the prompt on stdin cannot be read")?;
                // The newline at the end of a shell's line is not part of the prompt.
                let line = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
                Ok(Some(line.unwrap_or(&text).to_owned()))
            }
        }
    }
}
