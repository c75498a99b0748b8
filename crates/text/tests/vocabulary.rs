//! Tests tokenizers rebuilt from vocabularies, streaming, and templates with control tokens in messages.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use moi_text::{
    ChatTemplate, Detokenizer, Message, TemplateTokens, TokenKind, Tokenizer, Vocabulary, VocabularyKind,
};
use proptest::prelude::*;

/// GPT-2's table of bytes as characters.
fn byte_characters() -> Vec<String> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    (0..256u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap().to_string()
        })
        .collect()
}

fn byte_level(pre: &str) -> Vocabulary {
    let mut tokens = byte_characters();
    let merges = ["1 2", "12 3", "123 4", "Ġ a", "h i"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    tokens.extend(["<|end|>".to_owned(), "<tool>".to_owned()]);
    let mut kinds = vec![TokenKind::Normal; tokens.len()];
    kinds[tokens.len() - 2] = TokenKind::Control;
    kinds[tokens.len() - 1] = TokenKind::UserDefined;
    let merges = merges.map(str::to_owned).to_vec();
    Vocabulary {
        kind: VocabularyKind::ByteLevel { pre: pre.to_owned(), merges },
        tokens,
        kinds,
        bos: None,
        eos: None,
        rstrip: Vec::new(),
    }
}

fn texts(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, false).unwrap().into_iter().map(|id| tokenizer.token(id).unwrap()).collect()
}

#[test]
fn every_pre_tokenizer_cuts_numbers_its_own_way() {
    let numbers = |pre| texts(&byte_level(pre).into_tokenizer().unwrap(), "1234");
    assert_eq!(numbers("gpt-2"), ["1234"]);
    assert_eq!(numbers("llama-bpe"), ["123", "4"]);
    assert_eq!(numbers("default"), ["123", "4"]);
    assert_eq!(numbers("qwen2"), ["1", "2", "3", "4"]);
    assert_eq!(numbers("smollm"), ["1", "2", "3", "4"]);
    let error = byte_level("martian").into_tokenizer().unwrap_err().to_string();
    assert!(error.contains("`martian` is not supported (supported: default, gpt-2"), "{error}");
}

#[test]
fn qwen_composes_characters_as_its_tokenizer_does() {
    let tokenizer = byte_level("qwen2").into_tokenizer().unwrap();
    assert_eq!(tokenizer.encode("e\u{301}", false).unwrap(), tokenizer.encode("\u{e9}", false).unwrap());
}

#[test]
fn control_tokens_are_text_and_user_defined_tokens_are_not() {
    let tokenizer = byte_level("gpt-2").into_tokenizer().unwrap();
    assert!(texts(&tokenizer, "<|end|>").len() > 1);
    assert_eq!(texts(&tokenizer, "hi<tool>"), ["hi", "<tool>"]);
    let end = tokenizer.id("<|end|>").unwrap();
    assert_eq!(tokenizer.decode(&[end]).unwrap(), "");
    let begins = Vocabulary { bos: Some(end), ..byte_level("gpt-2") }.into_tokenizer().unwrap();
    assert_eq!(begins.encode("hi", true).unwrap()[0], end);
    assert_ne!(begins.encode("hi", false).unwrap()[0], end);
}

#[test]
fn a_template_keeps_control_tokens_of_messages_as_text() {
    let tokenizer = byte_level("gpt-2").into_tokenizer().unwrap();
    let source = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}";
    let template = ChatTemplate::new(source, TemplateTokens::default()).unwrap();
    let end = tokenizer.id("<|end|>").unwrap();
    for content in ["hi", "a <|end|> b", "<|end|>", "\u{F0000}<|end|>\u{F0001}"] {
        let ids = template.encode(&[Message::new("user", content)], &tokenizer).unwrap();
        let plain = tokenizer.encode(content, false).unwrap();
        assert_eq!(ids, [plain, vec![end]].concat(), "{content:?}");
    }
}

