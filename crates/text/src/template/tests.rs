#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use super::{ChatTemplate, Message, TemplateTokens};

#[test]
fn other_tokens_are_named_as_in_transformers() {
    let others =
        vec![("image_token".to_owned(), "<im>".to_owned()), ("messages".to_owned(), "no".to_owned())];
    let tokens = TemplateTokens { bos: Some("<s>".into()), others, ..TemplateTokens::default() };
    let source = "{{ bos_token }}{{ image_token }}{{ sep_token is defined }}{{ messages[0].content }}";
    let template = ChatTemplate::new(source, tokens).unwrap();
    assert_eq!(template.render(&[Message::new("user", "x")], true).unwrap(), "<s><im>Falsex");
}
