//! Separates a model's thoughts from its answer, by the markers between which it thinks.

use std::sync::Arc;

use moi_engine::Markers;
use moi_text::Tokenizer;

/// The kind of a piece of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Answer,
    Thought,
}

/// How a model marks its thoughts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ThoughtMarkers {
    /// Between an opening and a closing marker.
    Between { open: String, close: String },
    /// In channels of a message, each with its name in its header (gpt-oss): `<|channel|>analysis<|message|>...<|end|>`.
    Channels { name: String },
    /// In messages whose headers name their recipients, thoughts to the model itself (Muse Glimmer):
    /// ` to=self<|message|>...<|eom|><|start|>assistant to=user<|message|>...<|eot|>`.
    Recipients,
}

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const ENDS: &[&str] = &["<|end|>", "<|return|>", "<|call|>"];
const START: &str = "<|start|>";
/// The markers that end a message to a recipient, and the end of the header of a message to the model itself.
const MESSAGE_ENDS: &[&str] = &["<|eom|>", "<|eot|>"];
const TO_SELF: &str = "to=self";

impl ThoughtMarkers {
    /// The markers of a model with this tokenizer, and the control tokens whose texts must be visible to find them.
    pub(crate) fn of(markers: Markers, tokenizer: &Tokenizer) -> Option<(Self, Vec<u32>)> {
        let control = |text: &str| tokenizer.control_token(text);
        match markers.name {
            Some(name) if tokenizer.special_text(name) == Some(MESSAGE) => {
                let texts = [MESSAGE, START].into_iter().chain(MESSAGE_ENDS.iter().copied());
                Some((Self::Recipients, texts.filter_map(control).collect()))
            }
            Some(name) => {
                let texts = [CHANNEL, MESSAGE, START].into_iter().chain(ENDS.iter().copied());
                Some((Self::Channels { name: tokenizer.token(name)? }, texts.filter_map(control).collect()))
            }
            None => {
                let (open, close) = (tokenizer.token(markers.open)?, tokenizer.token(markers.close)?);
                let shown = [&open, &close].into_iter().filter_map(|text| control(text)).collect();
                Some((Self::Between { open, close }, shown))
            }
        }
    }
}

/// The current place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Body(Said),
    /// In the header of a channel.
    Header,
    /// Behind the end of a channel, before the next header.
    Between,
}

/// Splits a text that comes piece by piece into thoughts and answer. Text that may become a marker is held back.
#[derive(Clone, Debug)]
pub(crate) struct Thoughts {
    markers: Option<Arc<ThoughtMarkers>>,
    place: Place,
    held: String,
    /// Whether the answer has begun. Thoughts come only before it.
    answers: bool,
    /// Whether leading space is dropped: at the beginning of thoughts, and of the answer behind them.
    trims: bool,
}

impl Thoughts {
    /// For a text with these markers, or without any. `is_open` says that the prompt has opened the thoughts.
    pub(crate) fn new(markers: Option<Arc<ThoughtMarkers>>, is_open: bool) -> Self {
        // With recipients, the prompt ends within the header of the first message.
        let place = match markers.as_deref() {
            _ if is_open => Place::Body(Said::Thought),
            Some(ThoughtMarkers::Recipients) => Place::Header,
            _ => Place::Body(Said::Answer),
        };
        Self { markers, place, held: String::new(), answers: false, trims: is_open }
    }