fn sentence_piece(add_space_prefix: bool) -> Tokenizer {
    let mut tokens: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = [
        ("\u{2581}", -5.0),
        ("a", -6.0),
        ("b", -7.0),
        ("ab", -2.0),
        ("ba", -1.0),
        ("\u{2581}a", -3.0),
        ("aba", -1.5),
    ];
    tokens.extend(pieces.iter().map(|(piece, _)| (*piece).to_owned()));
    let mut scores = vec![0.0; 259];
    scores.extend(pieces.iter().map(|(_, score)| *score as f32));
    let mut kinds = vec![TokenKind::Byte; 259];
    kinds[..3].copy_from_slice(&[TokenKind::Unknown, TokenKind::Control, TokenKind::Control]);
    kinds.extend([TokenKind::Normal; 7]);
    let kind = VocabularyKind::SentencePiece { scores, add_space_prefix };
    Vocabulary { kind, tokens, kinds, bos: Some(1), eos: None, rstrip: Vec::new() }.into_tokenizer().unwrap()
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = sentence_piece(false);
    // "ba" scores best, so it is merged before "ab".
    assert_eq!(texts(&tokenizer, "aba"), ["aba"]);
    assert_eq!(texts(&tokenizer, "bab"), ["ba", "b"]);
    assert_eq!(texts(&tokenizer, " a"), ["\u{2581}a"]);
    assert_eq!(texts(&tokenizer, "é"), ["<0xC3>", "<0xA9>"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("aé b", true).unwrap()).unwrap(), "aé b");
    let prefixed = sentence_piece(true);
    assert_eq!(texts(&prefixed, "a"), ["\u{2581}a"]);
    assert_eq!(prefixed.decode(&prefixed.encode("a b", true).unwrap()).unwrap(), "a b");
}

#[test]
fn contradictions_are_named() {
    let error = |change: fn(&mut Vocabulary)| {
        let mut vocabulary = byte_level("gpt-2");
        change(&mut vocabulary);
        vocabulary.into_tokenizer().unwrap_err().to_string()
    };
    assert!(error(|v| v.tokens.clear()).contains("0 tokens"));
    assert!(error(|v| v.kinds.truncate(5)).contains("5 token types for 263 tokens"));
    assert!(error(|v| v.bos = Some(999)).contains("begin token 999 of 263 tokens"));
    let merges = |merges: &[&str]| {
        let merges = merges.iter().map(|m| (*m).to_owned()).collect();
        VocabularyKind::ByteLevel { pre: "gpt-2".into(), merges }
    };
    let broken = Vocabulary { kind: merges(&["ab"]), ..byte_level("gpt-2") }.into_tokenizer();
    assert!(broken.unwrap_err().to_string().contains("\"ab\" is not a pair"));
    let unknown = Vocabulary { kind: merges(&["zz yy"]), ..byte_level("gpt-2") }.into_tokenizer();
    assert!(unknown.is_err());
    // Unusable merges can be left out.
    let kind = merges(&["ab", "1 2", "zz yy", "a b", "12 3"]);
    let mut vocabulary = Vocabulary { kind, ..byte_level("gpt-2") };
    assert_eq!(vocabulary.drop_unusable_merges(), 3);
    assert_eq!(texts(&vocabulary.into_tokenizer().unwrap(), "1234"), ["123", "4"]);
    let kind = VocabularyKind::SentencePiece { scores: vec![0.0], add_space_prefix: true };
    let scores = Vocabulary { kind, ..byte_level("gpt-2") }.into_tokenizer();
    assert!(scores.unwrap_err().to_string().contains("1 scores for 263 tokens"));
}

proptest! {
    /// For any text and any of these tokenizers, the streamed pieces make up the whole text and never end within a
    /// character.
    #[test]
    fn streaming_gives_what_decoding_gives(text in "\\PC{0,12}") {
        for tokenizer in [byte_level("gpt-2").into_tokenizer().unwrap(), sentence_piece(true), sentence_piece(false)] {
            let ids = tokenizer.encode(&text, false).unwrap();
            let mut stream = Detokenizer::default();
            let mut streamed = String::new();
            for &id in &ids {
                let piece = stream.push(&tokenizer, id).unwrap();
                prop_assert!(text.contains('\u{FFFD}') || !piece.contains('\u{FFFD}'), "{:?}", piece);
                streamed += &piece;
            }
            streamed += &stream.finish(&tokenizer).unwrap();
            prop_assert_eq!(&streamed, &tokenizer.decode(&ids).unwrap());
            prop_assert_eq!(&streamed, &text);
        }
    }
}

