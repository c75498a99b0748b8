//! Where flags get their values from: the command line, the environment, `moi.toml`, or their defaults.
//!
//! Values from the environment and the file become arguments of the command line before it is parsed for good, so that all
//! are read and checked in one way.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, parser::ValueSource};
use moi_hub::DEFAULT_MODEL;
use serde::Deserialize;
use toml::Value;

use crate::args::Args;

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Values of flags, by their names.
    #[serde(default)]
    defaults: BTreeMap<String, Value>,
    /// Values of flags under a name, for some models or where they are asked for.
    #[serde(default)]
    presets: BTreeMap<String, Preset>,
}

#[derive(Debug, Deserialize)]
struct Preset {
    /// The models to which it applies by itself.
    #[serde(default)]
    models: Vec<String>,
    #[serde(flatten)]
    values: BTreeMap<String, Value>,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Environment(String),
    Preset(String),
    File,
    Default,
}

/// A flag that applies.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) flag: String,
    pub(crate) value: String,
    pub(crate) source: Source,
}

/// The arguments of this process, with what the environment and the file add.
///
/// # Errors
/// If the file cannot be used. What clap refuses ends the process, with its own words.
pub(crate) fn args() -> Result<Args> {
    let argv: Vec<OsString> = env::args_os().collect();
    let command = Args::command();
    let matches = command.clone().try_get_matches_from(&argv).unwrap_or_else(|error| error.exit());
    let Some((name, given)) = matches.subcommand() else {
        return Ok(Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()));
    };
    let Some(subcommand) = command.find_subcommand(name) else { bail!("there is no command `{name}`") };
    let config = Config::read(&command, &matches)?;
    let added = config.settings(subcommand, given)?;
    let at = argv.iter().position(|arg| arg == name).map_or(argv.len(), |at| at + 1);
    let words = added.iter().filter(|setting| !matches!(setting.source, Source::Default | Source::Flag));
    let words: Vec<OsString> = words.map(Setting::word).collect();
    let whole = argv[..at].iter().cloned().chain(words.iter().cloned()).chain(argv[at..].iter().cloned());
    match command.try_get_matches_from(whole).and_then(|matches| Args::from_arg_matches(&matches)) {
        Ok(args) => Ok(args),
        Err(error) if words.is_empty() => error.exit(),
        Err(error) => {
            let words = words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
            eprintln!("moi: with what the environment and {} add: {}", config.told(), words.join(" "));
            error.exit()
        }
    }
}

/// What the file says.
#[derive(Debug)]
pub(crate) struct Config {
    file: File,
    pub(crate) path: Option<PathBuf>,
    /// The preset that was asked for.
    preset: Option<String>,
}

impl Config {
    /// Reads the file that was named, or the first there is of `MOI_CONFIG`, `moi.toml` here, and the user's own.
    pub(crate) fn read(command: &Command, matches: &ArgMatches) -> Result<Self> {
        let global = |name: &str| matches.get_one::<String>(name).cloned();
        let named = global("config").or_else(|| env::var("MOI_CONFIG").ok().filter(|path| !path.is_empty()));
        let user =
            directories::ProjectDirs::from("", "", "moi").map(|dirs| dirs.config_dir().join("moi.toml"));
        let path = match named {
            Some(path) => Some(PathBuf::from(path)),
            None => [Some(PathBuf::from("moi.toml")), user].into_iter().flatten().find(|path| path.is_file()),
        };
        let preset = global("preset");
        let Some(path) = path else {
            return match preset {
                Some(preset) => bail!("there is no preset `{preset}`, as there is no moi.toml"),
                None => Ok(Self { file: File::default(), path: None, preset: None }),
            };
        };
        let wrong = || format!("the configuration {} cannot be used", path.display());
        let text = fs::read_to_string(&path).with_context(wrong)?;
        let file: File = toml::from_str(&text).with_context(wrong)?;
        let config = Self { file, path: Some(path.clone()), preset };
        config.check(command).with_context(wrong)?;
        Ok(config)
    }

    /// Whether every key is a flag of some command, and the preset that was asked for is there.
    fn check(&self, command: &Command) -> Result<()> {
        let flags: Vec<&str> =
            command.get_subcommands().flat_map(settable).filter_map(Arg::get_long).collect();
        let keys = self.file.presets.values().flat_map(|preset| preset.values.keys());
        for key in self.file.defaults.keys().chain(keys) {
            if !flags.contains(&key.as_str()) {
                bail!("`{key}` is the name of no flag{}", nearest(key, flags.iter().copied()));
            }
        }
        match &self.preset {
            Some(preset) if !self.file.presets.contains_key(preset) => {
                let names: Vec<&str> = self.file.presets.keys().map(String::as_str).collect();
                bail!("there is no preset `{preset}`; there are: {}", names.join(", "))
            }
            _ => Ok(()),
        }
    }

    fn told(&self) -> String {
        self.path.as_ref().map_or_else(|| "no file".to_owned(), |path| path.display().to_string())
    }

