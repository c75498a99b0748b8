//! The flags of samplers. They are generated from the samplers' declarations, so a new sampler gets its flags without
//! code here.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use moi_engine::{KnobKind, Sampling, SamplingKnob, SamplingStep};

/// The sampler flags that were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnobArgs {
    given: Vec<(SamplingKnob, Vec<String>)>,
}

impl KnobArgs {
    /// Whether the flag of this knob was given.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.given.iter().any(|(knob, _)| knob.key == key)
    }

    /// Applies the given flags to a sampling.
    ///
    /// # Errors
    /// If a value is not allowed for its knob.
    pub(crate) fn apply(&self, sampling: &mut Sampling) -> Result<(), moi_engine::SamplingError> {
        for (knob, texts) in &self.given {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            sampling.set(knob.key, &texts)?;
        }
        Ok(())
    }

    /// The first given flag whose sampler is not in the list, if there is one.
    pub(crate) fn idle(&self, samplers: &[SamplingStep]) -> Option<(String, SamplingStep)> {
        let idle = |knob: &SamplingKnob| knob.step.filter(|step| !samplers.contains(step));
        self.given.iter().find_map(|(knob, _)| Some((knob.flag(), idle(knob)?)))
    }
}

/// The knobs that have a flag of their own.
fn knobs() -> impl Iterator<Item = SamplingKnob> {
    Sampling::knobs().into_iter().filter(|knob| knob.kind != KnobKind::ByToken)
}

impl Args for KnobArgs {
    fn augment_args(command: Command) -> Command {
        let mut previous = None;
        knobs().fold(command, |command, knob| {
            // The first knob of a sampler switches the sampler on, so its help needs no default; the other knobs show
            // theirs.
            let is_first = previous.replace(knob.step) != Some(knob.step);
            let flag = knob.flag();
            let arg = Arg::new(flag.clone()).long(flag).help(help(&knob, is_first)).action(ArgAction::Set);
            command.arg(match knob.kind {
                KnobKind::Number => arg
                    .value_name("F")
                    .value_parser(|text: &str| text.parse::<f64>().map(|_| text.to_owned()))
                    .allow_negative_numbers(true),
                // llama.cpp, vLLM and transformers use -1 for "off" in some places where moi uses 0.
                KnobKind::Count if knob.default == "0" => {
                    arg.value_name("N").value_parser(count_or_off).allow_negative_numbers(true)
                }
                KnobKind::Count => arg.value_name("N").value_parser(count).allow_negative_numbers(true),
                KnobKind::Integer => arg.value_name("N").value_parser(integer).allow_negative_numbers(true),
                KnobKind::Texts | KnobKind::ByToken => arg
                    .value_name("TEXT")
                    .value_parser(value_parser!(String))
                    .allow_hyphen_values(true)
                    .action(ArgAction::Append),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for KnobArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = knobs().filter_map(|knob| {
            let texts = matches.get_many::<String>(&knob.flag())?.cloned().collect();
            Some((knob, texts))
        });
        Ok(Self { given: given.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn count(text: &str) -> Result<String, &'static str> {
    text.parse::<usize>().map(|_| text.to_owned()).map_err(|_| "expected a whole number from 0 on")
}

fn count_or_off(text: &str) -> Result<String, &'static str> {
    match text {
        "-1" => Ok("0".to_owned()),
        _ => count(text).map_err(|_| "expected a whole number from 0 on, or -1"),
    }
}

fn integer(text: &str) -> Result<String, &'static str> {
    let is_allowed = text.parse::<i64>().is_ok_and(|number| number >= -1);
    is_allowed.then(|| text.to_owned()).ok_or("expected a whole number from -1 on")
}

/// The help text of a knob, with its default. The first knob of a sampler shows no default, because there the default
/// is "off".
fn help(knob: &SamplingKnob, is_first: bool) -> String {
    if is_first || knob.help.contains("[default") {
        return knob.help.to_owned();
    }
    format!("{} [default: {}]", knob.help, knob.default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(line: &[&str]) -> Result<KnobArgs, clap::Error> {
        let command = KnobArgs::augment_args(Command::new("moi"));
        let matches = command.try_get_matches_from([&["moi"], line].concat())?;
        KnobArgs::from_arg_matches(&matches)
    }

    #[test]
    fn flags_set_their_knobs() {
        let line =
            ["--temperature=0.5", "--top-k", "-1", "--dry-multiplier=0.8", "--dry-sequence-breaker", "\n"];
        let args = given(&line).unwrap();
        let mut sampling = Sampling { top_k: 7.into(), ..Sampling::default() };
        args.apply(&mut sampling).unwrap();
        assert_eq!((sampling.temperature.0, sampling.top_k.0, sampling.dry.multiplier), (0.5, 0, 0.8));
        assert_eq!(sampling.dry.sequence_breakers, ["\n"]);
        assert!(args.has("top_k") && !args.has("top_p"));
        let without_dry: Vec<SamplingStep> =
            SamplingStep::ALL.iter().copied().filter(|step| *step != SamplingStep::Dry).collect();
        assert_eq!(args.idle(&without_dry).unwrap().0, "dry-multiplier");
        assert!(args.idle(SamplingStep::ALL).is_none());
    }

    #[test]
    fn wrong_values_are_refused_with_what_was_expected() {
        for (flag, expected) in [
            ("--top-k=1.5", "a whole number from 0 on, or -1"),
            ("--top-k=-2", "a whole number from 0 on, or -1"),
            ("--dry-allowed-length=-1", "a whole number from 0 on"),
            ("--top-p=x", "invalid float"),
            ("--dry-penalty-last-n=-2", "a whole number from -1 on"),
        ] {
            let error = given(&[flag]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
