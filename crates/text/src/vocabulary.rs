//! The tokenizer inside a GGUF file, rebuilt as a `tokenizers` tokenizer.

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
    tokenizer::{LONGEST_ADDED_TOKEN, LONGEST_TOKEN, MOST_ADDED_BYTES, MOST_ADDED_TOKENS},
};

/// A vocabulary as model files list it.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// How text is split into it.
    pub kind: VocabularyKind,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// What each token is; all normal if empty.
    pub kinds: Vec<TokenKind>,
    /// Put before a prompt.
    pub bos: Option<u32>,
    /// Put behind a prompt.
    pub eos: Option<u32>,
    /// Control tokens that swallow the spaces behind them.
    pub rstrip: Vec<String>,
}

/// The families of tokenizers in GGUF files.
#[derive(Clone, Debug)]
pub enum VocabularyKind {
    /// `gpt2`: byte-level BPE, its merges in order of rank.
    ByteLevel {
        /// `tokenizer.ggml.pre`: how text is cut before merging.
        pre: String,
        /// "left right", best first.
        merges: Vec<String>,
    },
    /// `llama`: SentencePiece BPE, in which the score of a merged token ranks the merge.
    SentencePiece {
        /// By id.
        scores: Vec<f32>,
        /// Whether text is given a space in front.
        add_space_prefix: bool,
    },
    /// `gemma4`: BPE over text whose spaces are `\u{2581}`, cut at the ends of lines; what is no token is bytes.
    Spaced {
        /// "left right", best first.
        merges: Vec<String>,
    },
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// What cannot be encoded.
    Unknown,
    /// Control: never text.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// Nothing.
    Unused,
    /// One byte, `<0x0A>`.
    Byte,
}

impl TokenKind {
    /// ggml's number.
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

    /// From ggml's number.
    pub fn from_ggml(number: usize) -> Option<Self> {
        Some(match number {
            // 0 is "undefined": of files without types.
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
    /// Leaves out the merges that are no pair, or that name a token which is not there, and says how many these are.
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

    /// Rebuilds the tokenizer.
    ///
    /// # Errors
    /// If the lists contradict each other or the way of cutting text is not known.
    pub fn into_tokenizer(self) -> Result<Tokenizer, TextError> {
        self.check()?;
        catch_panics(|| self.built())
    }

    fn built(self) -> Result<Tokenizer, TextError> {
        let mut ids = AHashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            // Of tokens that are spelled alike, the first one is found.
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

    /// Every way to make a token of text out of two others, best score of the whole first: SentencePiece
    /// merges the pair whose result scores best.
    ///
    /// # Errors
    /// If the tokens are made of one another in more ways than those of a language are.
    fn merges_of_scores(
        &self,
        ids: &AHashMap<String, u32>,
        scores: &[f32],
    ) -> Result<Vec<(String, String)>, TextError> {
        /// Of all merges; Llama 2's 32,000 tokens have half a megabyte of them.
        const MOST_BYTES: usize = 64 << 20;
        /// Tokens that are worth a thread.
        const MANY: usize = 20_000;
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
                    // One after the other: the first is seldom a token.
                    if let Some(&l) = ids.get(left)
                        && let Some(&r) = ids.get(right)
                    {
                        bytes += whole.len();
                        if bytes > MOST_BYTES {
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
        let step = tokens.div_ceil(threads).max(MANY);
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
        if merges.iter().map(|merge| merge.3.len() + merge.4.len()).sum::<usize>() > MOST_BYTES {
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
                    LONGEST_ADDED_TOKEN
                }
                _ => LONGEST_TOKEN,
            };
            if token.len() > most {
                return wrong(format!("token {id} has {} bytes, expected {most} at most", token.len()));
            }
        }
        if added > MOST_ADDED_TOKENS || bytes > MOST_ADDED_BYTES {
            return wrong(format!(
                "{added} tokens of {bytes} bytes are no text or user-defined, expected {MOST_ADDED_TOKENS} of \
                 {MOST_ADDED_BYTES} at most"
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

/// Both tokens of a merge. A space can begin the left one, never be all of it.
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
