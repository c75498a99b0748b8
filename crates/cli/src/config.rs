//! Finds the values of flags: from the command line, the environment, `moi.toml`, or the defaults.
//!
//! Values from the environment and the file become command-line arguments before the final parse, so that all values
//! are read and checked in the same way.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, parser::ValueSource};
use moi_hub::DEFAULT_MODEL;
use serde::Deserialize;
use toml::Value;

use crate::file;

/// The configuration file, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Values of flags, by flag name.
    #[serde(default)]
    defaults: BTreeMap<String, Value>,
    /// Named sets of flag values, for some models or for `--preset`.
    #[serde(default)]
    presets: BTreeMap<String, Preset>,
}

#[derive(Debug, Deserialize)]
struct Preset {
    /// The models that use this preset without `--preset`.
    #[serde(default)]
    models: Vec<String>,
    #[serde(flatten)]
    values: BTreeMap<String, Value>,
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Flag,
    Environment(String),
    Preset(String),
    File,
    /// The advice of the model's makers.
    Advice,
    Default,
}

/// A flag with its value and its source.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) flag: String,
    pub(crate) value: String,
    pub(crate) source: Source,
}

/// The configuration file and the chosen preset.
#[derive(Debug)]
pub(crate) struct Config {
    file: File,
    pub(crate) path: Option<PathBuf>,
    /// The preset of `--preset`.
    preset: Option<String>,
}

impl Config {
    /// Reads the first file of these that exists: `--config`, `MOI_CONFIG`, `moi.toml` here, `moi.toml` of the user.
    pub(crate) fn read(command: &Command, matches: &ArgMatches) -> Result<Self> {
        let global = |name: &str| matches.get_one::<String>(name).cloned();
        let named = global("config").or_else(|| env::var("MOI_CONFIG").ok().filter(|path| !path.is_empty()));
        let path = match named {
            Some(path) => Some(PathBuf::from(path)),
            None => places().into_iter().find(|path| path.is_file()),
        };
        let preset = global("preset");
        let Some(path) = path else {
            return match preset {
                Some(preset) => bail!("there is no preset `{preset}`, as there is no moi.toml"),
                None => Ok(Self { file: File::default(), path: None, preset: None }),
            };
        };
        let wrong = || format!("the configuration {} cannot be used", path.display());
        let text = file::read_text(&path).with_context(wrong)?;
        let file: File = toml::from_str(&text).with_context(wrong)?;
        let config = Self { file, path: Some(path.clone()), preset };
        config.check(command).with_context(wrong)?;
        Ok(config)
    }

