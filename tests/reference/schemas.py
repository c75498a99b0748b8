#!/usr/bin/env python3
"""Writes which instances fit which JSON schemas, as the jsonschema package judges them:
crates/engine/src/schema/schemas.json, replayed by crates/engine/src/schema/replay.rs. Needs jsonschema."""

import json
import pathlib

import jsonschema

FILE = pathlib.Path(__file__).parents[2] / "crates/engine/src/schema/schemas.json"
FORMATS = jsonschema.FormatChecker(["date", "ipv4", "uuid", "email"])
STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
DRAFT_4 = "http://json-schema.org/draft-04/schema#"
DRAFT_6 = "http://json-schema.org/draft-06/schema#"
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"


class Not:
    """An instance that a grammar judges otherwise, and why."""

    def __init__(self, instance, why):
        self.instance, self.why = instance, why


ORDER = "properties come in the schema's order"
WHOLE = "whole numbers are written without a fraction"


def closed(required=None, **properties):
    required = list(properties) if required is None else required
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def tagged(tag, **properties):
    return closed(kind={"const": tag}, **properties)


REFERENCES = [
    ({"$ref": "#/definitions/a", "definitions": {"a": STRING}}, ["x", "", 1, None, {}]),
    ({"$ref": "#/$defs/a", "$defs": {"a": INTEGER}}, [1, -5, "1", 1.5, Not(1.0, WHOLE)]),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a~0b", "$defs": {"a~b": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a~01", "$defs": {"a~1": STRING, "a/": INTEGER}}, ["x", 1]),
    ({"$ref": "#/$defs/a~00", "$defs": {"a~0": STRING, "a~": INTEGER}}, ["x", 1]),
    ({"$ref": "#/$defs/a%20b", "$defs": {"a b": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a b", "$defs": {"a b": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a%25b", "$defs": {"a%b": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a%2520", "$defs": {"a%20": STRING, "a ": INTEGER}}, ["x", 1]),
    ({"$ref": "#/$defs/%7E1", "$defs": {"/": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/%7e0%7E1", "$defs": {"~/": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a%22b", "$defs": {'a"b': STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a%5Cb", "$defs": {"a\\b": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/%C3%A9", "$defs": {"é": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/漢", "$defs": {"漢": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs%2Fa", "$defs": {"a": STRING}}, ["x", 1]),
    ({"$ref": "#/%24defs/a", "$defs": {"a": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/100%", "$defs": {"100%": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/", "$defs": {"": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a/properties/b", "$defs": {"a": closed(b=STRING)}}, ["x", 1]),
    ({"$ref": "#/$defs/a/anyOf/1", "$defs": {"a": {"anyOf": [STRING, INTEGER]}}}, [1, "x"]),
    (
        {"$ref": "#/components/schemas/Pet", "components": {"schemas": {"Pet": closed(name=STRING)}}},
        [{"name": "x"}, {"name": 1}, {}],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/x-shared/s"}},
            "required": ["a"],
            "additionalProperties": False,
            "x-shared": {"s": {"type": "string", "format": "password"}},
        },
        [{"a": "x"}, {"a": 1}],
    ),
    ({"$ref": "#here", "$defs": {"a": {"$anchor": "here", "type": "string"}}}, ["x", 1]),
    (
        {"$schema": DRAFT_7, "$ref": "#here", "definitions": {"a": {"$id": "#here", "type": "string"}}},
        ["x", 1],
    ),
    (
        {"$schema": DRAFT_4, "$ref": "#here", "definitions": {"a": {"id": "#here", "type": "string"}}},
        ["x", 1],
    ),
    (
        {
            "$id": "https://example.com/root.json",
            "$ref": "item.json",
            "$defs": {"i": {"$id": "item.json", "type": "string"}},
        },
        ["x", 1],
    ),
    (
        {
            "$id": "https://example.com/a/root.json",
            "$ref": "../b/item.json#/$defs/n",
            "$defs": {"i": {"$id": "/b/item.json", "$defs": {"n": NULL}, "type": "string"}},
        },
        [None, "x"],
    ),
    (
        {
            "$id": "https://example.com/root.json",
            "$ref": "https://example.com/root.json#/$defs/a",
            "$defs": {"a": STRING},
        },
        ["x", 1],
    ),
    (
        {
            "$ref": "item",
            "$defs": {
                "i": {"$id": "item", "$ref": "#/$defs/a", "$defs": {"a": STRING}},
                "a": INTEGER,
            },
        },
        ["x", 1],
    ),
    ({"$ref": "urn:x:item", "$defs": {"i": {"$id": "urn:x:item", "type": "string"}}}, ["x", 1]),
    (
        {
            "$ref": "urn:x:item#n",
            "$defs": {"i": {"$id": "urn:x:item", "$defs": {"n": {"$anchor": "n", **NULL}}}},
        },
        [None, 1],
    ),
    ({"$dynamicRef": "#n", "$defs": {"a": {"$dynamicAnchor": "n", "type": "string"}}}, ["x", 1]),
    (
        {"$schema": DRAFT_2019, **closed([], v=INTEGER, next={"$recursiveRef": "#"})},
        [{}, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {"v": "x"}}],
    ),
    ({"$schema": DRAFT_7, "$ref": "#/definitions/a", "minLength": 5, "definitions": {"a": STRING}}, ["x", 1]),
    ({"$ref": "#/$defs/a", "minLength": 2, "$defs": {"a": STRING}}, ["xx", "x", 1]),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b%20c"}, "b c": STRING}}, ["x", 1]),
    ({"allOf": [{"$ref": "#/$defs/a~1b"}], "$defs": {"a/b": STRING}, "description": "x"}, ["x", 1]),
    (
        {"allOf": [{"$ref": "#/$defs/a~1b"}, {"minLength": 2}], "$defs": {"a/b": STRING}},
        ["xx", "x", 1],
    ),
    (
        {
            "anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c%20d"}],
            "$defs": {"a/b": STRING, "c d": NULL},
        },
        ["x", None, 1],
    ),
    (
        {
            "allOf": [{"anyOf": [{"$ref": "#/$defs/a~1b"}, NULL]}, {"type": ["string", "null", "integer"]}],
            "$defs": {"a/b": {"type": ["string", "integer"], "maxLength": 1}},
        },
        ["x", "xx", 1, None, 1.5],
    ),
    (
        {
            "$ref": "#/$defs/node~0",
            "$defs": {"node~": closed(["v"], v=INTEGER, next={"$ref": "#/$defs/node~0"})},
        },
        [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}, {"v": 1, "next": {}}, {"next": {"v": 1}}],
    ),
    (
        closed([], children={"type": "array", "items": {"$ref": "#"}}),
        [{}, {"children": [{"children": []}, {}]}, {"children": [1]}],
    ),
    (
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": closed([], b={"$ref": "#/$defs/b"}),
                "b": closed([], a={"anyOf": [{"$ref": "#/$defs/a"}, NULL]}),
            },
        },
        [{}, {"b": {"a": {"b": {}}}}, {"b": {"a": None}}, {"b": None}, {"b": {"a": 1}}],
    ),
    (closed(**{"$ref": STRING}), [{"$ref": "x"}, {"$ref": 1}, {}]),
    (closed(**{"$ref": {"$ref": "#/$defs/a"}}) | {"$defs": {"a": INTEGER}}, [{"$ref": 1}, {"$ref": "x"}]),
    ({"const": {"$ref": "#/nowhere"}}, [{"$ref": "#/nowhere"}, {}]),
    ({"enum": [{"$ref": "#/nowhere"}, {"format": "x"}]}, [{"$ref": "#/nowhere"}, {"format": "x"}, {}]),
    (
        {"type": "string", "default": {"$ref": "#/nowhere"}, "examples": [{"$ref": "#/no"}, {"$id": "x"}]},
        ["x", 1],
    ),
]

ANNOTATIONS = [
    *(
        ({"type": "string", "format": name}, ["x", "", 1])
        for name in [
            "password",
            "byte",
            "binary",
            "uri-reference",
            "iri",
            "iri-reference",
            "idn-email",
            "idn-hostname",
            "uri-template",
            "json-pointer",
            "relative-json-pointer",
            "regex",
            "no-such-format",
            "Date",
        ]
    ),
    *(({"type": "integer", "format": name}, [1, 1.5, "x"]) for name in ["int32", "int64"]),
    *(({"type": "number", "format": name}, [1, 1.5, "x"]) for name in ["float", "double"]),
    ({"format": "int32"}, [1, "x", None, {"a": []}]),
    ({"type": "string", "format": "date"}, ["2024-02-29", "2024-13-01", "x", 1]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1", "127.0.0.256", "x"]),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000", "x"]),
    ({"type": "string", "format": "email"}, ["a@b.cd", "x"]),
    (closed(format={"type": "string", "format": "password"}), [{"format": "x"}, {"format": 1}]),
    (
        closed(format=INTEGER, title=STRING, nullable=NULL),
        [{"format": 1, "title": "x", "nullable": None}, {"format": "x"}],
    ),
    (
        {
            "title": "t",
            "description": "d",
            "examples": ["x"],
            "default": 5,
            "deprecated": True,
            "readOnly": True,
            "writeOnly": False,
            "$comment": "c",
            "contentEncoding": "base64",
            "contentMediaType": "text/plain",
            "contentSchema": {"type": "nonsense"},
            "nullable": True,
            "discriminator": {"propertyName": "p"},
            "xml": {"name": "n"},
            "externalDocs": {"url": "u"},
            "example": {"not": "a schema"},
            "x-order": 5,
            "type": "string",
        },
        ["x", None, 1],
    ),
    ({"$ref": "#/$defs/a", "nullable": True, "x-order": 1, "$defs": {"a": STRING}}, ["x", None]),
    (
        {
            "$ref": "#/$defs/n",
            "$defs": {"n": closed([], n={"$ref": "#/$defs/n", "deprecated": True, "example": {}})},
        },
        [{}, {"n": {"n": {}}}, {"n": 1}],
    ),
    ({"description": "anything", "x-note": 1}, [1, "x", None, [], {"a": 1}]),
    ({"type": "array", "items": STRING, "uniqueItems": False}, [["x", "x"], [1]]),
    ({"type": "array", "items": STRING, "uniqueItems": True, "maxItems": 1}, [["x"], ["x", "y"], [1]]),
    ({"type": "string", "minLength": 1.0, "maxLength": 2.0}, ["x", "xx", "", "xxx"]),
    ({"type": "string", "then": {"maxLength": 1}, "else": {"maxLength": 1}}, ["xx", 1]),
    ({"type": "string", "if": {"maxLength": 1}}, ["xx", 1]),
    ({"type": "string", "not": False}, ["x", 1]),
    ({"type": "array", "items": INTEGER, "minContains": 2}, [[1], ["x"]]),
    ({"type": "object", "propertyNames": True, "unevaluatedProperties": True}, [{"a": 1}, 1]),
    (
        {"type": "object", "properties": {"a": STRING}, "unevaluatedProperties": False},
        [{"a": "x"}, {}, {"b": 1}, {"a": 1}],
    ),
    (
        {"unevaluatedProperties": INTEGER, "patternProperties": {"^x": STRING}, "type": "object"},
        [{"xa": "s"}, {"y": 1}, {"y": "s"}, {"xa": 1}],
    ),
    ({"$schema": DRAFT_4, "type": "string", "const": "y"}, ["x", "y", 1]),
    ({"$schema": DRAFT_6, "type": "string", "if": {"maxLength": 1}, "then": {"minLength": 9}}, ["x", 1]),
    ({"$schema": DRAFT_7, "type": "array", "prefixItems": [INTEGER]}, [["x"], [1], 1]),
    (
        {
            "$schema": DRAFT_7,
            "type": "array",
            "items": [INTEGER, STRING],
            "additionalItems": False,
            "minItems": 2,
        },
        [[1, "x"], [1, "x", 1], ["x", 1]],
    ),
    (
        {
            "$schema": DRAFT_2020,
            "type": "array",
            "prefixItems": [INTEGER],
            "items": STRING,
            "additionalItems": False,
            "minItems": 1,
        },
        [[1, "x"], [1], ["x"], [1, 2]],
    ),
    ({"$schema": DRAFT_4, "type": "integer", "minimum": 3, "exclusiveMinimum": True}, [4, 3]),
]

COMBINATIONS = [
    ({"oneOf": [STRING, INTEGER]}, ["x", 1, None]),
    (
        {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": STRING, "b": NULL}},
        ["x", None, 1],
    ),
    ({"oneOf": [{"const": 1}, {"const": 2}, {"const": "a"}]}, [1, 2, "a", 3, "b"]),
    ({"oneOf": [{"enum": [1, 2]}, {"type": "integer", "minimum": 5}]}, [1, 5, 3]),
    (
        {
            "oneOf": [
                {"type": "integer", "maximum": 0},
                {"type": "integer", "exclusiveMinimum": 0, "maximum": 9},
            ]
        },
        [0, 9, 10, -7],
    ),
    (
        {
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {"cat": tagged("cat", lives=INTEGER), "dog": tagged("dog", name=STRING)},
        },
        [
            {"kind": "cat", "lives": 9},
            {"kind": "dog", "name": "x"},
            {"kind": "cat", "name": "x"},
            {"kind": "cow"},
        ],
    ),
    (
        {
            "$ref": "#/$defs/expr",
            "$defs": {
                "expr": {"oneOf": [{"$ref": "#/$defs/num"}, {"$ref": "#/$defs/add"}]},
                "num": tagged("num", value=INTEGER),
                "add": tagged("add", left={"$ref": "#/$defs/expr"}, right={"$ref": "#/$defs/expr"}),
            },
        },
        [
            {"kind": "num", "value": 1},
            {"kind": "add", "left": {"kind": "num", "value": 1}, "right": {"kind": "num", "value": 2}},
            {"kind": "add", "left": {"kind": "num", "value": 1}},
            {"kind": "num", "left": 1},
        ],
    ),
    (
        {
            "type": "object",
            "additionalProperties": False,
            "anyOf": [{"required": ["xa"]}, {}],
            "patternProperties": {"^x": STRING},
        },
        [{"xa": "s"}, {"xb": "s"}, {"xa": 1}, {"y": "s"}],
    ),
    (
        {"type": "object", "properties": {"a": STRING, "b": INTEGER}, "required": ["a", "b"]},
        [
            {"a": "x", "b": 1},
            {"a": "x"},
            {"a": 1, "b": 1},
            {"a": "x", "b": 1, "c": None},
            Not({"b": 1, "a": "x"}, ORDER),
        ],
    ),
    ({"type": "string", "maxLength": 2}, ["ab", "𝒜𝒜", "abc", "𝒜𝒜𝒜"]),
    ({"type": "string", "pattern": "^[a-c]+$", "maxLength": 3}, ["abc", "abcd", "d", ""]),
    ({"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 2}, [0.5, 2, 0.3, 3]),
]

RECURSION = [
    (
        {
            "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"child": {"$ref": "#"}}}],
            "$defs": {"base": {"type": "object", "properties": {"n": STRING}, "required": ["n"]}},
        },
        [{"n": "x"}, {"n": "x", "child": {"n": "y"}}, {"n": "x", "child": {}}, {}],
    ),
    (
        {
            "$ref": "#/$defs/x",
            "$defs": {
                "y": {"type": "object", "properties": {"n": STRING}},
                "x": {"allOf": [{"$ref": "#/$defs/y"}], "properties": {"c": {"$ref": "#/$defs/x"}}},
            },
        },
        [{"n": "x"}, {"n": "x", "c": {"n": "y"}}, {"c": {"c": 1}}, {"c": 1}],
    ),
    (
        {
            "type": "object",
            "properties": {
                "a": {"$ref": "#/properties/b"},
                "b": {"type": "array", "items": {"$ref": "#/properties/a"}},
            },
        },
        [{"a": []}, {"a": [[]], "b": []}, {"a": 1}],
    ),
    (
        {
            "$ref": "#/$defs/a",
            "minProperties": 1,
            "$defs": {"a": closed([], k={"$ref": "#/$defs/a", "minProperties": 1}, l=NULL)},
        },
        [{"k": {"l": None}}, {"l": None}, {}, {"k": {}}, {"k": {"k": {}}}],
    ),
    (
        closed([], k={"$ref": "#", "minProperties": 1}, l=NULL),
        [{}, {"k": {"l": None}}, {"k": {"k": {"l": None}}}, {"k": {}}],
    ),
    (
        closed([], k={"allOf": [{"$ref": "#"}, {"required": ["l"]}]}, l=NULL),
        [{}, {"k": {"l": None}}, {"k": {"k": {"l": None}, "l": None}}, {"k": {}}, {"k": {"k": {}}}],
    ),
    (
        {"anyOf": [closed(a={"$ref": "#"}), NULL]},
        [None, {"a": None}, {"a": {"a": None}}, {"a": 1}],
    ),
    ({"type": "array", "items": {"anyOf": [INTEGER, {"$ref": "#"}]}}, [[1, [2, [3]]], [[]], ["x"]]),
    ({"oneOf": [{"type": "array", "items": {"$ref": "#"}}, INTEGER]}, [1, [1, [2]], ["x"]]),
    (
        {
            "type": "object",
            "additionalProperties": {"$ref": "#/$defs/v"},
            "$defs": {"v": {"oneOf": [STRING, {"type": "array", "items": {"$ref": "#/$defs/v"}}]}},
        },
        [{"a": "x"}, {"a": ["x", ["y"]]}, {"a": 1}],
    ),
    (
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}},
            "oneOf": [
                {"properties": {"k": {"const": "a"}}, "required": ["k"]},
                {"properties": {"k": {"const": "b"}}, "required": ["k"]},
            ],
        },
        [{"k": "a"}, {"k": "c"}, {}],
    ),
    (
        {
            "type": "object",
            "properties": {"d": {"$ref": "#/%24defs/A%7e1B%20C"}},
            "$defs": {"A/B C": {"$ref": "#/%24defs/D~0E"}, "D~E": STRING},
        },
        [{"d": "x"}, {"d": 1}],
    ),
    (
        {
            "$schema": DRAFT_7,
            "$id": "http://x/y.json",
            "type": "object",
            "properties": {"a": {"$ref": "y.json#/definitions/p"}, "b": {"$ref": "#/definitions/p"}},
            "definitions": {"p": INTEGER},
        },
        [{"a": 1, "b": 2}, {"a": "x"}],
    ),
    ({"definitions": {"x": {"not": {}}}, "type": "string"}, ["x", 1]),
    ({"enum": [1, "a", None, [1], {"b": 2}]}, [1, "a", None, [1], {"b": 2}, 2, "b", [2]]),
    ({"const": 'a"b\\é\n'}, ['a"b\\é\n', "x"]),
]

# What means something that cannot be enforced, or nothing: the error says this.
REFUSED = [
    ({"not": STRING}, "`not`"),
    ({"if": STRING, "then": {"minLength": 2}}, "`if`"),
    ({"type": "array", "contains": INTEGER}, "`contains`"),
    ({"type": "array", "uniqueItems": True}, "`uniqueItems`"),
    ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "`oneOf`"),
    ({"$ref": "#/$defs/a~1b"}, "`#/$defs/a~1b` names nothing"),
    ({"$ref": "#a"}, "`#a` names nothing"),
    ({"$ref": "https://example.com/x.json"}, "names another document"),
    ({"$ref": "other.json#/a"}, "names another document"),
    ({"$ref": 5}, "`$ref`"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "`dependentRequired`"),
    ({"$ref": "#/title", "title": "x"}, "no schema"),
]


def written(instance):
    compact = json.dumps(instance, ensure_ascii=False, separators=(",", ":"))
    spaced = json.dumps(instance, ensure_ascii=False, separators=(", ", ": "))
    return sorted({compact, spaced})


def judged(schema, instances):
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = validator(schema, format_checker=FORMATS)
    case = {"schema": schema, "valid": [], "invalid": [], "unjudged": []}
    for instance in instances:
        if isinstance(instance, Not):
            case["unjudged"].append([*written(instance.instance)[:1], instance.why])
        else:
            case["valid" if validator.is_valid(instance) else "invalid"] += written(instance)
    assert case["valid"] and case["invalid"] or len(schema) < 4 and "type" not in schema, schema
    return case


def main():
    cases = [judged(*case) for case in [*REFERENCES, *ANNOTATIONS, *COMBINATIONS, *RECURSION]]
    document = {"cases": cases, "refused": REFUSED}
    text = json.dumps({"jsonschema": jsonschema.__version__})[:-1]
    for name, entries in document.items():
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        text += f',\n"{name}": [\n{lines}\n]'
    FILE.write_text(text + "}\n")
    print(len(cases), "schemas")


if __name__ == "__main__":
    main()
