//! Compares small chat templates with transformers and Jinja (tests/reference/templates.py).

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use moi_text::{ChatTemplate, Message, TemplateTokens};
use serde::Deserialize;

#[derive(Deserialize)]
struct Table {
    conversations: Vec<Vec<Message>>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    template: String,
    /// The index of the conversation to render.
    #[serde(default)]
    conversation: usize,
    /// What transformers renders; `None` if it refuses.
    text: Option<String>,
    /// A part of moi's error message if moi refuses on purpose what transformers renders.
    refused: Option<String>,
}

fn render(row: &Row, conversations: &[Vec<Message>]) -> Result<String, String> {
    let tokens = TemplateTokens {
        bos: Some("<s>".to_owned()),
        eos: Some("</s>".to_owned()),
        ..TemplateTokens::default()
    };
    let template = ChatTemplate::new(&row.template, tokens).map_err(|error| error.to_string())?;
    template.render(&conversations[row.conversation], true).map_err(|error| error.to_string())
}

/// The difference from transformers in this row, if any.
fn wrong(row: &Row, conversations: &[Vec<Message>]) -> Option<String> {
    let found = render(row, conversations);
    let expected = match (&row.text, &row.refused, &found) {
        (Some(_), Some(part), Err(message)) if message.contains(part) => return None,
        (Some(text), None, Ok(found)) if text == found => return None,
        (None, _, Err(_)) => return None,
        (_, Some(part), _) => format!("an error with {part:?}"),
        (Some(text), None, _) => format!("{text:?}"),
        (None, None, _) => "an error".to_owned(),
    };
    Some(format!("{:?}\n  is       {found:?}\n  expected {expected}", row.template))
}

fn replay(name: &str, table: &str) -> Vec<String> {
    let table: Table = serde_json::from_str(table).unwrap();
    assert!(!table.rows.is_empty(), "{name}");
    table.rows.iter().filter_map(|row| wrong(row, &table.conversations)).collect()
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let wrong = replay("templates.json", include_str!("templates.json"));
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Replays tables kept elsewhere: `templates.json` in the directory that the variable names.
#[test]
fn other_tables_agree() {
    let Some(directory) = std::env::var_os("MOI_TEST_VECTORS") else { return };
    let path = std::path::Path::new(&directory).join("templates.json");
    if let Ok(table) = std::fs::read_to_string(&path) {
        let wrong = replay("MOI_TEST_VECTORS", &table);
        assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    }
}
