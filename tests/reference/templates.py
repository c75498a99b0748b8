#!/usr/bin/env python3
"""Writes what transformers makes of small chat templates: crates/text/tests/templates.json, replayed by
crates/text/tests/templates.rs.

Needs transformers and jinja2 (used: transformers 5.24.0, jinja2 3.1.6); no model and no torch.

    templates.py            writes the table
    templates.py --check    compares the table with what transformers does now

A row is a template, the number of its conversation, and the text that transformers renders, or none where it refuses.
Where moi refuses on purpose what transformers renders, the row names a part of moi's message (PARTS of template_snippets.py).
"""

import json
import pathlib
import re
import sys

import jinja2
import transformers
from template_snippets import CONVERSATIONS, EXPRESSIONS, PARTS, SOURCES
from transformers.utils.chat_template_utils import _compile_jinja_template

FILE = pathlib.Path(__file__).parents[2] / "crates/text/tests/templates.json"


def render(source, conversation):
    """The text that transformers renders, or None where it refuses the template."""
    try:
        template = _compile_jinja_template(source)
        return template.render(
            messages=CONVERSATIONS[conversation],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
    except Exception:  # noqa: BLE001: any error is a refusal
        return None


def whole(line):
    """The template of a line: one with tags is a whole template, any other is one expression."""
    return line if "{%" in line or "{{" in line else "{{ " + line + " }}"


def templates():
    """All templates with the number of their conversation."""
    for line in EXPRESSIONS.splitlines():
        line = line.strip()
        if line and not line.startswith("##"):
            yield whole(line), 0
    for source in SOURCES:
        yield source if isinstance(source, tuple) else (source, 0)


def table():
    rows, seen = [], set()
    refused = {whole(line): part for part, lines in PARTS.items() for line in lines}
    for source, conversation in templates():
        if (source, conversation) in seen:
            sys.exit(f"twice in the table: {source!r}")
        seen.add((source, conversation))
        row = {"template": source}
        if conversation:
            row["conversation"] = conversation
        text = render(source, conversation)
        if text is not None:
            # Addresses are others each time; such rows are refused.
            row["text"] = re.sub(r" at 0x[0-9a-f]+", " at 0x", text)
            if row["text"] != text and source not in refused:
                sys.exit(f"an address in what transformers renders: {source!r}")
        if source in refused:
            if text is None:
                sys.exit(f"transformers refuses it, too: {source!r}")
            row["refused"] = refused[source]
        rows.append(row)
    unknown = set(refused) - {source for source, _ in seen}
    if unknown:
        sys.exit(f"not in the table: {sorted(unknown)}")
    return rows


def written():
    by = f"tests/reference/templates.py: transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
    head = {"written_by": by, "conversations": CONVERSATIONS}
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in table()]
    opening = json.dumps(head, ensure_ascii=False, separators=(",", ":"))[:-1]
    return opening + ',"rows":[\n' + ",\n".join(lines) + "\n]}\n"


def main():
    new = written()
    if sys.argv[1:] == ["--check"]:
        old = json.loads(FILE.read_text(encoding="utf-8"))
        new = json.loads(new)
        different = [row for row in new["rows"] if row not in old["rows"]]
        for row in different:
            print("differs:", json.dumps(row, ensure_ascii=False))
        if different or old["conversations"] != new["conversations"] or len(old["rows"]) != len(new["rows"]):
            sys.exit("the table is not what transformers does now")
        print(f"{len(new['rows'])} rows agree")
    else:
        FILE.write_text(new, encoding="utf-8", newline="\n")
        print(f"{FILE}: {len(json.loads(new)['rows'])} rows, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
