//! A tokenizer that keeps user text as text, even where it spells a control token.

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

/// A tokenizer of the `tokenizers` library that distinguishes control tokens from text that looks like them.
///
/// # Examples
/// ```
/// use moi_text::Tokenizer;
///
/// # let json = serde_json::json!({
/// #     "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
/// #     "post_processor": null, "decoder": {"type": "Fuse"},
/// #     "added_tokens": [{"id": 7, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
/// #         "rstrip": false, "normalized": false}],
/// #     "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
/// #         "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
/// #         "vocab": {"<": 0, ">": 1, "e": 2, "n": 3, "d": 4, " ": 5, "en": 6, "<end>": 7}, "merges": ["e n"]},
/// # }).to_string();
/// // The contents of a tokenizer.json; `Tokenizer::from_file` reads one from a file.
/// let tokenizer = Tokenizer::from_json(json.as_bytes())?;
/// assert_eq!(tokenizer.control_token("<end>"), Some(7));
/// // User text stays text; `encode_prompt` turns it into the control token.
/// assert_eq!(tokenizer.encode("<end>", false)?, [0, 6, 4, 1]);
/// assert_eq!(tokenizer.encode_prompt("end<end>")?, [6, 4, 7]);
/// assert_eq!(tokenizer.decode(&[6, 4, 7])?, "end");
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// The library's tokenizer, set to encode special tokens as plain text.
    inner: tokenizers::Tokenizer,
    /// The tokenizer for text behind a control token, if such text is encoded otherwise than text at the start.
    later: Option<Box<tokenizers::Tokenizer>>,
    /// Control tokens, longest first.
    special: Vec<(AddedToken, u32)>,
    /// The index in `special` of each control token, by id.
    places: HashMap<u32, usize>,
    /// Finds control tokens in a text; the longest one if several begin at the same place.
    matcher: AhoCorasick,
    /// The token put before a prompt without a template, if the library's tokenizer does not add it.
    bos: Option<u32>,
    /// The token put behind such a prompt, likewise.
    eos: Option<u32>,
    /// Whether normalising can make a text much longer.
    grows: bool,
    /// Whether the tokenizer has tokens that its `tokenizer.json` lacks, or has no such file.
    extended: bool,
    /// The file that the tokenizer was read from.
    path: Option<Arc<Path>>,
}

/// Most bytes of a token; real vocabularies have runs of spaces of a few hundred bytes.
pub(crate) const MAX_TOKEN_BYTES: usize = 2048;
/// Most bytes of an added token. The limit is lower because all added tokens are searched by one automaton.
pub(crate) const MAX_ADDED_TOKEN_BYTES: usize = 512;
/// Most added tokens. Speech codecs list 65,536, which take the library a tenth of a second, or seven seconds if
/// their ids are in an unfavourable order.
pub(crate) const MAX_ADDED_TOKENS: usize = 80_000;
/// Most bytes of all added tokens after normalisation.
pub(crate) const MAX_ADDED_BYTES: usize = 4 << 20;

