//! The commands of a chat: lines that begin with a slash.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use moi_engine::InputRule;

use crate::config::nearest;

/// A command of a chat.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Command {
    Help,
    Quit,
    /// Set the input rule, or show it if none is given.
    Rule(Option<InputRule>),
    Beta(f64),
    /// Set the system prompt, or remove it if empty.
    System(String),
    /// Answer the last question again, with another seed.
    Retry,
    /// Forget the last question and its answer.
    Undo,
    /// Start a new conversation.
    Clear,
    Save(PathBuf),
    Load(PathBuf),
    Stats,
}

pub(crate) const HELP: &str = "\
/rule [RULE]    what the model is fed: token, moi:beta=0.5, soft-thinking ...; shows it without one
/beta F         the same for moi's beta
/system [TEXT]  what the model is told before the conversation
/retry          the last question again, with another seed
/undo           forget the last question and its answer
/clear          begin anew
/save FILE      keep the conversation as JSON
/load FILE      go on with one that was kept
/stats          tokens, positions in the cache, speed
/help, /quit    Ctrl-C ends an answer, Ctrl-D the conversation
A line that begins with // is said, with one slash.
";

const NAMES: &[&str] =
    &["rule", "beta", "system", "retry", "undo", "clear", "save", "load", "stats", "help", "quit", "exit"];

impl Command {
    /// Parses a line; `None` if it is not a command.
    ///
    /// # Errors
    /// If there is no such command, or an argument is missing.
    pub(crate) fn parse(line: &str) -> Result<Option<Self>> {
        let Some(rest) = line.strip_prefix('/').filter(|rest| !rest.starts_with('/')) else {
            return Ok(None);
        };
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let argument = argument.trim();
        let file = || match argument {
            "" => Err(anyhow!("/{name} needs the name of a file")),
            path => Ok(PathBuf::from(path)),
        };
        Ok(Some(match name {
            "help" => Self::Help,
            "quit" | "exit" => Self::Quit,
            "rule" if argument.is_empty() => Self::Rule(None),
            "rule" => Self::Rule(Some(argument.parse()?)),
            "beta" => {
                Self::Beta(argument.parse().map_err(|_| anyhow!("/beta needs a number, got `{argument}`"))?)
            }
            "system" => Self::System(argument.to_owned()),
            "retry" => Self::Retry,
            "undo" => Self::Undo,
            "clear" => Self::Clear,
            "save" => Self::Save(file()?),
            "load" => Self::Load(file()?),
            "stats" => Self::Stats,
            _ => bail!("there is no command /{name}{}", nearest(name, NAMES.iter().copied())),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let parsed = |line| Command::parse(line).unwrap();
        assert_eq!(parsed("hello /rule"), None);
        assert_eq!(parsed("//rule"), None);
        assert_eq!(parsed("/rule"), Some(Command::Rule(None)));
        assert_eq!(parsed("/rule token"), Some(Command::Rule(Some(InputRule::TOKEN))));
        assert_eq!(parsed("/beta 0.5"), Some(Command::Beta(0.5)));
        assert_eq!(parsed("/system  Be brief. "), Some(Command::System("Be brief.".into())));
        assert_eq!(parsed("/save a b.json"), Some(Command::Save("a b.json".into())));
        for (line, part) in [
            ("/rule mio", "`mio`"),
            ("/beta much", "`much`"),
            ("/save", "needs the name of a file"),
            ("/retyr", "did you mean `retry`"),
        ] {
            assert!(Command::parse(line).unwrap_err().to_string().contains(part), "{line}");
        }
    }
}