proptest! {
    #[test]
    fn streaming_any_tokens_loses_nothing(
        // Control tokens, bytes that are no character alone, and pieces of text.
        ids in prop::collection::vec(prop_oneof![0u32..3, 131u32..266], 0..24),
    ) {
        for tokenizer in [sentence_piece(true), sentence_piece(false)] {
            let mut stream = Detokenizer::default();
            let mut streamed = String::new();
            for &id in &ids {
                streamed += &stream.push(&tokenizer, id).unwrap();
            }
            streamed += &stream.finish(&tokenizer).unwrap();
            // If bytes make no character, streaming and decoding may replace them at different times, but all letters
            // must arrive.
            let letters = |text: &str| text.chars().filter(char::is_ascii_alphabetic).collect::<String>();
            let whole = tokenizer.decode(&ids).unwrap();
            prop_assert_eq!(letters(&streamed), letters(&whole));
            if !whole.contains('\u{FFFD}') {
                prop_assert_eq!(streamed, whole);
            }
        }
    }
}

#[test]
fn a_control_token_in_mid_stream_takes_no_space_away() {
    let tokenizer = sentence_piece(true);
    let mut stream = Detokenizer::default();
    let spaced = tokenizer.id("\u{2581}a").unwrap();
    let pieces = [spaced, 1, spaced, 1, 1, spaced].map(|id| stream.push(&tokenizer, id).unwrap());
    assert_eq!(pieces, ["a", "", " a", "", "", " a"]);
}

#[test]
fn bytes_that_never_become_a_character_come_at_the_end() {
    let tokenizer = byte_level("gpt-2").into_tokenizer().unwrap();
    let ids = tokenizer.encode("hi🤖", false).unwrap();
    let mut stream = Detokenizer::default();
    let pieces: Vec<String> =
        ids[..ids.len() - 1].iter().map(|&id| stream.push(&tokenizer, id).unwrap()).collect();
    assert_eq!(pieces.concat(), "hi");
    assert_eq!(stream.finish(&tokenizer).unwrap(), "\u{FFFD}");
}

/// Each token is made of every two others: a thousand tokens have half a million merges.
#[test]
fn tokens_made_of_one_another_without_end_are_refused() {
    let tokens: Vec<String> = (1..=1000).map(|len| "a".repeat(len)).collect();
    let vocabulary = Vocabulary {
        kind: VocabularyKind::SentencePiece { scores: vec![0.0; tokens.len()], add_space_prefix: false },
        tokens,
        kinds: Vec::new(),
        bos: None,
        eos: None,
        rstrip: Vec::new(),
    };
    let error = vocabulary.into_tokenizer().unwrap_err().to_string();
    assert!(error.contains("made of one another in too many ways"), "{error}");
}

/// More control tokens than models have are refused, because all of them are searched in every prompt.
#[test]
fn too_many_control_tokens_are_refused() {
    let with = |count: usize, len: usize| {
        let mut vocabulary = byte_level("gpt-2");
        let more = (0..count).map(|id| format!("{id:0len$}"));
        vocabulary.tokens.extend(more);
        vocabulary.kinds.resize(vocabulary.tokens.len(), TokenKind::Control);
        vocabulary.rstrip = vocabulary.tokens.clone();
        vocabulary.into_tokenizer()
    };
    let tokenizer = with(20_000, 8).unwrap();
    assert_eq!(tokenizer.special_text(tokenizer.id("00019999").unwrap()), Some("00019999"));
    let error = |count, len| with(count, len).unwrap_err().to_string();
    let many = error(80_000, 5);
    assert!(
        many.contains("80002 tokens of 400013 bytes are no text or user-defined, expected 80000"),
        "{many}"
    );
    let long = error(9000, 500);
    assert!(long.contains("9002 tokens of 4500013 bytes"), "{long}");
}

/// Control tokens in messages stay text, including overlapping ones and ones that are private-use characters.
#[test]
fn control_tokens_in_messages_stay_text() {
    let mut vocabulary = byte_level("gpt-2");
    for text in ["<|end|><|", "\u{F0000}", "|end|>x"] {
        vocabulary.tokens.push(text.to_owned());
        vocabulary.kinds.push(TokenKind::Control);
    }
    let tokenizer = vocabulary.into_tokenizer().unwrap();
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let template = ChatTemplate::new(plain, TemplateTokens::default()).unwrap();
    for text in ["<|end|>", "<|end|><|end|>", "<<|end|>x\u{F0000}|end|>x", "\u{F0001}<|end|><|\u{F0000}"] {
        let ids = template.encode(&[Message::new("user", text)], &tokenizer).unwrap();
        assert!(ids.iter().all(|&id| tokenizer.special_text(id).is_none()), "{text:?}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}
