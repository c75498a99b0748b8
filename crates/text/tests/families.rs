//! Compares chat templates of model families with transformers (tests/reference/family_templates.py).
//!
//! `families` beside this file holds templates under permissive licences and what transformers renders for them;
//! `MOI_TEST_TEMPLATES` can name another directory of the same form.

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use moi_text::{ChatTemplate, Message, TemplateTokens};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    template: String,
    bos: Option<String>,
    eos: Option<String>,
    /// Other tokens that a few templates read.
    #[serde(default)]
    extra: serde_json::Map<String, serde_json::Value>,
    conversation: usize,
    /// What transformers renders; `None` if it refuses.
    text: Option<String>,
}

fn conversation(number: usize) -> Vec<Message> {
    let message = |(role, content): &(&str, &str)| Message::new(role, content);
    let messages: &[(&str, &str)] = match number {
        0 => &[("user", "Hi")],
        1 => &[("system", "Be brief."), ("user", "Hi")],
        _ => &[("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye  \n")],
    };
    messages.iter().map(message).collect()
}

/// The difference from transformers in this row, if any.
fn wrong(directory: &Path, row: &Row) -> Option<String> {
    let source = fs::read_to_string(directory.join(format!("{}.jinja", row.template))).unwrap();
    // A template that prints today's date cannot be compared.
    if source.contains("strftime_now(") {
        return None;
    }
    let extra = row.extra.iter().filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())));
    let tokens = TemplateTokens {
        bos: row.bos.clone(),
        eos: row.eos.clone(),
        others: extra.collect(),
        ..TemplateTokens::default()
    };
    let rendered =
        ChatTemplate::new(&source, tokens).and_then(|it| it.render(&conversation(row.conversation), true));
    match (&row.text, &rendered) {
        (Some(expected), Ok(found)) if expected == found => None,
        (None, Err(_)) => None,
        (expected, found) => Some(format!(
            "{} {}\n  is       {found:?}\n  expected {expected:?}",
            row.template, row.conversation
        )),
    }
}

#[test]
fn templates_of_families_render_as_transformers_renders_them() {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/families");
    let named = std::env::var_os("MOI_TEST_TEMPLATES").map(PathBuf::from);
    for directory in [Some(own), named].into_iter().flatten() {
        let rows = fs::read(directory.join("rendered.json")).unwrap();
        let rows: Vec<Row> = serde_json::from_slice(&rows).unwrap();
        assert!(rows.len() > 50, "{}", directory.display());
        let wrong: Vec<String> = rows.iter().filter_map(|row| wrong(&directory, row)).collect();
        assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    }
}
