//! Rebuilds the tokenizer inside a GGUF file as a `tokenizers` tokenizer.

use std::{
    collections::HashSet,
    ops::Range,
    panic::resume_unwind,
    thread::{self, available_parallelism},
};

use ahash::{AHashMap, AHashSet};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, SplitDelimiterBehavior,
    decoders::{
        byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as DecoderSequence, strip::Strip,
    },
    models::bpe::BPE,
    normalizers::{Prepend, Replace, Sequence as NormalizerSequence, unicode::NFC},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{
    TextError, Tokenizer,
    catch_panics::catch_panics,
    cuts::pre_tokenizer,
    tokenizer::{MAX_ADDED_BYTES, MAX_ADDED_TOKEN_BYTES, MAX_ADDED_TOKENS, MAX_TOKEN_BYTES},
};

/// A vocabulary as GGUF files list it.
///
/// # Examples
/// ```
/// use moi_text::{TokenKind, Vocabulary, VocabularyKind};
///
/// let vocabulary = Vocabulary {
///     kind: VocabularyKind::ByteLevel { pre: "gpt-2".to_owned(), merges: vec!["h i".to_owned()] },
///     tokens: ["h", "i", "hi", "<|end|>"].map(str::to_owned).to_vec(),
///     kinds: vec![TokenKind::Normal, TokenKind::Normal, TokenKind::Normal, TokenKind::Control],
///     bos: None,
///     eos: None,
///     rstrip: Vec::new(),
/// };
/// assert_eq!(vocabulary.into_tokenizer()?.encode_prompt("hi<|end|>")?, [2, 3]);
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// The algorithm that splits text into tokens.
    pub kind: VocabularyKind,
    /// Token texts by id.
    pub tokens: Vec<String>,
    /// The kind of each token; if empty, all tokens are normal.
    pub kinds: Vec<TokenKind>,
    /// The token put before a prompt.
    pub bos: Option<u32>,
    /// The token put behind a prompt.
    pub eos: Option<u32>,
    /// The texts of control tokens that swallow the spaces behind them.
    pub rstrip: Vec<String>,
}

/// The kinds of tokenizers in GGUF files.
///
/// # Examples
/// ```
/// use moi_text::{Vocabulary, VocabularyKind};
///
/// // `ba` scores better than `ab`, so it is merged first.
/// let scores = vec![-4.0, -4.0, -2.0, -1.0];
/// let kind = VocabularyKind::SentencePiece { scores, add_space_prefix: false };
/// let tokens = ["a", "b", "ab", "ba"].map(str::to_owned).to_vec();
/// let (kinds, rstrip) = (Vec::new(), Vec::new());
/// let tokenizer = Vocabulary { kind, tokens, kinds, bos: None, eos: None, rstrip }.into_tokenizer()?;
/// assert_eq!(tokenizer.encode("aba", false)?, [0, 3]);
/// # Ok::<(), moi_text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub enum VocabularyKind {
    /// `gpt2`: byte-level BPE, with its merges in order of rank.
    ByteLevel {
        /// `tokenizer.ggml.pre`: the name of the pre-tokenizer.
        pre: String,
        /// Merges as "left right", best first.
        merges: Vec<String>,
    },
    /// `llama`: SentencePiece BPE, in which the score of a merged token ranks its merge.
    SentencePiece {
        /// Scores by token id.
        scores: Vec<f32>,
        /// Whether a space is put before the text.
        add_space_prefix: bool,
    },
    /// `gemma4`: BPE over text whose spaces are `\u{2581}`, split at line ends; characters that are no token become
    /// byte tokens.
    Spaced {
        /// Merges as "left right", best first.
        merges: Vec<String>,
    },
}

/// The purpose of a token.
///
/// # Examples
/// ```
/// use moi_text::TokenKind;
///
/// assert_eq!(TokenKind::from_ggml(3), Some(TokenKind::Control));
/// assert_eq!(TokenKind::Control.to_ggml(), 3);
/// assert_eq!(TokenKind::from_ggml(7), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A piece of text.
    Normal,
    /// Stands for text that cannot be encoded.
    Unknown,
    /// A control token, never text.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// Not used.
    Unused,
    /// One byte, written as `<0x0A>`.
    Byte,
}

impl TokenKind {
    /// ggml's number for this kind.
    pub fn to_ggml(self) -> usize {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }

