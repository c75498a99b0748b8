//! Finds marked answers: `\boxed{}`, `\fbox{}` and `<answer>`.

use std::{collections::HashMap, sync::LazyLock};

use regex::Regex;

use crate::pattern::regex;

static COMMAND: LazyLock<Regex> = LazyLock::new(|| regex(r"\\(?:boxed|fbox)\s*\{"));
static WITHOUT_BRACES: LazyLock<Regex> = LazyLock::new(|| regex(r"\\boxed[ \t]*([^\s{}$\\.,]+)"));
static TAG: LazyLock<Regex> = LazyLock::new(|| regex(r"</?answer>"));

/// A marked answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Marked<'a> {
    /// The byte position at which the mark begins.
    pub(crate) start: usize,
    /// The byte position at which the mark ends.
    pub(crate) end: usize,
    pub(crate) inner: &'a str,
}

/// The marked answers of a text, in order; of nested boxes, the inner one counts as the later. A box that is not
/// closed is ignored, because the text was cut off. Takes time linear in the length of the text, whatever braces it
/// has.
pub(crate) fn boxes(text: &str) -> Vec<Marked<'_>> {
    let commands: HashMap<usize, usize> =
        COMMAND.find_iter(text).map(|command| (command.end() - 1, command.start())).collect();
    let mut found = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '{' => open.push(at),
            '}' => {
                let Some(brace) = open.pop() else { continue };
                if let Some(&start) = commands.get(&brace) {
                    found.push(Marked { start, end: at + 1, inner: text[brace + 1..at].trim() });
                }
            }
            _ => {}
        }
    }
    for captures in WITHOUT_BRACES.captures_iter(text) {
        if let (Some(whole), Some(inner)) = (captures.get(0), captures.get(1)) {
            found.push(Marked { start: whole.start(), end: whole.end(), inner: inner.as_str() });
        }
    }
    let tags: Vec<regex::Match<'_>> = TAG.find_iter(text).collect();
    for (at, tag) in tags.iter().enumerate().filter(|(_, tag)| tag.as_str() == "<answer>") {
        let end = tags.get(at + 1).map_or(text.len(), |next| next.start());
        found.push(Marked { start: tag.start(), end, inner: text[tag.end()..end].trim() });
    }
    found.sort_by_key(|marked| marked.start);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_answers_are_found_in_order() {
        let inner = |text: &'static str| boxes(text).iter().map(|marked| marked.inner).collect::<Vec<_>>();
        assert_eq!(inner("\\boxed{1} \\fbox{ 2 } <answer>3</answer> \\boxed {4}"), ["1", "2", "3", "4"]);
        assert_eq!(inner("\\boxed{a \\boxed{\\frac{1}{2}}}"), ["a \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"]);
        assert_eq!(inner("} \\boxed{1} { \\boxed{2"), ["1"]);
        assert_eq!(inner("$\\boxed 5$ <answer>6"), ["5", "6"]);
        assert!(inner("\\box{1} boxed{2} {}").is_empty());
    }
}
