//! Rewrites a template's source where minijinja reads it otherwise than Jinja: line ends, constants, white space and
//! tags. Every template passes through here, whatever file it comes from.

use minijinja::{Error, ErrorKind};

use crate::{
    constants::{decoded, number_length, quoted},
    python::is_space,
    tags,
};

/// The filter that `for` applies to its list, so that a template cannot loop over a value that Python cannot loop
/// over.
pub(crate) const EACH: &str = "moi_each";
/// The filter that turns a string into a list where a `set` unpacks it into several names.
pub(crate) const UNPACKED: &str = "moi_unpacked";
/// The filter put behind a constant before an operator. It returns its value unchanged; it keeps minijinja's compiler
/// from applying the operator itself.
pub(crate) const NOT_CONSTANT: &str = "moi_value";

/// The kind of a token in a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Name,
    Literal,
    Sign,
}

/// A token of a tag: its place in the tag's text, and how many brackets are open around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) kind: Kind,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) depth: usize,
}

/// The inside of a tag, with its constants rewritten.
#[derive(Debug, Default)]
pub(crate) struct Tag {
    pub(crate) text: String,
    pub(crate) pieces: Vec<Piece>,
}

impl Tag {
    /// The text of the token at this index, or an empty string behind the last token.
    pub(crate) fn piece(&self, at: usize) -> &str {
        self.pieces.get(at).map_or("", |piece| &self.text[piece.start..piece.end])
    }

    pub(crate) fn is_name(&self, at: usize) -> bool {
        self.pieces.get(at).is_some_and(|piece| piece.kind == Kind::Name)
    }

    /// Whether a value can begin behind the last token.
    fn expects_value(&self) -> bool {
        const BEFORE_VALUES: [&str; 7] = ["if", "elif", "else", "in", "not", "and", "or"];
        let Some(last) = self.pieces.len().checked_sub(1) else { return true };
        match self.pieces[last].kind {
            Kind::Literal => false,
            Kind::Name => {
                let is_field = last > 0 && self.piece(last - 1) == ".";
                !is_field && BEFORE_VALUES.contains(&self.piece(last))
            }
            Kind::Sign => ![")", "]", "}"].contains(&self.piece(last)),
        }
    }

    fn push(&mut self, kind: Kind, text: &str, depth: usize) {
        let start = self.text.len();
        self.text.push_str(text);
        self.pieces.push(Piece { kind, start, end: self.text.len(), depth });
    }
}

/// A syntax error for what Jinja refuses, or for what only Jinja supports.
pub(crate) fn refuse<T>(what: &str) -> Result<T, Error> {
    Err(Error::new(ErrorKind::SyntaxError, what.to_owned()))
}

/// The source as minijinja must read it.
///
/// # Errors
/// If Jinja refuses the source, or minijinja would silently render another text.
pub(crate) fn adapted(source: &str) -> Result<String, Error> {
    // Jinja's lexer normalises line ends before anything else.
    let source: String = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut adapter = Adapter {
        out: String::with_capacity(source.len()),
        rest: &source,
        trims: false,
        scopes: tags::Scopes::default(),
    };
    while let Some(at) = find_start(adapter.rest) {
        let (data, tag) = adapter.rest.split_at(at);
        let sign: &str = sign_of(&tag[2..]);
        push_data(&mut adapter.out, data, adapter.trims, sign == "-");
        adapter.rest = tag;
        let is_whole: bool = match tag.starts_with("{#") {
            true => adapter.comment(sign),
            false => adapter.tag(sign)?,
        };
        if !is_whole {
            // The compiler's error then names the place of the tag or comment that does not end.
            adapter.trims = false;
            break;
        }
    }
    push_data(&mut adapter.out, adapter.rest, adapter.trims, false);
    Ok(adapter.out)
}

/// A template's source while it is being adapted.
struct Adapter<'a> {
    out: String,
    /// The part of the source that is not adapted yet.
    rest: &'a str,
    /// Whether the tag before `rest` removes the white space that follows it.
    trims: bool,
    scopes: tags::Scopes,
}

impl<'a> Adapter<'a> {
    /// Copies the comment at the start of `rest`; `sign` is the white-space sign behind its opening. Returns whether
    /// the comment ends.
    fn comment(&mut self, sign: &str) -> bool {
        let source: &'a str = self.rest;
        let Some(length) = source[2..].find("#}") else { return false };
        let inside: &str = &source[2..2 + length];
        self.trims = inside.ends_with('-') && inside.len() > sign.len();
        self.copy(length + 4);
        true
    }

    /// Adapts the tag at the start of `rest`; `sign` is the white-space sign behind its opening. Returns whether the
    /// tag ends.
    fn tag(&mut self, sign: &str) -> Result<bool, Error> {
        let source: &'a str = self.rest;
        let start: &str = &source[..2];
        let body: &'a str = &source[2 + sign.len()..];
        let is_block: bool = start == "{%";
        let end: &str = if is_block { "%}" } else { "}}" };
        let Some((mut inside, length)) = inside_of(body, end)? else { return Ok(false) };
        let end_sign: &str = sign_of(&body[length..]);
        if end_sign == "+" && !is_block {
            return refuse("`+}}` ends no expression");
        }
        self.rest = &body[length + end_sign.len() + 2..];
        self.trims = end_sign == "-";
        if is_block && inside.pieces.len() == 1 && inside.piece(0) == "raw" {
            self.push_tag([start, sign, " raw ", end_sign, end]);
            return self.raw(end_sign).map(|()| true);
        }
        if is_block {
            self.scopes.check(&inside)?;
            tags::rename(&mut inside);
            if let Some(namespace) = self.scopes.namespace_of_macro(&inside) {
                // A macro in minijinja captures only the outer names that it reads, and an assignment to a field
                // reads none, so an empty `if` reads the namespace.
                self.push_tag([start, sign, &format!(" if {namespace} "), "", end]);
                self.out += "{% endif %}";
            }
        }
        self.scopes.check_names(&inside)?;
        tags::check_expression(&inside)?;
        let guarded: String = tags::guarded(&inside, is_block);
        // minijinja requires brackets around a printed tuple.
        let is_tuple: bool = !is_block && tags::is_tuple(&inside);
        let text: String = if is_tuple { format!("({guarded})") } else { guarded };
        self.push_tag([start, sign, &text, end_sign, end]);
        Ok(true)
    }

