#!/usr/bin/env python3
"""Writes the ids that the tokenizers package gives for added tokens under all combinations of their flags, and that
transformers gives for tokens which only tokenizer_config.json lists: crates/text/src/token_flags.json, replayed by
crates/text/src/token_flags.rs. Needs tokenizers and transformers."""

import itertools
import json
import pathlib
import tempfile

import tokenizers
import transformers

FILE = pathlib.Path(__file__).parents[2] / "crates/text/src/token_flags.json"
FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"]
CONTENTS = ["<t>", "tok"]
# `@` stands for the token's text.
TEXTS = [
    "@",
    "@@",
    " @ ",
    "a@b",
    "a @ b",
    "a  @  b",
    "@b",
    "a@",
    "1@2",
    "_@_",
    "-@-",
    "é@é",
    "e\u0301@x",
    "中@文",
    "\u200d@\u200d",
    "\n@\n",
    "\u00a0@\u3000",
    "<e>@<e>",
    "<e> @ <e>",
    "@ @",
    "@a@ @",
    "hi @hi@ hi",
    "@.@",
]
EXTRA_TEXTS = ["hi <x> y<z>", "<x><z>hi", "a<x>b <x> <s>", "  <x>  <z>"]


def byte_characters():
    """GPT-2's characters for bytes."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return [chr(byte) if byte in own else chr(256 + others.index(byte)) for byte in range(256)]


def token(id, content, **flags):
    return {"id": id, "content": content, **{flag: flags.get(flag, False) for flag in FLAGS}}


def tokenizer(added):
    """Every byte a token whose id it is, and `hi`."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {**vocab, "hi": 256},
            "merges": ["h i"],
        },
    }


def flags_table():
    rows = []
    for content, values in itertools.product(CONTENTS, itertools.product([False, True], repeat=len(FLAGS))):
        flags = dict(zip(FLAGS, values))
        added = [token(257, "<e>", special=True), token(258, content, **flags)]
        library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer(added)))
        texts = [text.replace("@", content) for text in TEXTS]
        ids = [library.encode(text, add_special_tokens=False).ids for text in texts]
        rows.append({"content": content, "flags": [name for name in FLAGS if flags[name]], "ids": ids})
    return rows


def listed(*tokens):
    """As added_tokens_decoder has them."""
    return {str(entry.pop("id")): entry for entry in map(dict, tokens)}


def extra_table():
    s, plain = token(257, "<s>", special=True), {"content": "<x>"}
    cases = {
        "none": ([s], {}),
        "known": ([s], listed(s)),
        "one more": ([s], listed(s, token(258, "<x>", special=True))),
        "an id behind a gap": ([s], listed(token(300, "<x>", special=True))),
        "in the order of ids, which are numbers": ([s], {**listed(token(1000, "<x>", special=True)), **listed(token(258, "<z>", special=True))}),
        "an id that another added token has": ([s], listed(token(257, "<x>", special=True))),
        "an id that text has": ([s], listed(token(5, "<x>", special=True))),
        "a known token by another id": ([s], listed(token(280, "<s>", special=True))),
        "other flags": ([token(257, "<x>", special=True)], listed(token(257, "<x>", special=True, lstrip=True))),
        "special now": ([token(257, "<x>")], listed(token(257, "<x>", special=True))),
        "a token of the vocabulary": ([s], listed(token(256, "hi", special=True))),
        "text": ([s], listed(token(258, "<x>", normalized=True))),
        "both kinds": ([s], listed(token(258, "<x>"), token(259, "<z>", special=True))),
        "without flags": ([s], {"258": plain}),
        "empty": ([s], listed(token(258, "", special=True), token(259, "<z>", special=True))),
        "single word": ([s], listed(token(258, "<x>", special=True, single_word=True), token(259, "<z>", special=True, rstrip=True))),
    }
    rows = []
    for name, (added, decoder) in cases.items():
        with tempfile.TemporaryDirectory() as directory:
            config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": decoder}
            pathlib.Path(directory, "tokenizer.json").write_text(json.dumps(tokenizer(added)))
            pathlib.Path(directory, "tokenizer_config.json").write_text(json.dumps(config))
            library = transformers.AutoTokenizer.from_pretrained(directory)
            ids = [library.encode(text, add_special_tokens=False) for text in EXTRA_TEXTS]
            rows.append({"name": name, "added": added, "decoder": decoder, "ids": ids, "tokens": len(library)})
    return rows


def main():
    table = {
        "written_by": f"tests/reference/token_flags.py: tokenizers {tokenizers.__version__}, "
        f"transformers {transformers.__version__}",
        "tokenizer": tokenizer([]),
        "texts": TEXTS,
        "flags": flags_table(),
        "extra_texts": EXTRA_TEXTS,
        "extra": extra_table(),
    }
    FILE.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