    /// The kind with this ggml number.
    pub fn from_ggml(number: usize) -> Option<Self> {
        Some(match number {
            // 0 is "undefined", used by files without token types.
            0 | 1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

impl Vocabulary {
    /// Removes merges that are no pair or name a token that the vocabulary lacks, and returns their number.
    pub fn drop_unusable_merges(&mut self) -> usize {
        let (VocabularyKind::ByteLevel { merges, .. } | VocabularyKind::Spaced { merges }) = &mut self.kind
        else {
            return 0;
        };
        let tokens: AHashSet<&str> = self.tokens.iter().map(String::as_str).collect();
        let before = merges.len();
        let mut whole = String::new();
        merges.retain(|merge| match pair(merge) {
            Some((left, right)) => {
                whole.clear();
                whole.push_str(left);
                whole.push_str(right);
                [left, right, whole.as_str()].iter().all(|token| tokens.contains(token))
            }
            None => false,
        });
        before - merges.len()
    }

    /// Builds the tokenizer.
    ///
    /// # Errors
    /// If the lists contradict each other or the pre-tokenizer is not known.
    pub fn into_tokenizer(self) -> Result<Tokenizer, TextError> {
        self.check()?;
        catch_panics(|| self.built())
    }

    fn built(self) -> Result<Tokenizer, TextError> {
        let mut ids = AHashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            // If several tokens have the same text, the first one is found.
            ids.entry(token.clone()).or_insert(id as u32);
        }
        let mut inner = match &self.kind {
            VocabularyKind::ByteLevel { pre, merges } => byte_level(ids, pre, merges)?,
            VocabularyKind::SentencePiece { scores, add_space_prefix } => {
                let unknown = self.of_kind(TokenKind::Unknown).next().cloned();
                let merges = self.merges_of_scores(&ids, scores)?;
                sentence_piece(ids, merges, *add_space_prefix, unknown)?
            }
            VocabularyKind::Spaced { merges } => {
                let unknown = self.of_kind(TokenKind::Unknown).next().cloned();
                let mut inner = sentence_piece(ids, pairs(merges)?, false, unknown)?;
                let lines = SplitPattern::Regex(r"[^\n]+|[\n]+".to_owned());
                inner.with_pre_tokenizer(Some(Split::new(lines, SplitDelimiterBehavior::Isolated, false)?));
                inner
            }
        };
        let rstrip: HashSet<&String> = self.rstrip.iter().collect();
        let added = |kind, special| {
            let token = |text: &String| {
                let strips = rstrip.contains(text);
                AddedToken::from(text.clone(), special).normalized(false).rstrip(strips)
            };
            self.of_kind(kind).map(token).collect::<Vec<_>>()
        };
        inner.add_special_tokens(&added(TokenKind::Control, true));
        inner.add_special_tokens(&added(TokenKind::Unknown, true));
        inner.add_tokens(&added(TokenKind::UserDefined, false));
        Ok(Tokenizer::new(inner, self.bos)?.ending_with(self.eos))
    }

    fn of_kind(&self, kind: TokenKind) -> impl Iterator<Item = &String> {
        let pairs = self.tokens.iter().zip(&self.kinds);
        pairs.filter(move |(text, k)| **k == kind && !text.is_empty()).map(|(text, _)| text)
    }

    /// Every way to make a text token out of two others, best score of the merged token first, because SentencePiece
    /// merges the pair whose result scores best.
    ///
    /// # Errors
    /// If there are more merges than the vocabulary of a language has.
    fn merges_of_scores(
        &self,
        ids: &AHashMap<String, u32>,
        scores: &[f32],
    ) -> Result<Vec<(String, String)>, TextError> {
        /// Most bytes of all merges; Llama 2's 32,000 tokens have half a megabyte of them.
        const MAX_BYTES: usize = 64 << 20;
        /// Least number of tokens per thread.
        const MIN_TOKENS_PER_THREAD: usize = 20_000;
        let is_text = |id: usize| match self.kinds.get(id) {
            None | Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused) => true,
            Some(TokenKind::Unknown | TokenKind::Control | TokenKind::Byte) => false,
        };
        let merges_of = |range: Range<usize>| {
            let (mut merges, mut bytes) = (Vec::new(), 0);
            let pairs = self.tokens.iter().zip(scores).enumerate().take(range.end).skip(range.start);
            for (_, (whole, &score)) in pairs.filter(|(id, _)| is_text(*id)) {
                for (at, _) in whole.char_indices().skip(1) {
                    let (left, right) = whole.split_at(at);
                    // The tokens are looked up one after the other, because the first one is seldom found.
                    if let Some(&l) = ids.get(left)
                        && let Some(&r) = ids.get(right)
                    {
                        bytes += whole.len();
                        if bytes > MAX_BYTES {
                            return Err(too_many_merges());
                        }
                        merges.push((score, l, r, left, right));
                    }
                }
            }
            Ok(merges)
        };
        let tokens = self.tokens.len();
        let threads =
            if cfg!(target_family = "wasm") { 1 } else { available_parallelism().map_or(1, usize::from) };
        let step = tokens.div_ceil(threads).max(MIN_TOKENS_PER_THREAD);
        let parts = thread::scope(|scope| {
            let merges_of = &merges_of;
            let others = (step..tokens).step_by(step);
            let others: Vec<_> =
                others.map(|from| scope.spawn(move || merges_of(from..(from + step).min(tokens)))).collect();
            let own = merges_of(0..step.min(tokens));
            let joined =
                others.into_iter().map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)));
            [own].into_iter().chain(joined).collect::<Result<Vec<_>, _>>()
        })?;
        let mut merges = parts.concat();
        if merges.iter().map(|merge| merge.3.len() + merge.4.len()).sum::<usize>() > MAX_BYTES {
            return Err(too_many_merges());
        }
        merges.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        Ok(merges.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect())
    }

    fn check(&self) -> Result<(), TextError> {
        let wrong = |what: String| Err(TextError::Vocabulary(what));
        let tokens = self.tokens.len();
        if tokens == 0 || u32::try_from(tokens).is_err() {
            return wrong(format!("it has {tokens} tokens"));
        }
        let (mut added, mut bytes) = (0, 0);
        for (id, token) in self.tokens.iter().enumerate() {
            let most = match self.kinds.get(id) {
                Some(TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined) => {
                    (added, bytes) = (added + 1, bytes + token.len());
                    MAX_ADDED_TOKEN_BYTES
                }
                _ => MAX_TOKEN_BYTES,
            };
            if token.len() > most {
                return wrong(format!("token {id} has {} bytes, expected {most} at most", token.len()));
            }
        }
        if added > MAX_ADDED_TOKENS || bytes > MAX_ADDED_BYTES {
            return wrong(format!(
                "{added} tokens of {bytes} bytes are no text or user-defined, expected {MAX_ADDED_TOKENS} of \
                 {MAX_ADDED_BYTES} at most"
            ));
        }
        if !self.kinds.is_empty() && self.kinds.len() != tokens {
            return wrong(format!("{} token types for {tokens} tokens", self.kinds.len()));
        }
        if let VocabularyKind::SentencePiece { scores, .. } = &self.kind
            && scores.len() != tokens
        {
            return wrong(format!("{} scores for {tokens} tokens", scores.len()));
        }
        match self.bos {
            Some(bos) if bos as usize >= tokens => wrong(format!("begin token {bos} of {tokens} tokens")),
            _ => Ok(()),
        }
    }
}

