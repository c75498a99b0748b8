//! Rewrites JSON schemas into the form that llguidance accepts.
//!
//! llguidance finds a `$ref` only by keys that are spelled as in the schema, refuses formats that it does not know,
//! and takes unknown keywords as reasons to spell out every type. According to JSON Schema, a reference is a URI with
//! escapes, and unknown formats and keywords are annotations. So each schema is rewritten before it is compiled:
//! every referenced definition moves to `$defs` under a plain name, and annotations are removed. A constraint of JSON
//! Schema that llguidance cannot enforce is left in, so that llguidance reports an error.

mod disjoint;
mod keywords;
mod references;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod replay;

use std::{
    collections::{HashMap, HashSet},
    ptr,
    rc::Rc,
};

use moi_text::brief;
use serde_json::{Map, Value, json};

use self::{
    keywords::{Holds, constrains, holds, in_order},
    references::{Document, Target},
};

/// The deepest nesting of schemas, with references followed. llguidance takes 14 KB of stack for each level. In a
/// browser no thread can have a larger stack than the usual one of 1 MB.
const MAX_DEPTH: usize = if cfg!(target_family = "wasm") { 48 } else { 256 };
/// The most schemas that are written; a definition within another one counts twice. llguidance compiles fewer.
const MAX_SCHEMAS: usize = 50_000;
/// The key of llguidance's own options, which is allowed in the outermost schema only.
const OPTIONS: &str = "x-guidance";

/// The schema with plain references and without annotations.
///
/// # Errors
/// If a reference leads nowhere or out of the schema, or the schema is larger or deeper than real ones.
pub(crate) fn prepared(schema: &Value) -> Result<Value, String> {
    let Value::Object(root) = schema else { return Ok(schema.clone()) };
    let mut preparation = Preparation {
        document: Document::new(schema)?,
        names: HashMap::new(),
        taken: HashSet::new(),
        definitions: Map::new(),
        open: HashSet::from([ptr::from_ref(schema)]),
        schemas: 0,
    };
    let Value::Object(mut out) = preparation.schema(schema, &Rc::from(""), 0)? else {
        return Ok(schema.clone());
    };
    if let Some(draft) = root.get("$schema") {
        out.insert("$schema".to_owned(), draft.clone());
    }
    if !preparation.definitions.is_empty() {
        out.insert("$defs".to_owned(), Value::Object(preparation.definitions));
    }
    // llguidance removes the options in a way that moves the last entry to their place, so they are put last.
    if let Some(options) = root.get(OPTIONS) {
        out.insert(OPTIONS.to_owned(), options.clone());
    }
    Ok(Value::Object(out))
}

pub(crate) fn too_deep() -> String {
    format!("the schema's parts are nested more than {MAX_DEPTH} deep, references followed")
}

pub(crate) fn too_many() -> String {
    format!("the schema has more than {MAX_SCHEMAS} parts, references followed")
}

struct Preparation<'a> {
    document: Document<'a>,
    /// The names of the definitions that are referred to, by their addresses in memory.
    names: HashMap<*const Value, String>,
    taken: HashSet<String>,
    /// The rewritten definitions, by their names.
    definitions: Map<String, Value>,
    /// Addresses of the definitions that are being rewritten, and of the whole schema.
    open: HashSet<*const Value>,
    schemas: usize,
}

impl<'a> Preparation<'a> {
    /// Rewrites a schema that belongs to the resource with the URI `outer`.
    fn schema(&mut self, schema: &'a Value, outer: &Rc<str>, depth: usize) -> Result<Value, String> {
        let Value::Object(object) = schema else { return Ok(schema.clone()) };
        self.schemas += 1;
        if self.schemas > MAX_SCHEMAS {
            return Err(too_many());
        }
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let draft = self.document.draft;
        let base: Rc<str> = self.document.base_of(object, outer)?;
        if draft.hides_siblings(object) {
            let reference = self.reference(object, "$ref", &base, depth)?;
            return Ok(json!({ "$ref": reference }));
        }
        if self.leads_back(object, &base) {
            return self.unrolled(schema, object, &base, depth);
        }
        self.body(object, &base, depth, false)
    }

