//! A tokenizer in which user text stays text.

mod facts;

use std::{borrow::Cow, collections::HashMap, ops::Range, path::Path, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};
pub use facts::{THINKING, THINKING_CHANNEL, THINKING_RECIPIENT};
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, PreTokenizerWrapper, pre_tokenizers::metaspace::PrependScheme,
};

use crate::{
    TextError,
    catch_panics::catch_panics,
    extra::{ExtraToken, extend},
    json,
};

/// A `tokenizers` tokenizer that tells control tokens from text that looks like them.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// Encodes special tokens as plain text.
    inner: tokenizers::Tokenizer,
    /// For text behind a control token, where that must be encoded otherwise than at the start.
    later: Option<Box<tokenizers::Tokenizer>>,
    /// Control tokens, longest first.
    special: Vec<(AddedToken, u32)>,
    /// Where in the list each is, by id.
    places: HashMap<u32, usize>,
    /// Finds these, the longest where several begin.
    matcher: AhoCorasick,
    /// Put before a prompt without a template, where the tokenizer itself does not do it.
    bos: Option<u32>,
    /// Put behind it, likewise.
    eos: Option<u32>,
    /// Whether normalising can make a text much longer.
    grows: bool,
    /// Whether it has tokens that its `tokenizer.json` lacks, or has no such file.
    extended: bool,
    /// Where it was read.
    path: Option<Arc<Path>>,
}

/// Bytes of a token that no vocabulary exceeds; runs of spaces come to a few hundred.
pub(crate) const LONGEST_TOKEN: usize = 2048;
/// The same of tokens that are looked for before the text is cut: all of them are in one automaton.
pub(crate) const LONGEST_ADDED_TOKEN: usize = 512;
/// Tokens of that kind; codecs of speech list 65,536, which take the library a tenth of a second or, numbered in an
/// unhappy order, seven.
pub(crate) const MOST_ADDED_TOKENS: usize = 80_000;
/// Bytes of these, as they are after they were normalised.
pub(crate) const MOST_ADDED_BYTES: usize = 4 << 20;

/// Whether a part of a text has no character of a word beside it. The library asks for `\w` of the same crate.
fn stands_alone(text: &str, part: Range<usize>) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(regex_syntax::is_word_character);
    !is_word(text[..part.start].chars().next_back()) && !is_word(text[part.end..].chars().next())
}