fn too_many_merges() -> TextError {
    TextError::Vocabulary("its tokens are made of one another in too many ways".to_owned())
}

/// Both tokens of a merge. A space can begin the left token, but cannot be all of it.
fn pair(merge: &str) -> Option<(&str, &str)> {
    let at = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?.0;
    Some((&merge[..at], &merge[at + 1..]))
}

fn pairs(merges: &[String]) -> Result<Vec<(String, String)>, TextError> {
    let both = |merge: &String| match pair(merge) {
        Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
        None => Err(TextError::Vocabulary(format!("merge {merge:?} is not a pair"))),
    };
    merges.iter().map(both).collect()
}

fn byte_level(
    ids: AHashMap<String, u32>,
    pre: &str,
    merges: &[String],
) -> Result<tokenizers::Tokenizer, TextError> {
    let merges = pairs(merges)?;
    let cut = pre_tokenizer(pre)?;
    let model = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(cut.whole_pieces).build()?;
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_pre_tokenizer(Some(Sequence::new(cut.steps)));
    inner.with_decoder(Some(ByteLevel::new(false, true, true)));
    if cut.composes {
        inner.with_normalizer(Some(NFC));
    }
    Ok(inner)
}

fn sentence_piece(
    ids: AHashMap<String, u32>,
    merges: Vec<(String, String)>,
    add_space_prefix: bool,
    unknown: Option<String>,
) -> Result<tokenizers::Tokenizer, TextError> {
    const SPACE: &str = "\u{2581}";
    let mut model = BPE::builder().vocab_and_merges(ids, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown);
    }
    let mut inner = tokenizers::Tokenizer::new(model.build()?);
    let mut normalizers: Vec<NormalizerWrapper> = vec![Replace::new(" ", SPACE)?.into()];
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if add_space_prefix {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    inner.with_normalizer(Some(NormalizerSequence::new(normalizers)));
    inner.with_decoder(Some(DecoderSequence::new(decoders)));
    Ok(inner)
}