    /// Checks that every key is a flag of some command that accepts the value, and that the chosen preset exists.
    fn check(&self, command: &Command) -> Result<()> {
        let flags: Vec<&Arg> = command.get_subcommands().flat_map(settable).collect();
        let names: Vec<&str> = flags.iter().filter_map(|arg| arg.get_long()).collect();
        let values = self.file.presets.values().flat_map(|preset| &preset.values);
        for (key, value) in self.file.defaults.iter().chain(values) {
            let mut named = flags.iter().filter(|arg| arg.get_long() == Some(key)).peekable();
            if named.peek().is_none() {
                bail!("there is no flag `{key}`{}", nearest(key, names.iter().copied()));
            }
            let text = text(key, value)?;
            if !named.any(|arg| takes(arg, &text)) {
                bail!("`{key}` cannot be `{text}`");
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

    /// The settings that apply to a built command, flag by flag.
    pub(crate) fn settings(&self, command: &Command, matches: &ArgMatches) -> Result<Vec<Setting>> {
        let args: Vec<&Arg> = settable(command).collect();
        let is_given =
            |arg: &Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        // Only one of two conflicting flags may declare the conflict.
        let says = |a: &Arg, b: &Arg| {
            command.get_arg_conflicts_with(a).iter().any(|other| other.get_id() == b.get_id())
        };
        let mut taken: Vec<&Arg> = command.get_arguments().filter(|arg| is_given(arg)).collect();
        let mut found: BTreeMap<&str, Vec<Setting>> = BTreeMap::new();
        // A value from an earlier layer excludes conflicting values of later layers.
        for layer in self.layers(&self.model(command, matches)) {
            for arg in args.iter().filter(|arg| !is_given(arg)) {
                let Some(flag) = arg.get_long() else { continue };
                let conflicts = taken
                    .iter()
                    .any(|other| other.get_id() != arg.get_id() && (says(arg, other) || says(other, arg)));
                if conflicts || found.contains_key(flag) {
                    continue;
                }
                let settings = layer.settings(arg, flag)?;
                if settings.iter().any(|setting| setting.value != IS_NOT_SET) {
                    taken.push(arg);
                }
                if !settings.is_empty() {
                    found.insert(flag, settings);
                }
            }
        }
        let of = |arg: &&Arg| {
            let flag = arg.get_long().unwrap_or_default();
            if is_given(arg) {
                return vec![Setting {
                    flag: flag.to_owned(),
                    value: raw(matches, arg),
                    source: Source::Flag,
                }];
            }
            found.remove(flag).unwrap_or_else(|| {
                let defaults = arg.get_default_values().iter().map(|value| value.to_string_lossy());
                let value = defaults.collect::<Vec<_>>().join(",");
                vec![Setting { flag: flag.to_owned(), value, source: Source::Default }]
            })
        };
        Ok(args.iter().flat_map(of).collect())
    }

    /// The sources of values beside the command line, in order of precedence.
    fn layers(&self, model: &str) -> Vec<Layer<'_>> {
        let is_for_model = |preset: &Preset| preset.models.iter().any(|name| name == model);
        let presets = self.file.presets.iter();
        let asked = presets.clone().filter(|(name, _)| Some(*name) == self.preset.as_ref());
        let of_model =
            presets.filter(|(name, preset)| is_for_model(preset) && Some(*name) != self.preset.as_ref());
        let presets = asked.chain(of_model);
        let presets = presets.map(|(name, preset)| Layer::File(&preset.values, Source::Preset(name.clone())));
        let defaults = Layer::File(&self.file.defaults, Source::File);
        [Layer::Environment].into_iter().chain(presets).chain([defaults]).collect()
    }

    /// The model name that selects presets.
    fn model(&self, command: &Command, matches: &ArgMatches) -> String {
        let has_model = command.get_arguments().any(|arg| arg.get_id() == "model");
        let is_given = has_model && matches.value_source("model") == Some(ValueSource::CommandLine);
        let given = is_given.then(|| matches.get_one::<String>("model").cloned()).flatten();
        let of_environment = || env::var("MOI_MODEL").ok().filter(|model| !model.is_empty());
        let text = |values: &BTreeMap<String, Value>| values.get("model")?.as_str().map(str::to_owned);
        let of_preset = || text(&self.file.presets.get(self.preset.as_ref()?)?.values);
        let of_file = || text(&self.file.defaults);
        let model = given.or_else(of_environment).or_else(of_preset).or_else(of_file);
        model.unwrap_or_else(|| DEFAULT_MODEL.to_owned())
    }
}

/// A source of values.
enum Layer<'a> {
    Environment,
    File(&'a BTreeMap<String, Value>, Source),
}

impl Layer<'_> {
    /// The values of a flag in this layer. A value that this command does not accept is skipped, because another
    /// command may have a flag of the same name that accepts it.
    fn settings(&self, arg: &Arg, flag: &str) -> Result<Vec<Setting>> {
        let (values, source) = match self {
            Self::Environment => {
                let variable = variable(flag);
                let value = env::var(&variable).ok().filter(|value| !value.is_empty());
                (value.into_iter().collect(), Source::Environment(variable))
            }
            Self::File(values, source) => (listed(arg, flag, values.get(flag))?, source.clone()),
        };
        let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
        let value = |value: String| match (is_switch, value.to_lowercase().as_str()) {
            (true, "1" | "true" | "yes" | "on") => Ok(IS_SET.to_owned()),
            (true, "0" | "false" | "no" | "off") => Ok(IS_NOT_SET.to_owned()),
            (true, _) => bail!("--{flag} is on or off, not `{value}` (from the {source})"),
            (false, _) => Ok(value),
        };
        let values = values.into_iter().filter(|value| takes(arg, value)).map(value);
        values
            .map(|value| Ok(Setting { flag: flag.to_owned(), value: value?, source: source.clone() }))
            .collect()
    }
}

/// The values of a flag in the file as texts; several if the flag may be repeated.
fn listed(arg: &Arg, flag: &str, value: Option<&Value>) -> Result<Vec<String>> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) if matches!(arg.get_action(), ArgAction::Append) => {
            values.iter().map(|value| text(flag, value)).collect()
        }
        Some(value) => Ok(vec![text(flag, value)?]),
    }
}

/// Whether a flag accepts this value: one of its possible values, or any if it lists none.
fn takes(arg: &Arg, value: &str) -> bool {
    let possible = arg.get_possible_values();
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    is_switch
        || possible.is_empty()
        || value.split(',').all(|value| possible.iter().any(|p| p.matches(value, false)))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment(variable) => write!(f, "environment ({variable})"),
            Self::Preset(name) => write!(f, "file, preset `{name}`"),
            Self::File => f.write_str("file"),
            Self::Advice => f.write_str("the model's makers"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl Setting {
    /// The setting as a command-line argument; `None` if it is on the command line already.
    pub(crate) fn word(&self) -> Option<OsString> {
        match (&self.source, self.value.as_str()) {
            (Source::Flag | Source::Advice | Source::Default, _) | (_, IS_NOT_SET) => None,
            (_, IS_SET) => Some(format!("--{}", self.flag).into()),
            (_, value) => Some(format!("--{}={value}", self.flag).into()),
        }
    }
}

/// The value of a flag that takes none, if it is set.
const IS_SET: &str = "true";
const IS_NOT_SET: &str = "false";

/// The flags that a file or the environment may set.
fn settable(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        let is_own =
            arg.get_long().is_some_and(|long| !["help", "version", "config", "preset"].contains(&long));
        is_own && !arg.is_hide_set()
    })
}

/// The environment variable of a flag.
fn variable(flag: &str) -> String {
    format!("MOI_{}", flag.replace('-', "_").to_uppercase())
}

/// The value as given on the command line.
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
        Value::Boolean(is) => is.to_string(),
        Value::Array(values) => {
            values.iter().map(|value| text(flag, value)).collect::<Result<Vec<_>>>()?.join(",")
        }
        other => {
            bail!("`{flag}` must be text, a number, true, false or a list of these, not {}", other.type_str())
        }
    })
}

/// Returns `; did you mean ...?` if a known name is similar.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    let near =
        names.map(|known| (strsim::jaro_winkler(name, known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((likeness, known)) if likeness > 0.8 => format!("; did you mean `{known}`?"),
        _ => String::new(),
    }
}

/// The paths where the configuration file is searched.
pub(crate) fn places() -> Vec<PathBuf> {
    let user = directories::ProjectDirs::from("", "", "moi").map(|dirs| dirs.config_dir().join("moi.toml"));
    [Some(Path::new("moi.toml").to_owned()), user].into_iter().flatten().collect()
}