    /// Rewrites the keywords of a schema. If `unrolled` is true, references to schemas that are being rewritten are
    /// replaced by those schemas.
    fn body(
        &mut self,
        object: &'a Map<String, Value>,
        base: &Rc<str>,
        depth: usize,
        unrolled: bool,
    ) -> Result<Value, String> {
        let draft = self.document.draft;
        let mut out = Map::new();
        let mut parts: Vec<Value> = Vec::new();
        for key in in_order(object) {
            let Some(value) = object.get(key) else { continue };
            let Some(holds) = holds(key, draft).filter(|_| constrains(object, key, value, draft)) else {
                continue;
            };
            match key {
                "$ref" | "allOf" if unrolled => parts.extend(self.parts(key, value, base, depth)?),
                "$ref" => {
                    out.insert(key.to_owned(), self.reference(object, key, base, depth)?);
                }
                "$dynamicRef" | "$recursiveRef"
                    if self.document.is_static(key, value) && !object.contains_key("$ref") =>
                {
                    out.insert("$ref".to_owned(), self.reference(object, key, base, depth)?);
                }
                "oneOf" => {
                    let rewritten = self.inner(value, holds, base, depth)?;
                    // llguidance accepts options that exclude each other, but rarely detects that they do.
                    let is_any =
                        !object.contains_key("anyOf") && self.document.excludes_all(object, value, base);
                    out.insert(if is_any { "anyOf" } else { key }.to_owned(), rewritten);
                }
                "unevaluatedProperties" if keywords::is_alone(object) => {
                    // Without other schemas for the same object, the evaluated properties are the listed ones.
                    if !object.contains_key("additionalProperties") {
                        let rewritten = self.inner(value, holds, base, depth)?;
                        out.insert("additionalProperties".to_owned(), rewritten);
                    }
                }
                _ => {
                    let rewritten = self.inner(value, holds, base, depth)?;
                    out.insert(key.to_owned(), rewritten);
                }
            }
        }
        if !parts.is_empty() {
            out.insert("allOf".to_owned(), Value::Array(parts));
        }
        Ok(Value::Object(out))
    }

    /// Whether a schema refers to one that is being rewritten and narrows it. llguidance can combine two schemas only
    /// when both are compiled.
    fn leads_back(&self, object: &'a Map<String, Value>, base: &Rc<str>) -> bool {
        let draft = self.document.draft;
        let constrain = |(key, value): &(&String, &Value)| {
            holds(key, draft).is_some() && constrains(object, key, value, draft)
        };
        let others = object.iter().filter(constrain).count().saturating_sub(1);
        let list = object.get("allOf").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let by_itself = others > 0 && self.open_target(object, base).is_some();
        by_itself || (others > 0 || list.len() > 1) && list.iter().any(|part| self.is_open(part, base))
    }

