//! Facts about a tokenizer: its tokens, their bytes, and the tokens that it puts around a prompt.

use tokenizers::{
    DecoderWrapper, Encoding, Model, ModelWrapper, Token, processors::template::TemplateProcessing,
};

use super::Tokenizer;
use crate::{TextError, catch_panics::catch_panics};

/// Pairs of opening and closing markers that models write around their thinking.
pub const THINKING: &[(&str, &str)] = &[
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    // Gemma 4, Apertus and Kimi-VL.
    ("<|channel>", "<channel|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("\u{25c1}think\u{25b7}", "\u{25c1}/think\u{25b7}"),
];

/// Markers for models whose thinking is one of several channels with the same opening token (gpt-oss): the opening
/// token, the channel's name, and the closing token.
pub const THINKING_CHANNEL: (&str, &str, &str) = ("<|channel|>", "analysis", "<|end|>");

/// Markers for models whose messages name their recipient in a header, with thoughts sent to the model itself (Muse
/// Glimmer): the end of the header, the token that begins the message, and the token that ends it.
pub const THINKING_RECIPIENT: (&str, &str, &str) = (" to=self", "<|message|>", "<|eom|>");

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

/// The bytes of a token that a byte-level vocabulary writes as characters: printable bytes are written as themselves,
/// the others as the characters from U+0100 on, in order (GPT-2's `bytes_to_unicode`).
fn byte_level_bytes(token: &str) -> Vec<u8> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others: Vec<u8> = (0..=255).filter(|byte| !prints(byte)).collect();
    let byte = |c: char| match u8::try_from(c) {
        Ok(byte) if prints(&byte) => Some(byte),
        _ => (c as usize).checked_sub(256).and_then(|at| others.get(at).copied()),
    };
    token.chars().filter_map(byte).collect()
}

