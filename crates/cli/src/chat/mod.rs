//! `moi chat`: a conversation on a terminal.

mod command;
mod conversation;

use std::{io::IsTerminal, path::PathBuf};

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use moi_engine::InputRule;
use moi_pretrained::Pretrained;
use rustyline::{Config, DefaultEditor, Editor, error::ReadlineError, history::FileHistory};

use self::{
    command::{Command, HELP},
    conversation::Conversation,
};
use crate::{
    Ended,
    args::ChatArgs,
    backend::{Device, Job},
    decoding::{self, Decoding},
    interrupt::Interrupt,
    model::{self, Loading},
    output, prompt, runner, ui,
};

/// Number of lines that the history keeps.
const HISTORY: usize = 1000;

/// Runs the chat.
pub(crate) fn run(args: ChatArgs) -> Result<Ended> {
    let rule = decoding::rule(&args.rule)?;
    let pretrained = model::open(&args.model)?;
    if prompt::usable(&pretrained.chat_template)?.is_none() {
        check_tokenizer(&pretrained, &args.model.model)?;
        bail!(
            "the model `{}` has no chat template: it continues texts and does not answer; use `moi generate --raw`",
            args.model.model
        );
    }
    let device = Device::chosen(args.model.device);
    device.run(Chat { args, device, pretrained, rule })
}

fn check_tokenizer(pretrained: &Pretrained, model: &str) -> Result<()> {
    match prompt::usable(&pretrained.tokenizer)? {
        Some(_) => Ok(()),
        None => bail!("the model `{model}` has no tokenizer, so it cannot be talked to"),
    }
}

struct Chat {
    args: ChatArgs,
    device: Device,
    pretrained: Pretrained,
    rule: InputRule,
}

impl Job for Chat {
    type Output = Ended;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Ended> {
        let Self { args, device: name, mut pretrained, rule } = self;
        let template = std::mem::replace(&mut pretrained.chat_template, Ok(None));
        let positions = model::positions(&pretrained, 0, None);
        let loading = Loading::<B>::begin(pretrained, &args.model, (name, device), positions)?;
        let pretrained = loading.pretrained();
        check_tokenizer(pretrained, &args.model.model)?;
        let decoding =
            Decoding::new(pretrained, &args.rule.scope, &args.sampling, Some(&args.grammar), &args.stop)?;
        decoding.note_idle(&[rule], 1);
        let interrupt = Interrupt::install()?;
        let (engine, _) = loading.finish(positions)?;
        let engine = decoding.engine(engine, &args.model, name)?.with_progress(runner::prefill_bar()?);
        let Ok(Some(template)) = template else { bail!("the chat template cannot be used") };
        let mut conversation = Conversation::new(&engine, template, rule, decoding, args.model.model.clone());
        conversation.set_system(args.system.as_deref());
        if let Some(path) = &args.load {
            conversation.load(path)?;
        }
        interrupt.begin();
        talk(&mut conversation, &interrupt)
    }
}

/// Reads lines until the end of the input.
fn talk<B: Backend, M: moi_models::CausalLm<B>>(
    conversation: &mut Conversation<'_, B, M>,
    interrupt: &Interrupt,
) -> Result<Ended> {
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        ui::note(&format!("{}; /help lists the commands, Ctrl-D ends", conversation.described()));
    }
    let config = Config::builder().max_history_size(HISTORY)?.auto_add_history(true).build();
    let mut editor: Editor<(), FileHistory> = DefaultEditor::with_config(config)?;
    let history = history().filter(|_| is_terminal);
    if let Some(path) = &history {
        // The history file does not exist on the first run.
        let _ = editor.load_history(path);
    }
    let mut is_first = true;
    loop {
        interrupt.clear();
        let prompt = if is_terminal { "> " } else { "" };
        let line = match interrupt.while_reading(|| editor.readline(prompt)) {
            Ok(line) => line,
            // Ctrl-C at the prompt clears the line, as in a shell.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => bail!("the input cannot be read: {error}"),
        };
        // Ignore a byte order mark at the beginning of piped text.
        let mark = if std::mem::take(&mut is_first) { "\u{feff}" } else { "" };
        let line = line.strip_prefix(mark).unwrap_or(&line);
        if line.trim().is_empty() {
            continue;
        }
        let done = match Command::parse(line) {
            Ok(Some(Command::Quit)) => break,
            Ok(Some(Command::Help)) => output::print_bytes(HELP.as_bytes()),
            Ok(Some(command)) => conversation.obey(command, interrupt),
            Ok(None) => conversation.say(line, interrupt),
            Err(error) => Err(error),
        };
        // On a terminal, an unknown command or a refused message does not end the chat. A closed stdout always does.
        match done {
            Err(error) if output::is_broken_pipe(&error) => return Err(error),
            Err(error) if is_terminal => ui::say!("moi: {error:#}"),
            Err(error) => return Err(error),
            Ok(()) => {}
        }
    }
    if let Some(path) = history {
        save_history(&mut editor, path);
    }
    Ok(Ended::Normally)
}

/// The file that keeps the history.
fn history() -> Option<PathBuf> {
    let user = directories::ProjectDirs::from("", "", "moi")?;
    Some(user.state_dir().unwrap_or_else(|| user.data_local_dir()).join("chat_history"))
}

fn save_history(editor: &mut Editor<(), FileHistory>, path: PathBuf) {
    let saved = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|error| error.to_string());
    let saved = saved.and_then(|()| editor.save_history(&path).map_err(|error| error.to_string()));
    if let Err(error) = saved {
        ui::note(&format!("the history cannot be kept in {}: {error}", path.display()));
    }
}
