#!/usr/bin/env python3
"""Writes which tokens of small vocabularies llama.cpp ends a generation at, and which it takes for control tokens:
crates/pretrained/src/end_tokens.json, replayed by a test of crates/pretrained/src/gguf.rs.

Needs gguf and xllamacpp (llama_cpp.py). Where moi decides otherwise, the row says so under `ours`, with the reason in `why`.
"""

import itertools
import json
import pathlib
import tempfile

import llama_cpp

FILE = pathlib.Path(__file__).parents[2] / "crates/pretrained/src/end_tokens.json"

TEXTS = [
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>",
    "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "</s>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>",
    "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>", "<|fim_prefix|>",
    "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "<|code_prefix|>", "<|fim_suffix|>", "<fim-suffix>",
    "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "<|code_suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>",
    "<｜fim▁end｜>", "<MID>", "<|code_middle|>", "<|prefix|>", "<|suffix|>", "<|middle|>",
    "<|im_start|>", "<s>", "<unk>", "<pad>", "<|eot|>", "<|END|>", "im_end", "<|user|>",
]
# Vocabularies of which more than one token counts.
TOGETHER = [
    (["<|return|>", "<|call|>", "<|end|>"], 3),
    (["<|return|>", "<|end|>"], 3),
    (["<|calls|>", "<|flush|>", "<|end|>"], 3),
    (["<|tool_response>", "</s>"], 3),
    (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], 3),
    (["<|fim_pad|>", "<fim-pad>"], 3),
    (["<|repo_name|>", "<|file_sep|>", "<|endoftext|>"], 1),
    (["</table>", "</s>", "<eos>"], 4),
]
WHY = {
    "<｜end▁of▁sentence｜>": "DeepSeek's files always declare it; without that it ends as well",
    "</table>": "Gemma's vocabularies have </s> as a tag of HTML, among others",
}


def main():
    rows = []
    cases = [([text], kind) for text, kind in itertools.product(TEXTS, [1, 3, 4])] + TOGETHER
    library = llama_cpp.Library()
    letters = [chr(33 + at) for at in range(64)]
    for texts, kind in cases:
        for eos in [None, 0]:
            tokens = letters + texts + ["<stop>"]
            kinds = [1] * len(letters) + [kind] * len(texts) + [3]
            with tempfile.TemporaryDirectory() as directory:
                path = pathlib.Path(directory) / "vocabulary.gguf"
                # llama.cpp has a default end token, 11 in this kind of vocabulary, where the file declares none.
                end = len(tokens) - 1 if eos is None else len(letters) + eos
                llama_cpp.write_gguf(path, "gpt-2", tokens, ['! "'], kinds, eos=end)
                ask = lambda vocabulary: [
                    [at for at in range(len(tokens)) if vocabulary.ends(at)],
                    [at for at in range(len(tokens)) if vocabulary.is_control(at)],
                ]
                ends, control = library.read(path, ask)
            row = dict(texts=texts, kind=kind, eos=end, ends=ends, control=control)
            why = next((why for text, why in WHY.items() if text in texts), None)
            ours = list(ends)
            if texts == ["<｜end▁of▁sentence｜>"]:
                ours = sorted({*ends, len(letters)})
            if "</table>" in texts:
                ours = [id for id in ends if tokens[id] != "</s>" or id == end]
            if ours != ends:
                row.update(ours=ours, why=why)
            if row not in rows:
                rows.append(row)
    table = {"written_by": f"tests/reference/end_tokens.py: {llama_cpp.VERSION}", "letters": len(letters), "rows": rows}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    head = json.dumps({k: v for k, v in table.items() if k != "rows"})[:-1]
    FILE.write_text(f'{head}, "rows": [\n{lines}\n]}}\n')
    print(len(rows), "rows,", FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