    /// What applies to a command, flag by flag.
    pub(crate) fn settings(&self, command: &Command, matches: &ArgMatches) -> Result<Vec<Setting>> {
        let mut command = command.clone();
        // Conflicts are only known then.
        command.build();
        let is_given =
            |arg: &Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let model = self.model(&command, matches);
        let mut settings = Vec::new();
        for arg in settable(&command) {
            let Some(flag) = arg.get_long() else { continue };
            if is_given(arg) {
                settings.push(Setting {
                    flag: flag.to_owned(),
                    value: raw(matches, arg),
                    source: Source::Flag,
                });
                continue;
            }
            // Either of two may say that they do not go together.
            let says = |a: &Arg, b: &Arg| {
                command.get_arg_conflicts_with(a).iter().any(|other| other.get_id() == b.get_id())
            };
            let mut given = command.get_arguments().filter(|other| is_given(other));
            let conflicts = given.any(|other| says(arg, other) || says(other, arg));
            let found = if conflicts { Vec::new() } else { self.found(arg, flag, &model)? };
            match found.is_empty() {
                false => settings.extend(found),
                true => {
                    let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
                    let value = defaults.collect::<Vec<_>>().join(",");
                    settings.push(Setting { flag: flag.to_owned(), value, source: Source::Default });
                }
            }
        }
        Ok(settings)
    }

    /// The values of a flag that neither the command line nor a default gives.
    fn found(&self, arg: &Arg, flag: &str, model: &str) -> Result<Vec<Setting>> {
        let setting =
            |value: String, source: &Source| Setting { flag: flag.to_owned(), value, source: source.clone() };
        let variable = variable(flag);
        if let Some(value) = env::var(&variable).ok().filter(|value| !value.is_empty()) {
            return Ok(vec![setting(value, &Source::Environment(variable))]);
        }
        let is_for_model = |preset: &Preset| preset.models.iter().any(|name| name == model);
        let presets = self.file.presets.iter();
        let asked = presets.clone().filter(|(name, _)| Some(*name) == self.preset.as_ref());
        let mut layers: Vec<(&BTreeMap<String, Value>, Source)> = asked
            .chain(presets.filter(|(_, preset)| is_for_model(preset)))
            .map(|(name, preset)| (&preset.values, Source::Preset(name.clone())))
            .collect();
        layers.push((&self.file.defaults, Source::File));
        let found = layers.iter().find_map(|(values, source)| Some((values.get(flag)?, source)));
        let Some((value, source)) = found else { return Ok(Vec::new()) };
        match value {
            Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
                values.iter().map(|value| Ok(setting(text(flag, value)?, source))).collect()
            }
            Value::Array(values) => {
                let texts = values.iter().map(|value| text(flag, value)).collect::<Result<Vec<_>>>()?;
                Ok(vec![setting(texts.join(","), source)])
            }
            value => Ok(vec![setting(text(flag, value)?, source)]),
        }
    }

    /// The model that presets are looked up for.
    fn model(&self, command: &Command, given: &ArgMatches) -> String {
        let has_model = command.get_arguments().any(|arg| arg.get_id() == "model");
        let of_line = has_model.then(|| {
            let by_hand = given.value_source("model") == Some(ValueSource::CommandLine);
            by_hand.then(|| given.get_one::<String>("model").cloned()).flatten()
        });
        let of_file = || self.file.defaults.get("model").and_then(Value::as_str).map(str::to_owned);
        of_line
            .flatten()
            .or_else(|| env::var("MOI_MODEL").ok())
            .or_else(of_file)
            .unwrap_or(DEFAULT_MODEL.to_owned())
    }
}

impl Setting {
    /// As an argument.
    fn word(&self) -> OsString {
        match self.value.as_str() {
            // Of a flag without a value.
            IS_SET => format!("--{}", self.flag).into(),
            value => format!("--{}={value}", self.flag).into(),
        }
    }
}

/// What a flag without a value has for one.
const IS_SET: &str = "true";

/// The flags that a file or the environment may set.
fn settable(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let is_own =
            arg.get_long().is_some_and(|long| !["help", "version", "config", "preset"].contains(&long));
        is_own && !arg.is_hide_set()
    })
}

/// The environment's name of a flag.
fn variable(flag: &str) -> String {
    format!("MOI_{}", flag.replace('-', "_").to_uppercase())
}

/// What was given on the command line.
fn raw(given: &ArgMatches, arg: &Arg) -> String {
    let values = given.get_raw(arg.get_id().as_str()).into_iter().flatten();
    let values: Vec<String> = values.map(|value| value.to_string_lossy().into_owned()).collect();
    if values.is_empty() { IS_SET.to_owned() } else { values.join(",") }
}

fn text(flag: &str, value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(true) => IS_SET.to_owned(),
        Value::Boolean(false) => bail!("`{flag} = false` says nothing: leave it out"),
        other => bail!("`{flag}` must be text, a number, true or a list of these, not {}", other.type_str()),
    })
}

/// `; did you mean ...?` where a name comes near.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let near =
        names.map(|known| (strsim::jaro_winkler(name, known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((likeness, known)) if likeness > 0.8 => format!("; did you mean `{known}`?"),
        _ => String::new(),
    }
}

/// Where the file is looked for.
pub(crate) fn places() -> Vec<PathBuf> {
    let user = directories::ProjectDirs::from("", "", "moi").map(|dirs| dirs.config_dir().join("moi.toml"));
    [Some(Path::new("moi.toml").to_owned()), user].into_iter().flatten().collect()
}