impl Tokenizer {
    /// A token's text in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of the token with this text in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The text of the control token with this id; `None` for other tokens.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.places.get(&id).map(|&place| self.special[place].0.content.as_str())
    }

    /// Whether a token was added to the vocabulary, as control tokens are, so that it is no piece of ordinary text.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().contains_key(&id)
    }

    /// The tokens that open and close the model's thinking: the first known kind that the vocabulary has. The token
    /// in the middle must follow the opening one, if the opening token also begins other things.
    pub fn thinking_markers(&self) -> Option<(u32, Option<u32>, u32)> {
        let pair = |(open, close): &(&str, &str)| Some((self.id(open)?, None, self.id(close)?));
        let (open, name, close) = THINKING_CHANNEL;
        let channel = || Some((self.id(open)?, Some(self.id(name)?), self.id(close)?));
        // The header is ordinary text; its last token, right before a message, begins nothing else.
        let recipient = || {
            let (header, message, close) = THINKING_RECIPIENT;
            let ends = (self.control_token(message)?, self.control_token(close)?);
            Some((*self.encode(header, false).ok()?.last()?, Some(ends.0), ends.1))
        };
        THINKING.iter().find_map(pair).or_else(channel).or_else(recipient)
    }

    /// The bytes that a token stands for, which need not be whole characters; `None` for a token that the vocabulary
    /// lacks.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        if self.inner.get_added_vocabulary().get_vocab().contains_key(&token) {
            return Some(token.into_bytes());
        }
        match self.inner.get_decoder() {
            Some(decoder) if is_byte_level(decoder) => Some(byte_level_bytes(&token)),
            _ => Some(match token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
                Some(hex) if hex.len() == 2 => match u8::from_str_radix(hex, 16) {
                    Ok(byte) => vec![byte],
                    Err(_) => token.into_bytes(),
                },
                _ => token.replace('\u{2581}', " ").into_bytes(),
            }),
        }
    }

    /// The token that the tokenizer puts before a prompt without a template, if any.
    pub fn bos(&self) -> Option<u32> {
        self.bos.or_else(|| self.added_before())
    }

    /// The first token that the library's post-processor puts before a text. Some post-processors only put a token
    /// behind the text, so the post-processor is run on a text of one token that no vocabulary has.
    fn added_before(&self) -> Option<u32> {
        const TEXT: u32 = u32::MAX;
        let text = Token::new(TEXT, "a".to_owned(), (0, 1));
        let encoding = Encoding::from_tokens(vec![text], 0);
        let around = catch_panics(|| Ok(self.inner.post_process(encoding, None, true)?)).ok()?;
        let first: u32 = around.get_ids().first().copied()?;
        let has_text: bool = around.get_ids().contains(&TEXT);
        (has_text && first != TEXT).then_some(first)
    }

    /// Whether the tokenizer has tokens that its `tokenizer.json` lacks, or has no such file.
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    /// Whether any control token swallows the spaces beside it.
    pub fn strips_spaces(&self) -> bool {
        self.special.iter().any(|(token, _)| token.lstrip || token.rstrip)
    }

    /// Writes the tokenizer as a `tokenizer.json`.
    ///
    /// # Errors
    /// If the tokenizer cannot be written as one.
    pub fn to_json(&self) -> Result<String, TextError> {
        let mut inner = self.inner.clone();
        let named = |id: Option<u32>| id.and_then(|id| Some((self.token(id)?, id)));
        let (before, behind) = (named(self.bos), named(self.eos));
        if before.is_some() || behind.is_some() {
            let text = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| text.clone());
            let parts = [text(&before), Some("$A".to_owned()), text(&behind)];
            let around: Vec<String> = parts.into_iter().flatten().collect();
            let mut tokens: Vec<(String, u32)> = before.into_iter().chain(behind).collect();
            tokens.dedup();
            let template = TemplateProcessing::builder()
                .try_single(around.join(" "))
                .map_err(TextError::Vocabulary)?
                .special_tokens(tokens)
                .build()
                .map_err(|error| TextError::Vocabulary(error.to_string()))?;
            inner.with_post_processor(Some(template));
        }
        Ok(inner.to_string(true)?)
    }

    /// The kind of tokenizer, in words.
    pub fn kind(&self) -> &'static str {
        match self.inner.get_model() {
            ModelWrapper::BPE(bpe) if bpe.byte_fallback => "BPE with byte fallback (SentencePiece)",
            ModelWrapper::BPE(_) => "byte-level BPE",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "word level",
            ModelWrapper::Unigram(_) => "Unigram",
        }
    }

    /// A token of the model's vocabulary for which an embedding with this many rows has no row, if there is one: then
    /// tokenizer and embedding belong to different models. Added tokens do not count, because some models have no
    /// rows for the tokens of other media.
    pub fn token_beyond(&self, rows: usize) -> Option<u32> {
        /// Ids beyond the rows that are checked if the vocabulary has no more tokens than there are rows, because ids
        /// can have gaps.
        const LOOKED_AT: usize = 1024;
        let model = self.inner.get_model();
        let behind = model.get_vocab_size().saturating_sub(rows).max(LOOKED_AT);
        let ids = (rows..rows.saturating_add(behind)).map_while(|id| u32::try_from(id).ok());
        let added = self.inner.get_added_vocabulary().get_vocab();
        ids.into_iter().find(|&id| model.id_to_token(id).is_some_and(|token| !added.contains_key(&token)))
    }

    /// The number of tokens in the vocabulary, including added ones.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Tests the kinds of markers that consist of several tokens.
    #[test]
    fn thoughts_are_marked_by_channels_and_recipients() {
        let tokenizer = |texts: &[&str], controls: &[&str]| {
            let all = texts.iter().chain(controls).enumerate();
            let vocabulary: serde_json::Map<String, Value> =
                all.map(|(id, text)| (text.to_string(), json!(id))).collect();
            let added: Vec<Value> = controls
                .iter()
                .enumerate()
                .map(|(at, text)| {
                    json!({
                        "id": texts.len() + at, "content": text, "special": true, "single_word": false,
                        "lstrip": false, "rstrip": false, "normalized": false,
                    })
                })
                .collect();
            let merges = json!([["s", "e"], ["se", "l"], ["sel", "f"]]);
            let file = json!({
                "version": "1.0", "added_tokens": added,
                "model": { "type": "BPE", "vocab": vocabulary, "merges": merges },
            });
            Tokenizer::from_json(file.to_string().as_bytes()).unwrap()
        };
        let texts = ["s", "e", "l", "f", "se", "sel", "self", " ", "t", "o", "="];
        let recipients = tokenizer(&texts, &["<|start|>", "<|message|>", "<|eom|>"]);
        // `self` opens the thinking, then the message token follows.
        assert_eq!(recipients.thinking_markers(), Some((6, Some(12), 13)));
        assert_eq!(tokenizer(&texts, &["<|start|>", "<|message|>"]).thinking_markers(), None);
        let between = tokenizer(&texts, &["<think>", "</think>", "<|message|>", "<|eom|>"]);
        assert_eq!(between.thinking_markers(), Some((11, None, 12)));
    }

    #[test]
    fn a_begin_token_stands_before_the_text() {
        let token = |text: &str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
        let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
        for (pieces, expected) in [
            (vec![text.clone()], None),
            (vec![text.clone(), token("</s>")], None),
            (vec![token("<s>"), text.clone()], Some(1)),
            (vec![token("<s>"), text.clone(), token("</s>")], Some(1)),
            (vec![token("</s>"), token("<s>"), text.clone()], Some(2)),
        ] {
            let special = |text: &str, id: u32| json!({ "id": text, "ids": [id], "tokens": [text] });
            let around: Value = json!({
                "type": "TemplateProcessing", "single": pieces, "pair": pieces,
                "special_tokens": { "<s>": special("<s>", 1), "</s>": special("</s>", 2) },
            });
            // This text of the vocabulary need not be found in a prompt.
            let file: Value = json!({
                "version": "1.0", "added_tokens": [], "post_processor": around,
                "model": { "type": "BPE", "vocab": { "x": 0, "<s>": 1, "</s>": 2 }, "merges": [] },
            });
            let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).unwrap();
            assert_eq!(tokenizer.bos(), expected, "{pieces:?}");
        }
    }
}
