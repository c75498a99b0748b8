//! Reads the beginning of a text that may go on.

/// Why reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The text is not long enough to tell.
    More,
    /// Something else stands there.
    Wrong,
}

/// A place in a text.
pub(super) struct Cursor<'a> {
    pub(super) text: &'a str,
    /// Bytes that were read.
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(super) fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// A literal, space before it skipped.
    pub(super) fn literal(&mut self, literal: &str) -> Result<(), Stop> {
        self.space();
        let rest = self.rest();
        if rest.starts_with(literal) {
            self.at += literal.len();
            return Ok(());
        }
        Err(if literal.starts_with(rest) { Stop::More } else { Stop::Wrong })
    }

    /// A JSON string, space before it skipped.
    pub(super) fn string(&mut self) -> Result<String, Stop> {
        self.literal("\"")?;
        let mut is_escaped = false;
        for (at, char) in self.rest().char_indices() {
            match char {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '"' => {
                    let string = &self.text[self.at - 1..=self.at + at];
                    self.at += at + 1;
                    return serde_json::from_str(string).map_err(|_| Stop::Wrong);
                }
                _ => {}
            }
        }
        Err(Stop::More)
    }

    /// The text before a literal, and the literal.
    pub(super) fn until(&mut self, literal: &str) -> Result<&'a str, Stop> {
        let rest = self.rest();
        let at = rest.find(literal).ok_or(Stop::More)?;
        self.at += at + literal.len();
        Ok(&rest[..at])
    }
}

/// Finds the end of a JSON object in a text that comes piece by piece.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JsonEnd {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl JsonEnd {
    /// Takes a piece; gives the bytes of it that belong to the object, and whether the object ends with them.
    pub(super) fn push(&mut self, piece: &str) -> (usize, bool) {
        for (at, byte) in piece.bytes().enumerate() {
            match (self.in_string, byte) {
                (true, _) if self.is_escaped => self.is_escaped = false,
                (true, b'\\') => self.is_escaped = true,
                (_, b'"') => self.in_string = !self.in_string,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                _ => {}
            }
        }
        (piece.len(), false)
    }
}
