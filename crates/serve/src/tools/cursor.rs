//! Parses the beginning of a text of which more may come.

/// Why parsing stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// More text is needed to decide.
    More,
    /// The text does not match.
    Wrong,
}

/// A position in a text.
pub(super) struct Cursor<'a> {
    pub(super) text: &'a str,
    /// Number of bytes that were read.
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

    /// Reads a literal, and skips space before it.
    pub(super) fn literal(&mut self, literal: &str) -> Result<(), Stop> {
        self.space();
        let rest = self.rest();
        if rest.starts_with(literal) {
            self.at += literal.len();
            return Ok(());
        }
        Err(if literal.starts_with(rest) { Stop::More } else { Stop::Wrong })
    }

    /// Reads a JSON string, and skips space before it.
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

    /// Reads up to a literal and past it. Returns the text before the literal.
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
    /// Takes a piece. Returns how many of its bytes belong to the object, and whether the object ends with them.
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
