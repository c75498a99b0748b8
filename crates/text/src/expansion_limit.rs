//! Limits how much longer the steps of a `tokenizer.json` can make a text. Steps follow one another, so forty steps
//! that each double a text make a terabyte of one letter, inside a library call that cannot be stopped.
//!
//! Unicode normal forms, lower case and the spaces that BERT puts around characters are not counted, because
//! repeating such a step does not lengthen the text again.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

use crate::patterns::{shortest_match, steps, weight};

/// Most steps in all; real files have up to a few dozen.
const MAX_STEPS: usize = 256;
/// How many times as long a text can become on its way to tokens, or tokens on their way to text. SentencePiece's own
/// normalisation makes 33 bytes of some characters, and a space often becomes three bytes.
const MAX_GROWTH: usize = 256;
/// Most bytes or tokens that are added to any text.
const MAX_ADDED: usize = 256;
/// Most bytes of all patterns with their counts written out ([`weight`]); real files come to some 700.
const MAX_WEIGHT: usize = 16_384;
/// Most steps that all backtracking patterns together may take at one character: the patterns of GPT-2 and Llama 3
/// take 2,048, and GPT-4's, as tiktoken has it, takes four times that.
const MAX_BACK: usize = 24_576;

/// Totals over the steps of a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expansion {
    steps: usize,
    /// How many times as long a text can become, without the factor `once`.
    times: usize,
    /// A further factor: the most by which one step lengthens a single character that no earlier replacement had
    /// written.
    once: usize,
    /// All text that replacements have written, or `None` if a step can write any text.
    written: Option<String>,
    added: usize,
    weight: usize,
    back: usize,
}

impl Default for Expansion {
    fn default() -> Self {
        Self { steps: 0, times: 1, once: 1, written: Some(String::new()), added: 0, weight: 0, back: 0 }
    }
}

impl Expansion {
    /// Bytes that this many bytes of text can become.
    pub(crate) fn of(&self, bytes: usize) -> usize {
        bytes.saturating_add(self.added).saturating_mul(self.times())
    }

    /// How many times as long a text can become.
    pub(crate) fn times(&self) -> usize {
        self.times.saturating_mul(self.once)
    }

    /// Adds the steps of a part of the file, behind the steps counted so far. The name of a field does not say
    /// whether it holds a step: files of old versions do not name their steps, which are then recognised by their
    /// fields.
    pub(crate) fn then(mut self, part: &Value) -> Self {
        match part {
            Value::Array(parts) => parts.iter().fold(self, Self::then),
            Value::Object(fields) => {
                self.step(fields);
                // The fields that hold a pattern or list a template's pieces are no steps.
                let steps = |name: &str| !["pattern", "single", "pair", "special_tokens"].contains(&name);
                let inner = fields.iter().filter(|(name, _)| steps(name));
                inner.fold(self, |growth, (_, value)| growth.then(value))
            }
            _ => self,
        }
    }

    fn step(&mut self, fields: &Map<String, Value>) {
        self.steps += 1;
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        if let Some(pattern) = fields.get("pattern") {
            self.replace(pattern, text("content").unwrap_or_default());
        }
        let is_byte_level = text("type") == Some("ByteLevel") || fields.contains_key("use_regex");
        let mapped = text("precompiled_charsmap").map(longest_mapped);
        let others = [is_byte_level.then_some(2), mapped, text("replacement").map(str::len)];
        for times in others.into_iter().flatten().filter(|&times| times > 1) {
            self.times = self.times.saturating_mul(times);
            self.written = None;
        }
        for name in ["prepend", "prefix", "suffix"] {
            self.added = self.added.saturating_add(text(name).map_or(0, str::len));
        }
        if let Some(template) = fields.get("single") {
            let (texts, others) = pieces(template);
            self.times = self.times.saturating_mul(texts.max(1));
            self.added = self.added.saturating_add(others.saturating_mul(most_ids(fields)));
        }
    }

