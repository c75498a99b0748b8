//! Resolves references: JSON pointers (RFC 6901) in fragments of URIs (RFC 3986), anchors, and schemas with URIs of
//! their own.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use moi_text::brief;
use serde_json::{Map, Value};

use super::{
    MAX_DEPTH, MAX_SCHEMAS,
    keywords::{Draft, Holds, holds_schemas},
    too_deep, too_many,
};

/// The most bytes of a URI or a reference, also of a schema's URI joined to that of the resource around it. Browsers
/// accept URIs of this length.
const MAX_URI_BYTES: usize = 2048;

/// A schema in the document.
#[derive(Clone, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) schema: &'a Value,
    /// The URI of the resource that contains it, without its own.
    pub(crate) outer: Rc<str>,
    /// A name for its definition.
    pub(crate) name: String,
}

/// A schema with the schemas within it that references can name.
pub(crate) struct Document<'a> {
    pub(crate) root: &'a Value,
    pub(crate) draft: Draft,
    /// Schemas with a URI, by that URI.
    resources: HashMap<Rc<str>, Target<'a>>,
    /// Schemas with an anchor, by the URI of their resource and the anchor.
    anchors: HashMap<(Rc<str>, String), Target<'a>>,
    /// Names that `$dynamicAnchor` gives, and those of them that several schemas have.
    dynamic: HashSet<String>,
    ambiguous: HashSet<String>,
    /// Number of schemas that were visited.
    schemas: usize,
}

impl<'a> Document<'a> {
    /// # Errors
    /// If the schema is nested too deep, has too many parts or a URI that is too long.
    pub(crate) fn new(root: &'a Value) -> Result<Self, String> {
        let mut document = Self {
            root,
            draft: Draft::of(root),
            resources: HashMap::new(),
            anchors: HashMap::new(),
            dynamic: HashSet::new(),
            ambiguous: HashSet::new(),
            schemas: 0,
        };
        let empty: Rc<str> = Rc::from("");
        let whole = Target { schema: root, outer: empty.clone(), name: "schema".to_owned() };
        // A schema without a URI of its own is found by the empty one, which names the document itself.
        document.resources.insert(empty.clone(), whole);
        document.list(root, &empty, 0)?;
        Ok(document)
    }

    /// Lists the schemas that have a URI or an anchor.
    fn list(&mut self, schema: &'a Value, outer: &Rc<str>, depth: usize) -> Result<(), String> {
        let Value::Object(object) = schema else { return Ok(()) };
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        self.schemas += 1;
        if self.schemas > MAX_SCHEMAS {
            return Err(too_many());
        }
        let base: Rc<str> = self.base_of(object, outer)?;
        let target = |name: &str| Target { schema, outer: outer.clone(), name: name.to_owned() };
        if base != *outer {
            let name = base.rsplit('/').next().unwrap_or_default();
            self.resources.entry(base.clone()).or_insert_with(|| target(name));
        }
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        let mut names: Vec<&str> = Vec::new();
        if self.draft.has_anchors_in_ids() {
            names.extend(text(self.draft.id()).and_then(|id| id.strip_prefix('#')));
        } else {
            names.extend(text("$anchor"));
            if let Some(name) = text("$dynamicAnchor") {
                names.push(name);
                if !self.dynamic.insert(name.to_owned()) {
                    self.ambiguous.insert(name.to_owned());
                }
            }
        }
        for name in names {
            let key = (base.clone(), name.to_owned());
            self.anchors.entry(key).or_insert_with(|| target(name));
        }
        for (key, value) in object {
            let Some(holds) = holds_schemas(key, self.draft) else { continue };
            match (holds, value) {
                (Holds::Named, Value::Object(named)) => {
                    named.values().try_for_each(|schema| self.list(schema, &base, depth + 1))?;
                }
                (_, Value::Array(list)) => {
                    list.iter().try_for_each(|schema| self.list(schema, &base, depth + 1))?;
                }
                (_, schema) => self.list(schema, &base, depth + 1)?,
            }
        }
        Ok(())
    }

    /// The URI of the resource that a schema belongs to. The schema is contained in the resource with the URI
    /// `outer`.
    ///
    /// # Errors
    /// If it is too long.
    pub(crate) fn base_of(&self, object: &Map<String, Value>, outer: &Rc<str>) -> Result<Rc<str>, String> {
        match object.get(self.draft.id()).and_then(Value::as_str) {
            Some(id) if !id.starts_with('#') && !self.draft.hides_siblings(object) => {
                check_length(id)?;
                let base: String = joined(outer, id.split('#').next().unwrap_or_default());
                // Each resource within another one can add to the path.
                check_length(&base)?;
                Ok(Rc::from(base))
            }
            _ => Ok(outer.clone()),
        }
    }

    /// Whether a dynamic reference always leads to the same schema.
    pub(crate) fn is_static(&self, key: &str, reference: &Value) -> bool {
        let Some(reference) = reference.as_str() else { return false };
        match key {
            // The only resource is the document itself, under the empty URI and perhaps its own.
            "$recursiveRef" => self.resources.len() <= 2,
            _ => reference.strip_prefix('#').is_some_and(|name| !self.ambiguous.contains(name)),
        }
    }

