#!/usr/bin/env python3
"""Writes what transformers renders of the chat templates in crates/text/tests/families (or another directory):
rendered.json beside them, replayed by crates/text/tests/families.rs.

    family_templates.py [DIRECTORY]

Needs transformers and jinja2 (used: transformers 5.24.0, jinja2 3.1.6); no model and no torch. The begin and end tokens of a
template, and others that it reads, are kept from the rendered.json that is there.
"""

import json
import pathlib
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

OWN = pathlib.Path(__file__).parents[2] / "crates/text/tests/families"
CONVERSATIONS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "Hi")],
    [("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye  \n")],
]


def render(source, conversation, tokens):
    """The text that transformers renders, or None where it refuses."""
    messages = [{"role": role, "content": content} for role, content in CONVERSATIONS[conversation]]
    try:
        return _compile_jinja_template(source).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **tokens
        )
    except Exception:  # noqa: BLE001: any error is a refusal
        return None


directory = pathlib.Path(sys.argv[1]) if sys.argv[1:] else OWN
file = directory / "rendered.json"
rows = json.loads(file.read_text())
for row in rows:
    source = (directory / f"{row['template']}.jinja").read_text()
    tokens = {"bos_token": row.get("bos"), "eos_token": row.get("eos"), **row.get("extra", {})}
    tokens = {name: text for name, text in tokens.items() if text is not None}
    if "strftime_now(" not in source:
        row["text"] = render(source, row["conversation"], tokens)
file.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