    /// Copies the text between `{% raw %}` and the end of `{% endraw %}`.
    fn raw(&mut self, end_sign: &str) -> Result<(), Error> {
        let (length, ends_trimmed) = raw(self.rest, end_sign)?;
        // Jinja keeps the line end behind the tag and minijinja removes one, so one is added.
        if end_sign != "-" && self.rest.starts_with('\n') {
            self.out.push('\n');
        }
        self.copy(length);
        self.trims = ends_trimmed;
        Ok(())
    }

    /// Copies this many bytes.
    fn copy(&mut self, length: usize) {
        let (copied, rest) = self.rest.split_at(length);
        self.out += copied;
        self.rest = rest;
    }

    fn push_tag(&mut self, parts: [&str; 5]) {
        self.out.extend(parts);
    }
}

/// The white-space sign that a text begins with, or an empty string.
fn sign_of(text: &str) -> &str {
    if text.starts_with(['-', '+']) { &text[..1] } else { "" }
}

/// The byte position of the first tag or comment.
fn find_start(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    (0..bytes.len().saturating_sub(1)).find(|&at| bytes[at] == b'{' && b"{%#".contains(&bytes[at + 1]))
}

/// Appends text that stands between tags. Python's white space has four characters that minijinja does not know. If
/// the text has one of them, the white space that a `-` removes is removed here; otherwise minijinja removes it, so
/// that lines keep their numbers.
fn push_data(out: &mut String, data: &str, trims_start: bool, trims_end: bool) {
    let is_odd = data.contains(|c: char| is_space(c) && !c.is_whitespace());
    let data = if is_odd && trims_start { data.trim_start_matches(is_space) } else { data };
    *out += if is_odd && trims_end { data.trim_end_matches(is_space) } else { data };
}

/// Bytes up to the end of `{% endraw %}`, and whether that tag removes the white space behind it.
fn raw(text: &str, end_sign: &str) -> Result<(usize, bool), Error> {
    if end_sign == "+" {
        return refuse("`{% raw +%}` is no tag");
    }
    let mut at = 0;
    while let Some(found) = text[at..].find("{%") {
        at += found + 2;
        let inside = text[at..].trim_start_matches(['-', '+']).trim_start();
        let Some(behind) = inside.strip_prefix("endraw") else { continue };
        let behind = behind.trim_start();
        let ended = behind.strip_prefix(['-', '+']).unwrap_or(behind);
        if let Some(after) = ended.strip_prefix("%}") {
            return Ok((text.len() - after.len(), behind.starts_with('-')));
        }
    }
    refuse("unexpected end of raw block")
}

/// The inside of a tag up to its end, and its length in the source; `None` if the tag does not end.
fn inside_of(body: &str, end: &str) -> Result<Option<(Tag, usize)>, Error> {
    let mut tag = Tag::default();
    let mut depth: usize = 0;
    let mut at = 0;
    while let Some(c) = body[at..].chars().next() {
        let rest = &body[at..];
        if depth == 0
            && (rest.starts_with(end) || (rest.starts_with(['-', '+']) && rest[1..].starts_with(end)))
        {
            return Ok(Some((tag, at)));
        }
        let length = match c {
            '\'' | '"' => {
                let Some(length) = constant_length(rest, c) else { return Ok(None) };
                let inside = &rest[1..length - 1];
                match inside.contains('\\') {
                    true => tag.push(Kind::Literal, &quoted(&decoded(inside)?), depth),
                    false => tag.push(Kind::Literal, &rest[..length], depth),
                }
                length
            }
            c if is_space(c) => {
                // Inside tags, minijinja only knows ASCII white space.
                tag.text.push(if c.is_ascii_whitespace() { c } else { ' ' });
                c.len_utf8()
            }
            '0'..='9' => {
                let length = number_length(rest, tag.text.ends_with('.'))?;
                tag.push(Kind::Literal, &rest[..length], depth);
                length
            }
            c if is_name(c) => {
                let length = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
                tag.push(Kind::Name, &rest[..length], depth);
                length
            }
            _ => {
                if matches!(c, ')' | ']' | '}') {
                    depth = depth.saturating_sub(1);
                }
                let length = sign_length(rest);
                // minijinja has no unary `+`, so it is written as two minus signs.
                let is_plus = c == '+' && tag.expects_value();
                tag.push(Kind::Sign, if is_plus { "- -" } else { &rest[..length] }, depth);
                if matches!(c, '(' | '[' | '{') {
                    depth += 1;
                }
                length
            }
        };
        at += length;
    }
    Ok(None)
}

fn is_name(c: char) -> bool {
    c == '_' || c.is_alphanumeric() || (!c.is_ascii() && !is_space(c))
}

/// Bytes of an operator.
fn sign_length(rest: &str) -> usize {
    let long = ["==", "!=", "<=", ">=", "//", "**"];
    match long.iter().any(|sign| rest.starts_with(sign)) {
        true => 2,
        false => rest.chars().next().map_or(1, char::len_utf8),
    }
}

/// Bytes of a string constant with its quotes; `None` if it does not end.
fn constant_length(rest: &str, quote: char) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => {
                characters.next()?;
            }
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}