    /// The schema that a schema refers to, if it is being rewritten.
    fn open_target(&self, object: &Map<String, Value>, base: &Rc<str>) -> Option<Target<'a>> {
        let reference = object.get("$ref").and_then(Value::as_str)?;
        let target = self.document.resolve(reference, base).ok()?;
        self.open.contains(&ptr::from_ref(target.schema)).then_some(target)
    }

    /// Whether a part of an `allOf` refers to a schema that is being rewritten.
    fn is_open(&self, part: &Value, base: &Rc<str>) -> bool {
        part.as_object().is_some_and(|object| {
            let base = self.document.base_of(object, base).ok();
            base.is_some_and(|base| self.open_target(object, &base).is_some())
        })
    }

    /// Returns a reference to a new definition, for a schema that narrows one that is being rewritten. The definition
    /// contains the latter written out once more, and refers to itself where that led to this schema.
    fn unrolled(
        &mut self,
        schema: &'a Value,
        object: &'a Map<String, Value>,
        base: &Rc<str>,
        depth: usize,
    ) -> Result<Value, String> {
        let place = ptr::from_ref(schema);
        if let Some(name) = self.names.get(&place) {
            return Ok(json!({ "$ref": format!("#/$defs/{name}") }));
        }
        let name = self.free_name("narrowed");
        self.names.insert(place, name.clone());
        let rewritten = self.body(object, base, depth + 1, true)?;
        self.definitions.insert(name.clone(), rewritten);
        Ok(json!({ "$ref": format!("#/$defs/{name}") }))
    }

    /// The schemas that must all match: the target of a reference, or the parts of an `allOf`.
    fn parts(
        &mut self,
        key: &str,
        value: &'a Value,
        base: &Rc<str>,
        depth: usize,
    ) -> Result<Vec<Value>, String> {
        let list: &'a [Value] = value.as_array().map(Vec::as_slice).unwrap_or_default();
        if key == "allOf" {
            let mut parts: Vec<Value> = Vec::new();
            for part in list {
                let alone = part.as_object().filter(|object| object.len() == 1);
                match alone.and_then(|object| object.get("$ref")).filter(|_| self.is_open(part, base)) {
                    Some(reference) => parts.extend(self.parts("$ref", reference, base, depth)?),
                    None => parts.push(self.schema(part, base, depth + 1)?),
                }
            }
            return Ok(parts);
        }
        let Value::String(reference) = value else {
            return Err("`$ref` in the schema is no text".to_owned());
        };
        let target = self.document.resolve(reference, base)?;
        Ok(vec![self.schema(target.schema, &target.outer, depth + 1)?])
    }

    /// Rewrites the value of a keyword.
    fn inner(
        &mut self,
        value: &'a Value,
        holds: Holds,
        base: &Rc<str>,
        depth: usize,
    ) -> Result<Value, String> {
        match (holds, value) {
            (Holds::Length, Value::Number(number)) => Ok(keywords::whole(number)),
            (Holds::Schema, _) => self.schema(value, base, depth + 1),
            (Holds::SchemaOrSchemas | Holds::Schemas, Value::Array(list)) => {
                let rewritten = list.iter().map(|schema| self.schema(schema, base, depth + 1));
                Ok(Value::Array(rewritten.collect::<Result<Vec<Value>, String>>()?))
            }
            (Holds::SchemaOrSchemas, _) => self.schema(value, base, depth + 1),
            (Holds::Named, Value::Object(named)) => {
                let mut out = Map::new();
                for (name, schema) in named {
                    out.insert(name.clone(), self.schema(schema, base, depth + 1)?);
                }
                Ok(Value::Object(out))
            }
            _ => Ok(value.clone()),
        }
    }

    /// The plain reference that replaces a reference. The definition is rewritten where it is first referred to,
    /// because llguidance compiles it there, so that both count the same depth.
    fn reference(
        &mut self,
        object: &'a Map<String, Value>,
        key: &str,
        base: &Rc<str>,
        depth: usize,
    ) -> Result<Value, String> {
        let Some(Value::String(text)) = object.get(key) else {
            return Err(format!("`{key}` in the schema is no text"));
        };
        let target = self.document.resolve(text, base)?;
        if ptr::eq(target.schema, self.document.root) {
            return Ok("#".into());
        }
        if !target.schema.is_object() && !target.schema.is_boolean() {
            return Err(format!("the schema's reference `{}` leads to what is no schema", brief(text)));
        }
        let place = ptr::from_ref(target.schema);
        if let Some(name) = self.names.get(&place) {
            return Ok(format!("#/$defs/{name}").into());
        }
        let name = self.free_name(&target.name);
        self.names.insert(place, name.clone());
        self.open.insert(place);
        let rewritten = self.schema(target.schema, &target.outer, depth + 1)?;
        self.open.remove(&place);
        self.definitions.insert(name.clone(), rewritten);
        Ok(format!("#/$defs/{name}").into())
    }

    /// An unused name made of characters that need no escape in a reference.
    fn free_name(&mut self, wanted: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let wanted: String = match wanted {
            "" => "schema".to_owned(),
            wanted => wanted.chars().map(plain).collect(),
        };
        let mut name = wanted.clone();
        let mut number = 2;
        while !self.taken.insert(name.clone()) {
            name = format!("{wanted}_{number}");
            number += 1;
        }
        name
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_rewritten() {
        for (schema, expected) in [
            (json!(true), json!(true)),
            (
                json!({"$ref": "#/definitions/a~1b%20c", "definitions": {"a/b c": {"type": "string"}}}),
                json!({"$ref": "#/$defs/a_b_c", "$defs": {"a_b_c": {"type": "string"}}}),
            ),
            (
                json!({"items": {"$ref": "#"}, "title": "x", "deprecated": true}),
                json!({"items": {"$ref": "#"}}),
            ),
            (
                json!({"properties": {"format": {"format": "password"}, "$ref": {"format": "date"}}}),
                json!({"properties": {"format": {}, "$ref": {"format": "date"}}}),
            ),
            (
                json!({"enum": [{"format": "x", "$ref": "#/nowhere"}], "examples": [{"$ref": "no"}]}),
                json!({"enum": [{"format": "x", "$ref": "#/nowhere"}]}),
            ),
            (
                json!({"$ref": "#n", "$defs": {"x": {"$anchor": "n", "type": "null"}}}),
                json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "null"}}}),
            ),
            (json!({"maxLength": 2.0, "uniqueItems": false}), json!({"maxLength": 2})),
            (json!({"items": {}, "contains": {"type": "null"}, "minContains": 0}), json!({"items": {}})),
            (
                json!({"contains": {}, "minContains": 0, "maxContains": 2}),
                json!({"contains": {}, "minContains": 0, "maxContains": 2}),
            ),
            (
                json!({"oneOf": [{"type": "null"}, {"enum": [1, "a"]}]}),
                json!({"anyOf": [{"type": "null"}, {"enum": [1, "a"]}]}),
            ),
            (
                json!({"x-guidance": {"lenient": true}, "not": {}, "$schema": "s"}),
                json!({"not": {}, "$schema": "s", "x-guidance": {"lenient": true}}),
            ),
        ] {
            assert_eq!(prepared(&schema).unwrap(), expected, "{schema}");
        }
    }

    #[test]
    fn hostile_schemas_are_refused() {
        let refused = |schema: Value| prepared(&schema).unwrap_err();
        let chain: Map<String, Value> =
            (0..1000).map(|n| (n.to_string(), json!({"$ref": format!("#/$defs/{}", n + 1)}))).collect();
        assert_eq!(refused(json!({"$ref": "#/$defs/0", "$defs": chain})), too_deep());
        let mut deep = json!({});
        for _ in 0..MAX_DEPTH {
            deep = json!({ "items": deep });
        }
        assert!(prepared(&deep).is_ok());
        assert_eq!(refused(json!({ "items": deep })), too_deep());
        let away = refused(json!({"$ref": "https://example.com/x.json"}));
        assert!(away.contains("names another document"), "{away}");
        let nowhere = refused(json!({"$ref": "#/$defs/a~1b"}));
        assert!(nowhere.contains("`#/$defs/a~1b`") && nowhere.contains("names nothing in it"), "{nowhere}");
    }
}