/// A piece of a rendered prompt.
enum Part<'a> {
    Text(&'a str),
    Control(u32),
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If the file cannot be read or is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        Self::from_file_with(path, &[])
    }

    /// Reads a `tokenizer.json` and adds the tokens that only the tokenizer_config.json beside it lists, in the order of
    /// the ids there. As in transformers, those ids are not used: a text that the vocabulary has keeps its id, and the
    /// others get the next ones.
    ///
    /// # Errors
    /// If the file cannot be read or is no tokenizer, or there are more tokens than models have.
    pub fn from_file_with(path: &Path, extra: &[ExtraToken]) -> Result<Self, TextError> {
        /// Gemma's has 33 MB, and few have more.
        const MOST_BYTES: u64 = 1 << 26;
        let wrong = |what: String| TextError::File { path: path.to_owned(), what };
        let meta = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
        if !meta.is_file() {
            return Err(wrong("it is no regular file".to_owned()));
        }
        if meta.len() > MOST_BYTES {
            return Err(wrong(format!("it has {} bytes, expected {MOST_BYTES} at most", meta.len())));
        }
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let tokenizer = Self::from_json_with(&bytes, extra).map_err(|error| error.in_file(path))?;
        Ok(Self { path: Some(path.into()), ..tokenizer })
    }

    /// Reads what a `tokenizer.json` holds.
    ///
    /// # Errors
    /// If it is no tokenizer, or has sizes that no real one has, by which it would take memory or time.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        Self::from_json_with(json, &[])
    }

    pub(crate) fn from_json_with(json: &[u8], extra: &[ExtraToken]) -> Result<Self, TextError> {
        /// A space becomes three bytes, and there are usual marks that become a few.
        const USUAL_GROWTH: usize = 8;
        let json: Cow<'_, [u8]> = moi_files::plain(json);
        let json: &[u8] = &json;
        // The library panics where a part of it is no JSON, and takes long over what is long.
        let growth = json::check(json).map_err(TextError::Vocabulary)?;
        let tokenizer = catch_panics(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            let extended = extend(&mut inner, extra, growth)?;
            Ok(Self { extended, ..Self::new(inner, None)? })
        })?;
        Ok(Self { grows: growth > USUAL_GROWTH, ..tokenizer })
    }

    /// The same, made of another file than a `tokenizer.json`, with a token before prompts.
    pub(crate) fn converted(self, bos: Option<&str>, path: &Path) -> Self {
        let bos = bos.and_then(|text| self.id(text));
        Self { bos, extended: true, path: Some(path.into()), ..self }
    }

    pub(crate) fn new(mut inner: tokenizers::Tokenizer, bos: Option<u32>) -> Result<Self, TextError> {
        inner.set_encode_special_tokens(true);
        // What a file was trained or batched with is no reason to cut or fill a prompt.
        inner.with_padding(None);
        inner.with_truncation(None)?;
        let added = inner.get_added_tokens_decoder().into_iter();
        let mut special: Vec<(AddedToken, u32)> = added
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, t)| (t, id))
            .collect();
        special.sort_by(|a, b| (b.0.content.len(), a.1).cmp(&(a.0.content.len(), b.1)));
        let later = match inner.get_pre_tokenizer() {
            Some(PreTokenizerWrapper::Metaspace(metaspace))
                if metaspace.prepend_scheme == PrependScheme::First =>
            {
                let mut metaspace = metaspace.clone();
                metaspace.prepend_scheme = PrependScheme::Never;
                let mut later = inner.clone();
                later.with_pre_tokenizer(Some(PreTokenizerWrapper::Metaspace(metaspace)));
                Some(Box::new(later))
            }
            _ => None,
        };
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(special.iter().map(|(token, _)| &token.content))
            .map_err(|error| TextError::Tokenizer(format!("its control tokens: {error}")))?;
        let places = special.iter().enumerate().map(|(place, (_, id))| (*id, place)).collect();
        Ok(Self {
            inner,
            later,
            special,
            places,
            matcher,
            bos,
            eos: None,
            grows: false,
            extended: false,
            path: None,
        })
    }

    /// With a token behind a prompt without a template.
    pub(crate) fn ending_with(self, eos: Option<u32>) -> Self {
        Self { eos, ..self }
    }

    /// Encodes text as text: control tokens written in it become ordinary tokens. `add_special` adds what
    /// the model expects around a prompt without a template (a begin token, usually, or nothing).
    ///
    /// # Errors
    /// If the tokenizer cannot encode it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let mut ids: Vec<u32> = self.bos.filter(|_| add_special).into_iter().collect();
        self.add_encoded(&mut ids, &self.inner, text, add_special)?;
        ids.extend(self.eos.filter(|_| add_special));
        Ok(ids)
    }

    /// Encodes a prompt that its author wrote as the model reads it, without a template: control tokens in it are control
    /// tokens, and what the model expects around a prompt is added. As a call of transformers' tokenizer does.
    ///
    /// # Errors
    /// If the tokenizer cannot encode it.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        if self.control_token_in(text).is_none() {
            return self.encode(text, true);
        }
        // The library decides by a setting of the whole tokenizer.
        let mut inner = self.inner.clone();
        inner.set_encode_special_tokens(false);
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        self.add_encoded(&mut ids, &inner, text, true)?;
        ids.extend(self.eos);
        Ok(ids)
    }

    /// The first control token that is written in a text, if there is one.
    pub fn control_token_in(&self, text: &str) -> Option<&str> {
        let found = self.matcher.find(text)?;
        Some(&self.special[found.pattern()].0.content)
    }

    /// The control token of this text, if there is one.
    pub fn control_token(&self, text: &str) -> Option<u32> {
        self.id(text).filter(|id| self.places.contains_key(id))
    }

    fn add_encoded(
        &self,
        ids: &mut Vec<u32>,
        inner: &tokenizers::Tokenizer,
        text: &str,
        add_special: bool,
    ) -> Result<(), TextError> {
        self.named(catch_panics(|| {
            self.check_growth(text)?;
            ids.extend_from_slice(inner.encode_fast(text, add_special)?.get_ids());
            Ok(())
        }))
    }

    /// Refuses a text that becomes much longer when it is normalised, before it takes a hundred times that in pieces.
    fn check_growth(&self, text: &str) -> Result<(), TextError> {
        const MOST_GROWTH: usize = 16;
        const ALWAYS: usize = 1 << 20;
        if let Some(normalizer) = self.inner.get_normalizer().filter(|_| self.grows) {
            let mut normalized = NormalizedString::from(text);
            normalizer.normalize(&mut normalized)?;
            let (from, to) = (text.len(), normalized.get().len());
            if to > ALWAYS && to / MOST_GROWTH > from {
                let what = format!("normalising makes {to} bytes of {from}");
                return Err(TextError::Tokenizer(what));
            }
        }
        Ok(())
    }

    /// Errors name the file.
    fn named<T>(&self, result: Result<T, TextError>) -> Result<T, TextError> {
        result.map_err(|error| match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    /// Encodes a rendered prompt, or the rest of one if it does not stand `first`. Control tokens are meant in it;
    /// `restore` undoes what keeps user text in it from being one.
    pub(crate) fn encode_rendered(
        &self,
        rendered: &str,
        first: bool,
        restore: impl Fn(&str) -> String,
    ) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        for part in self.parts(rendered) {
            match part {
                Part::Control(id) => ids.push(id),
                Part::Text(text) => {
                    let first = first && ids.is_empty();
                    let inner = self.later.as_deref().filter(|_| !first).unwrap_or(&self.inner);
                    self.add_encoded(&mut ids, inner, &restore(text), false)?;
                }
            }
        }
        Ok(ids)
    }

    /// Splits at control tokens, the longest first where several match.
    fn parts<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        let mut done = 0;
        for found in self.matcher.find_iter(text) {
            let (token, id) = &self.special[found.pattern()];
            if token.single_word && !stands_alone(text, found.range()) {
                continue;
            }
            // Spaces that the token before swallowed can be a token's own.
            let Some(mut before) = text.get(done..found.start()) else { continue };
            let mut after = &text[found.end()..];
            if token.lstrip {
                before = before.trim_end();
            }
            if token.rstrip {
                after = after.trim_start();
            }
            if !before.is_empty() {
                parts.push(Part::Text(before));
            }
            parts.push(Part::Control(*id));
            done = text.len() - after.len();
        }
        if done < text.len() {
            parts.push(Part::Text(&text[done..]));
        }
        parts
    }

    /// Finds control tokens in a text, the longest where several begin.
    pub(crate) fn find_special<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        self.matcher.find_iter(text).map(|found| found.range())
    }

    /// The control tokens' texts, longest first.
    pub(crate) fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.special.iter().map(|(token, _)| token.content.as_str())
    }

    /// Decodes tokens; control tokens become nothing.
    ///
    /// # Errors
    /// If the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.named(catch_panics(|| Ok(self.inner.decode(ids, true)?)))
    }
}
