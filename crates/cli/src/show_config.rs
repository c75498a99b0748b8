//! `moi config`.

use std::path::Path;

use anyhow::{Result, bail};
use moi_pretrained::Pretrained;
use serde_json::json;

use crate::{
    args::{self, ConfigArgs, Format, GlobalArgs},
    config::{self, Config, Setting, Source},
    model, output,
};

/// Prints the settings of a command, with their sources.
pub(crate) fn run(args: &ConfigArgs, global: &GlobalArgs) -> Result<()> {
    let mut command = args::command();
    command.build();
    let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
    let Some(subcommand) = command.find_subcommand(&args.command) else {
        bail!("there is no command `{}`{}", args.command, config::nearest(&args.command, names.into_iter()));
    };
    let mut line = vec!["moi".to_owned()];
    line.extend(global.config.iter().map(|path| format!("--config={path}")));
    line.extend(global.preset.iter().map(|preset| format!("--preset={preset}")));
    line.push(args.command.clone());
    line.extend(args.flags.iter().cloned());
    let matches = command.clone().try_get_matches_from(&line).unwrap_or_else(|error| error.exit());
    let config = Config::read(&command, &matches)?;
    let Some((_, given)) = matches.subcommand() else { bail!("`{}` is no command", args.command) };
    let mut settings = config.settings(subcommand, given)?;
    advise(&mut settings);
    // Hide API keys, because users share this output.
    let keys = settings.iter_mut().filter(|setting| setting.flag == "api-key" && !setting.value.is_empty());
    keys.for_each(|setting| setting.value = "(hidden)".to_owned());
    match args.format {
        Format::Json => {
            let rows = settings.iter().map(
                |setting| json!({"flag": setting.flag, "value": setting.value, "source": setting.source.to_string()}),
            );
            let file = config.path.as_ref().map(|path| path.display().to_string());
            output::print_json(&json!({"file": file, "settings": rows.collect::<Vec<_>>()}))
        }
        Format::Text => output::print_bytes(table(&config, &settings).as_bytes()),
    }
}

/// Fills in the advice of the model's makers where no setting is given. A model that is not on this machine is not
/// downloaded for that.
fn advise(settings: &mut [Setting]) {
    let Some(model) =
        settings.iter().find(|setting| setting.flag == "model").map(|setting| setting.value.clone())
    else {
        return;
    };
    let advised = match moi_hub::find(&model) {
        Some(entry) => model::advised(entry),
        None => match Pretrained::open(Path::new(&model)) {
            Ok(Pretrained { sampling: Ok(sampling), .. }) => sampling,
            _ => return,
        },
    };
    let values = [
        ("temperature", advised.temperature.map(|value| value.to_string())),
        ("top-k", advised.top_k.map(|value| value.to_string())),
        ("top-p", advised.top_p.map(|value| value.to_string())),
        ("min-p", advised.min_p.map(|value| value.to_string())),
        ("typical-p", advised.typical_p.map(|value| value.to_string())),
        ("xtc-probability", advised.xtc_probability.map(|value| value.to_string())),
        ("xtc-threshold", advised.xtc_threshold.map(|value| value.to_string())),
        ("repetition-penalty", advised.repetition_penalty.map(|value| value.to_string())),
        ("presence-penalty", advised.presence_penalty.map(|value| value.to_string())),
        ("frequency-penalty", advised.frequency_penalty.map(|value| value.to_string())),
        ("penalty-window", advised.penalty_window.map(|value| value.to_string())),
        ("ban", (!advised.banned.is_empty()).then(|| format!("{:?}", advised.banned))),
        ("no-repeat-ngram", advised.no_repeat_ngram.map(|value| value.to_string())),
    ];
    for setting in settings.iter_mut().filter(|setting| setting.source == Source::Default) {
        let value = values.iter().find(|(flag, _)| *flag == setting.flag);
        if let Some((_, Some(value))) = value {
            (setting.value, setting.source) = (value.clone(), Source::Advice);
        }
    }
}

fn table(config: &Config, settings: &[Setting]) -> String {
    let places =
        config::places().iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ");
    let mut text = match &config.path {
        Some(path) => format!("file: {}\n\n", path.display()),
        None => format!("file: none; it would be {places}\n\n"),
    };
    let width = |of: fn(&Setting) -> usize| settings.iter().map(of).max().unwrap_or(0);
    let (flags, values) = (width(|s| s.flag.len() + 2), width(|s| s.value.chars().count()).min(40));
    for setting in settings {
        let flag = format!("--{}", setting.flag);
        let value = if setting.value.is_empty() { "-" } else { &setting.value };
        text += &format!("{flag:flags$}  {value:values$}  {}\n", setting.source);
    }
    text
}
