#!/usr/bin/env python3
"""Writes the ids that llama.cpp gives for texts under a tokenizer of Gemma 4's kind (`tokenizer.ggml.model` "gemma4"):
crates/text/tests/spaced.json, replayed by crates/text/tests/spaced.rs.

Needs tokenizers, gguf and xllamacpp (llama_cpp.py). The vocabulary is trained here on the texts themselves.
"""

import json
import pathlib
import tempfile

import gguf
import llama_cpp
from pre_tokenizers import TEXTS
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

FILE = pathlib.Path(__file__).parents[2] / "crates/text/tests/spaced.json"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# What llama.cpp cannot take as it is: a text with a byte 0 ends there.
SKIPPED = "\0"


def trained():
    """Tokens and merges: characters that are rare stay bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=700, limit_alphabet=150, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def main():
    own, merges = trained()
    tokens = SPECIAL + BYTES + [token for token in own if token not in SPECIAL]
    # Control tokens, bytes, text.
    kinds = [3] * len(SPECIAL) + [6] * len(BYTES) + [1] * (len(tokens) - len(SPECIAL) - len(BYTES))
    kinds[3] = 2
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(64)
        writer.add_embedding_length(16)
        writer.add_block_count(1)
        writer.add_feed_forward_length(16)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_tokenizer_model("gemma4")
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_token_merges(merges)
        writer.add_add_space_prefix(False)
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        texts = [text for text in TEXTS if SKIPPED not in text]
        ids = llama_cpp.Library().read(path, lambda vocabulary: [vocabulary.encode(text) for text in texts])
    table = {
        "source": llama_cpp.VERSION,
        "tokens": tokens,
        "kinds": kinds,
        "merges": merges,
        "texts": [{"text": text, "ids": own} for text, own in zip(texts, ids, strict=True)],
    }
    FILE.write_text(json.dumps(table, ensure_ascii=False) + "\n")


main()
