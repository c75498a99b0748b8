//! Converts SentencePiece models to a `tokenizer.json`.

use std::collections::HashMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::{
    Written, added, around, bpe, check_parts, document, flag, named,
    protobuf::{CONTROL, Model, NORMAL, Piece, UNKNOWN, USER_DEFINED, model},
};
use crate::tokenizer::MAX_TOKEN_BYTES;

/// The character that SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// Makes the `tokenizer.json` of a SentencePiece model. It splits text as the model's settings and SentencePiece's
/// own rules say.
pub(super) fn written(bytes: &[u8], config: &Value) -> Result<Written, String> {
    let model = model(bytes)?;
    if model.space_is_suffix || !model.escapes_spaces {
        return Err("it marks spaces in a way that is not converted".to_owned());
    }
    if let Some(long) = model.pieces.iter().find(|piece| piece.text.len() > MAX_TOKEN_BYTES) {
        return Err(format!("a piece has {} bytes, expected {MAX_TOKEN_BYTES} at most", long.text.len()));
    }
    let adds_space = flag(config, "add_prefix_space").unwrap_or(model.adds_space);
    let legacy = flag(config, "legacy") != Some(false);
    let prepended = if adds_space && legacy { user_defined(&model) } else { Vec::new() };
    let (normalizer, pre_tokenizer) = spaces(&model, adds_space, legacy, &prepended);
    let kind = match model.kind {
        1 => unigram(&model),
        2 => pairs(&model)?,
        other => return Err(format!("its model type {other} is neither Unigram (1) nor BPE (2)")),
    };
    let special = |kind: u64| [UNKNOWN, CONTROL].contains(&kind);
    let listed =
        model.pieces.iter().enumerate().filter(|(_, piece)| {
            !piece.text.is_empty() && (special(piece.kind) || piece.kind == USER_DEFINED)
        });
    // SentencePiece searches user-defined pieces after spaces are marked.
    let finds_marked = !adds_space || !prepended.is_empty();
    let tokens = listed.map(|(id, piece)| {
        added(id, &piece.text, special(piece.kind), piece.kind == USER_DEFINED && finds_marked)
    });
    let (bos, post_processor) = ends(&model, config);
    let steps = [normalizer, pre_tokenizer, post_processor, decoder(adds_space)];
    let json = document(kind, tokens.collect(), steps);
    Ok(Written { json, bos, special: Vec::new(), finds_unnormalised: adds_space })
}

/// The user-defined pieces, if they can be searched behind a space that is put before the text; empty if there are so
/// many that the steps for this would take long.
fn user_defined(model: &Model) -> Vec<&str> {
    const MAX_COUNT: usize = 128;
    const MAX_BYTES: usize = 4096;
    let pieces = model.pieces.iter().filter(|piece| piece.kind == USER_DEFINED && !piece.text.is_empty());
    let pieces: Vec<&str> = pieces.map(|piece| piece.text.as_str()).collect();
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    match pieces.len() <= MAX_COUNT && bytes <= MAX_BYTES {
        true => pieces,
        false => Vec::new(),
    }
}

/// Makes the normaliser and pre-tokenizer: characters are mapped, and spaces are marked. Older tokenizers (`legacy`)
/// put a space before the text behind each control token, newer ones only before the first text.
///
/// The library normalises the user-defined pieces as it normalises a text, and searches the result; so a text that is
/// one user-defined piece and nothing else gets no space. Only such texts are not split as SentencePiece splits them.
fn spaces(model: &Model, adds_space: bool, legacy: bool, user_defined: &[&str]) -> (Value, Value) {
    let replace = |pattern: Value, by: &str| json!({ "type": "Replace", "pattern": pattern, "content": by });
    let mut steps: Vec<Value> = Vec::new();
    if !model.charsmap.is_empty() {
        let map = BASE64_STANDARD.encode(&model.charsmap);
        steps.push(json!({ "type": "Precompiled", "precompiled_charsmap": map }));
    }
    if model.removes_spaces {
        steps.push(replace(json!({ "Regex": r"\A +| +\z" }), ""));
        steps.push(replace(json!({ "Regex": " {2,}" }), " "));
    }
    let marks_first = adds_space && !legacy;
    if adds_space && legacy {
        steps.push(json!({ "type": "Prepend", "prepend": SPACE }));
        steps.extend(user_defined.iter().map(|&piece| {
            // Each piece has its own pattern without look-ahead, because a look-ahead fails on a text of a million
            // characters.
            replace(json!({ "Regex": format!(r"\A{SPACE}{}\z", regex_syntax::escape(piece)) }), piece)
        }));
    }
    if !marks_first {
        steps.push(replace(json!({ "String": " " }), SPACE));
    }
    let normalizer = match steps.is_empty() {
        true => Value::Null,
        false => json!({ "type": "Sequence", "normalizers": steps }),
    };
    let pre_tokenizer = match marks_first {
        true => json!({
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false,
        }),
        false => Value::Null,
    };
    (normalizer, pre_tokenizer)
}

