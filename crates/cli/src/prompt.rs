//! From arguments and stdin to prompt tokens.

use std::io::{IsTerminal, Read};

use anyhow::{Context, Result, bail};
use moi_pretrained::Pretrained;
use moi_text::{Message, TextError};

use crate::args::GenerateArgs;

/// The prompt's tokens.
pub(crate) fn ids(args: &GenerateArgs, pretrained: &Pretrained) -> Result<Vec<u32>> {
    if let Some(tokens) = &args.tokens {
        return Ok(tokens.clone());
    }
    let text = text(args)?;
    let Some(tokenizer) = usable(&pretrained.tokenizer)? else {
        bail!("the model `{}` has no tokenizer; give the prompt as ids: --tokens 1,2,3", args.model.model);
    };
    if args.raw {
        return Ok(tokenizer.encode(&text, true)?);
    }
    match usable(&pretrained.chat_template)? {
        Some(template) => {
            let system = args.system.as_deref().map(|system| Message::new("system", system));
            let messages: Vec<Message> = system.into_iter().chain([Message::new("user", &text)]).collect();
            Ok(template.encode(&messages, tokenizer)?)
        }
        None if args.system.is_some() => {
            bail!("the model `{}` has no chat template, so --system has no place", args.model.model)
        }
        None => Ok(tokenizer.encode(&text, true)?),
    }
}

/// What the model brings, where it is needed; what is wrong with it is an error only then.
fn usable<T>(part: &Result<Option<T>, TextError>) -> Result<Option<&T>> {
    match part {
        Ok(part) => Ok(part.as_ref()),
        Err(error) => bail!("{error}"),
    }
}

fn text(args: &GenerateArgs) -> Result<String> {
    match args.prompt.as_deref() {
        Some(text) if text != "-" => Ok(text.to_owned()),
        None if std::io::stdin().is_terminal() => {
            bail!("no prompt was given: moi generate \"PROMPT\", or pipe one in")
        }
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("the prompt on stdin cannot be read")?;
            // The newline that ends a line of a shell is no part of the prompt.
            Ok(text
                .strip_suffix('\n')
                .map(|text| text.strip_suffix('\r').unwrap_or(text))
                .unwrap_or(&text)
                .to_owned())
        }
    }
}
