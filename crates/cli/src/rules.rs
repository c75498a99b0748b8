//! `moi rules`.

use anyhow::Result;
use moi_engine::InputRule;
use serde_json::json;

use crate::{
    args::{Format, RulesArgs},
    output,
};

/// Lists the input rules and their knobs.
pub(crate) fn run(args: &RulesArgs) -> Result<()> {
    let rules = InputRule::all();
    if args.format == Format::Json {
        let knobs = |rule: &InputRule| {
            let knob = |knob: moi_engine::Knob| json!({"name": knob.name, "help": knob.help, "default": knob.default});
            rule.knobs().into_iter().map(knob).collect::<Vec<_>>()
        };
        let rows = rules.iter().map(|rule| {
            json!({"rule": rule.name(), "help": rule.help(), "thinks": rule.thinks(), "knobs": knobs(rule)})
        });
        return output::print_json(&rows.collect::<Vec<_>>());
    }
    let mut text = String::new();
    for rule in rules {
        let scope = if rule.thinks() { " [for thinking]" } else { "" };
        text += &format!("{}{scope}\n    {}\n", rule.name(), rule.help());
        for knob in rule.knobs() {
            let default =
                knob.default.map_or_else(|| "must be given".to_owned(), |value| format!("default {value}"));
            text += &format!("      {:14} {} [{default}]\n", knob.name, knob.help);
        }
        text.push('\n');
    }
    text += "On the command line --rule NAME:KNOB=VALUE:..., in JSON {\"rule\": NAME, KNOB: VALUE, ...}\n";
    output::print_bytes(text.as_bytes())
}
