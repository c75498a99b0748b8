//! Models of SentencePiece.

use std::collections::HashMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use super::{
    Written, added, around, bpe, check_parts, document, flag, named,
    protobuf::{CONTROL, Model, NORMAL, Piece, UNKNOWN, USER_DEFINED, model},
};
use crate::tokenizer::LONGEST_TOKEN;

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// The `tokenizer.json` of a model. It cuts text as the model's own settings say, and as SentencePiece does.
pub(super) fn written(bytes: &[u8], config: &Value) -> Result<Written, String> {
    let model = model(bytes)?;
    if model.space_is_suffix || !model.escapes_spaces {
        return Err("it marks spaces in a way that is not converted".to_owned());
    }
    if let Some(long) = model.pieces.iter().find(|piece| piece.text.len() > LONGEST_TOKEN) {
        return Err(format!("a piece has {} bytes, expected {LONGEST_TOKEN} at most", long.text.len()));
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
    // SentencePiece looks for user-defined pieces when spaces are marked.
    let finds_marked = !adds_space || !prepended.is_empty();
    let tokens = listed.map(|(id, piece)| {
        added(id, &piece.text, special(piece.kind), piece.kind == USER_DEFINED && finds_marked)
    });
    let (bos, post_processor) = ends(&model, config);
    let steps = [normalizer, pre_tokenizer, post_processor, decoder(adds_space)];
    let json = document(kind, tokens.collect(), steps);
    Ok(Written { json, bos, special: Vec::new(), finds_unnormalised: adds_space })
}

/// The user-defined pieces, if they can be looked for behind a space that is put before the text; none if there are so
/// many that the steps for it would take long.
fn user_defined(model: &Model) -> Vec<&str> {
    const MOST: usize = 128;
    const MOST_BYTES: usize = 4096;
    let pieces = model.pieces.iter().filter(|piece| piece.kind == USER_DEFINED && !piece.text.is_empty());
    let pieces: Vec<&str> = pieces.map(|piece| piece.text.as_str()).collect();
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    match pieces.len() <= MOST && bytes <= MOST_BYTES {
        true => pieces,
        false => Vec::new(),
    }
}

/// The steps before a text is cut: characters are mapped, spaces marked. Older tokenizers (`legacy`) put a space before
/// the text behind each control token, newer ones only before the first text.
///
/// The library normalises the user-defined pieces as it does a text, and looks for what comes of them; so a text that is
/// one of them and nothing else gets no space. Of all texts, only these are not cut as SentencePiece does it.
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
            // A pattern for each, that does not look ahead: one that does fails on a text of a million characters.
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

/// Unigram: the pieces whose scores add up best. The library would find a control token or a byte in a text that spells it,
/// which SentencePiece never does, so they get a score that anything else is better than.
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

/// BPE: a pair of pieces is merged whose whole has the best score. Only ordinary pieces are made of others.
fn pairs(model: &Model) -> Result<Value, String> {
    /// Of all merges; Llama 2's 32,000 tokens have half a megabyte of them.
    const MOST_BYTES: usize = 64 << 20;
    let normal = model.pieces.iter().filter(|piece| piece.kind == NORMAL);
    check_parts(normal.map(|piece| piece.text.len()))?;
    let mut vocab = Map::new();
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        // Of pieces that are spelled alike, the first one is found.
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
                if bytes > MOST_BYTES {
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

/// The token before a prompt, and the step for one behind it. The first is there unless the configuration says
/// otherwise, the second only if it says so.
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

    /// A field of bytes; shorter than 128.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[(number << 3) | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
    }

    /// A model of pairs: three control tokens, `<sep>` as a user-defined piece, and letters.
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
        // The trainer's settings: its model type is 2.
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
        // Behind an added token, text begins anew.
        assert_eq!(ids("a<|x|>a"), [8, 9, 8]);
    }

    #[test]
    fn many_long_pieces_are_refused() {
        let piece = |text: String| Piece { text, score: 0.0, kind: NORMAL };
        let letters = ('\u{4e00}'..).take(200);
        let pieces = letters.map(|letter| piece(letter.to_string().repeat(LONGEST_TOKEN / 3))).collect();
        let model = Model { pieces, kind: 2, ..Model::default() };
        let error = pairs(&model).unwrap_err();
        assert!(error.contains("too many and too long"), "{error}");
    }
}
