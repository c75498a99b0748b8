//! Reads the few fields of SentencePiece's `ModelProto` that a tokenizer needs.
//!
//! Field numbers and defaults are those of `sentencepiece_model.proto`.

/// A SentencePiece model.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) pieces: Vec<Piece>,
    /// 1 for Unigram, 2 for BPE.
    pub(super) kind: u64,
    pub(super) byte_fallback: bool,
    /// Whether spaces are marked behind words.
    pub(super) space_is_suffix: bool,
    pub(super) unk_id: i64,
    pub(super) bos_id: i64,
    pub(super) eos_id: i64,
    /// The compiled character map of the normaliser.
    pub(super) charsmap: Vec<u8>,
    pub(super) adds_space: bool,
    pub(super) removes_spaces: bool,
    pub(super) escapes_spaces: bool,
}

impl Default for Model {
    /// The values of SentencePiece's own definition, for fields that a file leaves out.
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            kind: 1,
            byte_fallback: false,
            space_is_suffix: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            charsmap: Vec::new(),
            adds_space: true,
            removes_spaces: true,
            escapes_spaces: true,
        }
    }
}

/// A piece: an entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: u64,
}

pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    Other,
}

/// A reader of the fields of one protobuf message.
struct Fields<'a>(&'a [u8]);

const CUT: &str = "it is cut off, or no model of SentencePiece";

impl<'a> Fields<'a> {
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(CUT)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(CUT.to_owned())
    }

    fn bytes(&mut self, len: u64) -> Result<&'a [u8], String> {
        let len = usize::try_from(len).map_err(|_| CUT)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(CUT)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Reads the next field and its number.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.bytes(8)?;
                Field::Other
            }
            2 => {
                let len = self.number()?;
                Field::Bytes(self.bytes(len)?)
            }
            5 => match self.bytes(4)?.first_chunk::<4>() {
                Some(bytes) => Field::Float(f32::from_le_bytes(*bytes)),
                None => Field::Other,
            },
            _ => return Err(CUT.to_owned()),
        };
        Ok(Some((tag >> 3, field)))
    }
}

/// Reads a SentencePiece model.
///
/// # Errors
/// If the bytes are no SentencePiece model, or the model has more pieces than real ones have.
pub(super) fn model(bytes: &[u8]) -> Result<Model, String> {
    /// Most pieces of a model; Gemma 3 has 262,144.
    const MAX_PIECES: usize = 1 << 20;
    let mut model = Model::default();
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
            (2, Field::Bytes(bytes)) => trainer(&mut model, bytes)?,
            (3, Field::Bytes(bytes)) => normalizer(&mut model, bytes)?,
            _ => {}
        }
        if model.pieces.len() > MAX_PIECES {
            return Err(format!("it has more than {MAX_PIECES} pieces"));
        }
    }
    match model.pieces.is_empty() {
        true => Err(CUT.to_owned()),
        false => Ok(model),
    }
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| "a piece of it is no text".to_owned())?;
                piece.text = text.to_owned();
            }
            (2, Field::Float(score)) => piece.score = score,
            (3, Field::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    Ok(piece)
}

fn trainer(model: &mut Model, bytes: &[u8]) -> Result<(), String> {
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        let Field::Number(value) = field else { continue };
        match number {
            3 => model.kind = value,
            24 => model.space_is_suffix = value != 0,
            35 => model.byte_fallback = value != 0,
            // A negative id means that the model does not have this token.
            40 => model.unk_id = value.cast_signed(),
            41 => model.bos_id = value.cast_signed(),
            42 => model.eos_id = value.cast_signed(),
            _ => {}
        }
    }
    Ok(())
}

fn normalizer(model: &mut Model, bytes: &[u8]) -> Result<(), String> {
    let mut fields = Fields(bytes);
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (2, Field::Bytes(map)) => model.charsmap = map.to_vec(),
            (3, Field::Number(value)) => model.adds_space = value != 0,
            (4, Field::Number(value)) => model.removes_spaces = value != 0,
            (5, Field::Number(value)) => model.escapes_spaces = value != 0,
            _ => {}
        }
    }
    Ok(())
}

impl Model {
    /// The text and id of the piece with this id; `None` for a token that the model does not have.
    pub(super) fn piece_at(&self, id: i64) -> Option<(&str, usize)> {
        let id = usize::try_from(id).ok()?;
        Some((self.pieces.get(id)?.text.as_str(), id))
    }

    /// The id of the piece with this text.
    pub(super) fn find(&self, text: &str) -> Option<usize> {
        self.pieces.iter().position(|piece| piece.text == text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        // A piece "ab" of score 1 and type 3, and BPE without a begin token.
        let piece: [u8; 11] = [0x0A, 2, b'a', b'b', 0x15, 0, 0, 0x80, 0x3F, 0x18, 3];
        let trainer: [u8; 14] = [0x18, 2, 0xC8, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1];
        let bytes = [&[0x0A, 11][..], &piece, &[0x12, 14], &trainer, &[0x1A, 2, 0x18, 0]].concat();
        let read = model(&bytes).unwrap();
        assert_eq!(read.pieces, [Piece { text: "ab".to_owned(), score: 1.0, kind: CONTROL }]);
        assert_eq!((read.kind, read.bos_id, read.eos_id, read.adds_space), (2, -1, 2, false));
        assert_eq!((read.piece_at(read.bos_id), read.find("ab")), (None, Some(0)));
        for cut in 1..bytes.len() {
            // A cut between two fields gives a shorter model; any other cut is an error.
            let _ = model(&bytes[..cut]);
        }
        for wrong in [&[][..], b"IQ== 0\n", &[0x0A, 200], &[0xFF; 20]] {
            assert_eq!(model(wrong).unwrap_err(), CUT, "{wrong:?}");
        }
    }
}
