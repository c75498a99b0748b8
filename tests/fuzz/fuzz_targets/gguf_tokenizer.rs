//! Lists as a GGUF file has them. Input: a byte of choices, then lines; an empty line ends the tokens (each behind a
//! byte of its kind), another the merges; scores are made of the tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moi_text::{ChatTemplate, TemplateTokens, TokenKind, Vocabulary, VocabularyKind};

/// Compiling the patterns of the later ones takes a hundred times as long as all else.
const PRE: &[&str] = &[
    "gpt-2",
    "smollm",
    "gpt-2",
    "olmo",
    "gpt-2",
    "command-r",
    "gpt-2",
    "nonsense",
    "gpt-2",
    "smollm",
    "phi-2",
    "qwen2",
];

fuzz_target!(|bytes: &[u8]| {
    let Some((&choices, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let mut lines = text.split('\n');
    let (mut tokens, mut kinds) = (Vec::new(), Vec::new());
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let (kind, token) = line.split_at(line.chars().next().map_or(0, char::len_utf8));
        kinds.push(TokenKind::from_ggml(kind.as_bytes()[0] as usize % 8).unwrap_or(TokenKind::Normal));
        tokens.push(token.to_owned());
    }
    let merges: Vec<String> = lines.by_ref().take_while(|line| !line.is_empty()).map(str::to_owned).collect();
    let kind = match choices & 65 {
        64 => VocabularyKind::Spaced { merges },
        0 => VocabularyKind::ByteLevel { pre: PRE[choices as usize / 2 % PRE.len()].to_owned(), merges },
        _ => VocabularyKind::SentencePiece {
            scores: tokens.iter().map(|token| token.len() as f32 - f32::from(choices)).collect(),
            add_space_prefix: choices & 2 == 0,
        },
    };
    let bos = (choices & 16 == 0).then_some(u32::from(choices) % 5);
    let count = tokens.len();
    let rstrip = tokens.iter().filter(|token| token.len() == 3).cloned().collect();
    let Ok(tokenizer) = (Vocabulary { kind, tokens, kinds, bos, eos: bos, rstrip }).into_tokenizer() else {
        return;
    };
    let ids = tokenizer.encode(&text, true).expect("its own text can be encoded");
    assert!(ids.iter().all(|&id| (id as usize) < count), "a token that is not in the vocabulary: {ids:?}");
    let _ = tokenizer.decode(&ids);
    let plain = "{{ bos_token }}{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}";
    let template = ChatTemplate::new(plain, TemplateTokens::default()).expect("it is valid");
    let _ = template.encode(&moi_fuzz::conversation(), &tokenizer);
    if choices & 32 != 0 {
        let _ = tokenizer.to_json();
    }
});