fn decoder(adds_space: bool) -> Value {
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if adds_space {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": steps })
}

/// Makes a Unigram model, which chooses the pieces with the best sum of scores. The library would find a control
/// token or a byte token in a text that spells it, which SentencePiece never does, so these tokens get a score that
/// is worse than any other.
fn unigram(model: &Model) -> Value {
    const NEVER: f32 = -1e5;
    let score = |piece: &Piece| match piece.kind {
        NORMAL | USER_DEFINED => piece.score,
        _ => NEVER,
    };
    let vocab: Vec<Value> = model.pieces.iter().map(|piece| json!([piece.text, score(piece)])).collect();
    let unknown = model.piece_at(model.unk_id).map(|(_, id)| id);
    json!({ "type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": model.byte_fallback })
}

/// Makes a BPE model, which merges the pair of pieces whose merged piece has the best score. Only ordinary pieces are
/// made by merges.
fn pairs(model: &Model) -> Result<Value, String> {
    /// Most bytes of all merges; Llama 2's 32,000 tokens have half a megabyte of them.
    const MAX_BYTES: usize = 64 << 20;
    let normal = model.pieces.iter().filter(|piece| piece.kind == NORMAL);
    check_parts(normal.map(|piece| piece.text.len()))?;
    let mut vocab = Map::new();
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        // If several pieces have the same text, the first one is found.
        vocab.entry(piece.text.clone()).or_insert_with(|| id.into());
        if piece.kind == NORMAL {
            ids.entry(&piece.text).or_insert(id);
        }
    }
    let mut merges: Vec<(f32, usize, &str, &str)> = Vec::new();
    let mut bytes = 0;
    for (id, piece) in model.pieces.iter().enumerate().filter(|(_, piece)| piece.kind == NORMAL) {
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                bytes += piece.text.len();
                if bytes > MAX_BYTES {
                    return Err("its pieces are made of one another in too many ways".to_owned());
                }
                merges.push((piece.score, id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let merges: Vec<Value> = merges.into_iter().map(|(.., left, right)| json!([left, right])).collect();
    let unknown = model.piece_at(model.unk_id).map(|(text, _)| text);
    let mut bpe = bpe(vocab, merges, unknown);
    bpe["fuse_unk"] = true.into();
    bpe["byte_fallback"] = model.byte_fallback.into();
    Ok(bpe)
}

/// The token before a prompt, and the post-processor that adds one behind it. The first token is added unless the
/// configuration says otherwise, the second one only if the configuration says so.
fn ends(model: &Model, config: &Value) -> (Option<String>, Value) {
    let bos = named(config, "bos_token").or_else(|| Some(model.piece_at(model.bos_id)?.0));
    let bos = bos.filter(|_| flag(config, "add_bos_token") != Some(false));
    let eos = match named(config, "eos_token") {
        Some(text) => model.find(text).map(|id| (text, id)),
        None => model.piece_at(model.eos_id),
    };
    match eos.filter(|_| flag(config, "add_eos_token") == Some(true)) {
        None => (bos.map(str::to_owned), Value::Null),
        Some(eos) => {
            let bos = bos.and_then(|text| Some((text, model.find(text)?)));
            (None, around(bos, eos))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{ExtraToken, SlowFiles, SlowTokenizer};

    /// A protobuf field of fewer than 128 bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[(number << 3) | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    }

    /// A BPE model: three control tokens, `<sep>` as a user-defined piece, and letters.
    fn with_a_user_defined_piece() -> Vec<u8> {
        let pieces = [
            ("<unk>", UNKNOWN),
            ("<s>", CONTROL),
            ("</s>", CONTROL),
            ("<sep>", USER_DEFINED),
            (SPACE, NORMAL),
            ("a", NORMAL),
            ("b", NORMAL),
            ("y", NORMAL),
            ("\u{2581}a", NORMAL),
        ];
        let mut model: Vec<u8> = Vec::new();
        for (text, kind) in pieces {
            let piece = [field(1, text.as_bytes()), vec![3 << 3, u8::try_from(kind).unwrap()]].concat();
            model.extend(field(1, &piece));
        }
        // The trainer's settings say that the model type is 2 (BPE).
        model.extend(field(2, &[3 << 3, 2]));
        model
    }

    #[test]
    fn added_tokens_and_user_defined_pieces_are_found_inside_text() {
        let bytes = with_a_user_defined_piece();
        let extra = [ExtraToken { content: "<|x|>".to_owned(), ..ExtraToken::default() }];
        let (files, path) = (SlowFiles::SentencePiece(&bytes), Path::new("tokenizer.model"));
        let config = json!({});
        let tokenizer = SlowTokenizer { files, config: &config, model_type: None, extra: &extra, path };
        let tokenizer = tokenizer.into_tokenizer().unwrap();
        let ids = |text: &str| tokenizer.encode(text, false).unwrap();
        assert_eq!(ids("<sep>y"), [4, 3, 7]);
        assert_eq!(ids("a<sep>b"), [8, 3, 6]);
        assert_eq!(ids("<sep><sep>"), [4, 3, 3]);
        // The text behind an added token gets a space in front again.
        assert_eq!(ids("a<|x|>a"), [8, 9, 8]);
    }

    #[test]
    fn many_long_pieces_are_refused() {
        let piece = |text: String| Piece { text, score: 0.0, kind: NORMAL };
        let letters = ('\u{4e00}'..).take(200);
        let pieces = letters.map(|letter| piece(letter.to_string().repeat(MAX_TOKEN_BYTES / 3))).collect();
        let model = Model { pieces, kind: 2, ..Model::default() };
        let error = pairs(&model).unwrap_err();
        assert!(error.contains("too many and too long"), "{error}");
    }
}