    fn replace(&mut self, pattern: &Value, content: &str) {
        let of = |kind: &str| pattern.get(kind).and_then(Value::as_str);
        let literal = of("String").or(pattern.as_str());
        let shortest = match of("Regex") {
            Some(regex) => {
                let weight = weight(regex);
                self.weight = self.weight.saturating_add(weight);
                // A longer pattern is not parsed, because parsing takes memory, too.
                let is_short = weight <= MAX_WEIGHT;
                if is_short {
                    self.back = self.back.saturating_add(steps(regex));
                    shortest_match(regex)
                } else {
                    0
                }
            }
            None => literal.map_or(0, str::len),
        };
        let times = match shortest {
            // The replacement is put between all characters.
            0 => content.len().saturating_add(1),
            shortest => content.len().div_ceil(shortest).max(1),
        };
        // Each character of the original text is replaced by at most one of these steps.
        let is_own = |written: &String| {
            literal.is_some_and(|literal| literal.chars().count() == 1 && !written.contains(literal))
        };
        match self.written.as_ref().is_some_and(is_own) {
            true => self.once = self.once.max(times),
            false => self.times = self.times.saturating_mul(times),
        }
        if let Some(written) = &mut self.written {
            written.push_str(content);
        }
    }

    /// Checks the totals against the limits.
    ///
    /// # Errors
    /// If a limit is exceeded; the message says which.
    pub(crate) fn check(&self) -> Result<(), String> {
        let bounds = [
            (self.steps, MAX_STEPS, "have {} steps"),
            (self.weight, MAX_WEIGHT, "have patterns of {} bytes, what is counted in them written out"),
            (self.back, MAX_BACK, "look around or back in {} steps at each character"),
            (self.times(), MAX_GROWTH, "can make a text {} times as long"),
            (self.added, MAX_ADDED, "add {} bytes or tokens to a text"),
        ];
        match bounds.into_iter().find(|(found, most, _)| found > most) {
            Some((found, most, what)) => {
                // `usize::MAX` means that the product saturated.
                let found = if found == usize::MAX { "countless".to_owned() } else { found.to_string() };
                Err(format!("{}, expected at most {most}", what.replace("{}", &found)))
            }
            None => Ok(()),
        }
    }
}

/// Bytes of the longest text that a SentencePiece character map produces for any input. Such a map holds the length
/// of its trie, the trie, and then the texts, each ended by a zero byte.
fn longest_mapped(charsmap: &str) -> usize {
    let map = BASE64_STANDARD.decode(charsmap).unwrap_or_default();
    let texts =
        map.split_first_chunk::<4>().and_then(|(trie, rest)| rest.get(u32::from_le_bytes(*trie) as usize..));
    texts.unwrap_or_default().split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0)
}

/// How many times a template repeats the text, and how many other pieces it has. It is a list, or a string of words.
fn pieces(template: &Value) -> (usize, usize) {
    let is_text = |piece: &Value| match piece {
        Value::Object(piece) => !piece.contains_key("SpecialToken"),
        Value::String(word) => word.starts_with('$'),
        _ => true,
    };
    match template {
        Value::Array(pieces) => {
            let texts = pieces.iter().filter(|piece| is_text(piece)).count();
            (texts, pieces.len() - texts)
        }
        Value::String(text) => {
            let (texts, others): (Vec<&str>, Vec<&str>) =
                text.split_whitespace().partition(|word| word.starts_with('$'));
            (texts.len(), others.len())
        }
        _ => (1, 0),
    }
}