    /// The target of a reference in the resource with the URI `base`.
    ///
    /// # Errors
    /// If it names another document or nothing, or is too long.
    pub(crate) fn resolve(&self, reference: &str, base: &str) -> Result<Target<'a>, String> {
        check_length(reference)?;
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let uri = joined(base, uri);
        let nothing = || format!("the schema's reference `{}` names nothing in it", brief(reference));
        let Some(resource) = self.resources.get(uri.as_str()) else {
            return Err(format!(
                "the schema's reference `{}` names another document; only those within it are followed",
                brief(reference)
            ));
        };
        let fragment = unescaped(fragment);
        if fragment.is_empty() {
            return Ok(resource.clone());
        }
        match fragment.strip_prefix('/') {
            Some(pointer) => self.at(resource, pointer).ok_or_else(nothing),
            None => {
                let key: (Rc<str>, String) = (Rc::from(uri), fragment);
                self.anchors.get(&key).cloned().ok_or_else(nothing)
            }
        }
    }

    /// The target of a JSON pointer, which is given without its first slash.
    fn at(&self, resource: &Target<'a>, pointer: &str) -> Option<Target<'a>> {
        let mut at = resource.clone();
        for token in pointer.split('/') {
            let token = token.replace("~1", "/").replace("~0", "~");
            at.schema = match at.schema {
                Value::Object(object) => {
                    at.outer = self.base_of(object, &at.outer).ok()?;
                    object.get(&token)?
                }
                Value::Array(list) => list.get(token.parse::<usize>().ok()?)?,
                _ => return None,
            };
            at.name = token;
        }
        Some(at)
    }
}

fn check_length(uri: &str) -> Result<(), String> {
    match uri.len() > MAX_URI_BYTES {
        true => Err(format!(
            "the schema's URI or reference `{}` has {} bytes, expected {MAX_URI_BYTES} at most",
            brief(uri),
            uri.len()
        )),
        false => Ok(()),
    }
}

/// Decodes percent escapes. Invalid escapes, and text that does not decode to UTF-8, are left unchanged.
fn unescaped(text: &str) -> String {
    let mut bytes: Vec<u8> = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match after {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(16 * high + low);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Joins a reference without its fragment to the URI of the resource that contains it (RFC 3986, section 5.2).
fn joined(base: &str, reference: &str) -> String {
    if reference.is_empty() {
        return base.to_owned();
    }
    if scheme_of(reference).is_some() {
        return reference.to_owned();
    }
    let scheme = scheme_of(base).unwrap_or_default();
    if reference.starts_with("//") {
        return format!("{scheme}{reference}");
    }
    let behind = &base[scheme.len()..];
    let authority = match behind.strip_prefix("//") {
        Some(rest) => 2 + rest.find('/').unwrap_or(rest.len()),
        None => 0,
    };
    let (authority, path) = behind.split_at(authority);
    let path = path.split('?').next().unwrap_or_default();
    let path = match (reference.starts_with('/'), path.rfind('/')) {
        (true, _) => reference.to_owned(),
        (false, Some(slash)) => format!("{}{reference}", &path[..=slash]),
        (false, None) if authority.is_empty() => reference.to_owned(),
        (false, None) => format!("/{reference}"),
    };
    format!("{scheme}{authority}{}", without_dots(&path))
}

/// The scheme with its colon.
fn scheme_of(uri: &str) -> Option<&str> {
    let colon = uri.find(':')?;
    let scheme = &uri[..colon];
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then(|| &uri[..=colon])
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let parts: Vec<&str> = path.split('/').collect();
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        match *part {
            "." | ".." => {
                // The first part of an absolute path is empty, and nothing is above it.
                if *part == ".." && (kept.len() > 1 || kept.first().is_some_and(|first| !first.is_empty())) {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    kept.join("/")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_listed_is_bounded() {
        let listed = |schema: Value| Document::new(&schema).map(|document| document.anchors.len());
        let anchors: Map<String, Value> = (0..20_000)
            .map(|number| (number.to_string(), json!({ "$anchor": format!("a{number}") })))
            .collect();
        let of_length = |length: usize| json!({ "$id": "x".repeat(length), "$defs": anchors.clone() });
        assert_eq!(listed(of_length(MAX_URI_BYTES)), Ok(20_000));
        assert!(listed(of_length(400_000)).is_err_and(|error| error.contains("has 400000 bytes")));
        let mut nested = json!({});
        for _ in 0..30 {
            nested = json!({ "$id": format!("{}/", "x".repeat(100)), "items": nested });
        }
        assert!(listed(nested).is_err_and(|error| error.contains("expected 2048 at most")));
        let many = json!({ "prefixItems": vec![json!({}); MAX_SCHEMAS] });
        assert_eq!(listed(many), Err(too_many()));
        let root = json!({ "$ref": format!("#/{}", "x".repeat(MAX_URI_BYTES)) });
        let document = Document::new(&root);
        let error = document.and_then(|document| document.resolve(root["$ref"].as_str().unwrap_or(""), ""));
        assert!(error.is_err_and(|error| error.contains("expected 2048 at most")));
    }

    #[test]
    fn escapes_are_decoded() {
        for (text, expected) in [
            ("a%20b", "a b"),
            ("a%2fb", "a/b"),
            ("%7E1", "~1"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%C3%A9", "é"),
            ("%ff", "%ff"),
            ("é%25", "é%"),
        ] {
            assert_eq!(unescaped(text), expected);
        }
    }

    #[test]
    fn references_are_joined() {
        for (base, reference, expected) in [
            ("", "item.json", "item.json"),
            ("http://h/a/b", "", "http://h/a/b"),
            ("http://h/a/b", "c", "http://h/a/c"),
            ("http://h/a/b", "/c", "http://h/c"),
            ("http://h", "c", "http://h/c"),
            ("http://h/a/b", "//g/c", "http://g/c"),
            ("http://h/a/b", "urn:x:y", "urn:x:y"),
            ("http://h/a/b/c", "../d", "http://h/a/d"),
            ("http://h/a", "../../d", "http://h/d"),
            ("http://h/a/b", "./", "http://h/a/"),
            ("a/b", "c", "a/c"),
        ] {
            assert_eq!(joined(base, reference), expected, "{base} {reference}");
        }
    }
}