/// Whether no word character stands beside a part of a text. The library tests `\w` with the same crate.
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

    /// Reads a `tokenizer.json` and adds the tokens that only the tokenizer_config.json beside it lists, in the order
    /// of the ids there. As in transformers, those ids are not used: a text that the vocabulary has keeps its id, and
    /// the others get the next ids.
    ///
    /// # Errors
    /// If the file cannot be read or is no tokenizer, or there are more tokens than models have.
    pub fn from_file_with(path: &Path, extra: &[ExtraToken]) -> Result<Self, TextError> {
        /// Most bytes of a `tokenizer.json`; Gemma's has 33 MB, and few have more.
        const MAX_BYTES: u64 = 1 << 26;
        let wrong = |what: String| TextError::File { path: path.to_owned(), what };
        let meta = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
        if !meta.is_file() {
            return Err(wrong("it is no regular file".to_owned()));
        }
        if meta.len() > MAX_BYTES {
            return Err(wrong(format!("it has {} bytes, expected {MAX_BYTES} at most", meta.len())));
        }
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let tokenizer = Self::from_json_with(&bytes, extra).map_err(|error| error.in_file(path))?;
        Ok(Self { path: Some(path.into()), ..tokenizer })
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// If it is no tokenizer, or has sizes that no real tokenizer has and that would take much memory or time.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        Self::from_json_with(json, &[])
    }

    pub(crate) fn from_json_with(json: &[u8], extra: &[ExtraToken]) -> Result<Self, TextError> {
        /// A space becomes three bytes, and some common characters become a few.
        const USUAL_GROWTH: usize = 8;
        let json: Cow<'_, [u8]> = moi_files::plain(json);
        let json: &[u8] = &json;
        // The library panics if a part of the file is not valid JSON, and takes long over oversized parts.
        let growth = json::check(json).map_err(TextError::Vocabulary)?;
        let tokenizer = catch_panics(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            let extended = extend(&mut inner, extra, growth)?;
            Ok(Self { extended, ..Self::new(inner, None)? })
        })?;
        Ok(Self { grows: growth > USUAL_GROWTH, ..tokenizer })
    }

    /// The same tokenizer, made from other files than a `tokenizer.json`, with a token before prompts.
    pub(crate) fn converted(self, bos: Option<&str>, path: &Path) -> Self {
        let bos = bos.and_then(|text| self.id(text));
        Self { bos, extended: true, path: Some(path.into()), ..self }
    }

    pub(crate) fn new(mut inner: tokenizers::Tokenizer, bos: Option<u32>) -> Result<Self, TextError> {
        inner.set_encode_special_tokens(true);
        // Padding and truncation settings of the file's training or batching must not change a prompt.
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

    /// The same tokenizer with a token behind a prompt without a template.
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

    /// Encodes a prompt that its author wrote as the model reads it, without a template: control tokens in it are
    /// control tokens, and the tokens that the model expects around a prompt are added. A call of transformers'
    /// tokenizer does the same.
    ///
    /// # Errors
    /// If the tokenizer cannot encode it.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        if self.control_token_in(text).is_none() {
            return self.encode(text, true);
        }
        // In the library, this is a setting of the whole tokenizer.
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

    /// The id of the control token with this text, if there is one.
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

    /// Refuses a text that normalisation makes much longer, because splitting it would take a hundred times that
    /// memory.
    fn check_growth(&self, text: &str) -> Result<(), TextError> {
        const MAX_GROWTH: usize = 16;
        const ALWAYS: usize = 1 << 20;
        if let Some(normalizer) = self.inner.get_normalizer().filter(|_| self.grows) {
            let mut normalized = NormalizedString::from(text);
            normalizer.normalize(&mut normalized)?;
            let (from, to) = (text.len(), normalized.get().len());
            if to > ALWAYS && to / MAX_GROWTH > from {
                let what = format!("normalising makes {to} bytes of {from}");
                return Err(TextError::Tokenizer(what));
            }
        }
        Ok(())
    }

    /// Adds the file's name to errors.
    fn named<T>(&self, result: Result<T, TextError>) -> Result<T, TextError> {
        result.map_err(|error| match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        })
    }

    /// Encodes a rendered prompt, or the rest of one if not `first`. Control tokens spelled in it are control tokens;
    /// `restore` puts back user text that was replaced so that it is not taken for a control token.
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

    /// Splits a text at control tokens, at the longest one if several match.
    fn parts<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        let mut done = 0;
        for found in self.matcher.find_iter(text) {
            let (token, id) = &self.special[found.pattern()];
            if token.single_word && !stands_alone(text, found.range()) {
                continue;
            }
            // The spaces that the token before swallowed can be part of this token; then this match is skipped.
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

    /// Finds control tokens in a text; the longest one if several begin at the same place.
    pub(crate) fn find_special<'a>(&'a self, text: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
        self.matcher.find_iter(text).map(|found| found.range())
    }

    /// The control tokens' texts, longest first.
    pub(crate) fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.special.iter().map(|(token, _)| token.content.as_str())
    }

    /// Decodes tokens into text; control tokens decode to nothing.
    ///
    /// # Errors
    /// If the tokenizer cannot decode them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.named(catch_panics(|| Ok(self.inner.decode(ids, true)?)))
    }
}
