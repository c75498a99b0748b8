//! The turns of a conversation, and their shared cache.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use moi_engine::{Engine, InputRule, Moi, Session, StopReason};
use moi_models::CausalLm;
use moi_text::{ChatTemplate, Message, Tokenizer};
use serde::{Deserialize, Serialize};

use super::Command;
use crate::{
    decoding::Decoding,
    file,
    generate::{note_kernels, note_unknown},
    interrupt::Interrupt,
    output, prompt, ui,
};

/// A conversation in progress.
pub(crate) struct Conversation<'e, B: Backend, M> {
    engine: &'e Engine<B, M>,
    template: ChatTemplate,
    decoding: Decoding,
    rule: InputRule,
    model: String,
    messages: Vec<Message>,
    /// The cache with the earlier turns.
    session: Option<Session>,
    /// The last turn: prompt and answer as the model was fed them, and the printed answer.
    last: Option<Turn>,
    /// Number of answers so far, including discarded ones, so that each answer gets a seed of its own.
    answers: usize,
    figures: Figures,
}

/// A turn with its answer.
struct Turn {
    /// The messages up to and including the question.
    asked: Vec<Message>,
    prompt: Vec<u32>,
    /// The tokens of the answer, without the end-of-sequence token.
    tokens: Vec<u32>,
    /// Whether the printed answer is the complete text of the tokens; a stop string cuts some of it off.
    is_whole: bool,
}

#[derive(Debug, Default)]
struct Figures {
    prompt: usize,
    /// Positions of the last prompt that were already in the cache.
    known: usize,
    tokens: usize,
    seconds: f64,
}

/// The file format of a saved conversation.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    model: String,
    rule: InputRule,
    messages: Vec<Message>,
}

impl<'e, B: Backend, M: CausalLm<B>> Conversation<'e, B, M> {
    pub(crate) fn new(
        engine: &'e Engine<B, M>,
        template: ChatTemplate,
        rule: InputRule,
        decoding: Decoding,
        model: String,
    ) -> Self {
        let (messages, figures) = (Vec::new(), Figures::default());
        Self {
            engine,
            template,
            decoding,
            rule,
            model,
            messages,
            session: None,
            last: None,
            answers: 0,
            figures,
        }
    }

    /// The model and the rule, as text.
    pub(crate) fn described(&self) -> String {
        format!("{}, {}", self.model, self.rule)
    }