    /// Takes a piece. Returns the parts that are certain now.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<(Said, String)> {
        let mut parts = Vec::new();
        self.held += piece;
        let Some(markers) = self.markers.clone() else {
            self.give(self.held.len(), &mut parts);
            return parts;
        };
        loop {
            let sought: Vec<&str> = match (&*markers, self.place) {
                (ThoughtMarkers::Between { .. }, Place::Body(Said::Answer)) if self.answers => Vec::new(),
                (ThoughtMarkers::Between { open, .. }, Place::Body(Said::Answer)) => vec![open],
                (ThoughtMarkers::Between { close, .. }, _) => vec![close],
                (ThoughtMarkers::Channels { .. } | ThoughtMarkers::Recipients, Place::Header) => {
                    vec![MESSAGE]
                }
                (ThoughtMarkers::Recipients, Place::Between) => vec![START],
                (ThoughtMarkers::Recipients, Place::Body(_)) => MESSAGE_ENDS.to_vec(),
                (ThoughtMarkers::Channels { .. }, Place::Between) => vec![CHANNEL],
                (ThoughtMarkers::Channels { .. }, Place::Body(_)) => {
                    [CHANNEL, START].into_iter().chain(ENDS.iter().copied()).collect()
                }
            };
            let found = sought.iter().filter_map(|marker| Some((self.held.find(marker)?, *marker))).min();
            let Some((at, marker)) = found else {
                // A header is only read as a whole.
                if self.place == Place::Header {
                    return parts;
                }
                let begun = sought.iter().map(|marker| begun(&self.held, marker)).max().unwrap_or(0);
                let certain = self.held.len() - begun;
                // Space at the end of thoughts is dropped, so it is held back until more text follows.
                let text = &self.held[..certain];
                let certain =
                    if self.place == Place::Body(Said::Thought) { text.trim_end().len() } else { certain };
                self.give(certain, &mut parts);
                return parts;
            };
            let begins = self.place == Place::Body(Said::Answer) && !self.held[..at].trim().is_empty();
            if begins && matches!(*markers, ThoughtMarkers::Between { .. }) {
                // The answer has begun before the marker, so the marker is part of the answer.
                self.answers = true;
                continue;
            }
            let header = self.held[..at].to_owned();
            let text = if self.place == Place::Body(Said::Thought) { header.trim_end().len() } else { at };
            self.give(text, &mut parts);
            self.held.drain(..at - text + marker.len());
            self.trims = true;
            self.place = match &*markers {
                ThoughtMarkers::Between { open, .. } if marker == open => Place::Body(Said::Thought),
                ThoughtMarkers::Between { .. } => Place::Body(Said::Answer),
                ThoughtMarkers::Recipients => match marker {
                    START => Place::Header,
                    MESSAGE if header.trim().ends_with(TO_SELF) => Place::Body(Said::Thought),
                    MESSAGE => Place::Body(Said::Answer),
                    _ => Place::Between,
                },
                ThoughtMarkers::Channels { name } => match marker {
                    CHANNEL => Place::Header,
                    MESSAGE if header.trim() == name.as_str() => Place::Body(Said::Thought),
                    MESSAGE => Place::Body(Said::Answer),
                    _ => Place::Between,
                },
            };
        }
    }

    /// What was held back, when nothing more comes.
    pub(crate) fn finish(&mut self) -> Vec<(Said, String)> {
        let mut parts = Vec::new();
        if self.place == Place::Header && !self.trims {
            // No marker has come, so the text is not a header, but the answer of a model without headers.
            self.place = Place::Body(Said::Answer);
        }
        let text = match self.place {
            Place::Body(Said::Thought) => self.held.trim_end().len(),
            Place::Body(Said::Answer) => self.held.len(),
            Place::Header | Place::Between => 0,
        };
        self.give(text, &mut parts);
        parts
    }

    /// Gives out the first bytes of the held text.
    fn give(&mut self, bytes: usize, parts: &mut Vec<(Said, String)>) {
        let text: String = self.held.drain(..bytes).collect();
        let Place::Body(said) = self.place else { return };
        let text = if self.trims { text.trim_start() } else { &text };
        if !text.is_empty() {
            self.trims = false;
            self.answers |= said == Said::Answer && !text.trim().is_empty();
            parts.push((said, text.to_owned()));
        }
    }
}

/// Bytes of the longest end of a text with which a marker begins.
pub(crate) fn begun(text: &str, marker: &str) -> usize {
    let lengths = marker.char_indices().map(|(at, _)| at).rev();
    lengths.into_iter().find(|&len| text.ends_with(&marker[..len])).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    /// Thoughts and answer of a text that comes in pieces of `cut` characters.
    fn split(markers: &ThoughtMarkers, is_open: bool, text: &str, cut: usize) -> (String, String) {
        let mut thoughts = Thoughts::new(Some(Arc::new(markers.clone())), is_open);
        let chars: Vec<char> = text.chars().collect();
        let mut parts: Vec<(Said, String)> =
            chars.chunks(cut).flat_map(|piece| thoughts.push(&piece.iter().collect::<String>())).collect();
        parts.extend(thoughts.finish());
        let of = |said| parts.iter().filter(|(of, _)| *of == said).map(|(_, text)| text.as_str()).collect();
        (of(Said::Thought), of(Said::Answer))
    }

    #[test]
    fn thoughts_are_told_from_the_answer_however_the_text_is_cut() {
        let between = ThoughtMarkers::Between { open: "<think>".into(), close: "</think>".into() };
        let channels = ThoughtMarkers::Channels { name: "analysis".into() };
        for (markers, is_open, text, thought, answer) in [
            (&between, false, "<think>\na b \n</think>\n\nYes. <b", "a b", "Yes. <b"),
            (&between, true, "\n\na <\n</think>Yes", "a <", "Yes"),
            (&between, false, " No <thin", "", " No <thin"),
            (&between, true, "cut off </thi", "cut off </thi", ""),
            (&between, false, "é<think></think>ü", "", "é<think></think>ü"),
            (&between, false, " \n<think>a</think>b <think>", "a", " \nb <think>"),
            (
                &channels,
                false,
                "<|channel|>analysis<|message|>a < b<|end|><|start|>assistant<|channel|>final<|message|>4",
                "a < b",
                "4",
            ),
            (&channels, false, "plain", "", "plain"),
            (
                &ThoughtMarkers::Recipients,
                false,
                " to=self<|message|>a < b <|eom|><|start|>assistant to=user<|message|>4<|eot|>",
                "a < b",
                "4",
            ),
            (&ThoughtMarkers::Recipients, false, " to=user<|message|>plain", "", "plain"),
            (&ThoughtMarkers::Recipients, false, "no header", "", "no header"),
            (&ThoughtMarkers::Recipients, true, "b<|eom|><|start|>assistant", "b", ""),
            (&channels, false, "<|channel|>ana", "", ""),
        ] {
            for cut in 1..=text.chars().count() {
                let found = split(markers, is_open, text, cut);
                assert_eq!(found, (thought.to_owned(), answer.to_owned()), "{text:?} in pieces of {cut}");
            }
        }
    }

    #[test]
    fn a_text_without_markers_is_the_answer() {
        let mut thoughts = Thoughts::new(None, false);
        assert_eq!(thoughts.push(" <think>"), [(Said::Answer, " <think>".to_owned())]);
        assert!(thoughts.finish().is_empty());
    }
}