fn most_ids(step: &Map<String, Value>) -> usize {
    let tokens = step.get("special_tokens").and_then(Value::as_object).into_iter().flat_map(Map::values);
    let ids = tokens.filter_map(|token| token.get("ids")?.as_array()).map(Vec::len);
    ids.max().unwrap_or(1).max(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(part: &Value) -> Expansion {
        Expansion::default().then(part)
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": pattern, "content": content })
    }

    fn literal(pattern: &str, content: &str) -> Value {
        replace(json!({ "String": pattern }), content)
    }

    #[test]
    fn steps_multiply_what_they_lengthen() {
        let times = |step: &Value| of(step).times();
        let regex = |pattern: &str, content: &str| times(&replace(json!({ "Regex": pattern }), content));
        // The replacements are one byte to one, one to three, two or more to three, and none to one; one stands
        // behind a letter, one may match nothing, one matches either of two letters, and one writes nothing.
        assert_eq!((times(&literal("-", "+")), times(&literal(" ", "\u{2581}"))), (1, 3));
        assert_eq!((regex(" {2,}", "\u{2581}"), regex("", "+"), regex("(?<=a)b", "+++")), (2, 2, 3));
        assert_eq!((regex("a?", "++"), regex("[\u{e4}\u{f6}]", "++"), regex(".", "")), (3, 1, 1));
        let space = json!({ "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first" });
        assert_eq!(times(&space), 3);
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        assert_eq!(times(&json!({ "type": "Sequence", "pretokenizers": [bytes, bytes, [bytes]] })), 8);
        let template = json!({ "type": "TemplateProcessing", "single": ["[CLS]", "$A", "$A"],
            "special_tokens": { "[CLS]": { "id": "[CLS]", "ids": [1, 2], "tokens": ["[CLS]", "[CLS]"] } } });
        let template = of(&template);
        assert_eq!((template.steps, template.times(), template.added, template.of(10)), (1, 2, 2, 24));
    }

    #[test]
    fn characters_are_replaced_once() {
        let spaced =
            |marks: &str| Value::from_iter(marks.chars().map(|c| literal(&c.to_string(), &format!(" {c} "))));
        assert_eq!(of(&spaced(".,;:!?")).times(), 3);
        // What the step before wrote is replaced again.
        assert_eq!(of(&spaced("...")).times(), 27);
        assert_eq!(of(&json!([literal("a", "bb"), literal("b", "cc"), literal("c", "dd")])).times(), 8);
        assert_eq!(of(&json!([replace(json!({ "Regex": "a" }), "bb"), literal("b", "cc")])).times(), 4);
        // A character map can write anything.
        let space = json!({ "type": "Metaspace", "replacement": "\u{2581}" });
        assert_eq!(of(&json!([literal("a", "bb"), space, literal("d", "cc")])).times(), 12);
    }

    #[test]
    fn a_charsmap_lengthens_as_its_longest_text_does() {
        let map = [&8u32.to_le_bytes()[..], &[1; 8], b"abc\0\0defgh\0i\0"].concat();
        let step = json!({ "type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(map) });
        assert_eq!(of(&step).times(), 5);
        let broken = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA!" });
        assert_eq!(of(&broken).times(), 1);
    }

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        let sequence =
            |step: Value, count: usize| json!({ "type": "Sequence", "normalizers": vec![step; count] });
        let refused = |part: &Value| of(part).check().unwrap_err();
        let doubled = refused(&sequence(replace(json!({ "Regex": "." }), "aa"), 40));
        assert_eq!(doubled, "can make a text 1099511627776 times as long, expected at most 256");
        let countless = refused(&sequence(json!({ "pattern": { "String": "a" }, "content": "aa" }), 99));
        assert!(countless.contains("can make a text countless times"), "{countless}");
        let long = refused(&sequence(json!({ "type": "Prepend", "prepend": "a".repeat(100) }), 9));
        assert!(long.contains("add 900 bytes"), "{long}");
        let many = refused(&sequence(json!({ "type": "NFC" }), 300));
        assert!(many.contains("have 301 steps"), "{many}");
        let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated" });
        let heavy = refused(&split(r"(?=a)\w{9000}"));
        assert!(heavy.contains("have patterns of 18005 bytes"), "{heavy}");
        let back = refused(&sequence(split("a+(?!b)"), 13));
        assert_eq!(back, "look around or back in 26624 steps at each character, expected at most 24576");
        assert!(
            of(&sequence(json!({ "type": "NFC" }), 200)).check().is_ok() && of(&Value::Null).check().is_ok()
        );
    }
}