    /// Sets the system prompt; `None` or an empty text removes it.
    pub(crate) fn set_system(&mut self, text: Option<&str>) {
        self.messages.retain(|message| message.role != "system");
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.messages.insert(0, Message::new("system", text));
        }
        self.last = None;
    }

    /// Executes a command.
    ///
    /// # Errors
    /// If the command fails.
    pub(crate) fn obey(&mut self, command: Command, interrupt: &Interrupt) -> Result<()> {
        match command {
            Command::Rule(rule) => {
                self.rule = rule.unwrap_or(self.rule);
                ui::note(&self.rule.to_string());
                self.decoding.note_idle(&[self.rule], 1);
            }
            Command::Beta(beta) => {
                let moi = if let InputRule::Moi(moi) = self.rule { moi } else { Moi::default() };
                self.rule = InputRule::from(Moi { beta, ..moi }).validated()?;
                ui::note(&self.rule.to_string());
            }
            Command::System(text) => self.set_system(Some(&text)),
            Command::Retry => {
                let Some(question) = self.forget() else { bail!("nothing was asked yet") };
                self.decoding.note_idle(&[self.rule], 2);
                return self.say(&question, interrupt);
            }
            Command::Undo => match self.forget() {
                Some(question) => ui::note(&format!("forgot: {question}")),
                None => bail!("nothing was asked yet"),
            },
            Command::Clear => {
                self.messages.retain(|message| message.role == "system");
                (self.session, self.last) = (None, None);
            }
            Command::Save(path) => {
                let kept =
                    Kept { model: self.model.clone(), rule: self.rule, messages: self.messages.clone() };
                file::write_whole(&path, &serde_json::to_vec_pretty(&kept)?)?;
                ui::note(&format!("kept {} messages in {}", kept.messages.len(), path.display()));
            }
            Command::Load(path) => self.load(&path)?,
            Command::Stats => ui::note(&self.stats()),
            // The caller handles these.
            Command::Help | Command::Quit => {}
        }
        Ok(())
    }

    /// Continues a saved conversation. The model reads its turns again, from their text.
    ///
    /// # Errors
    /// If the file is not a saved conversation.
    pub(crate) fn load(&mut self, path: &Path) -> Result<()> {
        let wrong = || format!("{} is no conversation that can be loaded", path.display());
        let text = file::read_text(path).with_context(wrong)?;
        let kept: Kept = moi_files::json(text.as_bytes()).with_context(wrong)?;
        (self.rule, self.messages) = (kept.rule.validated().with_context(wrong)?, kept.messages);
        (self.session, self.last) = (None, None);
        ui::note(&format!("{} messages, {}", self.messages.len(), self.described()));
        Ok(())
    }

    /// Removes the last question and its answer, if there is one.
    fn forget(&mut self) -> Option<String> {
        let at = self.messages.iter().rposition(|message| message.role == "user")?;
        let question = self.messages[at].content.clone();
        self.messages.truncate(at);
        self.last = None;
        Some(question)
    }

    /// Sends a message and prints the answer as it is generated.
    ///
    /// # Errors
    /// If the engine refuses the message, which is then removed from the conversation.
    pub(crate) fn say(&mut self, text: &str, interrupt: &Interrupt) -> Result<()> {
        // A line with two slashes is a message that begins with one slash, not a command.
        let text = if text.starts_with("//") { &text[1..] } else { text };
        self.messages.push(Message::new("user", text));
        let answered = self.answer(interrupt);
        if answered.is_err() {
            self.messages.pop();
        }
        answered
    }

    fn answer(&mut self, interrupt: &Interrupt) -> Result<()> {
        let Some(tokenizer) = self.engine.tokenizer() else { bail!("the model has no tokenizer") };
        if let Some(asked) = self.messages.last() {
            prompt::check_length(&asked.content, tokenizer, self.engine.model().context_length())?;
        }
        let prompt = self.prompt(tokenizer)?;
        let request = self.decoding.request(&prompt, self.rule, self.answers);
        let session = self.session.take().unwrap_or_else(|| self.engine.session());
        let begun = Instant::now();
        let mut generation = self.engine.resume(session, request)?;
        let known = generation.reused_positions();
        note_kernels();
        self.answers += 1;
        let (mut tokens, mut said, mut reason) = (Vec::new(), String::new(), None);
        for step in generation.by_ref() {
            let step = step?;
            output::stream(&step.text)?;
            said += &step.text;
            reason = step.stop;
            if reason != Some(StopReason::Eos) {
                tokens.push(step.token);
            }
            if interrupt.is_set() {
                break;
            }
        }
        let (held, session) = generation.into_session()?;
        output::stream(&held)?;
        said += &held;
        output::print_bytes(b"\n")?;
        note_unknown(tokens.iter().copied(), Some(tokenizer));
        self.figures = Figures {
            prompt: prompt.len(),
            known,
            tokens: tokens.len(),
            seconds: begun.elapsed().as_secs_f64(),
        };
        self.session = Some(session);
        let asked = self.messages.clone();
        self.messages.push(Message::new("assistant", &said));
        self.last = Some(Turn { asked, prompt, tokens, is_whole: reason != Some(StopReason::Stop) });
        Ok(())
    }

    /// The tokens of the conversation. After an answer, they repeat the exact tokens of the last turn, so that its
    /// cached positions can be reused; tokenizing the text again could give other tokens.
    fn prompt(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        if let Some(last) = self.last.as_ref().filter(|last| last.is_whole)
            && let Some(tail) = self.template.encode_behind(last.asked.len(), &self.messages, tokenizer)?
        {
            return Ok([&last.prompt[..], &last.tokens, &tail].concat());
        }
        Ok(self.template.encode(&self.messages, tokenizer)?)
    }

    fn stats(&self) -> String {
        let Figures { prompt, known, tokens, seconds } = self.figures;
        let rate = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let positions = self.session.as_ref().map_or(0, Session::positions);
        format!(
            "{}, seed {}; last turn: {prompt} prompt tokens of which {known} were cached, {tokens} generated in \
             {seconds:.2} s ({rate:.1} tokens/s); {positions} positions cached",
            self.described(),
            self.decoding.seed
        )
    }
}
